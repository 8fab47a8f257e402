"""Rows of the manifest as values. Knows no SQL."""

from collections.abc import Sequence
from dataclasses import dataclass

from centroidkv.kv.blocks import block_id, unpack

__all__ = ["BlockRow", "HeldBlock", "PrefixRow", "is_child", "sound_row"]


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


def sound_row(values: Sequence[object]) -> BlockRow | None:
    """Return a row (id, parent, namespace, level, tokens, bytes), None if its id does not fit.

    The id follows from parent and tokens; a damaged row would claim other tokens for a block.
    """
    *texts, tokens, size = values
    if not (isinstance(tokens, bytes) and isinstance(size, int)) or len(tokens) % 4:
        return None
    block, parent, namespace, level = map(str, texts)
    row = BlockRow(block, parent, namespace, unpack(tokens), size, level)
    return row if is_child(row.id, parent, row.token_ids) else None


def is_child(block: str, parent: str, token_ids: Sequence[int]) -> bool:
    """Tell whether a block's id is that of tokens behind a parent."""
    try:
        return block_id(parent, token_ids) == block
    except (ValueError, OverflowError):
        return False
