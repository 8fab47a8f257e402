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
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from centroidkv.bounds import plain_json
from centroidkv.errors import CacheError
from centroidkv.files import forbidden, is_forbidden, set_aside
from centroidkv.locks import StoreLock
from centroidkv.types import common_prefix
from centroidkv.vault import IN_THE_CLEAR, Vault

_log = logging.getLogger("centroidkv")

TokenIds: TypeAlias = tuple[int, ...]

MOST_HEADS, MOST_RECENT = 16, 16
# A shorter beginning is that of any prompt of the model, not of one template.
LEAST_TOKENS = 4
# Most tokens of passages in a run-up, and into how many contexts they are dealt.
RUN_UP_TOKENS, NUM_CONTEXTS = 2048, 3
# Tokens over a passage's border belong to none: the same passage may come with and without them.
_END_TOKENS = 2
_MOST_BYTES = 64 << 20
_LOCK_S = 5
# When a head was used is noted to this many seconds, as of KV.
_USED_TO_S = 60.0

__all__ = ["MOST_HEADS", "RUN_UP_TOKENS", "Head", "PromptHeads", "TokenIds", "run_up_of"]


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
                if not _is_same(other, passage) and len(before) + len(other) <= most:
                    before += other
            found.append(tuple(before))
        behind_others = [c for c in found if len(c) > len(self.token_ids)]
        return behind_others or [self.token_ids]


