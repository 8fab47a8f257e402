"""What is seen of requests: metrics, spans and JSON lines, and that no user's text is in them."""

import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from centroidkv import Engine, Passage
from centroidkv.errors import (
    ConfigError,
    ContextTooLong,
    GenerationTimeout,
    MissingExtra,
    QueueFull,
)
from centroidkv.observers.request_log import FIELDS
from centroidkv.observers.tracing import ATTRIBUTES, SPANS
from centroidkv.observing import NO_OBSERVER, RequestSeen, RouteSeen
from centroidkv.types import FloatArray
from small_parts import HashEmbedder
from word_bank import QUESTIONS, search
from word_bank import ask as ask_for

Opening = Callable[..., Engine]
TEXTS = {
    "prompt": "promptmarkerqx", "question": "questionmarkerqx", "passage": "passagemarkerqx",
    "tenant": "tenantmarkerqx", "folder": "foldermarkerqx", "domain": "domainmarkerqx",
}  # fmt: skip
PROMPT = "The quick brown fox jumps over the lazy dog. " * 6


@pytest.fixture
def provider() -> Iterator[TracerProvider]:
    made = TracerProvider()
    yield made
    made.shutdown()


@pytest.fixture
def spans(provider: TracerProvider) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


def value(engine: Engine, name: str, **labels: str) -> float:
    """Return the value of a metric, 0 where it was never touched."""
    for family in text_string_to_metric_families(engine.metrics()):
        for sample in family.samples:
            if sample.name == f"centroidkv_{name}" and sample.labels == labels:
                return sample.value
    return 0.0


def requests(engine: Engine, ended: str) -> float:
    return sum(
        sample.value
        for family in text_string_to_metric_families(engine.metrics())
        for sample in family.samples
        if sample.name == "centroidkv_requests_total" and sample.labels["ended"] == ended
    )


def ask(engine: Engine, question: str, passage: str, prompt: str) -> None:
    route = engine.route(question)
    shown = engine.compose(route, [Passage("p1", passage)])
    text = "\n".join([*(p.text for p in shown), prompt, question])
    engine.generate(text, question=question, max_tokens=2)


# metrics


def test_metrics_count_outcomes_tokens_and_stages(open_engine: Opening) -> None:
    engine = open_engine(metrics=True)
    first = engine.generate(PROMPT, max_tokens=3).usage
    again = engine.generate(PROMPT, max_tokens=3).usage
    assert (first.outcome, again.outcome) == ("miss", "hit")
    for usage in (first, again):
        labels = {"ended": "answered", "outcome": usage.outcome, "reason": usage.reason}
        assert value(engine, "requests_total", **labels) == 1
    assert value(engine, "prompt_tokens_total", source="reused") == again.reused_tokens
    computed = first.computed_tokens + again.computed_tokens
    assert value(engine, "prompt_tokens_total", source="computed") == computed
    tokens = [value(engine, "completion_tokens_total", source=s) for s in ("decoded", "drafted")]
    assert sum(tokens) == first.completion_tokens + again.completion_tokens
    assert value(engine, "stage_seconds_count", stage="prefill") == 2
    assert value(engine, "ttft_seconds_count", outcome="hit") == 1
    engine.flush()
    stats = engine.stats()
    assert value(engine, "tier_bytes", tier="disk") == stats.disk_bytes > 0
    assert value(engine, "tier_blocks", tier="memory") == stats.memory_blocks


def test_two_stores_have_metrics_of_their_own(open_engine: Opening, tmp_path: Path) -> None:
    one = open_engine(tmp_path / "one", metrics=True)
    other = open_engine(tmp_path / "other", metrics=True)
    one.generate(PROMPT, max_tokens=1)
    assert (requests(one, "answered"), requests(other, "answered")) == (1, 0)


def test_tenants_of_a_store_share_its_metrics(open_engine: Opening) -> None:
    engine = open_engine(metrics=True)
    engine.for_tenant("bank").generate(PROMPT, max_tokens=1)
    assert requests(engine, "answered") == requests(engine.for_tenant("bank"), "answered") == 1


def test_how_a_request_ended_is_told(open_engine: Opening) -> None:
    engine = open_engine(metrics=True, max_running=1, max_waiting=0)
    left = engine.stream(PROMPT, max_tokens=50)
    next(left)
    with pytest.raises(QueueFull):
        engine.generate(PROMPT + "another", max_tokens=1)
    left.close()  # type: ignore[attr-defined]
    assert requests(engine, "abandoned") == 1
    with pytest.raises(GenerationTimeout):
        engine.generate(PROMPT, max_tokens=50, timeout_s=1e-9)
    with pytest.raises(ContextTooLong):
        engine.generate("x" * 5000, max_tokens=1)
    for ended in ("abandoned", "refused", "timed_out", "failed"):
        assert requests(engine, ended) == 1, ended
    # What an answer that was left had cost is counted too.
    assert value(engine, "prompt_tokens_total", source="computed") >= len(PROMPT)
    assert engine.stats().health.refused == 1


