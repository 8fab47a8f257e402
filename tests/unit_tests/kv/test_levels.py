"""What a lossy level may lose, and what no level may: a crash, memory, another block's numbers."""

import base64
import hashlib
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from centroidkv.errors import CacheCorrupt, CacheMismatch, ConfigError
from centroidkv.kv.codec import (
    LEVELS,
    RAW,
    BlockCoder,
    StoredBlock,
    block_bytes,
    load_block,
    parse_block,
    save_block,
)
from centroidkv.kv.levels import CodedBlock
from centroidkv.kv.levels.q3 import Q3
from centroidkv.kv.levels.q4 import Q4
from centroidkv.kv.levels.q5k4v import Q5K4V
from centroidkv.kv.levels.q8 import Q8
from centroidkv.kv.levels.stepped import SteppedLevel
from centroidkv.kv.levels.steps import key_steps, value_steps
from centroidkv.rotary import Rotary, from_float32, to_float32
from centroidkv.types import FloatArray, KVBlock
from small_parts import make_block

IDS = ("a" * 64, "b" * 64, "c" * 64)
LOSSY = LEVELS[1:]
# The largest error of each level, in parts of the typical number: twice its largest step there.
BOUNDS = {"q8": 0.2, "q5k4v": 0.9, "q4": 1.3, "q3": 2.0}
ROUNDING = {"float32": 1e-3, "float16": 2e-3, "bfloat16": 1e-2}


