"""What is to be found or forgotten: a question, a passage, what is old, or everything of a tenant.

Owns how texts are compared: without regard to case, spacing and Unicode form, wherever one stands
in another. Knows no place where anything is kept.
"""

import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from centroidkv.errors import ConfigError
from centroidkv.types import Passage, valid_text

__all__ = ["Wanted", "plain", "seconds"]

# As `Passage.of` makes them.
_ID = re.compile("[0-9a-fA-F]{64}")
# A cut-off end of a text that is at least so long counts as that text.
LEAST_CUT = 8


def plain(text: str) -> str:
    """Return a text as it is compared."""
    return " ".join(unicodedata.normalize("NFKC", valid_text(text)).casefold().split())


@dataclass(frozen=True, slots=True)
class Wanted:
    """One of: a `question`, a `passage` (id or text), what is older than `before_s`, or all.

    `passage_texts` are the texts of a passage given by its id: one id may have had several;
    `questions` are those of the history that are too old, compared as a whole.
    """

    question: str | None = None
    passage: str | None = None
    before_s: float | None = None
    everything: bool = False
    passage_texts: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        *,
        question: str | None = None,
        passage: str | None = None,
        before_s: float | None = None,
        everything: bool = False,
    ) -> "Wanted":
        """Take what a user asks for, as texts are stored: without lone surrogates.

        Raises:
            ConfigError: It is nothing, or several things, or a blank text.
        """
        given = [question is not None, passage is not None, before_s is not None, everything]
        if sum(given) != 1:
            raise ConfigError(
                "say what to forget: one of question=..., passage=..., older_than_s=... or "
                "everything=True"
            )
        for name, text in (("question", question), ("passage", passage)):
            if text is not None and (not isinstance(text, str) or not plain(text)):
                raise ConfigError(f"{name} must be a text that is not blank, not {text!r}")
        question = None if question is None else valid_text(question)
        passage = None if passage is None else valid_text(passage)
        return cls(question, passage, before_s, everything)

    @property
    def texts(self) -> tuple[str, ...]:
        """What is looked for within other texts, as it is compared."""
        given = (self.question or self.passage,) if not self.passage_texts else self.passage_texts
        return tuple(plain(text) for text in given if text)

    @property
    def is_unknown_id(self) -> bool:
        """Whether what is given looks like a passage's id, and its text is not known."""
        return not self.passage_texts and bool(_ID.fullmatch((self.passage or "").strip()))

    def is_in(self, text: str) -> bool:
        """Tell whether a text holds what is wanted; words are not cut."""
        if self.everything:
            return True
        known = plain(text)
        return any(_stands_in(t, known) for t in self.texts)

    def is_question(self, text: str) -> bool:
        """Tell whether a stored question is to go."""
        if self.before_s is not None:
            return plain(text) in self.questions
        return self.passage is None and self.is_in(text)

    def is_passage(self, passage: Passage) -> bool:
        """Tell whether a stored passage is the one that is meant."""
        if self.everything:
            return True
        if self.passage is None:
            return False
        return passage.id == self.passage or plain(passage.text) in self.texts

    def cut_off_in(self, text: str) -> str:
        """Return the longest beginning of what is wanted that a text ends with, "" for none."""
        known = plain(text)
        cut = (
            t[:length]
            for t in self.texts
            for length in range(_least(t), len(t))
            if known.endswith(t[:length])
        )
        return max(cut, key=len, default="")

    def is_cut_off_in(self, text: str) -> bool:
        """Tell whether a text ends with the beginning of what is wanted."""
        return bool(self.cut_off_in(text))

    def is_continued_in(self, text: str) -> bool:
        """Tell whether a text begins with the end of what is wanted."""
        known = plain(text)
        return any(
            known.startswith(t[-length:]) for t in self.texts for length in range(_least(t), len(t))
        )

    def is_around(self, text: str) -> bool:
        """Tell whether a text stands within what is wanted, of which it may lack both ends."""
        known = plain(text)
        return len(known) >= LEAST_CUT and any(known in t for t in self.texts)

    def as_dict(self) -> dict[str, Any]:
        """Return what a later run needs to find the same."""
        return {
            "question": self.question,
            "passage": self.passage,
            "before_s": self.before_s,
            "everything": self.everything,
            "passage_texts": list(self.passage_texts),
            "questions": list(self.questions),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Wanted":
        known = {**values, "questions": tuple(values["questions"])}
        # Of a forgetting that an earlier version left unfinished, which knew one text.
        before = known.pop("passage_text", "")
        texts = known.get("passage_texts", [before] if before else [])
        return cls(**{**known, "passage_texts": tuple(texts)})


def seconds(value: object) -> float:
    """Take an age.

    Raises:
        ConfigError: It is no number of seconds.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ConfigError(f"older_than_s must be a number of seconds, 0 or more, not {value!r}")
    return float(value)


def _least(text: str) -> int:
    return min(LEAST_CUT, max(1, len(text) - 1))


def _stands_in(text: str, known: str) -> bool:
    """Find a text in another, at the borders of words that are written with spaces."""
    at = known.find(text)
    while at >= 0:
        end = at + len(text)
        begins = at == 0 or not (_is_word(known[at - 1]) and _is_word(text[0]))
        ends = end == len(known) or not (_is_word(text[-1]) and _is_word(known[end]))
        if begins and ends:
            return True
        at = known.find(text, at + 1)
    return False


def _is_word(char: str) -> bool:
    return char.isascii() and char.isalnum()
