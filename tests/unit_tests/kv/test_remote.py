"""The remote tier: what one machine stored another finds; whatever it does wrong costs time."""

import base64
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from centroidkv.errors import ConfigError
from centroidkv.kv.blocks import chain, namespace_id
from centroidkv.kv.codec import RAW, BlockCoder
from centroidkv.kv.disk import DiskBlocks
from centroidkv.kv.memory import MemoryBlocks
from centroidkv.kv.remote import RemoteBlocks, entry_name
from centroidkv.kv.remote_opening import open_remote
from centroidkv.kv.tiers import Piece, TieredBlocks
from centroidkv.remote_settings import RemoteSettings
from failing_files import FailingFiles
from small_parts import make_block

ROOT = namespace_id("test")
TOKENS = tuple(range(1000))  # 15 full blocks and a tail
FULL = 15
KEY = base64.b64encode(bytes(range(32))).decode()
Machine = Callable[..., TieredBlocks]


def pieces(token_ids: tuple[int, ...] = TOKENS) -> list[Piece]:
    return [
        Piece(k.parent, token_ids[k.start : k.stop], make_block(k.stop - k.start, seed=k.start))
        for k in chain(ROOT, token_ids)
    ]


@pytest.fixture(autouse=True)
def files() -> Iterator[type[FailingFiles]]:
    fsspec.register_implementation("failing", FailingFiles, clobber=True)
    FailingFiles.start_anew()
    yield FailingFiles
    FailingFiles.let_go.set()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """Open the tiers of one machine; each name is a folder of its own."""
    opened: list[TieredBlocks] = []

    def opening(name: str, *, disk: int = 1 << 24, **settings: object) -> TieredBlocks:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        tier = DiskBlocks(folder, budget_bytes=disk)
        given = {"url": "failing://kv", "timeout_s": 1.0, "retries": 0, "lookup_s": 1.0, **settings}
        remote = open_remote(
            RemoteSettings.of(given),
            count=lambda counter: tier.manifest.count([counter]),
            standing=tier.manifest.standing,
        )
        opened.append(TieredBlocks(MemoryBlocks(budget_bytes=1 << 24), tier, remote))
        return opened[-1]

    yield opening
    for blocks in opened:
        blocks.disk.close()


def remote_of(blocks: TieredBlocks) -> RemoteBlocks:
    assert blocks.remote is not None
    return blocks.remote


def restored(blocks: TieredBlocks, token_ids: tuple[int, ...] = TOKENS) -> int:
    """Load what is found, check it to the bit, and return how many tokens that were."""
    match = blocks.match(ROOT, token_ids)
    num_tokens = 0
    for step, found in zip(match.steps, blocks.in_turn([s.id for s in match.steps]), strict=True):
        if found is None:
            break
        expected = make_block(found.num_tokens, seed=step.start)
        assert np.array_equal(found.keys, expected.keys)
        assert np.array_equal(found.values, expected.values)
        num_tokens = step.stop
    return num_tokens


@pytest.mark.parametrize("settings", [{}, {"key": KEY}, {"url": "memory://one/two"}])
def test_another_machine_finds_blocks_in_the_remote_then_on_disk_then_in_memory(
    machine: Machine, settings: dict[str, object]
) -> None:
    one, two = machine("one", **settings), machine("two", **settings)
    one.persist(pieces())
    ids = [k.id for k in chain(ROOT, TOKENS)]
    assert two.where(ids[0]) is None and not one.disk.manifest.owed(100)
    match = two.match(ROOT, TOKENS)
    assert match.num_tokens == FULL * 64, "the tail is not looked for"
    place = two.where(ids[0])
    assert place is not None and place.tier == "remote"
    overhead = 36 if "key" in settings else 0
    size = one.disk.path(ids[0]).stat().st_size
    assert abs(place.sizes["raw"] - size - overhead) <= 8
    assert two.farthest(ids[:FULL]) == "remote"
    assert restored(two) == FULL * 64
    assert two.farthest(ids[:FULL]) == "memory"
    again = machine("two", **settings)
    assert again.farthest(ids[:FULL]) == "disk"
    assert restored(again) == FULL * 64
    assert again.where(ids[3]).tier == "memory"
    assert two.disk.path(ids[3]).read_bytes() == one.disk.path(ids[3]).read_bytes()
    assert not two.disk.manifest.owed(100), "what came from there is not sent there"


def test_blocks_that_come_last_first_reach_the_disk_all_the_same(machine: Machine) -> None:
    one, two = machine("one"), machine("two")
    one.persist(pieces())
    steps = two.match(ROOT, TOKENS).steps
    assert all(two.fetch(step.id) is not None for step in steps[::-1])
    assert all(two.disk.has(step.id) for step in steps)


