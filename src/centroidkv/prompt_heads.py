"""The heads that prompts share: what stands before their first passage, as far as it repeats.

Passages are computed behind a head, so a head must be known before anything can be. One prompt
does not tell which of the tokens before its first passage will come again: its date may not, nor
the title of that passage, nor the turns of a conversation. What two prompts begin with does.
Knows tokens alone.
"""

import json
import logging
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from centroidkv.bounds import plain_json
from centroidkv.errors import CacheError
from centroidkv.types import common_prefix
from centroidkv.vault import IN_THE_CLEAR, Vault

_log = logging.getLogger("centroidkv")

Head: TypeAlias = tuple[int, ...]

MOST_HEADS, MOST_RECENT = 16, 16
# A shorter beginning is that of any prompt of the model, not of one template.
LEAST_TOKENS = 4
_MOST_BYTES = 64 << 20

__all__ = ["Head", "PromptHeads"]


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
        self._recent: deque[Head] = deque(maxlen=MOST_RECENT)
        self._lock = threading.Lock()

    def find(self, before: Sequence[int]) -> Head | None:
        """Return the shortest known head that `before`, the tokens before a passage, begin with."""
        with self._lock:
            return self._find(tuple(before))

    def _find(self, before: Head) -> Head | None:
        return min((h for h in self._heads if before[: len(h)] == h), key=len, default=None)

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
                known = own[:shared] or None
                if known is not None:
                    self._keep(known)
            return known

    def add(self, head: Sequence[int]) -> None:
        """Make a head known without a second prompt that begins like it."""
        with self._lock:
            if self._find(tuple(head)) is None and len(head) >= LEAST_TOKENS:
                self._keep(tuple(head))

    def held(self) -> list[Head]:
        """Return the known heads and the beginnings of recent prompts."""
        with self._lock:
            return [*self._heads, *self._recent]

    def forget(self, heads: Sequence[Head]) -> None:
        """Let go of heads, here and in the file."""
        with self._lock:
            kept = [h for h in self._recent if h not in heads]
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
        try:
            self._vault.write(self._path, json.dumps([list(h) for h in self._heads]).encode())
        except OSError as error:
            _log.warning("the prompt's head could not be kept: %s", error)


def _shared(one: Head, other: Head) -> int:
    shared = common_prefix(one, other)
    return shared if shared >= max(LEAST_TOKENS, min(len(one), len(other)) / 2) else 0


def _read(path: Path, vault: Vault) -> list[Head]:
    try:
        rows = plain_json(vault.read(path, _MOST_BYTES))
        heads = [tuple(int(t) for t in row) for row in rows]
        # An empty head would be found in front of every prompt.
        return [h for h in heads if len(h) >= LEAST_TOKENS][-MOST_HEADS:]
    except FileNotFoundError:
        return []
    except (ArithmeticError, CacheError, OSError, TypeError, ValueError) as error:
        _log.warning("%s is damaged and begun anew: %s", path, error)
        return []
