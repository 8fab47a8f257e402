"""Finding the question in a plain prompt, for callers that do not say what it is."""

import re

_MARKERS = re.compile(r"(?:^|\n)[ \t]*(?:Question|Query|질문)[ \t]*:", re.IGNORECASE)
_ANSWER = re.compile(r"\n[ \t]*(?:Answer|답변|답)[ \t]*:[ \t]*$", re.IGNORECASE)

_SENTENCE_END = re.compile(r"(?<=[.!?\u3002\uff01\uff1f])\s+")
# Longer paragraphs hold passages too; a question is no longer, in characters.
MOST = 240

__all__ = ["question_from"]


def question_from(prompt: str) -> str:
    """Return what follows the last `Question:`, `Query:` or `질문:`, else the last paragraph.

    Of a long paragraph, only its last line; of a long line, its last sentence; of that, its end.
    """
    text = _ANSWER.sub("", prompt.rstrip())
    marks = list(_MARKERS.finditer(text))
    if marks:
        return text[marks[-1].end() :].strip()
    paragraphs = [p.strip() for p in text.split("\n\n") if p.strip()]
    return _end_of(paragraphs[-1]) if paragraphs else ""


def _end_of(paragraph: str) -> str:
    if len(paragraph) > MOST:
        paragraph = paragraph.splitlines()[-1].strip()
    if len(paragraph) > MOST:
        paragraph = _SENTENCE_END.split(paragraph)[-1]
    return paragraph[-MOST:].strip()
