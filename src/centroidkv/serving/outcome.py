"""Naming what happened to a request: outcome and reason from counts, nothing else."""

from dataclasses import dataclass

from centroidkv.kv.blocks import BLOCK_TOKENS
from centroidkv.types import Outcome, Prompt, Reason, Record

__all__ = ["Layout", "classify", "layout"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things stand in a prompt, in tokens.

    `head` tokens come before the first passage, or before the user's text when no passages are
    known; the pins end at `pins_end` (0 without pins).
    """

    head: int
    pins_end: int
    question: int
    is_question_first: bool


def layout(prompt: Prompt, record: Record | None, *, question: str, user_text: str) -> Layout:
    """Locate head, pins and question in a rendered prompt."""
    asked = prompt.text.rfind(question) if question else -1
    length = 0
    if asked >= 0:
        length = prompt.tokens_before(asked + len(question)) - prompt.tokens_before(asked)
    if record is None or not record.passages:
        head = max(0, prompt.text.find(user_text)) if user_text else 0
        return Layout(prompt.tokens_before(head), 0, length, is_question_first=False)
    spans = [_span(prompt.text, p.text.strip()) for p in record.passages]
    starts = [start for start, _ in spans if start >= 0]
    first = min(starts, default=0)
    pins_end = max((end for start, end in spans[: record.num_pins] if start >= 0), default=0)
    return Layout(
        prompt.tokens_before(first),
        prompt.tokens_before(pins_end),
        length,
        is_question_first=0 <= asked < first,
    )


def _span(text: str, part: str) -> tuple[int, int]:
    start = text.find(part)
    return start, start + len(part)


def classify(
    prompt: Prompt,
    where: Layout,
    record: Record | None,
    *,
    reused: int,
    miss: Reason,
    grid: int = 1,
) -> tuple[Outcome, Reason]:
    """Decide outcome and reason.

    A hit computed at most one block besides the question. The head alone is a miss, and so is
    less than one block behind it: what was only found is not a hit. On a grid of that many
    tokens, the pins count as far as they fill chunks, and a hit computed at most one chunk.
    """
    whole_pins = where.pins_end - where.pins_end % grid
    has_pins = record is not None and record.num_pins > 0 and where.pins_end > 0
    has_pins = has_pins and reused >= max(1, whole_pins)
    if not has_pins and reused < where.head + BLOCK_TOKENS:
        return "miss", "head_only" if reused and miss == "no_route" else miss
    if len(prompt) - reused <= max(BLOCK_TOKENS, grid) + where.question:
        return "hit", "pinned_prefix" if has_pins else "repeated_prefix"
    return "partial", "extra_passages" if has_pins else "prefix_differs"
