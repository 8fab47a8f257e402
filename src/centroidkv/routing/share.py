"""Which questions belong to a share of the traffic: by their text, so always the same ones."""

import hashlib

__all__ = ["is_in_share"]


def is_in_share(question: str, share: float, *, salt: str) -> bool:
    """Tell whether a question falls into a share (0 to 1) of all questions.

    The same in every process; another `salt` takes other questions. Spaces do not count.
    """
    if share <= 0:
        return False
    text = " ".join(question.split())
    digest = hashlib.sha256(f"{salt}\n{text}".encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8]) < share * 2.0**64
