"""A LangChain answer cache beside the KV: exact by default, semantic only when asked for.

Keyed by the model's settings (`llm_string`) and by everything in the prompt but the question:
system prompt, history and retrieved context must be the same. Two known sources of wrong answers,
embedding the whole prompt and looking at the last message alone, are thereby closed.
"""

import json
from collections.abc import Sequence
from typing import Any

from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
from langchain_core.messages import message_to_dict, messages_from_dict
from langchain_core.outputs import ChatGeneration, Generation

from centroidkv.answers import Answer
from centroidkv.engine import Engine
from centroidkv.errors import ConfigError
from centroidkv.fingerprint import fingerprint
from centroidkv.question import question_from

__all__ = ["CentroidKVAnswerCache"]


class CentroidKVAnswerCache(BaseCache):
    """Keeps answers in an engine's store.

    Args:
        engine: The engine whose store and embedder are used.
        max_distance: None for the same prompt only. Otherwise an answer to another question is
            served too, if its embedding is at most this far (Euclidean, unit vectors, 0 to 2) and
            all else is equal. Such an answer says so in `generation_info["centroidkv_cache"]`,
            as uncalibrated: no distance separates "enable" from "disable" reliably.

    Raises:
        ConfigError: `max_distance` lies outside [0, 2].
    """

    def __init__(self, *, engine: Engine, max_distance: float | None = None) -> None:
        if max_distance is not None and not 0 <= max_distance <= 2:
            raise ConfigError(f"max_distance must lie in [0, 2], not {max_distance!r}")
        self.engine = engine
        self.max_distance = max_distance

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        found = self.engine.answers.get(fingerprint(prompt, llm_string))
        if found is not None:
            return _from_text(found.answer)
        if self.max_distance is None:
            return None
        question, scope = _split(prompt, llm_string)
        vector = self.engine.router.embedder.embed([question])[0]
        near = self.engine.answers.nearest(scope, vector)
        if near is None or near.distance > self.max_distance:
            return None
        note = {
            "kind": "semantic",
            "id": near.id,
            "question": near.question,
            "distance": near.distance,
            "calibrated": False,
        }
        return [_noted(generation, note) for generation in _from_text(near.answer)]

    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        question, scope = _split(prompt, llm_string)
        vector = self.engine.router.embedder.embed([question])[0]
        answer = Answer(fingerprint(prompt, llm_string), question, _to_text(return_val), 0.0)
        self.engine.answers.put(answer, scope=scope, vector=vector)

    def clear(self, **kwargs: Any) -> None:
        """Forget all answers of this engine's embedder and tenant, and no others."""
        if kwargs:
            raise ConfigError(f"clear takes no {', '.join(sorted(kwargs))}; use remove()")
        self.engine.answers.delete()

    def remove(self, *, answer_id: str | None = None, question: str | None = None) -> int:
        """Forget a wrong answer, by id or by its question; return how many were forgotten.

        Raises:
            ConfigError: Neither or both were given.
        """
        if (answer_id is None) == (question is None):
            raise ConfigError("give remove() either answer_id=... or question=...")
        return self.engine.answers.delete(answer_id=answer_id, question=question)


def _split(prompt: str, llm_string: str) -> tuple[str, str]:
    """Return the question of a prompt, and a digest of all that stands around it."""
    question = _last_human(prompt) or question_from(prompt)
    before, _, after = prompt.rpartition(question) if question else (prompt, "", "")
    return question, fingerprint(llm_string, before, after)


def _last_human(prompt: str) -> str:
    """Return the last human text of a chat model's prompt, which is a JSON dump of messages."""
    try:
        messages = json.loads(prompt)
        texts = [m["kwargs"]["content"] for m in messages if m["kwargs"].get("type") == "human"]
    except (ValueError, TypeError, KeyError, AttributeError):
        return ""
    return question_from(texts[-1]) if texts and isinstance(texts[-1], str) else ""


def _to_text(generations: Sequence[Generation]) -> str:
    rows: list[dict[str, Any]] = []
    for generation in generations:
        row: dict[str, Any] = {"text": generation.text, "info": generation.generation_info}
        if isinstance(generation, ChatGeneration):
            row["message"] = message_to_dict(generation.message)
        rows.append(row)
    return json.dumps(rows, ensure_ascii=False, default=str)


def _from_text(text: str) -> list[Generation]:
    return [_generation(row) for row in json.loads(text)]


def _generation(row: dict[str, Any]) -> Generation:
    if "message" in row:
        (message,) = messages_from_dict([row["message"]])
        return ChatGeneration(message=message, generation_info=row["info"])
    return Generation(text=row["text"], generation_info=row["info"])


def _noted(generation: Generation, note: dict[str, Any]) -> Generation:
    info = {**(generation.generation_info or {}), "centroidkv_cache": note}
    return generation.model_copy(update={"generation_info": info})