def test_a_remote_keeps_several_levels_and_gives_the_one_asked_for(machine: Machine) -> None:
    one, two = machine("one"), machine("two")
    coders = (RAW, BlockCoder("q8"))
    for blocks in (one, two):
        assert blocks.uploads is not None
        blocks.uploads.coders[ROOT] = coders
    made = pieces()[:FULL]
    one.persist(made)
    steps = two.match(ROOT, TOKENS).steps
    sizes = two.where(steps[0].id).sizes
    assert list(sizes) == ["raw", "q8"] and sizes["q8"] < sizes["raw"]
    coarse = two.fetch(steps[0].id, "q8")
    assert coarse is not None and not np.array_equal(coarse.keys, made[0].block.keys)
    assert np.allclose(coarse.keys, made[0].block.keys, atol=0.2)
    assert not two.disk.has(steps[0].id), "the disk keeps the finest alone"
    fine = two.fetch(steps[1].id)
    assert fine is not None and np.array_equal(fine.keys, made[1].block.keys)


def test_a_lookup_takes_few_round_trips_and_a_miss_one(machine: Machine, files) -> None:
    one, two = machine("one"), machine("two")
    one.persist(pieces(tuple(range(64 * 40 + 1))))
    files.calls.clear()
    assert two.match(ROOT, tuple(range(64 * 40 + 1))).num_tokens == 64 * 40
    assert len(files.calls) <= 16
    files.calls.clear()
    two.match(ROOT, tuple(range(64 * 40 + 1)))
    assert files.calls == [], "what is known is not asked again"
    for _ in range(3):
        two.match(ROOT, tuple(range(7, 900)))
    assert len(files.calls) <= 8, "what is not there is not asked again for a while"


def test_nothing_is_asked_where_too_little_could_be_gained(machine: Machine, files) -> None:
    one = machine("one")
    one.persist(pieces())
    files.calls.clear()
    assert restored(one) == 999
    one.match(ROOT, (*TOKENS, *range(200)))
    one.match(ROOT, tuple(range(5, 200)))
    assert files.calls == []


