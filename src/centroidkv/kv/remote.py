"""The remote tier: the bytes of block files, by id and level, on storage that others share.

Whatever it does wrong costs time, never an answer: it is counted, warned of once, and computed.
Knows no prompt, and not which blocks this machine has.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from centroidkv.block_form import BlockForm
from centroidkv.errors import CacheCorrupt, CacheError, CacheMismatch
from centroidkv.kv.blocks import BLOCK_TOKENS, block_id
from centroidkv.kv.byte_store import ByteStore, Entry
from centroidkv.kv.codec import MAX_BLOCK_BYTES, RAW, StoredBlock, parse_block
from centroidkv.kv.remote_budget import RemoteBudget, block_of
from centroidkv.kv.remote_calls import Answer, RemoteCalls
from centroidkv.kv.remote_known import KnownBlocks
from centroidkv.remote_settings import RemoteSettings
from centroidkv.sealing import Sealer, is_sealed

T = TypeVar("T")
CALLS_AT_ONCE = 8
# Of what one call may take, so much may listing a remote, or deleting a part of it: nobody waits.
HOUSEKEEPING_CALLS = 12
# An entry, or what a writer that was killed left of one.
_OWN_NAME = re.compile(r"([0-9a-f]{2})/\1[0-9a-f]{62}\.[a-z0-9]{1,16}(\.[0-9a-f]{32}\.writing)?")

__all__ = ["Received", "RemoteBlocks", "entry_name"]


def entry_name(block: str, level: str) -> str:
    """Return the name of a block's entry, under the remote's prefix."""
    return f"{block[:2]}/{block}.{level}"


@dataclass(frozen=True, slots=True)
class Received:
    """A block as it came: verified, with the bytes of its file."""

    stored: StoredBlock
    raw: bytes


class RemoteBlocks:
    """Blocks on a remote. Safe for many threads.

    Args:
        store: Where the bytes are.
        settings: On what terms.
        calls: How it is asked.
        budget: What bounds it, if anything.
        clock: Seconds; for what is known without asking.
    """

    def __init__(
        self,
        store: ByteStore,
        settings: RemoteSettings,
        calls: RemoteCalls,
        *,
        budget: RemoteBudget | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.calls = calls
        self.budget = budget
        self.forms: dict[str, BlockForm] = {}  # by namespace: what blocks have to look like
        self.asked: Callable[[float], None] | None = None  # told what a round trip took
        self._store = store
        self._known = KnownBlocks(clock)
        key = settings.key_bytes()
        self._sealer = Sealer(key) if key is not None else None

    def close(self) -> None:
        """Release connections, unless the remote keeps us waiting."""
        self.calls.run_one(self._store.close)

    # looking

    def has(self, block: str) -> bool:
        """Tell whether a block is known to be there; asks nobody. A remote left alone has none."""
        return self.calls.breaker.state != "open" and bool(self._known.sizes(block))

    def sizes(self, block: str) -> dict[str, int]:
        """Return the bytes of a block by level, as far as known; asks nobody.

        Of blocks found between others, they are those of a neighbour.
        """
        return self._known.sizes(block)

    def look_for(self, block_ids: Sequence[str], levels: Sequence[str]) -> int:
        """Find how many leading blocks of a chain the remote has, in few round trips.

        Ids are prefix-closed: where one is, those before it are. So each round asks for a few
        blocks spread over what is open, all at the same time, and halves it at least.
        """
        deadline = time.monotonic() + self.settings.lookup_s
        least = sum(1 for _ in self._leading(block_ids))
        most = len(block_ids)
        at_once = max(1, CALLS_AT_ONCE * self._store.names_at_once // len(levels))
        while least < most and not self._known.is_absent(block_ids[least]):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            asked = _spread(least, most, at_once)
            found = self._ask([block_ids[i] for i in asked], levels, left_s)
            if found is None:
                break
            for index, sizes in zip(asked, found, strict=True):
                if not sizes:
                    most = min(most, index)
                elif index < most:
                    for between in range(least, index + 1):
                        self._known.present(block_ids[between], sizes)
                    least = index + 1
        if least < len(block_ids) and least == most:
            self._known.absent(block_ids[least])
        return least

    def _leading(self, block_ids: Sequence[str]) -> list[str]:
        leading: list[str] = []
        for block in block_ids:
            if not self.has(block):
                break
            leading.append(block)
        return leading

    def _ask(
        self, block_ids: Sequence[str], levels: Sequence[str], timeout_s: float
    ) -> list[dict[str, int]] | None:
        """Ask for the sizes of blocks in one round; None if not all of it was answered."""
        names = [entry_name(block, level) for block in block_ids for level in levels]
        step = self._store.names_at_once
        parts = [names[i : i + step] for i in range(0, len(names), step)]
        began = time.perf_counter()
        answers = self.calls.run(
            [partial(self._store.sizes, part) for part in parts], timeout_s=timeout_s
        )
        if self.asked is not None and None not in answers:
            self.asked(time.perf_counter() - began)
        sizes: list[int | None] = []
        for answer in answers:
            if answer is None:
                return None
            sizes += answer.value
        rows = [sizes[i : i + len(levels)] for i in range(0, len(sizes), len(levels))]
        return [
            {level: size for level, size in zip(levels, row, strict=True) if size} for row in rows
        ]

    # reading

    def fetch(self, block: str, level: str | None = None) -> Received | None:
        """Return a block at a level, the finest known by default; None if it cannot be used."""
        level = level or next(iter(self._known.sizes(block)), None)
        if level is None:
            return None
        name = entry_name(block, level)
        answer = self.calls.run_one(lambda: self._store.read(name, self._most_bytes))
        if answer is None:
            return None
        if answer.value is None:
            if self.has(block):
                self.calls.fault("vanished", name)
            self._known.absent(block)
            return None
        try:
            return self._opened(block, level, answer.value)
        except CacheError as error:
            self.refuse(block, level, error)
            return None

    def inspect(self, block: str, level: str) -> StoredBlock | None:
        """Return an entry to tell whose it is, of whatever model; None if it is gone.

        Not to be used for an answer. Nothing is counted or remembered: what is in vain for one
        tenant now may be another's own in a moment.

        Raises:
            OSError: The remote does not answer.
            CacheError: The entry is damaged, or sealed under another key.
        """
        name = entry_name(block, level)
        answer = self.calls.run_one(lambda: self._store.read(name, MAX_BLOCK_BYTES))
        if answer is None:
            raise OSError(f"the remote does not give {name}")
        return None if answer.value is None else self._parsed(block, level, answer.value).stored

    @property
    def _most_bytes(self) -> int:
        """What no entry exceeds that this machine can use."""
        known = (form.most_file_bytes(BLOCK_TOKENS) for form in self.forms.values())
        return max(known, default=MAX_BLOCK_BYTES)

    def refuse(self, block: str, level: str, error: CacheError) -> None:
        """Count an entry that cannot be used, and do not ask for it again for a while."""
        self._known.unusable(block, level)
        kind = "foreign" if isinstance(error, CacheMismatch) else "damaged"
        self.calls.fault(kind, error)

    def _opened(self, block: str, level: str, raw: bytes) -> Received:
        """Unseal and verify an entry.

        Raises:
            CacheError: It is not the block that its name says, or cannot be read.
        """
        name = entry_name(block, level)
        if len(raw) > self._most_bytes:
            most = f"at most {self._most_bytes} bytes"
            raise CacheMismatch(name, expected=most, found="more than that")
        received = self._parsed(block, level, raw)
        if self.forms:
            # Whoever wrote it may have named any namespace: only our own are asked for.
            namespace = received.stored.namespace
            if namespace not in self.forms:
                raise CacheMismatch(name, expected="a namespace in use", found="another")
            received.stored.require(self.forms[namespace])
        return received

    def _parsed(self, block: str, level: str, raw: bytes) -> Received:
        """Unseal and verify an entry of whatever namespace."""
        name = entry_name(block, level)
        if self._sealer is not None:
            raw = self._sealer.open(raw, name)
        elif is_sealed(raw):
            raise CacheMismatch(name, expected="an entry in the clear", found="a sealed one")
        stored = parse_block(raw, name)
        # What a level cannot hold is kept raw under its name.
        if stored.id != block or stored.level not in (level, RAW.level):
            raise CacheMismatch(name, expected=name, found=entry_name(stored.id, stored.level))
        if block_id(stored.parent, stored.token_ids) != block:
            raise CacheCorrupt(Path(name), "the id does not follow from its tokens")
        return Received(stored, raw)

    # writing

    def put(self, block: str, files: Mapping[str, bytes], *, parent: str = "") -> bool:
        """Write a block at its levels; tell whether all of it is there now.

        Its `parent` does not leave to make room for it.
        """
        if self.settings.read_only:
            return False
        names = {level: entry_name(block, level) for level in files}
        sealed = {
            names[level]: self._sealer.seal(raw, names[level]) if self._sealer else raw
            for level, raw in files.items()
        }
        if not self._make_room(sum(map(len, sealed.values())), parent):
            return False
        for name, raw in sealed.items():
            if self.calls.run_one(partial(self._store.write, name, raw)) is None:
                return False
            if self.budget is not None:
                self.budget.wrote(len(raw))
        self._known.written(block, {level: len(sealed[names[level]]) for level in files})
        return True

    # forgetting

    def names(self) -> list[str] | None:
        """Return the names of all entries of ours; None if the remote does not tell."""
        listed = self._kept_house([self._own_entries])[0]
        return [entry.name for entry in listed.value] if listed is not None else None

    def erase(self, names: Sequence[str]) -> bool:
        """Delete entries, whoever wrote them; tell whether all are gone."""
        if self.settings.read_only and names:
            return False
        return not names or self._deleted(names)

    def _make_room(self, num_bytes: int, parent: str) -> bool:
        if self.budget is None or self.budget.has_room(num_bytes):
            return True
        if num_bytes > self.budget.budget_bytes:
            return False
        listed = self._kept_house([self._own_entries])[0]
        if listed is None:
            return False
        names = self.budget.listed(listed.value, num_bytes, parent)
        return self._deleted(names) and self.budget.fits(num_bytes)

    def _own_entries(self) -> list[Entry]:
        """List what is there by the names of ours; what else lies there is never deleted."""
        return [entry for entry in self._store.listing() if _OWN_NAME.fullmatch(entry.name)]

    def _deleted(self, names: Sequence[str]) -> bool:
        """Delete entries; tell whether all are gone."""
        for name in names:
            self._known.absent(block_of(name))
        parts = [names[i::CALLS_AT_ONCE] for i in range(min(CALLS_AT_ONCE, len(names)))]
        done = self._kept_house([partial(self._store.delete, part) for part in parts])
        if None in done and self.budget is not None:
            self.budget.used_bytes = None  # what is left is for the next listing to tell
            return False
        return True

    def _kept_house(self, calls: Sequence[Callable[[], T]]) -> list[Answer[T] | None]:
        return self.calls.run(calls, timeout_s=HOUSEKEEPING_CALLS * self.settings.timeout_s)


def _spread(start: int, stop: int, most: int) -> list[int]:
    """Return at most so many indices of [start, stop), spread evenly, the first among them."""
    count = min(most, stop - start)
    return [start + i * (stop - start) // count for i in range(count)]
