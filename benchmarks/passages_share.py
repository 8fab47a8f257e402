"""How many tokens of the passages of unseen questions earlier prompts have had. Runs no model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pinned_coverage import FILES, TOP, Case, load
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from centroidkv.blend.spans import locate
from centroidkv.models.bundled import bundled_folder
from centroidkv.types import Prompt, common_prefix

SYSTEM = "You answer customers of a bank. Use only the context."
STEPS = (300, 1000, 3000)


def share(data: Path, cache: Path, seed: int, limit: int | None) -> list[dict[str, Any]]:
    """Return one row per knowledge base and number of past questions."""
    cache.mkdir(parents=True, exist_ok=True)
    rows = []
    for base in FILES:
        case = load(data, base, seed, cache)
        for row in _measured(case, limit):
            rows.append({"base": base, "seed": seed} | row)
            print(rows[-1], flush=True)
    return rows


def _measured(case: Case, limit: int | None) -> Iterator[dict[str, Any]]:
    tokenizer = AutoTokenizer.from_pretrained(bundled_folder("bundled:smollm2")).backend_tokenizer
    past = [s.passages[:TOP] for s in case.seen]
    asked = [_units(tokenizer, case, ids) for ids in case.top[:limit]]
    total = sum(case.tokens[p] for ids in case.top[:limit] for p in ids)
    known: dict[int, set[tuple[int, ...]]] = {}
    for number, ids in enumerate(past, start=1):
        for unit in _units(tokenizer, case, ids)[1]:
            known.setdefault(unit[0], set()).add(unit)
        if number in STEPS:
            row = {"past": number, "units": sum(map(len, known.values()))}
            yield row | _score(asked, total, known)


def _score(
    asked: list[tuple[int, list[tuple[int, ...]]]],
    passage_tokens: int,
    known: dict[int, set[tuple[int, ...]]],
) -> dict[str, float]:
    """Count over all prompts, each its tokens and its units."""
    found = [[_leading(unit, known) for unit in units] for _, units in asked]
    whole = [f == [*map(len, units)] for f, (_, units) in zip(found, asked, strict=True)]
    reused, prompts = sum(map(sum, found)), sum(total for total, _ in asked)
    return {
        "of_passage_tokens": round(reused / passage_tokens, 4),
        "of_prompt_tokens": round(reused / prompts, 4),
        "prompts_with_all": round(sum(whole) / len(asked), 4),
        "prompt_tokens": round(prompts / len(asked), 1),
    }


def _leading(unit: tuple[int, ...], known: dict[int, set[tuple[int, ...]]]) -> int:
    """Count the leading tokens of a unit that some known one begins with."""
    near = known.get(unit[0], set())
    if unit in near:
        return len(unit)
    return max((common_prefix(unit, other) for other in near), default=0)


def _units(
    tokenizer: Tokenizer, case: Case, ids: tuple[str, ...]
) -> tuple[int, list[tuple[int, ...]]]:
    """Return the tokens of a prompt, and the units of its passages."""
    texts = [case.passages[p].text for p in ids]
    context = "\n\n".join(texts)
    text = (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nContext:\n{context}\n\n"
        "Question: which one?<|im_end|>\n<|im_start|>assistant\n"
    )
    encoded = tokenizer.encode(text, add_special_tokens=False)
    prompt = Prompt(text, tuple(encoded.ids), tuple(int(start) for start, _ in encoded.offsets))
    spans = locate(prompt, texts, question="").spans
    return len(prompt), [prompt.token_ids[s.start : s.stop] for s in spans]
