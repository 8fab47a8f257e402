"""Greedy answers to many prompts, several at once, kept so that a run can be cut into pieces.

Knows token ids and a transformers model alone. The product answers one prompt at a time; here
the next one takes over the KV of what it shares with the last, and twelve are decoded together,
which gives the same tokens but for ties and takes half the time. `answer_quality.py --check`
compares the two.
"""

import hashlib
import json
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from centroidkv.models.bundled import bundled_folder
from centroidkv.types import common_prefix

TOGETHER = 12

# Prompts to be answered before the next piece is begun: under one setting, and plain.
Piece: TypeAlias = tuple[Sequence[tuple[int, ...]], Sequence[tuple[int, ...]]]


class KeptAnswers:
    """Answers by the hash of their prompt, one line each, written as they come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, str] = {}
        if path.exists():
            for line in path.read_text("utf-8").splitlines():
                row = json.loads(line)
                self._known[row["key"]] = row["text"]

    def __len__(self) -> int:
        return len(self._known)

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
    """Sort prompts, so that those that begin alike follow each other, and cut the row."""
    ordered = sorted(set(prompts))
    return [ordered[i : i + TOGETHER] for i in range(0, len(ordered), TOGETHER)]


class BatchedModel:
    """The bundled model, answering several prompts in one go. Greedy, in float32."""

    def __init__(self) -> None:
        folder = bundled_folder("bundled:smollm2")
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._last: tuple[tuple[int, ...], DynamicCache] = ((), self._empty())

    def _empty(self) -> DynamicCache:
        return DynamicCache(config=self._model.config)

    @torch.inference_mode()
    def answer(self, prompts: Sequence[tuple[int, ...]], max_tokens: int) -> list[str]:
        """Return one answer per prompt, cut at its end of sequence or at `max_tokens`."""
        prefilled = [self._prefill(p) for p in prompts]
        cache = self._together([cache for cache, _ in prefilled])
        ids = torch.stack([logits.argmax(-1, keepdim=True) for _, logits in prefilled])
        width = max(map(len, prompts))
        seen = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        said: list[list[int]] = [[] for _ in prompts]
        is_done = [False] * len(prompts)
        while True:
            for i, token in enumerate(ids[:, 0].tolist()):
                is_done[i] = is_done[i] or token == self._tokenizer.eos_token_id
                if not is_done[i]:
                    said[i].append(token)
                    is_done[i] = len(said[i]) == max_tokens
            if all(is_done):
                break
            places = seen.sum(1, keepdim=True)
            seen = torch.cat([seen, torch.ones_like(ids)], 1)
            ids = self._forward(ids, cache, attention_mask=seen, position_ids=places).argmax(-1)
        return self._tokenizer.batch_decode(said, skip_special_tokens=True)

    def _forward(self, ids: torch.Tensor, cache: DynamicCache, **more: Any) -> torch.Tensor:
        """Run tokens behind a cache, which grows; return the last logits, [prompts, 1, words]."""
        out: Any = self._model(
            input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **more
        )
        return out.logits

    def _prefill(self, prompt: tuple[int, ...]) -> tuple[DynamicCache, torch.Tensor]:
        """Return the KV of a prompt and its last logits; what the one before shares is taken."""
        before, known = self._last
        shared = min(common_prefix(before, prompt), len(prompt) - 1)
        cache = self._empty()
        if shared:
            for number, layer in enumerate(known.layers):
                cache.update(layer.keys[:, :, :shared], layer.values[:, :, :shared], number)
        logits = self._forward(torch.tensor([prompt[shared:]]), cache)
        self._last = prompt, cache
        return cache, logits[0, -1]

    def _together(self, caches: Sequence[DynamicCache]) -> DynamicCache:
        """Put the KV of several prompts into one cache, padded on the left."""
        width = max(c.get_seq_length() for c in caches)
        merged = self._empty()
        for number in range(len(caches[0].layers)):
            keys = [_padded(c.layers[number].keys, width) for c in caches]
            values = [_padded(c.layers[number].values, width) for c in caches]
            merged.update(torch.cat(keys), torch.cat(values), number)
        return merged


def _padded(states: Any, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[2], 0))


def answer(
    pieces: Sequence[Piece], path: Path, max_tokens: int, *, until: float, processes: int
) -> None:
    """Answer pieces one after the other until the time, in processes of one thread each.

    On a busy machine two threads of one process wait for each other; two processes do not.
    """
    parts = [pieces[i::processes] for i in range(processes)]
    if processes == 1:
        return _work(parts[0], path, max_tokens, until)
    spawn = multiprocessing.get_context("spawn")
    working = [spawn.Process(target=_work, args=(p, path, max_tokens, until)) for p in parts]
    for process in working:
        process.start()
    for process in working:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a process that answers ended with {process.exitcode}")
    return None


def _work(pieces: Sequence[Piece], path: Path, max_tokens: int, until: float) -> None:
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)
    answers = KeptAnswers(path)
    model: BatchedModel | None = None
    for prompts in (prompts for piece in pieces for prompts in piece):
        missing = [p for p in prompts if answers.get(p, max_tokens) is None]
        for batch in batches(missing):
            if time.time() > until:
                return
            model = model or BatchedModel()
            for prompt, text in zip(batch, model.answer(batch, max_tokens), strict=True):
                answers.put(prompt, max_tokens, text)
