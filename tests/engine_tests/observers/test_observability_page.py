"""The page on observability lists what there is: no more, no less."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from centroidkv import Engine
from centroidkv.errors import ContextTooLong
from centroidkv.observers.health import Health
from centroidkv.observers.request_log import FIELDS
from centroidkv.observers.tracing import ATTRIBUTES, SPANS

PAGE = (Path(__file__).parents[3] / "docs" / "observability.md").read_text("utf-8")


def rows(title: str) -> list[list[str]]:
    """Return the cells of all tables under a heading, their headings left out."""
    part = PAGE.split(f"\n{title}\n", 1)[1].split("\n#", 1)[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in cells if row[0].startswith("`")]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_metrics(open_engine: Callable[..., Engine], tmp_path: Path) -> None:
    engine = open_engine(
        metrics=True, remote=f"file://{tmp_path / 'remote'}", chroma="http://127.0.0.1:9"
    )
    engine.route("who?")
    engine.generate("x" * 300, max_tokens=1)
    listed = {name: (kind, names(labels)) for [name], kind, labels in _metrics()}
    found = {}
    assert engine.store.observers is not None and engine.store.observers.metrics is not None
    for family in engine.store.observers.metrics.registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = family.type
        for sample in family.samples:
            assert sorted(set(sample.labels) - {"le"}) == sorted(listed[name][1]), name
    assert found == {name: kind for name, (kind, _) in listed.items()}


def _metrics() -> list[tuple[list[str], str, str]]:
    return [(names(row[0]), row[1], row[2]) for row in rows("## Metrics")]


def test_queries_ask_for_metrics_that_are_there() -> None:
    asked = set(re.findall(r"centroidkv_\w+", PAGE.split("### Queries for Grafana")[1]))
    asked = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    assert asked <= {name for [name], *_ in _metrics()}
    assert len(asked) > 10


def test_spans_and_attributes() -> None:
    listed = rows("## Spans")
    spans = {names(row[0])[0]: names(row[1]) for row in listed if len(row) == 2}
    assert spans == {k: [f"centroidkv.{stage}" for stage in v] for k, v in SPANS.items()}
    attributes = {names(row[0])[0] for row in listed if len(row) == 3}
    assert attributes == {f"centroidkv.{name}" for name in ATTRIBUTES}


def test_lines_of_json() -> None:
    listed = [name for row in rows("## Lines of JSON") for name in names(row[0])]
    assert sorted(listed) == sorted(FIELDS)


def test_health() -> None:
    listed = [name for row in rows("## Health") for name in names(row[0])]
    assert listed == [f.name for f in dataclasses.fields(Health)]


def test_what_a_request_that_failed_says(
    open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    log = tmp_path / "requests.jsonl"
    engine = open_engine(json_logs=log)
    try:
        engine.generate("x" * 5000)
    except ContextTooLong:
        line = log.read_text()
    assert re.findall(r'"(\w+)":', line) == list(FIELDS[: FIELDS.index("seconds") + 1])
