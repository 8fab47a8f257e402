"""Whether blended answers are as good as computed ones: text-span questions of TAT-QA dev.

Every question is answered twice from the same prompt, greedily. Passages are computed in contexts,
each for itself, and placed: nothing of the prompt but its head and its first passage is exact.
"""

from pathlib import Path
from typing import Any

import numpy as np
from quality_answers import KeptAnswers
from quality_prompts import Asking, Composer, Setting, rendered
from quality_scores import bootstrap, is_exact, token_f1
from quality_sets import tatqa

from centroidkv.blend.computing import placed
from centroidkv.blend.heads import NUM_CONTEXTS, Head, TokenIds, run_up_of
from centroidkv.blend.spans import PassageLayout, locate
from centroidkv.config import Sampling
from centroidkv.models.loading import load_model
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.protocols import RunningSequence

SHARE = 0.15


def quality(data: Path, cache: Path, seed: int, limit: int | None) -> list[dict[str, Any]]:
    """Answer what is not answered yet, `limit` questions in all; return the paired comparison."""
    questions = tatqa(data, seed=0)
    composed = Composer(questions, cache).compose(Setting("plain", None, {}))
    # Answers in tables are numbers, which a small model seldom gets right in either way.
    askings = [asking for asking in composed if asking.asked.kind == "text"]
    order = np.random.default_rng(seed).permutation(len(askings))[:limit]
    model = load_model("bundled:smollm2")
    full, blended = (KeptAnswers(cache / f"{n}.jsonl") for n in ("full", f"blended_{SHARE}"))
    shown = [_spans(model, asking)[1] for asking in askings]
    room = NUM_CONTEXTS * sum(len(unit) for units in shown for unit in units) // (2 * len(shown))
    run_up = run_up_of((unit for units in shown for unit in units), room)
    rows = []
    for number, i in enumerate(order, start=1):
        asking = askings[i]
        rows.append(_pair(model, asking, full, blended, run_up, questions.max_tokens))
        if number % 10 == 0:
            print(number, _summary(rows, len(askings)), flush=True)
    return [_summary(rows, len(askings))]


def _pair(
    model: TransformersModel,
    asking: Asking,
    full: KeptAnswers,
    blended: KeptAnswers,
    run_up: tuple[TokenIds, ...],
    max_tokens: int,
) -> tuple[Asking, str, str]:
    ids = asking.prompt
    if full.get(ids, max_tokens) is None:
        full.put(ids, max_tokens, _full(model, ids, max_tokens))
    if blended.get(ids, max_tokens) is None:
        blended.put(ids, max_tokens, _blended(model, asking, run_up, max_tokens))
    texts = full.get(ids, max_tokens), blended.get(ids, max_tokens)
    return asking, texts[0] or "", texts[1] or ""


def _full(model: TransformersModel, ids: tuple[int, ...], max_tokens: int) -> str:
    sequence = model.open_sequence(len(ids) + max_tokens)
    sequence.prefill(ids)
    return _answer(sequence, max_tokens)


def _spans(model: TransformersModel, asking: Asking) -> tuple[PassageLayout, tuple[TokenIds, ...]]:
    """Return where the passages of a prompt stand, and their tokens."""
    prompt = model.encode(rendered(asking.system, asking.user))
    context = asking.user.removeprefix("Context:\n").rsplit("\n\nQuestion:", 1)[0]
    layout = locate(prompt, context.split("\n\n"), question=asking.asked.question)
    return layout, tuple(prompt.token_ids[s.start : s.stop] for s in layout.spans)


def _blended(
    model: TransformersModel, asking: Asking, run_up: tuple[TokenIds, ...], max_tokens: int
) -> str:
    ids = model.encode(rendered(asking.system, asking.user)).token_ids
    layout, _ = _spans(model, asking)
    head = Head(ids[: layout.head], run_up)
    # The first passage is in the store as it is behind the head.
    exact = layout.spans[0].stop
    passages = placed(model, head, ids, layout.spans[1:], namespace="quality")
    sequence = model.open_sequence(len(ids) + max_tokens)
    sequence.prefill(ids[:exact])
    sequence.blend(ids[exact:], passages, share=SHARE)
    return _answer(sequence, max_tokens)


def _answer(sequence: RunningSequence, max_tokens: int) -> str:
    try:
        tokens = list(sequence.decode(Sampling(max_tokens=max_tokens)))
    finally:
        sequence.close()
    return "".join(t.text for t in tokens if not t.is_end).strip()


def _summary(rows: list[tuple[Asking, str, str]], of: int) -> dict[str, Any]:
    scores = np.array(
        [[token_f1(text, a.asked.gold) for text in texts] for a, *texts in rows], float
    )
    difference = bootstrap(scores[:, 1] - scores[:, 0], [a.asked.document for a, *_ in rows])
    exact = np.array([[is_exact(t, a.asked.gold) for t in texts] for a, *texts in rows], float)
    return {
        "questions": len(rows),
        "of": of,
        "share": SHARE,
        "f1_full": round(float(scores[:, 0].mean()), 4),
        "f1_blended": round(float(scores[:, 1].mean()), 4),
        "exact_full": round(float(exact[:, 0].mean()), 4),
        "exact_blended": round(float(exact[:, 1].mean()), 4),
        "same_answer": round(float(np.mean([one == other for _, one, other in rows])), 4),
        "difference": [round(x, 4) for x in (difference.mean, difference.low, difference.high)],
        "verdict": difference.verdict,
    }
