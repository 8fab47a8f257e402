"""Block ids and the longest stored prefix of a prompt.

A block holds the KV of the tokens [64 i, 64 i + 64) of a sequence; the rest of a sequence is a
tail. Ids form a chain, H(parent id, token ids), that starts at the KV namespace (vLLM's prefix
hash, with SHA-256 so that ids are equal across processes and machines). The hash proposes a
block; since it covers every token before it, equality of ids is equality of tokens.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from centroidkv.protocols import BlockLookup
from centroidkv.types import KVBlock, common_prefix

BLOCK_TOKENS = 64
ROOT_MARK = b"ns".hex()
_BLOCK_ID = re.compile(r"[0-9a-f]{64}")

__all__ = [
    "BLOCK_TOKENS",
    "Link",
    "Match",
    "Piece",
    "Step",
    "block_id",
    "chain",
    "is_block_id",
    "is_root",
    "longest_prefix",
    "namespace_id",
    "split",
]


@dataclass(frozen=True, slots=True)
class Step:
    """One block of a match: the tokens [start, stop) of the prompt come from block `id`."""

    id: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Link:
    """One block of a sequence: block `id` behind `parent` holds its tokens [start, stop)."""

    id: str
    parent: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Piece:
    """KV on its way into the store: a block and where it belongs."""

    parent: str
    token_ids: tuple[int, ...]
    block: KVBlock

    @property
    def id(self) -> str:
        """The id of the block that holds exactly these tokens."""
        return block_id(self.parent, self.token_ids)

    @property
    def token_bytes(self) -> int:
        """Bytes of the KV of one token, in memory."""
        return self.block.num_bytes // self.block.num_tokens


@dataclass(frozen=True, slots=True)
class Match:
    """The longest stored prefix of a prompt, as a block table."""

    steps: tuple[Step, ...]

    @property
    def num_tokens(self) -> int:
        return self.steps[-1].stop if self.steps else 0

    def on_grid(self, grid_tokens: int) -> "Match":
        """Return the part that ends on a multiple of `grid_tokens`: 1, or whole blocks."""
        end = self.num_tokens - self.num_tokens % grid_tokens
        return Match(tuple(s for s in self.steps if s.stop <= end))


def namespace_id(*parts: str) -> str:
    """Derive the id that seeds every block of one model and tenant.

    It is longer than a block id, so that neither can be taken for the other.
    """
    hasher = hashlib.sha256(b"centroidkv namespace 1")
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        hasher.update(len(raw).to_bytes(8, "little") + raw)
    return ROOT_MARK + hasher.hexdigest()


def is_root(block: str) -> bool:
    """Tell whether an id is a namespace, which the first block of a sequence follows."""
    return len(block) > 64


def is_block_id(text: str) -> bool:
    """Tell whether a text can be a block's id, and so a part of a path."""
    return _BLOCK_ID.fullmatch(text) is not None


def pack(token_ids: Sequence[int]) -> bytes:
    """Encode token ids so that byte order is token order (big-endian, four bytes each)."""
    return np.asarray(token_ids, dtype=">u4").tobytes()


def unpack(raw: bytes) -> tuple[int, ...]:
    """Decode what `pack` encoded."""
    return tuple(np.frombuffer(raw, dtype=">u4").tolist())


def block_id(parent: str, token_ids: Sequence[int]) -> str:
    """Return the id of the block that holds `token_ids` behind `parent`."""
    return hashlib.sha256(bytes.fromhex(parent) + pack(token_ids)).hexdigest()


def split(num_tokens: int) -> Iterator[tuple[int, int]]:
    """Yield the token ranges [start, stop) of a sequence's blocks, the tail last."""
    for start in range(0, num_tokens, BLOCK_TOKENS):
        yield start, min(start + BLOCK_TOKENS, num_tokens)


def chain(namespace: str, token_ids: Sequence[int], start: int = 0) -> list[Link]:
    """Return the blocks that hold the tokens [start, len) of a sequence, in order.

    `start` lies on a block border.
    """
    links: list[Link] = []
    parent = namespace
    for begin, end in split(len(token_ids)):
        own = block_id(parent, token_ids[begin:end])
        if begin >= start:
            links.append(Link(own, parent, begin, end))
        parent = own
    return links


def longest_prefix(store: BlockLookup, namespace: str, token_ids: Sequence[int]) -> Match:
    """Find the longest stored prefix of `token_ids`, leaving at least one token to compute.

    Full blocks are followed by id. Where the chain ends, the leading part of the best child is
    taken: attention is causal, so any leading part of a block is valid.
    """
    limit = len(token_ids) - 1
    steps: list[Step] = []
    parent, start = namespace, 0
    while start + BLOCK_TOKENS <= limit:
        child = block_id(parent, token_ids[start : start + BLOCK_TOKENS])
        if not store.has(child):
            break
        steps.append(Step(child, start, start + BLOCK_TOKENS))
        parent, start = child, start + BLOCK_TOKENS
    rest = token_ids[start : min(start + BLOCK_TOKENS, limit)]
    best = max(
        ((common_prefix(tokens, rest), child) for child, tokens in store.neighbours(parent, rest)),
        default=(0, ""),
    )
    if best[0] > 0:
        steps.append(Step(best[1], start, start + best[0]))
    return Match(tuple(steps))
