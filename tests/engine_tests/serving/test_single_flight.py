"""One computes a prefix, the others wait for it: engines of several processes on one store."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from centroidkv import Completion, Engine
from centroidkv.kv.blocks import block_id
from centroidkv.models.loading import wrap_model
from centroidkv.serving.single_flight import NUM_NAMES, SingleFlight
from small_parts import HashEmbedder, make_llama, make_tokenizer

PREFIX_TOKENS = 640
BLOCK = "ab" * 32


def prefix(number: int = 0) -> str:
    """A text of as many tokens, which are bytes."""
    return (f"Context {number}. " + f"w{number} lines of a bank " * 60)[:PREFIX_TOKENS]


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[list[Engine]]:
    """Three engines with a model each, as in three processes."""
    opened = []
    for _ in range(3):
        model = wrap_model(make_llama(), make_tokenizer())
        opened.append(Engine.open(tmp_path / "store", model=model, embedder=HashEmbedder()))
        opened[-1].store.flights.patience_s = 20.0
    yield opened
    for engine in opened:
        engine.close()


def ask(engine: Engine, number: int, **options: object) -> Completion:
    prompt = prefix() + f"Question {number}: what of {'abcdefgh'[number]}?"
    return engine.generate(prompt, max_tokens=4, chat_template=False, **options)


def first_block(engine: Engine) -> str:
    tokens = engine.model.encode(prefix(), chat_template=False).token_ids[:64]
    return block_id(engine._learner.namespace, tokens)


def at_once(jobs: list[Callable[[], Completion]]) -> list[Completion]:
    found: list[Completion] = []
    ready = threading.Barrier(len(jobs))

    def run(job: Callable[[], Completion]) -> None:
        ready.wait()
        found.append(job())

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def counter(engine: Engine, name: str) -> int:
    return engine.stats().counters.get(name, 0)


def test_a_prefix_is_computed_once(engines: list[Engine]) -> None:
    done = at_once([lambda e=e, n=n: ask(e, n) for n, e in enumerate(engines)])
    computed = sorted(u.usage.prompt_tokens - u.usage.reused_tokens for u in done)
    assert computed[-1] >= PREFIX_TOKENS
    assert sum(computed[:-1]) < PREFIX_TOKENS, "the others compute their questions alone"
    assert counter(engines[0], "waited_fills") == 2
    for engine in engines:
        engine.flush()
    assert engines[0].check().is_clean


def test_the_answers_are_those_without_reuse(engines: list[Engine]) -> None:
    cold = {n: ask(engines[0], n, reuse="off").token_ids for n in range(3)}
    jobs = {n: (lambda e=e, n=n: ask(e, n)) for n, e in enumerate(engines)}
    done = at_once(list(jobs.values()))
    assert sorted(d.token_ids for d in done) == sorted(cold.values())


def test_kv_is_handed_on_before_the_answer_ends(engines: list[Engine]) -> None:
    one, other, _ = engines
    prompt = prefix() + "Question: what of it?"
    answer = one.stream(prompt, max_tokens=50, chat_template=False)
    next(answer)
    one.flush()
    assert ask(other, 1).usage.reused_tokens >= PREFIX_TOKENS - 64
    *_, last = answer
    assert last.completion is not None
    assert last.completion.usage.stored_tokens == last.completion.usage.prompt_tokens
    one.flush()
    assert one.check().is_clean


def test_who_waits_in_vain_computes(engines: list[Engine]) -> None:
    flight = engines[0].store.flights.start(first_block(engines[0]), wait_s=0).flight
    assert flight is not None
    engines[1].store.flights.patience_s = 0.2
    assert ask(engines[1], 1).token_ids == ask(engines[2], 1, reuse="off").token_ids
    assert counter(engines[1], "abandoned_waits") == 1
    flight.land()
    flight.land()


def test_waiting_leaves_time_to_answer(engines: list[Engine]) -> None:
    flight = engines[0].store.flights.start(first_block(engines[0]), wait_s=0).flight
    assert flight is not None
    began = time.monotonic()
    assert ask(engines[1], 1, timeout_s=2.0).finish_reason in ("stop", "length")
    assert time.monotonic() - began < 2.0
    flight.land()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_holder_that_dies_keeps_nobody_waiting(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        start = SingleFlight(tmp_path / "locks").start(BLOCK, wait_s=0)
        os.write(writer, b"1" if start.flight else b"0")
        time.sleep(60)
        os._exit(0)
    assert os.read(reader, 1) == b"1"
    flights = SingleFlight(tmp_path / "locks")
    assert flights.start(BLOCK, wait_s=0.05).flight is None
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = flights.start(BLOCK, wait_s=5)
    assert found.flight is not None
    found.land()
    os.close(reader)
    os.close(writer)


def test_lock_files_are_few(tmp_path: Path) -> None:
    flights = SingleFlight(tmp_path / "locks")
    for number in range(100):
        flights.start(f"{number * NUM_NAMES // 2:08x}" + "0" * 56, wait_s=0).land()
    assert len(list((tmp_path / "locks").iterdir())) == 2


def test_without_lock_files_everyone_computes(engines: list[Engine], tmp_path: Path) -> None:
    (tmp_path / "store/locks").write_bytes(b"")
    done = at_once([lambda e=e, n=n: ask(e, n) for n, e in enumerate(engines)])
    assert len(done) == 3
    assert counter(engines[0], "waited_fills") == 0


def on_path(count: int = 6) -> list[str]:
    """Ids of blocks in a row, no two of one name."""
    return [f"{number:08x}" + "0" * 56 for number in range(count)]


@pytest.mark.parametrize(("first", "second"), [(3, 1), (1, 3)])
def test_who_begins_elsewhere_on_the_path_waits_too(
    tmp_path: Path, first: int, second: int
) -> None:
    path = on_path()
    one, other = SingleFlight(tmp_path / "locks"), SingleFlight(tmp_path / "locks")
    ahead = one.start(path[first], path=path, wait_s=0)
    assert ahead.flight is not None
    assert other.start(path[second], path=path, wait_s=0.05).flight is None
    threading.Timer(0.2, ahead.land).start()
    later = other.start(path[second], path=path, wait_s=20)
    assert later.flight is not None
    assert later.has_waited
    later.land()
    assert not one.start(path[first], path=path, wait_s=0).has_waited


def test_those_of_other_paths_do_not_wait(tmp_path: Path) -> None:
    flights, path = SingleFlight(tmp_path / "locks"), on_path()
    starts = [flights.start(p[-1], path=p, wait_s=0) for p in (path[:2], [path[0], path[3]])]
    assert all(s.flight is not None and not s.has_waited for s in starts)
    assert len(list((tmp_path / "locks").iterdir())) == 2, "looking makes no files"
    for start in starts:
        start.land()


def test_two_that_begin_at_once_do_not_wait_for_each_other(tmp_path: Path) -> None:
    path, held, most = on_path(), [], []

    def fly(number: int) -> None:
        flights = SingleFlight(tmp_path / "locks")
        start = flights.start(path[number], path=path, wait_s=20)
        assert start.flight is not None
        held.append(number)
        most.append(len(held))
        time.sleep(0.01)
        held.remove(number)
        start.land()

    threads = [threading.Thread(target=fly, args=(n % len(path),)) for n in range(12)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 12
    assert time.monotonic() - began < 15