def test_evictions_from_memory_are_counted(open_engine: Opening) -> None:
    engine = open_engine(metrics=True, memory_budget_bytes=400_000)
    for number in range(12):
        engine.generate(f"{number} {PROMPT}", max_tokens=1)
    assert value(engine, "memory_evictions_total") > 0
    held = value(engine, "tier_bytes", tier="memory")
    assert held <= value(engine, "tier_budget_bytes", tier="memory")


def test_metrics_are_off_by_default(open_engine: Opening) -> None:
    engine = open_engine()
    assert engine.store.observer is NO_OBSERVER
    with pytest.raises(ConfigError, match="metrics=True"):
        engine.metrics()


@pytest.mark.parametrize(
    "settings",
    [{"metrics": 0}, {"metrics": 70_000}, {"traces": "yes"}, {"json_logs": 3}, {"json_logs": ""}],
)
def test_wrong_settings_are_named(open_engine: Opening, settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        open_engine(**settings)


def test_a_counter_without_a_name_of_ours_is_not_shown(open_engine: Opening) -> None:
    engine = open_engine(metrics=True)
    engine.store.blocks.disk.manifest.count(["store_failed", "requests_by 4711", "Name"])
    shown = [line for line in engine.metrics().splitlines() if "store_events_total{" in line]
    assert shown == ['centroidkv_store_events_total{event="store_failed"} 1.0']


def test_a_manifest_that_cannot_be_read_is_left_out(open_engine: Opening) -> None:
    engine = open_engine(metrics=True)
    engine.generate(PROMPT, max_tokens=1)
    engine.flush()
    engine.store.blocks.disk.manifest.close()
    text = engine.metrics()
    assert "centroidkv_requests_running 0.0" in text
    assert "centroidkv_tier_bytes" not in text


@pytest.mark.parametrize(
    ("setting", "library", "home"),
    [("metrics", "prometheus_client", "metrics"), ("traces", "opentelemetry", "tracing")],
)
def test_a_library_that_is_missing_is_named(
    open_engine: Opening, monkeypatch: pytest.MonkeyPatch, setting: str, library: str, home: str
) -> None:
    monkeypatch.delitem(sys.modules, f"centroidkv.observers.{home}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtra, match=rf"pip install 'centroidkv\[{home}\]'"):
        open_engine(**{setting: True})


# spans


def test_a_request_is_a_span_with_its_stages_inside_the_callers(
    open_engine: Opening, provider: TracerProvider, spans: InMemorySpanExporter
) -> None:
    engine = open_engine(traces=provider)
    with provider.get_tracer("user").start_as_current_span("chain"):
        ask(engine, "who is it?", "It is nobody. " * 10, "Say who.")
    found = {span.name: span for span in spans.get_finished_spans()}
    chain = found.pop("chain")
    names = [*SPANS, *(f"centroidkv.{stage}" for stages in SPANS.values() for stage in stages)]
    assert set(found) == set(names)
    for name, stages in SPANS.items():
        assert _is_within(found[name], chain)
        for stage in stages:
            assert _is_within(found[f"centroidkv.{stage}"], found[name])
    attributes = {**found["centroidkv.route"].attributes, **found["centroidkv.request"].attributes}
    assert set(attributes) == {f"centroidkv.{name}" for name in ATTRIBUTES}
    assert attributes["centroidkv.outcome"] == "miss"


def _is_within(inner: ReadableSpan, outer: ReadableSpan) -> bool:
    assert inner.parent is not None and inner.start_time and outer.start_time
    assert inner.end_time and outer.end_time
    # Clocks of wall time and of durations differ by less than a millisecond here.
    in_time = inner.start_time >= outer.start_time - 1e6 and inner.end_time <= outer.end_time + 1e6
    return inner.parent.span_id == outer.context.span_id and in_time


def test_a_failed_request_is_a_failed_span(
    open_engine: Opening, provider: TracerProvider, spans: InMemorySpanExporter
) -> None:
    engine = open_engine(traces=provider)
    with pytest.raises(ContextTooLong):
        engine.generate("x" * 5000)
    (span,) = spans.get_finished_spans()
    assert not span.status.is_ok
    assert span.attributes["centroidkv.ended"] == "failed"


# lines of JSON


def test_each_request_is_a_line_of_json_in_a_file(open_engine: Opening, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    engine = open_engine(json_logs=path)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: engine.generate(f"{i} {PROMPT}", max_tokens=1), range(8)))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({line["request_id"] for line in lines}) == 8
    for line in lines:
        assert set(line) == set(FIELDS)
        assert (line["ended"], line["outcome"]) == ("answered", "miss")
    assert path.stat().st_mode & 0o777 == 0o600


def test_lines_go_to_a_logger(open_engine: Opening, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="centroidkv.requests"):
        open_engine(json_logs=True).generate(PROMPT, max_tokens=1, reuse="off")
    (record,) = (r for r in caplog.records if r.name == "centroidkv.requests")
    assert json.loads(record.getMessage())["reason"] == "reuse_off"


def test_lines_go_to_stderr_where_no_logging_is_set_up(
    open_engine: Opening, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("centroidkv.requests")
    monkeypatch.setattr(logger, "propagate", False)
    try:
        open_engine(json_logs=True).generate(PROMPT, max_tokens=1)
    finally:
        logger.handlers.clear()
    assert json.loads(capsys.readouterr().err)["outcome"] == "miss"


def test_a_log_that_cannot_be_written_is_named(open_engine: Opening, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="json_logs cannot be written"):
        open_engine(json_logs=tmp_path / "missing" / "requests.jsonl")


# all of them


def test_no_text_of_a_users_is_seen(
    open_engine: Opening,
    provider: TracerProvider,
    spans: InMemorySpanExporter,
    tmp_path: Path,
) -> None:
    log = tmp_path / "requests.jsonl"
    engine = open_engine(
        tmp_path / TEXTS["folder"], metrics=True, traces=provider, json_logs=log, near_misses=1
    )
    tenant = engine.for_tenant(TEXTS["tenant"])
    question = f"What is the {TEXTS['question']}?"
    passage = f"The {TEXTS['passage']} is here. " * 10
    for _ in range(3):
        ask(tenant, question, passage, TEXTS["prompt"])
        tenant.flush()
    route = tenant.route(question, domain=TEXTS["domain"])
    (shown,) = tenant.compose(route, [Passage("p1", passage)])
    told = tenant.generate(f"{shown.text}\n{question}", question=question, max_tokens=2).usage
    assert told.domain == TEXTS["domain"]  # so it could be seen
    tenant.generate(TEXTS["prompt"], reuse="representative", max_tokens=1)
    with closing(tenant.stream(f"{TEXTS['prompt']} {PROMPT}")) as left:  # type: ignore[type-var]
        next(left)
    with pytest.raises(ContextTooLong):
        tenant.generate(TEXTS["prompt"] * 400)
    seen = engine.metrics() + log.read_text()
    seen += "".join(span.to_json() for span in spans.get_finished_spans())
    assert seen.count("centroidkv.request") >= 5
    assert seen.count('"request_id"') >= 5
    for kind, text in TEXTS.items():
        assert text not in seen.lower(), kind


class Quoting(HashEmbedder):
    """An embedder whose errors quote what it was given."""

    is_sound = True

    def embed(self, texts: Sequence[str]) -> FloatArray:
        if not self.is_sound:
            raise ConnectionError(f"no answer to {list(texts)}")
        return super().embed(texts)


def test_no_text_of_a_users_is_logged_when_an_embedder_or_a_chain_quotes_it(
    open_engine: Opening, caplog: pytest.LogCaptureFixture
) -> None:
    embedder = Quoting()
    engine = open_engine(embedder=embedder)
    past = [f"{question} {TEXTS['question']}" for question in QUESTIONS]
    engine.build(questions=past, retriever=search, num_clusters=3, max_pins=1, pca_dim=8)

    def chain(question: str) -> None:
        raise ValueError(f"too long: {question}")

    report = engine.warm(chain)
    assert any(TEXTS["question"] in problem for problem in report.problems)  # so it could be seen
    embedder.is_sound = False
    assert ask_for(engine, f"What is the {TEXTS['question']}?").token_ids
    assert caplog.text.count("the chain raised ValueError") == 2
    assert "the embedder raised ConnectionError" in caplog.text
    assert TEXTS["question"] not in caplog.text


def test_no_text_of_a_users_is_logged_when_work_behind_answers_fails(
    open_engine: Opening, caplog: pytest.LogCaptureFixture
) -> None:
    engine = open_engine()

    def fail() -> None:
        raise KeyError(TEXTS["prompt"])

    engine.store.writer.submit(fail)
    engine.flush()
    assert "KV could not be stored (KeyError)" in caplog.text
    assert TEXTS["prompt"] not in caplog.text


class Broken:
    def began(self) -> None: ...

    def routed(self, seen: RouteSeen) -> None:
        raise RuntimeError("routed")

    def answered(self, seen: RequestSeen) -> None:
        raise RuntimeError("answered")

    def close(self) -> None: ...


def test_an_observer_that_fails_costs_one_warning(
    open_engine: Opening, caplog: pytest.LogCaptureFixture
) -> None:
    engine = open_engine(metrics=True)
    engine.store.observers.watch(Broken())
    ask(engine, "who is it?", "It is nobody. " * 10, "Say who.")
    ask(engine, "who is it?", "It is nobody. " * 10, "Say who.")
    assert requests(engine, "answered") == 2
    assert [r.message for r in caplog.records] == ["Broken lost what it was told: RuntimeError"]


def test_observing_changes_no_answer(
    open_engine: Opening, tmp_path: Path, provider: TracerProvider
) -> None:
    plain = open_engine(tmp_path / "plain")
    seen = open_engine(
        tmp_path / "seen", metrics=True, traces=provider, json_logs=tmp_path / "log.jsonl"
    )
    for prompt in (PROMPT, PROMPT + "And then?", PROMPT):
        one, other = (e.generate(prompt, max_tokens=8) for e in (plain, seen))
        assert one.token_ids == other.token_ids
        assert one.usage.outcome == other.usage.outcome
