"""Where past questions come from: a list, a chat log, or both; cleaned, each with its domain."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from centroidkv.errors import ConfigError
from centroidkv.preparing.chat_logs import read_chat_log
from centroidkv.preparing.sifting import SiftReport, sift
from centroidkv.protocols import Embedder
from centroidkv.redaction import Redact
from centroidkv.types import valid_text

__all__ = ["Gathered", "clean_questions", "gather"]


@dataclass(frozen=True, slots=True)
class Gathered:
    """The distinct questions, each with its domain ("" when unknown)."""

    domains: dict[str, str]
    chat_log: SiftReport | None = None


def gather(
    questions: Iterable[str] | None,
    domains: Iterable[str] | None,
    chat_log: str | Path | Iterable[str] | None,
    redact: Redact | None,
    embedder: Embedder,
) -> Gathered:
    """Bring together the questions given and those that a chat log holds.

    A question of the log has no domain of its own; it is learnt from those that have one.

    Raises:
        ConfigError: There is neither, or one of them cannot be used.
    """
    if questions is None and chat_log is None:
        raise ConfigError("there is nothing to build from: give questions=... or chat_log=...")
    if chat_log is None:
        if redact is not None:
            raise ConfigError("redact=... masks a chat log; questions are taken as they are")
        return Gathered(clean_questions(questions or [], domains))
    given = [] if questions is None else list(questions)
    asked = clean_questions(given, domains) if given or domains is not None else {}
    turns = read_chat_log(chat_log) if isinstance(chat_log, str | Path) else chat_log
    sifted = sift(turns, embedder, redact=redact)
    return Gathered({**dict.fromkeys(sifted.questions, ""), **asked}, sifted.report)


def clean_questions(
    questions: Iterable[str], domains: Iterable[str] | None = None
) -> dict[str, str]:
    """Return the distinct, non-blank questions, each with its domain ("" when unknown).

    Raises:
        ConfigError: There are none, one is not text, or there are more or fewer domains.
    """
    asked = list(questions)
    kinds = list(domains) if domains is not None else [""] * len(asked)
    if len(kinds) != len(asked):
        raise ConfigError(f"{len(asked)} questions came with {len(kinds)} domains")
    odd = [q for q in asked if not isinstance(q, str)]
    if odd:
        raise ConfigError(f"questions must be strings, found {type(odd[0]).__name__}: {odd[0]!r}")
    cleaned: dict[str, str] = {}
    for question, domain in zip(asked, kinds, strict=True):
        text = " ".join(valid_text(question).split())
        if text:
            cleaned.setdefault(text, domain or "")
    if not cleaned:
        raise ConfigError("there are no questions to build from: the list is empty or all blank")
    return cleaned