FAULTS = {
    "slow": None, "hang": "timeouts", "denied": "denied", "gone": "failures",
    "cut": "damaged", "altered": "damaged",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_time_and_never_an_answer(
    machine: Machine, files, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = machine("one"), machine("two", timeout_s=0.3, lookup_s=0.3)
    one.persist(pieces())
    files.fault = fault
    with caplog.at_level(logging.WARNING, "centroidkv"):
        for _ in range(6):
            begin = time.monotonic()
            found = restored(two)
            assert time.monotonic() - begin < 6
            assert found == (FULL * 64 if fault == "slow" else 0)
    kind = FAULTS[fault]
    faults, warned = remote_of(two).calls.faults, [r.message for r in caplog.records]
    if kind is None:
        assert not faults and not warned
        return
    assert set(faults) == {kind} and len(warned) == 1, (faults, warned)
    assert two.disk.manifest.counters()[f"remote_{kind}"] == faults[kind] > 0
    if kind in ("timeouts", "denied", "failures"):
        assert remote_of(two).calls.breaker.state == "open" and faults[kind] == 3
        files.calls.clear()
        assert restored(two) == 0 and files.calls == [], "a dead remote is left alone"


def test_a_remote_that_goes_away_in_mid_load_gives_what_came_before(
    machine: Machine, files
) -> None:
    one, two = machine("one"), machine("two")
    one.persist(pieces())
    match = two.match(ROOT, TOKENS)
    files.fault, files.after = "gone", len(files.calls) + 5
    ids = [s.id for s in match.steps]
    came = [b is not None for b in two.in_turn(ids)]
    assert came.count(True) == 5 and len(came) == FULL


def test_a_block_that_another_machine_removed_is_a_miss(machine: Machine, files) -> None:
    one, two = machine("one"), machine("two")
    one.persist(pieces())
    assert two.match(ROOT, TOKENS).num_tokens == FULL * 64
    files.store.clear()
    assert restored(two) == 0
    assert remote_of(two).calls.faults["vanished"] >= 1
    assert two.match(ROOT, TOKENS).num_tokens == 0


def test_a_damaged_entry_is_not_asked_for_again_and_mended_by_the_next_write(
    machine: Machine, files
) -> None:
    one, two = machine("one"), machine("two")
    one.persist(pieces())
    first = chain(ROOT, TOKENS)[0].id
    path = f"/kv/{entry_name(first, 'raw')}"
    fsspec.filesystem("failing").pipe_file(path, b"CKV")
    assert restored(two) == 0
    files.calls.clear()
    assert restored(two) == 0 and "read" not in files.calls
    two.persist(pieces())
    assert remote_of(two).fetch(first) is not None


@pytest.mark.parametrize(
    "case", ["sealed by another key", "in the clear", "sealed", "swapped", "newer"]
)
def test_an_entry_that_is_not_what_its_name_says_is_refused(machine: Machine, files, case) -> None:
    other = base64.b64encode(bytes(32)).decode()
    keys = {"sealed by another key": (other, KEY), "in the clear": (None, KEY),
            "sealed": (KEY, None), "swapped": (KEY, KEY), "newer": (None, None)}  # fmt: skip
    one, two = (machine(n, key=k) for n, k in zip(("one", "two"), keys[case], strict=True))
    one.persist(pieces())
    if case == "swapped":
        names = [f"/kv/{entry_name(k.id, 'raw')}" for k in chain(ROOT, TOKENS)[:2]]
        store = fsspec.filesystem("failing")
        raw = [store.cat_file(n) for n in names]
        for name, content in zip(names, raw[::-1], strict=True):
            store.pipe_file(name, content)
    if case == "newer":
        store = fsspec.filesystem("failing")
        name = f"/kv/{entry_name(chain(ROOT, TOKENS)[0].id, 'raw')}"
        raw = store.cat_file(name)
        store.pipe_file(name, raw.replace(b"centroidkv-block-1", b"centroidkv-block-9"))
    assert restored(two) == 0
    kind = "damaged" if case in ("sealed by another key", "swapped") else "foreign"
    assert set(remote_of(two).calls.faults) == {kind}


def test_sealed_entries_say_nothing_in_the_clear(machine: Machine, files) -> None:
    machine("one", key=KEY).persist(pieces())
    for file in files.store.values():
        assert ROOT.encode() not in file.getvalue() and b"centroidkv-block" not in file.getvalue()


@pytest.mark.parametrize("write", ["through", "back"])
def test_what_leaves_the_disk_is_in_the_remote(machine: Machine, files, write: str) -> None:
    one = machine("one", disk=9 * (make_block(64).num_bytes + 4096), write=write)
    asked = [tuple(range(start, start + 300)) for start in range(0, 5000, 1000)]
    for token_ids in asked:
        one.persist(pieces(token_ids))
    gone = [k.id for t in asked for k in chain(ROOT, t)[:4] if not one.disk.has(k.id)]
    assert len(gone) > 4
    assert all(f"/kv/{entry_name(own, 'raw')}" in files.store for own in gone)
    assert restored(machine("two"), asked[0]) == 256


def test_what_a_dead_remote_missed_is_sent_when_it_is_back(machine: Machine, files) -> None:
    one = machine("one")
    files.fault = "gone"
    one.persist(pieces())
    assert not files.store and one.uploads is not None
    assert len(one.disk.manifest.owed(100)) == FULL
    files.fault = None
    again = machine("one")
    assert again.uploads is not None
    again.uploads.send_owed()
    assert not again.disk.manifest.owed(100)
    assert restored(machine("two")) == FULL * 64


def test_the_remote_obeys_its_budget_and_keeps_prefixes_whole(machine: Machine, files) -> None:
    size = make_block(64).num_bytes + 1200
    one = machine("one", budget_bytes=12 * size)
    used = []
    for start in range(0, 20_000, 1000):
        one.persist(pieces(tuple(range(start, start + 450))))
        used.append(sum(len(f.getvalue()) for f in files.store.values()))
    assert max(used) <= 12 * size and min(used[2:]) > 6 * size
    held = {name.rsplit("/", 1)[-1].split(".")[0] for name in files.store}
    for own in held:
        parent = one.disk.manifest.get(own).parent
        assert parent == ROOT or parent in held, "a block without its parent"
    assert restored(machine("two"), tuple(range(19_000, 19_450))) > 0


def test_a_read_only_remote_is_read_and_not_written(machine: Machine, files) -> None:
    machine("one").persist(pieces())
    before = dict(files.store)
    assert len(before) == FULL, "tails stay on the machine"
    two = machine("two", read_only=True)
    two.persist(pieces(tuple(range(3000, 3300))))
    assert two.uploads is not None
    two.uploads.send_owed()
    assert restored(two) == FULL * 64 and files.store.keys() == before.keys()


@pytest.mark.parametrize(
    ("remote", "word"),
    [
        ("somewhere", "url"), (7, "URL"), ({"url": "x://y", "color": 1}, "color"),
        ({"url": "x://y", "write": "often"}, "write"), ({"url": "x://y", "key": "abc"}, "key"),
        ({"url": "x://y", "key": "env:NO_SUCH_KEY"}, "NO_SUCH_KEY"),
        ({"url": "x://y", "timeout_s": 0}, "timeout_s"),
        ({"url": "x://y", "budget_bytes": -1}, "budget_bytes"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(remote, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        RemoteSettings.given(remote)


def test_secrets_are_not_shown() -> None:
    settings = RemoteSettings("redis://me:secret@host/0", options={"token": "hush"}, key=KEY)
    assert settings.shown_url == "redis://me:***@host/0"
    assert KEY not in repr(settings) and "hush" not in repr(settings)
    with pytest.raises(ConfigError, match="nowhere"):
        open_remote(RemoteSettings("nowhere://x"), count=print, standing=lambda _: None)