class PromptHeads:
    """The known heads of one KV namespace. Safe for many threads.

    Their file is the truth: what other processes of the store write there holds here too.

    Args:
        path: The file, in a folder of the store; a damaged or missing one is an empty one. The
            damaged one is set aside before it is written anew.
        read_only: Write nothing.
        vault: What the file is read and written with.
    """

    def __init__(self, path: Path, *, read_only: bool = False, vault: Vault = IN_THE_CLEAR) -> None:
        self._path = path
        self._read_only = read_only
        self._vault = vault
        self._stamp = _stamp(path)
        self._is_damaged = False
        self._heads, self._used_s = self._read()
        self._recent: deque[tuple[TokenIds, float]] = deque(maxlen=MOST_RECENT)
        self._lock = threading.RLock()

    def find(self, before: Sequence[int]) -> Head | None:
        """Return the shortest known head that `before`, the tokens before a passage, begin with."""
        with self._lock:
            self._refresh()
            found = self._find(tuple(before))
            if found is not None:
                self._note_use(found)
            return found

    def _note_use(self, head: Head) -> None:
        if self._read_only or abs(time.time() - self._used_s[head.token_ids]) < _USED_TO_S:
            return
        with suppress(OSError), self._changing():  # another process has the file: the next time
            if head.token_ids in self._used_s:
                self._used_s[head.token_ids] = time.time()
                self._write()

    def _find(self, before: TokenIds) -> Head | None:
        found = (h for h in self._heads if before[: len(h.token_ids)] == h.token_ids)
        return min(found, key=lambda h: len(h.token_ids), default=None)

    @contextmanager
    def holding(self, head: Head) -> Iterator[bool]:
        """Tell whether a head is known with this very run-up; while the body runs, it stays so."""
        with self._lock:
            self._refresh()
            yield head in self._heads

    def note(self, before: Sequence[int]) -> Head | None:
        """Take note of the tokens before a passage; return the head, if it is known now.

        What these share with those of a recent prompt becomes a head, unless it is the smaller
        part of both: then they are of different templates.

        Raises:
            OSError: Another process does not let go of the file.
        """
        own = tuple(before)
        with self._lock:
            self._refresh()
            known = self._find(own)
            if known is None:
                shared = max((_shared(own, r) for r, _ in self._recent), default=0)
                self._recent.append((own, time.time()))
                if shared:
                    known = self._added(own[:shared])
            return known

    def add(self, head: Sequence[int]) -> None:
        """Make a head known without a second prompt that begins like it.

        Raises:
            OSError: Another process does not let go of the file.
        """
        if len(head) >= LEAST_TOKENS:
            self._added(tuple(head))

    def with_run_up(
        self, head: Head, passages: Iterable[TokenIds], *, shown_tokens: int
    ) -> Head | None:
        """Return a known head with its run-up; if it has none yet, it gets one of `passages`.

        It stays as it is from then on: passages are kept by head and run-up. None where the head
        is not known any more.

        Args:
            head: As it is known.
            passages: Such as stand behind it, in the order in which they are taken.
            shown_tokens: Of the passages in a prompt. A context has as many as stand before one in
                the middle of it.

        Raises:
            OSError: Another process does not let go of the file.
        """
        with self._changing():
            known = self._find(head.token_ids)
            if known is None or known.run_up:
                return known
            room = min(RUN_UP_TOKENS, NUM_CONTEXTS * shown_tokens // 2)
            found = replace(known, run_up=run_up_of(passages, room))
            if found != known:
                self._heads[self._heads.index(known)] = found
                self._write()
            return found

    def held(self) -> list[Head]:
        """Return the known heads and the beginnings of recent prompts."""
        with self._lock:
            return [*self.known(), *(Head(r) for r, _ in self._recent)]

    def unused_since(self, before_s: float) -> list[Head]:
        """Return what `held` does, of those used last before a time.

        What seems to be of later than now is taken for new: the clock was set back.
        """
        with self._lock:
            now = time.time()
            if any(used_s > now + _USED_TO_S for used_s in self._used_s.values()):
                with self._changing():
                    self._used_s = {ids: min(s, now) for ids, s in self._used_s.items()}
                    self._write()
            known = [h for h in self.known() if self._used_s[h.token_ids] < before_s]
            return [*known, *(Head(r) for r, seen_s in self._recent if seen_s < before_s)]

    def known(self) -> list[Head]:
        """Return the known heads."""
        with self._lock:
            self._refresh()
            return list(self._heads)

    def forget(self, heads: Sequence[Head]) -> None:
        """Let go of heads, whatever their run-ups are by now, here and in the file.

        Raises:
            OSError: Another process does not let go of the file.
        """
        gone = {h.token_ids for h in heads}
        with self._changing():
            kept = [r for r in self._recent if r[0] not in gone]
            self._recent.clear()
            self._recent.extend(kept)
            known = len(self._heads)
            self._heads = [h for h in self._heads if h.token_ids not in gone]
            if len(self._heads) < known or self._is_damaged:
                self._write()

    def _added(self, token_ids: TokenIds) -> Head:
        with self._changing():
            known = self._find(token_ids)
            if known is None:
                known = Head(token_ids)
                self._heads = [*self._heads, known][-MOST_HEADS:]
                self._used_s[token_ids] = time.time()
                self._write()
            return known

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the file, as it is now, against other threads and processes."""
        with self._lock, self._file_lock():
            self._refresh()
            yield

    def _file_lock(self) -> AbstractContextManager[object]:
        if self._read_only:
            return nullcontext()
        return StoreLock(self._path.with_suffix(".lock"), timeout=_LOCK_S, mode=0o600)

    def _refresh(self) -> None:
        stamp = _stamp(self._path)
        if stamp != self._stamp:
            (self._heads, self._used_s), self._stamp = self._read(), stamp

    def _read(self) -> tuple[list[Head], dict[TokenIds, float]]:
        """Return the heads of the file, and when each was used last."""
        self._is_damaged = False
        try:
            rows = plain_json(self._vault.read(self._path, _MOST_BYTES))
            written_s = self._path.stat().st_mtime
            # An empty head would be found in front of every prompt.
            heads = [h for h in map(_head, rows) if len(h.token_ids) >= LEAST_TOKENS][-MOST_HEADS:]
            return heads, {_head(row).token_ids: _used_s(row, written_s) for row in rows}
        except FileNotFoundError:
            return [], {}
        except PermissionError:
            _log.warning("%s", forbidden(self._path))
            return [], {}
        except (ArithmeticError, CacheError, LookupError, OSError, TypeError, ValueError) as error:
            _log.warning("%s is damaged and begun anew: %s", self._path, error)
            self._is_damaged = True
            return [], {}

    def _write(self) -> None:
        if self._read_only:
            return
        self._used_s = {h.token_ids: self._used_s[h.token_ids] for h in self._heads}
        rows = [
            {"head": h.token_ids, "run_up": h.run_up, "used_s": self._used_s[h.token_ids]}
            for h in self._heads
        ]
        try:
            if is_forbidden(self._path):
                return  # it may hold more than what is known here
            if self._is_damaged:
                set_aside(self._path, self._path.parent.parent / "quarantine")
                self._is_damaged = False
            self._vault.write(self._path, json.dumps(rows).encode())
        except OSError as error:
            _log.warning("the prompt's head could not be kept: %s", error)
        self._stamp = _stamp(self._path)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what tells one state of a file from another."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def run_up_of(passages: Iterable[TokenIds], room: int = RUN_UP_TOKENS) -> tuple[TokenIds, ...]:
    """Return the first passages that fit into so many tokens; a single one always does."""
    found: list[TokenIds] = []
    left = room
    for passage in passages:
        if any(_is_same(passage, other) for other in found):
            continue
        if not found or len(passage) <= left:
            found.append(passage)
            left -= len(passage)
    return tuple(found)


def _is_same(one: TokenIds, other: TokenIds) -> bool:
    """Tell whether two are one passage, of which either may lack tokens at its ends."""
    if one == other:
        return True
    short, long = sorted((one, other), key=len)
    middle = short[_END_TOKENS : len(short) - _END_TOKENS]
    starts = range(2 * _END_TOKENS + 1) if len(long) - len(short) <= 2 * _END_TOKENS else ()
    return bool(middle) and any(long[n : n + len(middle)] == middle for n in starts)


def _shared(one: TokenIds, other: TokenIds) -> int:
    shared = common_prefix(one, other)
    return shared if shared >= max(LEAST_TOKENS, min(len(one), len(other)) / 2) else 0


def _used_s(row: Any, written_s: float) -> float:
    """Return when a head was used last; one of an earlier version, when its file was written."""
    return float(row.get("used_s", written_s)) if isinstance(row, dict) else written_s


def _head(row: Any) -> Head:
    """Read a head; a row of tokens alone is one of a time before run-ups."""
    if isinstance(row, dict):
        return Head(_ids(row["head"]), tuple(p for p in map(_ids, row["run_up"]) if p))
    return Head(_ids(row))


def _ids(row: Any) -> TokenIds:
    return tuple(int(t) for t in row)
