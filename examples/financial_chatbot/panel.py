"""The page's panel: what happened to the latest answer, as HTML.

Knows answers and clusters, not the page they stand on. Every text is escaped here.
"""

from dataclasses import dataclass
from html import escape

from open_bank import Answer

from centroidkv.types import Cluster

REASONS = {
    "pinned_prefix": "The cluster's passages came from the store. Only the prompt's end was new.",
    "repeated_prefix": "A prompt that begins like this one was computed before.",
    "extra_passages": "The cluster's passages came from the store; those found besides were new.",
    "prefix_differs": "Only a part of an earlier prompt was the same.",
    "head_only": "Nothing but the instructions was known.",
    "empty_store": "The store holds no KV yet.",
    "other_model": "The store holds KV of another model only.",
    "cluster_not_filled": "The cluster had no KV yet.",
    "not_admitted": "The question lies outside every cluster.",
    "no_route": "The question was not routed.",
    "question_before_context": "The question stands before the passages, so nothing can repeat.",
    "block_damaged": "A stored block was damaged and is computed again.",
    "store_failed": "The store could not be read.",
    "reuse_off": "Reuse is switched off: the same prompt, computed in full.",
}
STATUS = {"hit": "Hit", "partial": "Partial", "miss": "Miss", "bypass": "Bypass"}
LATEST = 6


@dataclass(frozen=True, slots=True)
class Asked:
    """One question of a visitor: its number, its outcome, the time to its first token."""

    number: int
    outcome: str
    ttft_ms: float


def with_latest(earlier: list[Asked], answer: Answer) -> list[Asked]:
    """Return a visitor's latest questions, the finished one included."""
    number = earlier[-1].number + 1 if earlier else 1
    row = Asked(number, answer.usage["outcome"], answer.ttft_ms or answer.total_ms)
    return [*earlier, row][-LATEST:]


def idle() -> str:
    """Return the panel before the first question."""
    return _panel(
        "idle",
        "Ready",
        "Ask a question. Here you will see how much of its prompt was not computed again, and "
        "how long the first word took.",
    )


def waiting(answer: Answer | None) -> str:
    """Return the panel while an answer is under way."""
    if answer is None or answer.ttft_ms is None:
        return _panel("busy", "Reading", "Finding passages and reading the prompt.")
    figures = _figures([("First token", "ttft", _ms(answer.ttft_ms))])
    return _panel("busy", "Answering", "The first word is there.", figures)


def finished(answer: Answer, cluster: Cluster | None, latest: list[Asked]) -> str:
    """Return the panel of a finished answer."""
    usage = answer.usage
    outcome = usage["outcome"]
    figures = _figures(
        [
            ("First token", "ttft", _ms(answer.ttft_ms or answer.total_ms)),
            ("Whole answer", "total", _ms(answer.total_ms)),
            ("Reused tokens", "reused", f"{usage['reused_tokens']:,}"),
            ("Computed tokens", "computed", f"{usage['computed_tokens']:,}"),
        ]
    )
    return _panel(
        outcome,
        STATUS[outcome],
        REASONS.get(usage["reason"], usage["reason"]),
        figures,
        _share(usage["reused_tokens"], usage["prompt_tokens"]),
        _cluster(cluster),
        _history(latest),
        _passages(answer, usage["pinned_passages"]),
        reason=usage["reason"],
    )


def _panel(kind: str, status: str, sentence: str, *parts: str, reason: str = "") -> str:
    return (
        f'<section class="figures" data-state="{kind}" aria-live="polite">'
        f'<header><span class="pill {kind}" data-figure="outcome">{status}</span>'
        f'<span class="reason" data-figure="reason">{reason}</span></header>'
        f'<p class="sentence">{escape(sentence)}</p>{"".join(parts)}</section>'
    )


def _figures(rows: list[tuple[str, str, str]]) -> str:
    cells = (
        f'<div><dt>{label}</dt><dd data-figure="{name}">{value}</dd></div>'
        for label, name, value in rows
    )
    return f'<dl class="grid">{"".join(cells)}</dl>'


def _share(reused: int, total: int) -> str:
    # Rounded down: the last token is always computed, so it is never all of them.
    percent = 100 * reused // total
    return (
        f'<div class="bar" aria-hidden="true"><i style="width:{reused / total:.2%}"></i></div>'
        f'<p class="note">{percent} % of {total:,} prompt tokens were not computed again</p>'
    )


def _cluster(cluster: Cluster | None) -> str:
    if cluster is None:
        return '<h4>Cluster</h4><p data-figure="cluster">none</p>'
    return (
        f'<h4>Cluster <span data-figure="cluster">{cluster.id}</span></h4>'
        f"<p>Around the question \u201c{escape(cluster.representative)}\u201d</p>"
    )


def _history(latest: list[Asked]) -> str:
    longest = max(row.ttft_ms for row in latest) or 1.0
    rows = (
        f"<tr><td>{row.number}</td><td>{STATUS[row.outcome]}</td><td>"
        f'<i class="{row.outcome}" style="width:{row.ttft_ms / longest:.2%}"></i></td>'
        f"<td>{_ms(row.ttft_ms)}</td></tr>"
        for row in latest
    )
    return f"<h4>First token, latest questions</h4><table>{''.join(rows)}</table>"


def _passages(answer: Answer, num_pins: int) -> str:
    pinned, besides = answer.passages[:num_pins], answer.passages[num_pins:]
    marked = [_passage(text, mark="found" if text in answer.found else "") for text in pinned]
    plain = [_passage(text) for text in besides]
    return _group("Passages pinned by the cluster", marked) + _group(
        "Passages found besides" if pinned else "Passages found", plain
    )


def _group(title: str, passages: list[str]) -> str:
    if not passages:
        return ""
    return f"<h4>{title} <small>{len(passages)}</small></h4>{''.join(passages)}"


def _passage(text: str, mark: str = "") -> str:
    title, _, body = text.partition("\n")
    mark = f"<small>{mark}</small>" if mark else ""
    return (
        f'<details class="passage"><summary>{escape(title)} {mark}</summary>'
        f"<p>{escape(body)}</p></details>"
    )


def _ms(value: float) -> str:
    return f"{value:,.0f} ms" if value < 10_000 else f"{value / 1e3:,.1f} s"
