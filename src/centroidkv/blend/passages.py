"""Passages' KV, free of positions, kept by the head and run-up it was computed behind.

The blocks of a passage are a chain like any other, in the same tiers, under the same budgets; its
root is derived from the KV namespace and the head with its run-up, so that an exact lookup never
meets them and no passage serves behind another head. Knows nothing of prompts.
"""

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Protocol

import numpy as np

from centroidkv.blend.heads import NUM_CONTEXTS, Head, TokenIds
from centroidkv.kv.blocks import Match, Piece, block_id, chain, is_root, namespace_id
from centroidkv.kv.codec import BlockCoder
from centroidkv.kv.owners import note_owner
from centroidkv.kv.tiers import Place, TieredBlocks
from centroidkv.protocols import BlendingSequence
from centroidkv.rotary import Rotary
from centroidkv.types import KVBlock, Message, Prompt

__all__ = ["BlendingModel", "PassageStore", "joined"]


class BlendingModel(Protocol):
    """What of a model is asked for here; see `CausalModel` and `BlendingSequence`."""

    @property
    def rotary(self) -> Rotary | None: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def context_tokens(self) -> int: ...

    def encode(self, prompt: str | Sequence[Message]) -> Prompt: ...

    def blend_problem(self) -> str | None:
        """Say why sequences of this model cannot `blend`, None if they can."""

    def open_sequence(
        self, capacity: int, prompt: Sequence[int] = (), *, namespace: str = ""
    ) -> BlendingSequence: ...


class PassageStore:
    """The passages of one KV namespace."""

    def __init__(self, blocks: TieredBlocks, namespace: str) -> None:
        self._blocks = blocks
        self._namespace = namespace
        self._noted: set[str] = set()  # roots whose owner the manifest knows

    def root(self, head: Head) -> str:
        """Return what the chains of passages behind a head begin with."""
        parts = [block_id(self._namespace, ids) for ids in (head.token_ids, *head.run_up)]
        if head.run_up:
            parts.append(f"{NUM_CONTEXTS} contexts")
        root = namespace_id("blend", self._namespace, *parts)
        self._code_alike(root)
        return root

    def _code_alike(self, root: str) -> None:
        """Let passages be written at the levels of the KV namespace."""
        disk, uploads = self._blocks.disk, self._blocks.uploads
        if self._namespace in disk.forms:
            self._blocks.expect(root, disk.forms[self._namespace])
        if self._namespace in disk.coders and root not in disk.coders:
            disk.coders[root] = _for_free_keys(disk.coders[self._namespace])
            if uploads is not None and self._namespace in uploads.coders:
                coders = uploads.coders[self._namespace]
                uploads.coders[root] = tuple(map(_for_free_keys, coders))

    def find(self, head: Head, token_ids: Sequence[int]) -> Match:
        """Find the leading tokens of a passage that are stored; reads no KV."""
        # One token more than the passage, since a match leaves the last token to compute.
        return self._blocks.match(self.root(head), (*token_ids, 0))

    def holds(self, head: Head, token_ids: Sequence[int]) -> bool:
        """Tell whether all of a passage is stored."""
        return self.find(head, token_ids).num_tokens == len(token_ids)

    def load(self, wanted: Sequence[tuple[Match, int]]) -> Generator[KVBlock | None]:
        """Yield passages in order, of each the tokens [start, match.num_tokens).

        None for one that is not usable. While one is used, the next is read.
        """
        parts = [[s for s in match.steps if s.stop > start] for match, start in wanted]
        ids = [step.id for steps in parts for step in steps]
        with (
            self._blocks.disk.leases.hold(ids),
            closing(self._blocks.in_turn(ids)) as loaded,
        ):
            for steps, (_, start) in zip(parts, wanted, strict=True):
                blocks = [
                    block.part(max(0, start - step.start), step.stop - step.start)
                    for step, block in zip(steps, loaded, strict=False)  # more follow
                    if block is not None
                ]
                yield joined(blocks) if len(blocks) == len(steps) else None

    def places(self, match: Match) -> list[Place]:
        """Tell where the blocks of a passage would come from."""
        found = (self._blocks.where(s.id) for s in match.steps)
        return [place for place in found if place is not None]

    def pieces(self, head: Head, token_ids: TokenIds, freed: Iterable[KVBlock]) -> list[Piece]:
        """Say where the blocks of a passage belong."""
        links = chain(self.root(head), token_ids)
        return [
            Piece(link.parent, token_ids[link.start : link.stop], block)
            for link, block in zip(links, freed, strict=True)
        ]

    def keep(self, pieces: Sequence[Piece]) -> None:
        """Put a passage into memory, once it is noted whose it is; `persist` puts it onto disk."""
        for root in {p.parent for p in pieces if is_root(p.parent)} - self._noted:
            note_owner(self._blocks.disk.manifest, root, self._namespace)
            self._noted.add(root)
        self._blocks.keep(pieces)

    def persist(self, pieces: Sequence[Piece]) -> None:
        self._blocks.persist(pieces)


def _for_free_keys(coder: BlockCoder) -> BlockCoder:
    """Return a coder of the same level for keys that need not be turned back."""
    if coder.rotary is None:
        return coder
    return replace(coder, rotary=Rotary(np.zeros_like(coder.rotary.frequencies)))


def joined(blocks: Sequence[KVBlock]) -> KVBlock:
    """Put consecutive blocks into one."""
    if len(blocks) == 1:
        return blocks[0]
    keys = np.concatenate([b.keys for b in blocks], axis=2)
    return KVBlock(keys, np.concatenate([b.values for b in blocks], axis=2), blocks[0].dtype)