def rotary(dim: int) -> Rotary:
    return Rotary((1e4 ** (-np.arange(dim // 2) / (dim // 2))).astype(np.float32)[None])


def written(block: KVBlock, level: str, turning: Rotary | None = None) -> bytes:
    coder = BlockCoder(level, turning)
    return block_bytes(block, ids=IDS, token_ids=range(block.num_tokens), coder=coder)


def normal_block(
    shape: tuple[int, int, int, int] = (3, 2, 64, 16), *, dtype: str = "float32", seed: int = 0
) -> KVBlock:
    """A block of normal numbers about channel means, as keys and values are."""
    random = np.random.default_rng(seed)
    arrays = []
    for _ in range(2):
        spread = random.standard_normal(shape) + random.standard_normal((*shape[:2], 1, shape[3]))
        arrays.append(from_float32(spread.astype(np.float32), dtype))
    return KVBlock(*arrays, dtype)


def worst(one: KVBlock, other: KVBlock) -> float:
    """Return the largest difference of two blocks."""
    pairs = ((one.keys, other.keys), (one.values, other.values))
    return max(
        float(np.abs(to_float32(a, one.dtype) - to_float32(b, one.dtype)).max()) for a, b in pairs
    )


@given(
    layers=st.integers(1, 3),
    heads=st.integers(1, 3),
    tokens=st.integers(1, 70),
    half=st.integers(1, 8),
    dtype=st.sampled_from(list(ROUNDING)),
    level=st.sampled_from(LOSSY),
    turns=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_number_comes_back_within_the_bound_of_its_level(
    layers: int, heads: int, tokens: int, half: int, dtype: str, level: str, turns: bool
) -> None:
    block = normal_block((layers, heads, tokens, 2 * half), dtype=dtype, seed=tokens)
    raw = written(block, level, rotary(2 * half) if turns else None)
    assert raw == written(block, level, rotary(2 * half) if turns else None)
    stored = parse_block(raw, "a block")
    found = stored.block
    assert (found.keys.shape, found.values.shape) == (block.keys.shape, block.values.shape)
    assert (found.keys.dtype, found.dtype) == (block.keys.dtype, dtype)
    assert stored.level in (level, "raw")
    sizes = [np.abs(to_float32(a, dtype)) for a in (block.keys, block.values)]
    largest = max(float(s.max()) for s in sizes)
    # The smallest pair of channels has the coarsest step: up to 2 ** 5 of the typical one.
    spread = max(float(s.max() / np.median(s)) for s in sizes)
    assert worst(block, found) <= BOUNDS[level] * largest * spread + ROUNDING[dtype] * largest


@given(
    scale=st.floats(1e-3, 1e2),
    spread=st.floats(0.0, 3.0),
    level=st.sampled_from([Q8, Q5K4V, Q4, Q3]),
)
@settings(max_examples=40, deadline=None)
def test_no_number_is_off_by_more_than_its_step(
    scale: float, spread: float, level: SteppedLevel
) -> None:
    """Channels of very different sizes; one step, since what lies in a cell has the cell's mean."""
    block = normal_block((2, 2, 64, 8))
    sizes = (scale * np.exp(spread * np.random.default_rng(1).standard_normal(8))).astype(
        np.float32
    )
    block = KVBlock(block.keys * sizes, block.values * sizes, "float32")
    found = parse_block(written(block, level.name), "a block").block
    for one, other, steps in (
        (block.keys, found.keys, key_steps(block.keys, level.key_step, paired=False)),
        (block.values, found.values, value_steps(block.values, level.value_step)),
    ):
        assert (np.abs(one - other) <= 1.002 * steps.sizes + 1e-5 * np.abs(one)).all()


def test_a_coarser_level_is_smaller_and_further_off() -> None:
    block = normal_block((8, 2, 64, 32))
    raw = [written(block, level, rotary(32)) for level in LEVELS]
    assert sorted(map(len, raw), reverse=True) == [len(r) for r in raw]
    errors = [worst(block, parse_block(r, "a block").block) for r in raw]
    assert errors[0] == 0
    assert sorted(errors) == errors
    for level, error in zip(LOSSY, errors[1:], strict=True):
        assert error < BOUNDS[level]


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 1e38])
@pytest.mark.parametrize("level", LOSSY)
def test_a_block_that_a_level_cannot_hold_is_kept_raw(odd: float, level: str) -> None:
    block = normal_block()
    block.keys[1, 0, 5, 3] = odd
    stored = parse_block(written(block, level, rotary(16)), "a block")
    assert stored.level == "raw"
    assert stored.block.keys.tobytes() == block.keys.tobytes()


@pytest.mark.parametrize("level", LOSSY)
def test_constant_channels_and_nothing_at_all_come_back(level: str) -> None:
    block = normal_block()
    block.keys[:, :, :, 3] = 7.0
    block.values[1] = 0.0
    found = parse_block(written(block, level), "a block").block
    assert np.abs(found.keys[:, :, :, 3] - 7.0).max() < BOUNDS[level]
    assert np.abs(found.values[1]).max() < BOUNDS[level] / 10
    empty = KVBlock(np.zeros_like(block.keys), np.zeros_like(block.values), "float32")
    assert worst(parse_block(written(empty, level), "a block").block, empty) == 0


@pytest.mark.parametrize("place", [0, 17, 299])
def test_a_sink_comes_back_finer_than_the_rest(place: int) -> None:
    """Most of the attention rests on tokens of tiny values; a long block may have one anywhere."""
    block = normal_block((4, 2, 300, 16))
    block.values[:, :, place] *= 0.05
    found = parse_block(written(block, "q3", rotary(16)), "a block").block
    for one, other in ((block.keys, found.keys), (block.values, found.values)):
        off = np.abs(one - other).max((0, 1, 3))
        assert off[place] < 0.02 * np.median(off)


def test_layers_of_several_shapes_in_one_row_are_coded_too() -> None:
    block = KVBlock(
        normal_block((1, 1, 64, 50)).keys, normal_block((1, 1, 64, 37)).values, "float32"
    )
    for level in LOSSY:
        assert worst(parse_block(written(block, level), "a block").block, block) < BOUNDS[level] * 4


def test_saved_and_as_bytes_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "block.safetensors"
    coder = BlockCoder("q4", rotary(16))
    size = save_block(path, normal_block(), ids=IDS, token_ids=range(64), coder=coder)
    assert path.read_bytes() == written(normal_block(), "q4", rotary(16))
    assert path.stat().st_size == size
    stored = load_block(path)
    assert (stored.id, stored.parent, stored.namespace) == IDS
    assert (stored.level, stored.token_ids) == ("q4", tuple(range(64)))


def test_raw_files_are_what_they_always_were() -> None:
    raw = block_bytes(make_block(8), ids=IDS, token_ids=range(8))
    assert hashlib.sha256(raw).hexdigest() == RAW_DIGEST
    assert parse_block(raw, "a block").level == RAW.level == "raw"


def test_coded_files_written_once_are_read_for_ever() -> None:
    stored = parse_block(base64.b85decode(GOLDEN), "a block")
    assert stored.level == "q5k4v"
    assert worst(stored.block, small_block()) < BOUNDS["q5k4v"]
    digest = hashlib.sha256(np.round(stored.block.values, 3).tobytes()).hexdigest()
    assert digest[:8] == GOLDEN_VALUES


def test_a_level_of_a_newer_version_is_a_mismatch_that_names_it() -> None:
    raw = written(normal_block(), "q8")
    assert raw.count(b'"level":"q8"') == 1
    newer = raw.replace(b'"level":"q8"', b'"level":"q2"')
    with pytest.raises(CacheMismatch, match="q2") as caught:
        parse_block(newer, "a block")
    assert "q5k4v" in caught.value.expected


def test_a_level_that_there_is_not_is_said_at_once() -> None:
    with pytest.raises(ConfigError, match="q5k4v"):
        BlockCoder("int8")


@pytest.mark.parametrize("level", LOSSY)
def test_flipped_bits_and_truncations_are_noticed(level: str) -> None:
    sound = written(normal_block((1, 2, 8, 4)), level, rotary(4))
    for place in range(0, len(sound), 5):
        altered = bytearray(sound)
        altered[place] ^= 0x10
        for raw in (bytes(altered), sound[:place]):
            with pytest.raises((CacheCorrupt, CacheMismatch)):
                parse_block(raw, "a block")


def stored(coded: CodedBlock) -> StoredBlock:
    return StoredBlock(*IDS, (), coded, "a block")


def is_harmless(coded: CodedBlock) -> bool:
    """Tell whether a coded block is refused or decoded to numbers of its shape."""
    try:
        found = stored(coded).block
    except CacheCorrupt:
        return True
    return found.keys.shape == coded.key_shape and bool(np.isfinite(found.keys).all())


@given(place=st.floats(0, 1), value=st.integers(0, 255), part=st.sampled_from(["keys", "values"]))
@settings(max_examples=200, deadline=None)
def test_payloads_that_a_checksum_vouches_for_do_no_harm(
    place: float, value: int, part: str
) -> None:
    altered = CODED.parts[part].copy()
    altered[int(place * (altered.size - 1))] = value
    assert is_harmless(replace(CODED, parts={**CODED.parts, part: altered}))
    cut = CODED.parts[part][: int(place * altered.size)]
    assert is_harmless(replace(CODED, parts={**CODED.parts, part: cut}))


@pytest.mark.parametrize(
    "odd",
    [
        {"key_shape": (1 << 20, 1 << 10, 64, 1 << 10)},
        {"key_shape": (3, 2, 1 << 30, 16), "value_shape": (3, 2, 1 << 30, 16)},
        {"key_shape": (3, 2, 0, 16), "value_shape": (3, 2, 0, 16)},
        {"key_shape": (3, 2, 64, 17)},
        {"key_shape": (3, 2, 63, 16)},
        {"dtype": "int8"},
        {"parts": {}},
    ],
)
def test_shapes_that_lie_take_no_memory(odd: dict[str, object]) -> None:
    tracemalloc.start()
    with pytest.raises(CacheCorrupt, match="a block"):
        _ = stored(replace(CODED, **odd)).block
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("part", "array"),
    [
        ("apart", np.array([64], np.uint32)),
        ("apart", np.array([1, 1], np.uint32)),
        ("apart", np.array([0, 1, 2, 3, 4], np.uint32)),
        ("apart", np.array([np.nan], np.float32)),
        ("frequencies", np.ones((2, 8), np.float32)),
        ("keys", np.zeros((2, 2), np.float32)),
    ],
)
def test_parts_that_do_not_belong_are_corrupt(part: str, array: FloatArray) -> None:
    with pytest.raises(CacheCorrupt):
        _ = stored(replace(CODED, parts={**CODED.parts, part: array})).block


def small_block() -> KVBlock:
    return normal_block((2, 1, 5, 4), seed=7)


CODED = BlockCoder("q4", rotary(16)).encode(normal_block())
RAW_DIGEST = "cdfaa195e5b5fc219e510076d7328dbb76ed8e54feaf7bcacc1fbe0780357f93"
GOLDEN = (
    b"xB>tG00000dm>+7ZDn*}WMOn+Utc0Rdm?6Ua&2LBB03^tWo~qGZ)s#}b}eIXWMyP6F(ND?X=EZgB4J@+VPRo"
    b"mVPRomVPRomVPRomVPRomVPRomVPRomVPRomVPRomVPRomVPRomVPRomVPRomVPRomVPRomVInLdaA9&~Zge"
    b"6#B4T1<Vq#)qVq#)qVq#)qVq#)qVq#)qVq#)qVq#)qVq#)qVq#)qVq#)qVq#)qVq#)qVq#)qVq#)qVq#)qVj"
    b"?UeZeeX@b8ul}Wg<EvV`F1uV`F1uV`F1uV`F1uV`F1uV`F1uV`F1uV`F1uV`F1uV`F1uV`F1uV`F1uV`F1uV"
    b"`F1uV`F1uV`F1uA}k_wZ);_4b0Rt-FfcGMFfcGMFfcGMFfcGNFfcGMFfcGOFfcGMFfcGPFfcGMFfcGQA}k_g"
    b"ba`-PB03^wY;R$7GcqD9B5Y-LWo#lkB5^fqG<G5^B6DbAaAk8MIwD(JGAtl5EFd*3AT(VpAX_plATcZ;H7p="
    b"BU0ot9B6xUcGa@=7V=^-^Fg0N@H8f>qWMeU9V>L86I5#(BI5sdbGiG5oB7H0(VQ^t`bRs%?B4l)VaAhJoB2_"
    b"aoA}k_vXkl<=B05_zT`VGGVRT_%Z)Rq5Wpr~QI$JO-FkO8tB5P%Nb0Ru>B4l)VaAhJoB2_pdEFyDgVQ^(4I$"
    b"JS0GhHkqWMOn+UvFk+b7gdMB05_zEHODVU41Mfc42IFWpg4rdm?0Xd2nSSIwDm#A}k_vXkl<=B05_!HaT4^B"
    b"4lB7VP9`%W^-k9b0RuhF*!3VGd40^eJmnoa%FLKWo~0>Wpg4rdm?0Xd2nSSIwD3hG9oM@b7*03Wg<FTF)T7&"
    b"EFxrKbYWj_W@d9`baNs)TQfE?EHgJSU44BZARr(hg_F)c5dZ)HD77#BAP7MK000310RR9102u%P04TLD{U8v"
    b"5000610RaB|{r~{~00960{{RsH001bpFa010K>z>+0t5mA0t5nDzbU)It2;X$KoS4|04TLD{U8ZR0028BURo"
    b"|bUj{z6!~n!P!d|}sye_nEI)Og`LJC9xMGgP}04TLD{U8M?001FVNjYTz#{k9v#mK_|!aKmpxc~qFJODrdLI"
    b"6YnMF2+KMhpM|04TLD{U8Gw001*kcXpP_J_`T<04TLD{U8Dn0093182|tPD77#BAP|8700RU90{#I30RR910"
    b"RI30022TJ04TLD{U8ca000C70|W#F0RsU6w!4_DL^})s001bpFa00`82|wCLv@D14ZzgB@HEIf06@e+4*&oF"
    b"D77#BAO<l202wME4H+x|#e>78!vDV%yRR?~JCi>ELVHAfMG*i104TLD{U8WI0043k9S$XFFc1I$fIkY?BRl"
)
GOLDEN_VALUES = "679e840c"
