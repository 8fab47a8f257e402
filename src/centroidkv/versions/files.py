"""The files of plan versions: the lock around writing them, the next number, what is kept.

The truth is a pointer file per plan namespace, written whole under a lock that other processes
respect. A switch is that one write: what is killed before it leaves the old version in force,
what is killed behind it the new one. Knows nothing of what routes in this process.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from filelock import Timeout

from centroidkv.errors import CacheError, ConfigError, StoreError
from centroidkv.files import forbidden, is_forbidden, make_folder
from centroidkv.locks import StoreLock
from centroidkv.routing.plan import Plan
from centroidkv.routing.pointer import Pointer
from centroidkv.store import Store

_log = logging.getLogger("centroidkv")

LOCK_S = 60.0

__all__ = ["VersionFiles"]


class VersionFiles:
    """The plan files and the pointer of one plan namespace."""

    def __init__(self, store: Store, namespace: str) -> None:
        self.namespace = namespace
        self.lock = threading.RLock()
        self._store = store
        self._plans = store.plans
        path = self._plans.folder / f"{namespace[-16:]}.lock"
        self._file_lock = StoreLock(path, mode=0o600)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other threads and processes from writing versions meanwhile.

        Raises:
            StoreError: The store is read-only, another process does not let go, the lock cannot be
                had, or the pointer is a file that belongs to somebody else.
        """
        self._store.require_writable("change its plan versions")
        with self.lock:
            try:
                make_folder(self._plans.folder)
                self._file_lock.acquire(timeout=LOCK_S)
            except Timeout as error:
                raise StoreError(
                    f"another process is writing plans in {self._plans.folder}; try again later"
                ) from error
            except OSError as error:
                raise StoreError(f"cannot lock {self._plans.folder}: {error}") from error
            try:
                self._require_pointer()
                yield
            finally:
                self._file_lock.release()

    def _require_pointer(self) -> None:
        """Refuse to write another pointer in place of one that may say more than is known here."""
        path = self._plans.pointer_path(self.namespace)
        if is_forbidden(path):
            raise StoreError(str(forbidden(path)))

    @property
    def numbers(self) -> list[int]:
        """The versions that are kept, oldest first."""
        return self._plans.versions(self.namespace)

    @property
    def written_pointer(self) -> Pointer | None:
        """What the pointer file says; None where it is missing or damaged."""
        try:
            return self._plans.pointer(self.namespace)
        except CacheError:
            return None  # reported when the store was opened

    @property
    def pointer(self) -> Pointer | None:
        """Which versions serve; where no file says so, the newest readable one. None without."""
        pointer = self.written_pointer
        if pointer is None:
            plan, _ = self._plans.in_force(self.namespace)
            pointer = Pointer(plan.version, last=self.numbers[-1]) if plan is not None else None
        return pointer

    def required(self) -> Pointer:
        """Return which versions serve.

        Raises:
            ConfigError: There is no plan.
        """
        pointer = self.pointer
        if pointer is None:
            raise ConfigError("the store has no plan for this embedder and tenant; build one first")
        return pointer

    def load(self, version: int) -> Plan:
        """Return a version that is to serve.

        Raises:
            ConfigError: There is none of that number, or it cannot be read.
        """
        if version not in self.numbers:
            listed = ", ".join(map(str, self.numbers)) or "none"
            raise ConfigError(f"there is no plan version {version}; kept are: {listed}")
        try:
            return self._plans.load(self.namespace, version)
        except CacheError as error:
            raise ConfigError(f"plan version {version} cannot be used: {error}") from error

    def add(self, plan: Plan) -> Plan:
        """Save a plan as the next version; no number is given out twice."""
        pointer = self.written_pointer
        plan = replace(plan, version=1 + max([*self.numbers, pointer.last if pointer else 0]))
        self._plans.save(plan)
        return plan

    def stage(self, plan: Plan) -> Plan:
        """Save a plan as the next version without putting it in force.

        The newest one is taken up again if it is the same and was never used.
        """
        pointer = self.pointer
        if pointer is not None and self.written_pointer is None:
            # Else the newest file would be in force as soon as it is there.
            self._plans.point(self.namespace, pointer)
        newest = self.numbers[-1] if self.numbers else None
        if newest is not None and pointer is not None and newest not in pointer.versions:
            try:
                left = self._plans.load(self.namespace, newest)
            except CacheError as error:
                _log.warning("%s", error)
            else:
                if plan.is_same_as(left):
                    return left
        return self.add(plan)

    def prune(self) -> list[int]:
        """Let go of all but the newest versions and those that serve; return which went.

        The plan file goes last, so what is interrupted is done again. KV blocks stay: they are
        shared, and leave by the disk budget.
        """
        pointer, numbers = self.pointer, self.numbers
        kept = set(numbers[-self._store.config.keep_versions :])
        kept |= pointer.versions if pointer is not None else set(numbers)
        gone: list[int] = []
        for version in (n for n in numbers if n not in kept):
            path = self._plans.path(self.namespace, version)
            try:
                self._forget(path.stem)
            except CacheError as error:
                # Chroma is another process's now: that one, or a later switch, will do it.
                _log.debug("version %d is not pruned yet: %s", version, error)
                continue
            path.unlink(missing_ok=True)
            gone.append(version)
        return gone

    def _forget(self, plan_id: str) -> None:
        self._store.drop_index(plan_id)
        self._store.blocks.disk.manifest.drop_prefixes(plan_id)
        if (self._store.path / "answers.sqlite").exists():
            answers = self._store.open_answers(self.namespace)
            try:
                answers.delete_scope(plan_id)
            finally:
                answers.close()
