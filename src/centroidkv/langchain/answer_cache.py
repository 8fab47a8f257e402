"""A LangChain answer cache beside the KV: exact by default, semantic only when asked for.

Keyed by the model's settings (`llm_string`) and by everything in the prompt but the question:
system prompt, history and retrieved context must be the same. Two known sources of wrong answers,
embedding the whole prompt and looking at the last message alone, are thereby closed.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
from langchain_core.messages import message_to_dict, messages_from_dict
from langchain_core.outputs import ChatGeneration, Generation

from centroidkv.engine import Engine
from centroidkv.errors import ConfigError, NotCalibrated, StoreError
from centroidkv.fingerprint import fingerprint
from centroidkv.serving.answers import ASKED, Answer
from centroidkv.serving.question import question_from
from centroidkv.types import FloatArray, valid_text

_log = logging.getLogger("centroidkv")

# Of a message: pictures and sounds, which are large, and what says no more than where they are.
_NO_TEXT = {"type", "id", "url", "data", "base64"}

__all__ = ["CentroidKVAnswerCache"]


class CentroidKVAnswerCache(BaseCache):
    """Keeps answers in an engine's store.

    What the file cannot take or give costs time, never the answer: it is logged, and the model
    is asked. `clear` and `remove` raise instead.

    Args:
        engine: The engine whose store and embedder are used.
        max_distance: None for the same prompt only. Otherwise an answer to another question is
            served too, if its embedding is at most this far (Euclidean, unit vectors, 0 to 2) and
            all else is equal. Such an answer says so in `generation_info["centroidkv_cache"]`,
            and a message in its `response_metadata` too, as uncalibrated: no distance separates
            "enable" from "disable" reliably.
        max_error: None, or the largest share of wrong answers among those served for another
            question, as calibrated by `Engine.calibrate`; in place of `max_distance`.
        maxsize: How many answers this engine's embedder and tenant may have, None for any number.
            The oldest is dropped, in the order of langchain-core's `InMemoryCache`.

    Raises:
        ConfigError: `max_distance` lies outside [0, 2], `maxsize` is not above 0, or the engine
            is closed.
        StoreError: The store is read-only.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        max_distance: float | None = None,
        max_error: float | None = None,
        maxsize: int | None = None,
    ) -> None:
        if max_error is not None and not (_is_real(max_error) and 0 < max_error < 1):
            raise ConfigError(f"max_error must lie in (0, 1), not {max_error!r}")
        if max_error is not None and max_distance is not None:
            raise ConfigError("give either max_distance (uncalibrated) or max_error, not both")
        if max_error is not None and engine.calibration is None:
            raise NotCalibrated(max_error)
        if max_distance is not None and not (_is_real(max_distance) and 0 <= max_distance <= 2):
            raise ConfigError(f"max_distance must lie in [0, 2], not {max_distance!r}")
        if maxsize is not None and not (_is_whole(maxsize) and maxsize > 0):
            raise ConfigError(f"maxsize must be greater than 0 and whole, or None, not {maxsize!r}")
        self.engine = engine
        self.max_distance = max_distance
        self.max_error = max_error
        self.maxsize = maxsize
        self.engine.answers  # noqa: B018  # a store that cannot keep answers says so now

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        try:
            return self._found(prompt, llm_string)
        except StoreError as error:
            _log.warning("the request goes on without the answer cache: %s", error)
            return None

    def _found(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        same = self.engine.answers.get(fingerprint(prompt, llm_string))
        if same is not None:
            return _from_text(same.answer)
        if self.max_distance is None and self.max_error is None:
            return None
        asked = _split(prompt, llm_string)
        if not asked.question:
            return None
        vector = self._embedded(asked.question)
        near = self.engine.answers.nearest(asked.scope, vector)
        if near is None or not self._may_serve(asked.question, vector, near):
            return None
        note = {
            "kind": "semantic",
            "id": near.id,
            "question": near.question,
            "distance": near.distance,
            "calibrated": self.max_error is not None,
            "error_bound": self.max_error,
        }
        return [_noted(generation, note) for generation in _from_text(near.answer)]

    def _may_serve(self, question: str, vector: FloatArray, near: Answer) -> bool:
        if self.max_distance is not None:
            return near.distance <= self.max_distance
        calibration, bound = self.engine.calibration, self.max_error
        if calibration is None or bound is None or near.vector is None:
            return False
        asked = (question, near.question, vector, near.vector)
        return calibration.decide(*asked, max_error=bound).serve

    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        asked = _split(prompt, llm_string)
        if self.engine.is_personal(asked.question, *(g.text for g in return_val)):
            return
        key = fingerprint(prompt, llm_string)
        texts = _texts(prompt)
        # Without its texts an answer goes with whatever is forgotten.
        told = None if self.engine.is_personal(*texts) else texts
        answer = Answer(key, asked.question, _to_text(return_val, told), 0.0)
        vector = self._embedded(asked.question)
        try:
            self.engine.answers.put(answer, scope=asked.scope, vector=vector, maxsize=self.maxsize)
        except StoreError as error:
            _log.warning("an answer is not kept: %s", error)

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
        asked = None if question is None else valid_text(question)
        return self.engine.answers.delete(answer_id=answer_id, question=asked)

    def _embedded(self, question: str) -> FloatArray:
        vector: FloatArray = self.engine.router.embedder.embed([question])[0]
        return vector


@dataclass(frozen=True, slots=True)
class _Asked:
    """The question of a prompt, and a digest of all that stands around it.

    An empty question says that it could not be told from the rest; the digest is then that of the
    whole prompt.
    """

    question: str
    scope: str


def _split(prompt: str, llm_string: str) -> _Asked:
    text, frame = _last_human(prompt)
    question = question_from(text)
    if "\n" in question:
        # A paragraph may hold context as well, which must be equal and not merely near.
        question = ""
    before, _, after = text.rpartition(question) if question else (text, "", "")
    return _Asked(valid_text(question), fingerprint(llm_string, frame, before, after))


def _last_human(prompt: str) -> tuple[str, str]:
    """Return the last human text of a chat model's prompt, and the messages without it.

    Such a prompt is a JSON dump of messages; of any other, all is the text.
    """
    try:
        messages = json.loads(prompt)
        contents = [m["kwargs"] for m in messages if m["kwargs"].get("type") == "human"]
    except (ValueError, TypeError, KeyError, AttributeError):
        return prompt, ""
    if not contents or not isinstance(contents[-1].get("content"), str):
        return "", prompt
    text = contents[-1].pop("content")
    return text, json.dumps(messages, sort_keys=True)


def _texts(prompt: str) -> list[str]:
    """Return the texts of all of a prompt's messages, or the prompt if it is none of a chat's."""
    try:
        waiting: list[Any] = [m["kwargs"] for m in json.loads(prompt)]
    except (ValueError, TypeError, KeyError, AttributeError):
        return [prompt]
    found: list[str] = []
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, dict):
            waiting += [held for key, held in value.items() if key not in _NO_TEXT]
        elif isinstance(value, list):
            parts = [p.get("text") if isinstance(p, dict) else p for p in value]
            waiting += [*value, "".join(p for p in parts if isinstance(p, str))]
    return [text for text in dict.fromkeys(found) if text and not text.startswith("data:")]


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _to_text(generations: Sequence[Generation], asked: list[str] | None) -> str:
    rows: list[dict[str, Any]] = []
    for generation in generations:
        row: dict[str, Any] = {"text": generation.text, "info": generation.generation_info}
        if isinstance(generation, ChatGeneration):
            row["message"] = message_to_dict(generation.message)
        rows.append(row)
    if rows and asked is not None:
        rows[0][ASKED] = asked
    return json.dumps(rows, default=str)


def _from_text(text: str) -> list[Generation]:
    return [_generation(row) for row in json.loads(text)]


def _generation(row: dict[str, Any]) -> Generation:
    if "message" in row:
        (message,) = messages_from_dict([row["message"]])
        return ChatGeneration(message=message, generation_info=row["info"])
    return Generation(text=row["text"], generation_info=row["info"])


def _noted(generation: Generation, note: dict[str, Any]) -> Generation:
    info = {**(generation.generation_info or {}), "centroidkv_cache": note}
    if isinstance(generation, ChatGeneration):
        told = {**generation.message.response_metadata, "centroidkv_cache": note}
        message = generation.message.model_copy(update={"response_metadata": told})
        return ChatGeneration(message=message, generation_info=info)
    return generation.model_copy(update={"generation_info": info})
