"""Letting go of what is too old of tenants that nobody opens: those who left keep nothing either.

The engine that opened the store does it for all of them, and needs no engine for any: what is old
is asked of each file once, and only tenants that have some are swept, one after another. Tenants
are known here by their owner's id alone, which tells no name.
"""

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from centroidkv.errors import CentroidKVError, StoreError
from centroidkv.kv.blocks import namespace_id
from centroidkv.kv.holdings import Holdings
from centroidkv.kv.owners import all_owners, noted_ttls, oldest_blocks
from centroidkv.privacy.expiry import CORRECTION_S, SWEEPS, Expiry
from centroidkv.privacy.forget_log import ForgetLog
from centroidkv.privacy.forgetting import Privacy
from centroidkv.privacy.wanted import Wanted
from centroidkv.store import Store

_log = logging.getLogger("centroidkv")

# So long may one request be kept waiting for tenants that ask nothing; the next goes on.
LONGEST_S = 0.2
# Another process may note a shorter time to live, so the times are looked at this often at least.
LOOK_EVERY_S = 600.0

__all__ = ["QuietTenants"]


class QuietTenants:
    """The time to live of all owners of a store that have no open engine. Safe for many threads.

    Args:
        store: As the engine that opened it sees it.
        opened: The open engines' owners, each with what keeps its own time to live.
        privacy_of: Makes what lets go of an owner's entries, writing down in a log what it does.
        clock: Unix time.
    """

    def __init__(
        self,
        store: Store,
        opened: Callable[[], Mapping[str, Expiry]],
        privacy_of: Callable[[str, ForgetLog], Privacy],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._opened = opened
        self._privacy_of = privacy_of
        self._clock = clock
        self._log = ForgetLog(store.path, store.vault, folder="expiring")
        self._waiting: list[tuple[str, float]] = []
        self._scanned_s: float | None = None
        self._every_s = LOOK_EVERY_S
        self._owes_rewriting = False
        self._has_warned = False
        self._lock = threading.Lock()

    def look(self) -> None:
        """Go on for a moment, if it is time and no other request does."""
        if self._is_due() and self._lock.acquire(blocking=False):
            try:
                self._tried(lambda: self._go_on(time.monotonic() + LONGEST_S))
            finally:
                self._lock.release()

    def resume(self) -> None:
        """Go on where letting go was broken off."""
        with self._lock:
            if self._log.has_remains:
                self._tried(self._resume)

    def sweep(self, longest_s: float = float("inf")) -> bool:
        """Let go of all that is too old; tell whether files still hold any of it."""
        with self._lock:
            self._waiting = []
            self._tried(lambda: self._go_on(time.monotonic() + longest_s))
            return self._owes_rewriting

    def hasten(self, ttl_s: float) -> None:
        """Look as often as an engine needs that was opened, and may be closed before the rest."""
        self._every_s = min(self._every_s, ttl_s / SWEEPS)

    def _is_due(self) -> bool:
        if self._waiting or self._scanned_s is None:
            return True
        now = self._clock()
        was_set_back = now < self._scanned_s - CORRECTION_S
        return was_set_back or now >= self._scanned_s + self._every_s

    def _resume(self) -> None:
        for owner in {intent.tenant for intent in self._log.open_intents()}:
            self._privacy_of(owner, self._log).resume()

    def _tried(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (CentroidKVError, OSError, sqlite3.Error) as error:
            self._scanned_s = self._clock()
            if not self._has_warned:
                self._has_warned = True
                _log.warning("what is too old of other tenants stays for now: %s", error)

    def _go_on(self, until_s: float) -> None:
        if not self._waiting:
            self._scan()
        while self._waiting:
            owner, before_s = self._waiting.pop()
            privacy, wanted = self._privacy_of(owner, self._log), Wanted(before_s=before_s)
            with contextlib.ExitStack() as held:
                forgetting = ForgetLog(self._store.path, self._store.vault)
                try:
                    held.enter_context(forgetting.alone(until_s - time.monotonic()))
                except StoreError:
                    self._waiting.append((owner, before_s))
                    raise
                found = privacy.expire(wanted, rewrites=False)
            self._owes_rewriting = found or self._owes_rewriting
            if time.monotonic() >= until_s:
                return

    def _scan(self) -> None:
        """Note who has anything that is too old."""
        opened, now = self._opened(), self._clock()
        for expiry in opened.values():
            expiry.look_at_own()  # open, but perhaps nobody asks
        all_ttls = self._ttls()
        self._every_s = min([*all_ttls.values(), LOOK_EVERY_S * SWEEPS]) / SWEEPS
        ttls = {o: t for o, t in all_ttls.items() if o not in opened}
        self._scanned_s = now
        if ttls:
            ages = self._ages(now)
            for owner, ttl_s in ttls.items():
                before_s = now - ttl_s * (1 - 1 / SWEEPS)
                names = self._names(owner)
                if min((ages.get(n, before_s) for n in names), default=before_s) < before_s:
                    self._waiting.append((owner, before_s))

    def _ttls(self) -> dict[str, float]:
        """Return the time to live of every owner that has one.

        An engine that was opened for one tenant by name speaks for no other.
        """
        manifest, config = self._store.blocks.disk.manifest, self._store.config
        noted, own = noted_ttls(manifest), None if config.tenant else config.ttl_s
        found = {owner: noted.get(owner, own) for owner in all_owners(manifest)}
        return {owner: ttl_s for owner, ttl_s in found.items() if ttl_s is not None}

    def _names(self, owner: str) -> Iterator[str]:
        for namespace in Holdings(self._store.blocks, owner).namespaces():
            yield namespace
            yield namespace_id("representatives", namespace)
            yield f"{namespace[-16:]}.json"

    def _ages(self, now_s: float) -> dict[str, float]:
        """Return by namespace, and by file of heads, when its oldest entry was used or stored."""
        store, found = self._store, dict[str, float]()
        Holdings(store.blocks, "").settle_clock(now_s)
        parts = [oldest_blocks(store.blocks.disk.manifest)]
        for name, opened in (
            ("history", store.open_history),
            ("answers", store.open_answers),
            ("drafts", store.open_drafts),
        ):
            if (store.path / f"{name}.sqlite").exists():
                with contextlib.closing(opened("")) as part:
                    part.settle_clock(now_s)
                    parts.append(part.oldest())
        for path in (store.path / "heads").glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                parts.append({path.name: path.stat().st_mtime})
        for part_ages in parts:
            for name, used_s in part_ages.items():
                found[name] = min(used_s, found.get(name, used_s))
        return found
