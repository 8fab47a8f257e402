"""The heads that prompts share: what stands before their first passage, as far as it repeats.

Passages are computed behind a head, so a head must be known before anything can be. One prompt
does not tell which of the tokens before its first passage will come again: its date may not, nor
the title of that passage, nor the turns of a conversation. What two prompts begin with does.
In a prompt a passage mostly stands behind others, so it is computed behind others too: each head
has a run-up, the first passages that were seen behind it. They are dealt into a few contexts, and
a passage's KV is the mean of what it is in each. Knows tokens alone.
"""

import json
import logging
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from centroidkv.bounds import plain_json
from centroidkv.errors import CacheError
from centroidkv.types import common_prefix
from centroidkv.vault import IN_THE_CLEAR, Vault

_log = logging.getLogger("centroidkv")

TokenIds: TypeAlias = tuple[int, ...]

MOST_HEADS, MOST_RECENT = 16, 16
# A shorter beginning is that of any prompt of the model, not of one template.
LEAST_TOKENS = 4
# Of the passages in a run-up, and into how many contexts they are dealt.
RUN_UP_TOKENS, NUM_CONTEXTS = 2048, 3
# A shorter run-up grows when passages come that it does not hold; those behind it are learnt anew.
_LEAST_RUN_UP = 1024
_MOST_BYTES = 64 << 20

__all__ = ["RUN_UP_TOKENS", "Head", "PromptHeads", "TokenIds", "run_up_of"]


@dataclass(frozen=True, slots=True)
class Head:
    """What prompts begin with, and the passages that others are computed behind."""

    token_ids: TokenIds
    run_up: tuple[TokenIds, ...] = ()

    @property
    def all_ids(self) -> TokenIds:
        """The head and its run-up as they follow each other."""
        return (*self.token_ids, *(t for p in self.run_up for t in p))

    def contexts(self, passage: TokenIds, *, most: int) -> list[TokenIds]:
        """Return what a passage is computed behind, each the head and some passages of the run-up.

        The passage itself is left out, and what is longer than `most` tokens.
        """
        found: list[TokenIds] = []
        for group in (self.run_up[n::NUM_CONTEXTS] for n in range(NUM_CONTEXTS)):
            before = list(self.token_ids)
            for other in group:
                if other != passage and len(before) + len(other) <= most:
                    before += other
            found.append(tuple(before))
        behind_others = [c for c in found if len(c) > len(self.token_ids)]
        return behind_others or [self.token_ids]


class PromptHeads:
    """The known heads of one KV namespace, kept in a file. Safe for many threads.

    Args:
        path: The file; a damaged or missing one is an empty one.
        read_only: Write nothing.
        vault: What the file is read and written with.
    """

    def __init__(self, path: Path, *, read_only: bool = False, vault: Vault = IN_THE_CLEAR) -> None:
        self._path = None if read_only else path
        self._vault = vault
        self._heads = _read(path, vault)
        self._recent: deque[TokenIds] = deque(maxlen=MOST_RECENT)
        self._lock = threading.Lock()

    def find(self, before: Sequence[int]) -> Head | None:
        """Return the shortest known head that `before`, the tokens before a passage, begin with."""
        with self._lock:
            return self._find(tuple(before))

    def _find(self, before: TokenIds) -> Head | None:
        found = (h for h in self._heads if before[: len(h.token_ids)] == h.token_ids)
        return min(found, key=lambda h: len(h.token_ids), default=None)

    def note(self, before: Sequence[int]) -> Head | None:
        """Take note of the tokens before a passage; return the head, if it is known now.

        What these share with those of a recent prompt becomes a head, unless it is the smaller
        part of both: then they are of different templates.
        """
        own = tuple(before)
        with self._lock:
            known = self._find(own)
            if known is None:
                shared = max((_shared(own, r) for r in self._recent), default=0)
                self._recent.append(own)
                if shared:
                    known = Head(own[:shared])
                    self._keep(known)
            return known

    def add(self, head: Sequence[int]) -> None:
        """Make a head known without a second prompt that begins like it."""
        with self._lock:
            if self._find(tuple(head)) is None and len(head) >= LEAST_TOKENS:
                self._keep(Head(tuple(head)))

    def with_run_up(self, head: Head, passages: Iterable[TokenIds]) -> Head:
        """Return a known head with its run-up; if that is short, it takes in `passages`.

        From then on it stays as it is: passages are kept by head and run-up.
        """
        with self._lock:
            known = self._find(head.token_ids)
            if known is None or sum(map(len, known.run_up)) >= _LEAST_RUN_UP:
                return known or head
            found = replace(known, run_up=run_up_of((*known.run_up, *passages)))
            if found != known:
                self._heads[self._heads.index(known)] = found
                self._write()
            return found

    def held(self) -> list[Head]:
        """Return the known heads and the beginnings of recent prompts."""
        with self._lock:
            return [*self._heads, *map(Head, self._recent)]

    def forget(self, heads: Sequence[Head]) -> None:
        """Let go of heads, here and in the file."""
        with self._lock:
            kept = [h for h in self._recent if Head(h) not in heads]
            self._recent.clear()
            self._recent.extend(kept)
            known = len(self._heads)
            self._heads = [h for h in self._heads if h not in heads]
            if len(self._heads) < known:
                self._write()

    def _keep(self, head: Head) -> None:
        self._heads = [*self._heads, head][-MOST_HEADS:]
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        rows = [{"head": h.token_ids, "run_up": h.run_up} for h in self._heads]
        try:
            self._vault.write(self._path, json.dumps(rows).encode())
        except OSError as error:
            _log.warning("the prompt's head could not be kept: %s", error)


def run_up_of(passages: Iterable[TokenIds]) -> tuple[TokenIds, ...]:
    """Return the first passages that fit into a run-up; a single one always does."""
    found: list[TokenIds] = []
    left = RUN_UP_TOKENS
    for passage in dict.fromkeys(passages):
        if not found or len(passage) <= left:
            found.append(passage)
            left -= len(passage)
    return tuple(found)


def _shared(one: TokenIds, other: TokenIds) -> int:
    shared = common_prefix(one, other)
    return shared if shared >= max(LEAST_TOKENS, min(len(one), len(other)) / 2) else 0


def _read(path: Path, vault: Vault) -> list[Head]:
    try:
        heads = [_head(row) for row in plain_json(vault.read(path, _MOST_BYTES))]
        # An empty head would be found in front of every prompt.
        return [h for h in heads if len(h.token_ids) >= LEAST_TOKENS][-MOST_HEADS:]
    except FileNotFoundError:
        return []
    except (ArithmeticError, CacheError, LookupError, OSError, TypeError, ValueError) as error:
        _log.warning("%s is damaged and begun anew: %s", path, error)
        return []


def _head(row: Any) -> Head:
    """Read a head; a row of tokens alone is one of a time before run-ups."""
    if isinstance(row, dict):
        return Head(_ids(row["head"]), tuple(p for p in map(_ids, row["run_up"]) if p))
    return Head(_ids(row))


def _ids(row: Any) -> TokenIds:
    return tuple(int(t) for t in row)
