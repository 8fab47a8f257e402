"""Plan versions at work: which one is in force, which is on trial for a share of the questions.

Without a router it changes the files alone; a process that has the store open follows within a
second, behind its answers.
"""

import logging
import time
from pathlib import Path
from typing import TypeAlias

from centroidkv.errors import CacheError, ConfigError
from centroidkv.routing.plan import Plan
from centroidkv.routing.pointer import Pointer
from centroidkv.routing.router import Router
from centroidkv.store import Store
from centroidkv.types import Cluster
from centroidkv.versions.files import VersionFiles
from centroidkv.versions.listing import PlanVersion, list_versions

_log = logging.getLogger("centroidkv")

LOOK_EVERY_S = 1.0

Signature: TypeAlias = tuple[int, int, int] | None

__all__ = ["Versions"]


class Versions:
    """The plan versions of one plan namespace. Safe for many threads and processes."""

    def __init__(self, store: Store, namespace: str, router: Router | None = None) -> None:
        self.namespace = namespace
        self.files = VersionFiles(store, namespace)
        self._store = store
        self._plans = store.plans
        self._router = router
        self._noted: dict[Path, Signature] = {}
        self._looked_s = 0.0

    def kept(self) -> list[PlanVersion]:
        """Return the versions that are kept, oldest first, each with its figures."""
        return list_versions(self._store, self.namespace)

    @property
    def pointer(self) -> Pointer | None:
        """Which versions serve; None without a plan."""
        return self.files.pointer

    def load(self) -> list[CacheError]:
        """Put in force what the pointer says; return what was wrong with files on the way."""
        self._note(self._pointer_path)
        signatures = {p: _signature(p) for p in self._plans.files(self.namespace)}
        plan, found = self._plans.in_force(self.namespace)
        problems: list[CacheError] = list(found)
        if plan is None:
            if self._store.is_owner and self._plans.files() and not problems:
                _log.warning(_FOREIGN, self._store.path)
            return problems
        if self._router is not None:
            self._router.use(plan)
            self._noted.update(signatures)
        pointer = self.files.written_pointer
        if pointer is not None and pointer.trial is not None:
            try:
                self._beside(self._plans.load(self.namespace, pointer.trial), pointer.share)
            except CacheError as error:
                problems.append(error)
        return problems

    # making

    def put_in_force(self, plan: Plan) -> bool:
        """Save a plan as the next version and route by it; False if it is in force already."""
        with self.files.writing():
            self.follow()
            current = self._router.plan if self._router else None
            if current is not None and plan.is_same_as(current):
                self.files.prune()  # where a switch was interrupted
                return False
            pointer = self.files.pointer
            plan = self.files.add(plan)
            self._switch(plan, pointer)
            return True

    def stage(self, plan: Plan) -> Plan:
        """Save a plan as the next version and make it ready, without a question for it yet.

        Raises:
            ConfigError: A version is on trial.
        """
        with self.files.writing():
            self.follow()
            self.require_no_trial()
            staged = self.files.stage(plan)
            self._note(self._pointer_path)
            self._beside(staged, 0.0)
            return staged

    def grow(self, plan: Plan, cluster: Cluster) -> None:
        """Save the plan in force with one more cluster, and route by it. Call it in `writing`."""
        assert self._router is not None
        self._plans.save(plan)
        self._router.extend(plan, cluster)
        self._note(self._plans.path(self.namespace, plan.version))

    # switching

    def use(self, version: int) -> None:
        """Put a kept version in force; a trial ends.

        Raises:
            ConfigError: There is no such version, or it cannot be read.
        """
        with self.files.writing():
            self._switch(self.files.load(version), self.files.pointer)

    def trial(self, version: int | None = None, *, share: float = 0.1) -> int:
        """Let a version serve a share of the questions; by default the newest one.

        A question always meets the same version. Returns the version's number.

        Raises:
            ConfigError: There is no such version, it is in force, or the share is not in (0, 1).
        """
        require_share(share)
        with self.files.writing():
            pointer = self.files.required()
            chosen = self.files.numbers[-1] if version is None else version
            if chosen == pointer.in_force:
                raise ConfigError(
                    f"plan version {chosen} is in force already; a trial needs another one: "
                    "refit first, or name one that is kept"
                )
            plan = self.files.load(chosen)
            self._point(pointer.trying(chosen, float(share)))
            self._beside(plan, float(share))
            return chosen

    def promote(self) -> int:
        """Put the version on trial in force; return its number.

        Raises:
            ConfigError: None is on trial.
        """
        with self.files.writing():
            trial = self.files.required().trial
            if trial is None:
                raise ConfigError("no plan version is on trial; start one first")
            self.use(trial)
            return trial

    def rollback(self) -> int:
        """End the trial; without one, go back to the version before. Return what is in force.

        Raises:
            ConfigError: There was no version before.
        """
        with self.files.writing():
            pointer = self.files.required()
            if pointer.trial is not None:
                self._point(pointer.without_trial())
                self.leave_trial()
                return pointer.in_force
            if pointer.previous is None:
                raise ConfigError("there is no earlier plan version to go back to")
            self.use(pointer.previous)
            return pointer.previous

    def leave_trial(self) -> None:
        """Take the version on trial, or one only made ready, out of this process."""
        if self._router is not None:
            self._router.end_trial(promote=False)

    def require_no_trial(self) -> None:
        """Refuse what would need a second trial.

        Raises:
            ConfigError: A version is on trial.
        """
        pointer = self.files.written_pointer
        if pointer is not None and pointer.trial is not None:
            raise ConfigError(
                f"plan version {pointer.trial} is on trial; promote it or roll back first"
            )

    def _switch(self, plan: Plan, pointer: Pointer | None) -> None:
        self._point(pointer.switched(plan.version) if pointer else Pointer(plan.version))
        if self._router is not None:
            self._route_by(plan)
            self.files.prune()

    def _point(self, pointer: Pointer) -> None:
        self._plans.point(self.namespace, pointer)
        self._note(self._pointer_path)

    def _route_by(self, plan: Plan) -> None:
        router = self._router
        assert router is not None
        trial = router.trial
        router.end_trial(promote=trial is not None and trial.id == plan.id)
        if router.plan is None or router.plan.id != plan.id:
            router.use(plan)
        self._note(self._plans.path(self.namespace, plan.version))

    def _beside(self, plan: Plan, share: float) -> None:
        if self._router is not None:
            self._router.try_beside(plan, share)

    # following other processes

    def look(self) -> None:
        """Notice, now and then, that another process has switched; follow behind the answers."""
        now = time.monotonic()
        if now - self._looked_s >= LOOK_EVERY_S:
            self._looked_s = now
            plan = self._router.plan if self._router is not None else None
            is_same = self._is_noted(self._pointer_path)
            if not is_same or (plan is not None and not self._is_noted(self._path(plan))):
                self._store.writer.submit(self.follow)

    def follow(self) -> None:
        """Route by what the files say, if another process has changed them."""
        router = self._router
        if router is None:
            return
        with self.files.lock:
            plan = router.plan
            is_same = self._is_noted(self._pointer_path)
            if is_same and (plan is None or self._is_noted(self._path(plan))):
                return
            self._note(self._pointer_path)
            signatures = {p: _signature(p) for p in self._plans.files(self.namespace)}
            found, problems = self._plans.in_force(self.namespace)
            for problem in problems:
                _log.warning("%s", problem)
            if found is None:
                return
            if plan is not None and plan.id == found.id and not plan.is_same_as(found):
                router.use(found)  # grown by another process, or cleaned of what was forgotten
            if not is_same:
                self._follow_trial(found)
            self._noted.update(signatures)

    def _follow_trial(self, in_force: Plan) -> None:
        self._route_by(in_force)
        pointer = self.files.written_pointer
        if pointer is not None and pointer.trial is not None:
            self._beside(self.files.load(pointer.trial), pointer.share)

    @property
    def _pointer_path(self) -> Path:
        return self._plans.pointer_path(self.namespace)

    def _path(self, plan: Plan) -> Path:
        return self._plans.path(self.namespace, plan.version)

    def _note(self, path: Path) -> None:
        self._noted[path] = _signature(path)

    def _is_noted(self, path: Path) -> bool:
        return self._noted.get(path) == _signature(path)


_FOREIGN = (
    "%s holds plans of another embedder or tenant; questions are not routed until build() runs "
    "with this one, or it is opened with the embedder it was built with"
)


def require_share(share: object) -> None:
    """Refuse what is no share of the traffic.

    Raises:
        ConfigError: It is not a number in (0, 1).
    """
    is_number = isinstance(share, int | float) and not isinstance(share, bool)
    if not is_number or not 0 < float(str(share)) < 1:
        raise ConfigError(f"share must be a number in (0, 1), not {share!r}")


def _signature(path: Path) -> Signature:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
