"""What of a request may be stored when a `redact` function says what is personal.

What it changes is personal, from the first character that it changes. KV holds the tokens of a
text, so it cannot be masked: it is kept up to there alone, and up to the question where that is
changed. Passages and system messages are the operator's own and are not looked at.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

from centroidkv.redaction import Redact
from centroidkv.types import Message, Prompt, Record, common_prefix

_log = logging.getLogger("centroidkv")

__all__ = ["Redactor"]


class Redactor:
    """Applies a `redact` function. Where it fails, nothing of that text is stored.

    Args:
        redact: From text to text; None changes nothing.
        count: Adds one to each named counter.
    """

    def __init__(self, redact: Redact | None, count: Callable[[list[str]], None]) -> None:
        self._redact = redact
        self._count = count
        self._warned = False

    def masked(self, text: str) -> str:
        """Return a text as it may be stored: "" if nothing of it may."""
        if self._redact is None:
            return text
        try:
            masked = self._redact(text)
            if not isinstance(masked, str):
                raise TypeError(f"redact returned {type(masked).__name__}, not a text")
        except Exception as error:  # noqa: BLE001 - it is the user's function
            self._failed(error)
            return ""
        return masked

    def _failed(self, error: Exception) -> None:
        self._count(["failed_redactions"])
        if not self._warned:
            self._warned = True
            # Not the error itself: its message may quote the text.
            _log.warning("redact raised %s; the text is not stored", type(error).__name__)

    def all_masked(self, texts: Iterable[str] | None) -> list[str] | None:
        """Return texts as they may be stored; what is no text is left for others to refuse."""
        if texts is None:
            return None
        return [self.masked(text) if isinstance(text, str) else text for text in texts]

    def is_personal(self, text: str) -> bool:
        """Tell whether a text may not be stored as it is."""
        return self._redact is not None and self.masked(text) != text

    def storable_tokens(
        self,
        prompt: Prompt,
        messages: str | Sequence[Message],
        record: Record | None,
        question: str,
    ) -> int | None:
        """Count the leading tokens whose KV may be stored; None where nothing is personal.

        Args:
            prompt: As rendered.
            messages: What it was rendered from.
            record: Its retrieval, whose passages are left out.
            question: The question in it, "" where that is not known.
        """
        if self._redact is None:
            return None
        cuts = [cut for text in _users_texts(messages, record) for cut in self._cut(prompt, text)]
        if question and (cuts or self.is_personal(question)):
            # Where the question is not found as it is, nothing behind the head is safe.
            asked = prompt.text.find(question)
            if self.is_personal(question):
                cuts.append(max(asked, 0))
            cuts = [asked if asked <= cut < asked + len(question) else cut for cut in cuts]
        return _tokens_within(prompt, min(cuts)) if cuts else None

    def _cut(self, prompt: Prompt, text: str) -> Iterator[int]:
        """Yield where in the prompt the first personal character of a text of it stands."""
        masked = self.masked(text)
        if masked != text:
            at = prompt.text.find(text)
            yield at + common_prefix(text, masked) if at >= 0 else 0


def _users_texts(messages: str | Sequence[Message], record: Record | None) -> list[str]:
    """Return the parts of a prompt that neither a passage nor a system message is."""
    if isinstance(messages, str):
        parts = [messages]
    else:
        parts = [m.content for m in messages if m.role != "system"]
    passages = [p.text.strip() for p in record.passages] if record is not None else []
    for passage in filter(None, passages):
        parts = [piece for part in parts for piece in part.split(passage)]
    return [part for part in (p.strip() for p in parts) if part]


def _tokens_within(prompt: Prompt, char: int) -> int:
    """Count the tokens that end at or before a character."""
    count = prompt.tokens_before(char)
    end = prompt.offsets[count] if count < len(prompt) else len(prompt.text)
    return max(0, count - (end > char))  # the last one may reach over the border
