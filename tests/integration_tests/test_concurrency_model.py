"""Requests at once, with the real bundled model: each answer is the one it gets alone."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import bank

from centroidkv import Completion, Engine
from centroidkv.models.transformers_model import TransformersModel

PASSAGES = [d.page_content for d in bank.documents()]
QUESTIONS = [q.text for q in bank.unseen_questions()[:6]]
TOKENS = 16


def is_same_but_for_ties(warm: Completion, cold: Completion) -> bool:
    pairs = zip(warm.token_ids, cold.token_ids, cold.margins, strict=False)
    margin = next((m for a, b, m in pairs if a != b), 0.0)
    return margin < 1e-3


def test_questions_at_once_are_answered_as_one_after_the_other(
    open_engine: Callable[..., Engine], smollm: TransformersModel
) -> None:
    contexts = ["\n\n".join(PASSAGES[:3]), "\n\n".join(PASSAGES[3:6])]
    prompts = [
        bank.PROMPT.format(context=contexts[i % 2], question=q) for i, q in enumerate(QUESTIONS)
    ]
    alone = open_engine(model=smollm, drafts=False)
    cold = [alone.generate(p, max_tokens=TOKENS, reuse="off") for p in prompts]
    batches = sum(n for size, n in smollm.batcher.sizes.items() if size > 1)
    borrowed = smollm.arenas.num_borrowed
    for _ in range(2):  # the first time the prefixes are computed, then they are there
        with ThreadPoolExecutor(len(prompts)) as pool:
            warm = list(pool.map(lambda p: alone.generate(p, max_tokens=TOKENS), prompts))
        assert all(map(is_same_but_for_ties, warm, cold))
    assert sum(n for size, n in smollm.batcher.sizes.items() if size > 1) > batches
    assert smollm.arenas.num_borrowed - borrowed >= len(prompts) - len(contexts)
    assert smollm.arenas.num_bytes == 0
    assert alone.check().is_clean
