"""Rows of the manifest as values. Knows no SQL."""

from dataclasses import dataclass

__all__ = ["BlockRow", "HeldBlock", "PrefixRow"]


@dataclass(frozen=True, slots=True)
class BlockRow:
    """What the manifest knows of one block."""

    id: str
    parent: str
    namespace: str
    token_ids: tuple[int, ...]
    num_bytes: int
    level: str = "raw"


@dataclass(frozen=True, slots=True)
class PrefixRow:
    """The last block of a cluster's pinned prefix, for one model and one head."""

    plan: str
    cluster: int
    namespace: str
    head: str
    block: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class HeldBlock:
    """A block that some cluster's prefix ends in or passes through."""

    id: str
    num_bytes: int
    num_tokens: int
