"""Greedy answers to many prompts, several at once, kept so that a run can be cut into pieces.

Knows token ids and a transformers model alone. The product answers one prompt at a time; here
those that begin alike share one prefill and are decoded together, which gives the same tokens but
for ties and takes half the time. `answer_quality.py --check` compares the two.
"""

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from centroidkv.models.bundled import bundled_folder
from centroidkv.types import common_prefix

TOGETHER = 12


class KeptAnswers:
    """Answers by the hash of their prompt, one line each, written as they come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, str] = {}
        if path.exists():
            for line in path.read_text("utf-8").splitlines():
                row = json.loads(line)
                self._known[row["key"]] = row["text"]

    def get(self, prompt: Sequence[int], max_tokens: int) -> str | None:
        return self._known.get(_key(prompt, max_tokens))

    def put(self, prompt: Sequence[int], max_tokens: int, text: str) -> None:
        key = _key(prompt, max_tokens)
        self._known[key] = text
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "text": text}, ensure_ascii=False) + "\n")


def _key(prompt: Sequence[int], max_tokens: int) -> str:
    return hashlib.sha256(json.dumps([max_tokens, list(prompt)]).encode()).hexdigest()


def batches(prompts: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Put prompts together that begin alike, at most `TOGETHER` of them.

    Sorted, neighbours share most; a batch ends where the next prompt would more than halve what
    all of it share, unless that is little anyway.
    """
    ordered = sorted(set(prompts))
    found: list[list[tuple[int, ...]]] = [[p] for p in ordered[:1]]
    shared = len(ordered[0]) if ordered else 0
    for before, prompt in pairwise(ordered):
        with_it = min(shared, common_prefix(before, prompt))
        is_alike = with_it * 2 >= shared or (shared < 128 and len(found[-1]) > 1)
        if len(found[-1]) < TOGETHER and (is_alike or len(found[-1]) == 1):
            found[-1].append(prompt)
            shared = with_it
        else:
            found.append([prompt])
            shared = len(prompt)
    return found


class BatchedModel:
    """The bundled model, answering several prompts in one go. Greedy, in float32."""

    def __init__(self) -> None:
        folder = bundled_folder("bundled:smollm2")
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def answer(self, prompts: Sequence[tuple[int, ...]], max_tokens: int) -> list[str]:
        """Return one answer per prompt, cut at its end of sequence or at `max_tokens`."""
        shared = min(common_prefix(prompts[0], p) for p in prompts)
        shared = min(shared, min(map(len, prompts)) - 1)
        cache = self._prefix(prompts[0][:shared], len(prompts))
        tails = [p[shared:] for p in prompts]
        width = max(map(len, tails))
        ids = torch.tensor([[0] * (width - len(t)) + list(t) for t in tails])
        seen = torch.tensor([[1] * shared + [0] * (width - len(t)) + [1] * len(t) for t in tails])
        said: list[list[int]] = [[] for _ in prompts]
        is_done = [False] * len(prompts)
        while not all(is_done):
            places = (seen.cumsum(1) - 1)[:, -ids.shape[1] :].clamp(min=0)
            out: Any = self._model(
                input_ids=ids,
                attention_mask=seen,
                position_ids=places,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            ids = out.logits[:, -1].argmax(-1, keepdim=True)
            seen = torch.cat([seen, torch.ones_like(ids)], 1)
            for i, token in enumerate(ids[:, 0].tolist()):
                is_done[i] = is_done[i] or token == self._tokenizer.eos_token_id
                if not is_done[i]:
                    said[i].append(token)
                    is_done[i] = len(said[i]) == max_tokens
        return self._tokenizer.batch_decode(said, skip_special_tokens=True)

    def _prefix(self, shared: tuple[int, ...], times: int) -> DynamicCache:
        cache = DynamicCache(config=self._model.config)
        if shared:
            self._model(
                input_ids=torch.tensor([shared]),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache.batch_repeat_interleave(times)
        return cache
