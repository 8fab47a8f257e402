"""Finding the question in a plain prompt, for callers that do not say what it is."""

import re

_MARKERS = re.compile(r"(?:^|\n)[ \t]*(?:Question|Query|질문)[ \t]*:", re.IGNORECASE)
_ANSWER = re.compile(r"\n[ \t]*(?:Answer|답변|답)[ \t]*:[ \t]*$", re.IGNORECASE)

__all__ = ["question_from"]


def question_from(prompt: str) -> str:
    """Return what follows the last `Question:`, `Query:` or `질문:`, else the last paragraph."""
    text = _ANSWER.sub("", prompt.rstrip())
    marks = list(_MARKERS.finditer(text))
    if marks:
        return text[marks[-1].end() :].strip()
    paragraphs = [p.strip() for p in text.split("\n\n") if p.strip()]
    return paragraphs[-1] if paragraphs else ""
