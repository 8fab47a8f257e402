"""Streaming through a whole engine: whatever loading does, answers are those without a cache."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import pytest

from centroidkv import Engine
from centroidkv.decoding import Sampling
from centroidkv.kv.bandwidth import Meter
from centroidkv.kv.tiers import TieredBlocks
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.serving.request import Request
from centroidkv.types import KVBlock, Usage

PROMPT = "".join(
    f"Rule {i}: the fee of plan {i % 7} is {i * 13} dollars a year. " for i in range(20)
)
ASKED = PROMPT[:900] + "Which plan is free?"


class SlowBlocks:
    """The engine's own blocks behind a link that delays, fails or hangs, by block number."""

    def __init__(self, blocks: TieredBlocks, delay: Callable[[int], float | None]) -> None:
        self._fetch, self._delay = blocks.fetch, delay
        self.released = threading.Event()
        self.num_asked = 0

    def fetch(self, block: str, level: str | None = None) -> KVBlock | None:
        self.num_asked += 1
        seconds = self._delay(self.num_asked)
        if seconds is None:
            return None
        self.released.wait(seconds)
        return self._fetch(block, level)


@pytest.fixture
def ask(
    open_engine: Callable[..., Engine], model: TransformersModel, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[Usage, Usage]]]:
    """Fill a store, open it anew, ask from its disk over a slow link; return usage, cold first."""
    links: list[SlowBlocks] = []

    def asking(
        delay: Callable[[int], float | None],
        before: Callable[[Engine], None] = lambda _: None,
        **options: object,
    ) -> tuple[Usage, Usage]:
        with open_engine(**options) as engine:
            cold = engine.generate(ASKED, max_tokens=8, reuse="off")
            engine.generate(PROMPT, max_tokens=1)
        with open_engine(**options) as engine:
            before(engine)
            links.append(SlowBlocks(engine.store.blocks, delay))
            monkeypatch.setattr(engine.store.blocks, "fetch", links[-1].fetch)
            warm = engine.generate(ASKED, max_tokens=8)
            assert warm.token_ids == cold.token_ids
            usage = warm.usage
            # Every token of the match is either loaded or computed, and said to be.
            assert usage.reused_tokens + usage.computed_tokens == usage.prompt_tokens
            links[-1].released.set()
            monkeypatch.undo()
            vars(model).pop("forward", None)  # of `_slow`
            again = engine.generate(ASKED, max_tokens=8)
            assert again.token_ids == cold.token_ids
            assert again.usage.outcome == "hit"
            assert engine.check().is_clean
        return cold.usage, usage

    yield asking
    for link in links:
        link.released.set()


def test_a_fast_link_loads_everything(ask: Callable[..., tuple[Usage, Usage]]) -> None:
    _, usage = ask(lambda _: 0.0)
    assert (usage.tier, usage.loaded_levels, usage.unloaded_tokens) == ("disk", ("raw",), 0)
    assert usage.loaded_bytes > 0
    assert usage.reused_tokens >= 800


def test_a_slow_link_is_met_half_way(ask: Callable[..., tuple[Usage, Usage]]) -> None:
    _, usage = ask(lambda _: 0.05, lambda engine: _slow(engine, 0.2, 0.06))
    assert usage.unloaded_tokens >= 256
    assert usage.reused_tokens >= 64
    assert (usage.outcome, usage.reason) == ("partial", "computed_faster")


def test_a_link_that_hangs_costs_no_more_than_computing(
    ask: Callable[..., tuple[Usage, Usage]],
) -> None:
    started = time.perf_counter()
    _, usage = ask(lambda number: 30.0)
    assert time.perf_counter() - started < 20
    assert usage.reused_tokens == 0
    assert (usage.outcome, usage.reason) == ("miss", "computed_faster")


def test_one_lost_block_costs_one_piece(ask: Callable[..., tuple[Usage, Usage]]) -> None:
    _, usage = ask(lambda number: None if number == 5 else 0.0)
    # Up to what has come by then; what lies behind it is used all the same.
    assert usage.unloaded_tokens in (64, 128, 192, 256)
    assert usage.reused_tokens + usage.unloaded_tokens >= 764


def test_a_link_that_is_gone_is_asked_twice(ask: Callable[..., tuple[Usage, Usage]]) -> None:
    _, usage = ask(lambda number: None if number > 3 else 0.0)
    assert 0 < usage.reused_tokens <= 3 * 64
    assert usage.unloaded_tokens > 0
    assert usage.reason == "block_damaged"


def test_a_grid_is_loaded_and_computed_in_whole_chunks(
    ask: Callable[..., tuple[Usage, Usage]],
) -> None:
    _, usage = ask(lambda _: 0.05, lambda engine: _slow(engine, 0.3, 0.06), bitwise=True)
    assert usage.unloaded_tokens in (256, 512)
    assert usage.reused_tokens in (256, 512)


def _slow(engine: Engine, piece_s: float, block_s: float) -> None:
    """Slow an engine's model down, and let it have measured that and reads from its disk."""
    inner = getattr(engine.model, "model", engine.model)
    model = inner if isinstance(inner, TransformersModel) else engine.model
    forward = model.forward

    def slowed(token_ids: Sequence[int], *args: object, **options: object) -> object:
        time.sleep(piece_s if len(token_ids) > 64 else 0.0)
        return forward(token_ids, *args, **options)

    model.forward = slowed
    meter: Meter = engine.store.blocks.meter
    size = max(path.stat().st_size for path in engine.store.blocks.disk.files())
    for _ in range(8):  # at the same time: each has an eighth of the link
        engine.store.prefill_speed.timed(256, piece_s)
        meter.timed("disk", size, 8 * block_s)


def test_looking_again_counts_its_own_time_alone(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine()
    engine.generate(PROMPT, max_tokens=1)
    answering = engine._policies.exact
    run = answering.prepare(Request(PROMPT, Sampling()))
    with closing(engine.model.open_sequence(2048)) as sequence:
        run.prefill_s, run.load_s = 5.0, 1.0  # of a first look, which computed a part
        answering._restorer.look_again(run, sequence)
        assert sequence.num_tokens > 900
    assert 1.0 < run.load_s < 5.0 == run.prefill_s
