"""Finding the question in a plain prompt, for callers that do not say what it is."""

import re

_MARKERS = re.compile(r"(?:^|\n)[ \t]*(?:Question|Query|질문)[ \t]*:", re.IGNORECASE)
_ANSWER = re.compile(r"\n[ \t]*(?:Answer|답변|답)[ \t]*:[ \t]*$", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?\u3002\uff01\uff1f])\s+")
# Longer paragraphs hold passages too; a question is no longer, in characters.
MOST = 240

__all__ = ["end_of", "question_from"]


def question_from(prompt: str) -> str:
    """Return what follows the last `Question:`, `Query:` or `질문:`, else the last paragraph."""
    text = _ANSWER.sub("", prompt.rstrip())
    marks = list(_MARKERS.finditer(text))
    if marks:
        return text[marks[-1].end() :].strip()
    paragraphs = [p.strip() for p in text.split("\n\n") if p.strip()]
    return paragraphs[-1] if paragraphs else ""


def end_of(paragraph: str) -> str:
    """Return what of a paragraph is a question's length: all, its last line, or last sentence.

    What is too long even then is cut.
    """
    if len(paragraph) > MOST:
        paragraph = paragraph.splitlines()[-1].strip()
    if len(paragraph) > MOST:
        paragraph = _SENTENCE_END.split(paragraph)[-1]
    return paragraph[-MOST:].strip()
