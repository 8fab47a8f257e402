"""What a store holds, and whether it is sound. Needs no model and no embedder."""

import contextlib
import logging
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from centroidkv.bounds import MOST_TEXT_BYTES
from centroidkv.errors import CacheError, CacheForbidden, CacheFull
from centroidkv.files import abandoned, forbidden, is_forbidden, set_aside
from centroidkv.knowledge import FILE
from centroidkv.kv.blocks import block_id
from centroidkv.kv.codec import load_block
from centroidkv.kv.disk import DiskBlocks
from centroidkv.kv.manifest import BlockRow
from centroidkv.kv.owners import drop_damaged_owners, num_damaged_owners
from centroidkv.observers.health import Health, health_of
from centroidkv.precision.codec_report import CodecReport, read_reports
from centroidkv.remote_report import RemoteStats, remote_stats
from centroidkv.routing.history import History
from centroidkv.routing.plan import Plan
from centroidkv.routing.pointer import read_pointer
from centroidkv.routing.router import Router
from centroidkv.serving.answers import AnswerStore
from centroidkv.store import Store
from centroidkv.versions.figures import Figures, read_figures
from centroidkv.versions.pinning import PinnedCluster, pinned_clusters

_log = logging.getLogger("centroidkv")

__all__ = ["CheckReport", "StoreStats", "check_store", "store_stats"]


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What a store holds. Counters are those of all processes since it was made.

    `chroma_server` is `closed` while this process asks its Chroma server, `open` or `half-open`
    while that is left alone after failures; None without one.
    """

    path: str
    num_blocks: int
    disk_bytes: int
    disk_budget_bytes: int
    memory_blocks: int
    memory_bytes: int
    num_plans: int
    plan_id: str | None
    num_clusters: int
    num_filled_clusters: int
    num_pinned_passages: int
    failed_writes: int
    dropped_writes: int
    counters: dict[str, int]
    figures: tuple[Figures, ...] = ()
    codec_reports: tuple[CodecReport, ...] = ()
    remote: RemoteStats | None = None
    pinned_clusters: tuple[PinnedCluster, ...] = ()
    chroma_server: str | None = None
    health: Health | None = None


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check looked at and found. `repaired` says what was done about it."""

    num_blocks: int
    num_plans: int
    problems: list[str]
    repaired: list[str]

    @property
    def is_clean(self) -> bool:
        return not self.problems


def store_stats(store: Store, router: Router | None = None) -> StoreStats:
    """Count what a store holds; the plan described is the one in force, of the newest namespace.

    With the `router` of an open engine its health says which index routes.
    """
    manifest = store.blocks.disk.manifest
    plans = store.plans.files()
    plan = _in_force(store)
    filled = {r.cluster for r in manifest.prefixes(plan.id)} if plan else set()
    counters = manifest.counters()
    return StoreStats(
        path=str(store.path),
        num_blocks=manifest.num_blocks(),
        disk_bytes=counters.pop("disk_bytes", 0),
        disk_budget_bytes=store.config.disk_budget_bytes,
        memory_blocks=len(store.blocks.memory),
        memory_bytes=store.blocks.memory.num_bytes,
        num_plans=len(plans),
        plan_id=plan.id if plan else None,
        num_clusters=len(plan.clusters) if plan else 0,
        num_filled_clusters=len(filled),
        num_pinned_passages=len(plan.passages) if plan else 0,
        failed_writes=store.writer.num_failed,
        dropped_writes=store.writer.num_dropped,
        counters=counters,
        figures=tuple(read_figures(store.path)),
        codec_reports=tuple(read_reports(store.path)),
        remote=remote_stats(store),
        pinned_clusters=tuple(pinned_clusters(store)),
        chroma_server=store.centroids.server_state,
        health=health_of(store.parts, router),
    )


def _in_force(store: Store) -> Plan | None:
    """Return the plan in force of the embedder and tenant whose plan was written last."""
    newest = _newest(store)
    if newest is None:
        return None
    plan, _ = store.plans.in_force(newest.namespace)
    return plan or newest


def _newest(store: Store) -> Plan | None:
    for path in sorted(store.plans.files(), key=lambda p: p.stat().st_mtime_ns, reverse=True):
        try:
            return store.plans.read(path)
        except CacheError as error:
            _log.warning("%s", error)
    return None


def check_store(store: Store, *, repair: bool = False, router: Router | None = None) -> CheckReport:
    """Verify manifest, blocks, plans and centroids against each other and their checksums.

    With a `router` its open index is compared with the plan; without one the Chroma folder is
    held against the digest of its last closing.
    """
    problems: list[str] = []
    repaired: list[str] = []
    disk = store.blocks.disk
    repair = repair and not store.read_only
    problems += [f"manifest: {fault}" for fault in disk.manifest.faults()]
    _check_rows(disk, problems, repaired, repair=repair)
    _check_files(disk, problems, repaired, repair=repair)
    if repair:
        with contextlib.suppress(CacheFull):  # all of it is in use
            disk.make_room(0)  # for what was indexed
        for path in abandoned(store.path):
            path.unlink(missing_ok=True)
            repaired.append(f"deleted {path.name}, which nobody writes any more")
    _check_plans(store, problems, repaired, repair=repair)
    _check_texts(store, problems, repaired, repair=repair)
    _check_passages(store, problems, repaired, repair=repair)
    _check_index(store, router, problems, repaired, repair=repair)
    return CheckReport(disk.manifest.num_blocks(), len(store.plans.files()), problems, repaired)


def _check_rows(
    disk: DiskBlocks, problems: list[str], repaired: list[str], *, repair: bool
) -> None:
    for block in disk.manifest.unsound():
        problems.append(f"manifest: the row of block {block[:16]} is damaged")
        if repair:
            disk.manifest.remove([block])
            repaired.append(f"forgot the row of {block[:16]}")
    damaged = num_damaged_owners(disk.manifest)
    if damaged:
        problems.append(f"manifest: {damaged} rows that tell whose KV is are damaged")
        if repair:
            drop_damaged_owners(disk.manifest)
            repaired.append("forgot these rows; tenants write their own when they are opened")
    for row in list(disk.manifest.rows()):
        path = disk.path(row.id)
        try:
            disk.verified(row, path)
        except PermissionError:
            problems.append(str(forbidden(path)))
        except (CacheError, OSError) as error:
            missing = isinstance(error, FileNotFoundError)
            problems.append(f"{path}: the file is missing" if missing else str(error))
            if repair:
                disk.drop(row.id)
                repaired.append(f"forgot block {row.id[:16]}")


def _check_files(
    disk: DiskBlocks, problems: list[str], repaired: list[str], *, repair: bool
) -> None:
    for path in list(disk.files()):
        if disk.has(path.stem):
            continue
        problems.append(
            str(forbidden(path)) if is_forbidden(path) else f"{path}: not in the manifest"
        )
        if not repair or is_forbidden(path):
            continue
        try:
            stored = load_block(path, disk.vault)
            sound = stored.id == path.stem == block_id(stored.parent, stored.token_ids)
        except (CacheError, OSError):
            sound = False
        if sound:
            size = path.stat().st_size
            disk.manifest.add(
                BlockRow(
                    stored.id,
                    stored.parent,
                    stored.namespace,
                    stored.token_ids,
                    size,
                    stored.level,
                )
            )
            repaired.append(f"indexed block {path.stem[:16]}")
        else:
            disk.set_aside(path)
            repaired.append(f"set aside {path.name}")


def _check_texts(store: Store, problems: list[str], repaired: list[str], *, repair: bool) -> None:
    """Look for rows of texts that are not what was written."""
    opened: dict[str, Callable[[str], History | AnswerStore]] = {
        "history.sqlite": store.open_history,
        "answers.sqlite": store.open_answers,
    }
    for name, opening in opened.items():
        if store.read_only or not (store.path / name).exists():
            continue
        with closing(opening("")) as file:
            faults = file.faults()
            problems += faults
            if faults and repair:
                file.drop_unsound()
                repaired.append(f"{name}: removed damaged rows")


def _check_passages(
    store: Store, problems: list[str], repaired: list[str], *, repair: bool
) -> None:
    """Look whether the command line's knowledge base can be read."""
    path = store.path / FILE
    try:
        if path.exists():
            store.vault.read(path, MOST_TEXT_BYTES).decode("utf-8-sig")
    except PermissionError:
        problems.append(str(forbidden(path)))
    except (CacheError, OSError, UnicodeDecodeError) as error:
        problems.append(f"{path} cannot be read: {error}")
        if repair:
            set_aside(path, store.path / "quarantine")
            repaired.append(f"set aside {path.name}")


def _check_index(
    store: Store, router: Router | None, problems: list[str], repaired: list[str], *, repair: bool
) -> None:
    if router is not None:
        faults = router.faults()
        if faults and repair:
            router.rebuild_index()
            repaired.append("put the plan's centroids into the index again")
        problems += faults
        return
    plan = _in_force(store)
    if store.config.chroma is not None:
        _check_server(store, plan, problems, repaired, repair=repair)
        return
    if store.vault.is_sealed:
        _check_no_chroma(store, problems, repaired, repair=repair)
        return
    from centroidkv.routing.embedded_chroma import EmbeddedChroma
    from centroidkv.routing.index_folder import embedded_faults

    folder = store.path / "chroma"
    faults = embedded_faults(folder)
    problems += faults
    if faults and repair and plan is not None:
        EmbeddedChroma(folder, quarantine=store.path / "quarantine").open(plan).close()
        repaired.append("rebuilt the centroid index from the plan")


def _check_no_chroma(
    store: Store, problems: list[str], repaired: list[str], *, repair: bool
) -> None:
    """An encrypted store has no Chroma folder: texts would lie in clear in it."""
    folder = store.path / "chroma"
    if folder.exists():
        problems.append(f"{folder}: an encrypted store has none, and what is in it is in clear")
        if repair:
            shutil.rmtree(folder)
            repaired.append("removed a Chroma folder")


def _check_server(
    store: Store, plan: Plan | None, problems: list[str], repaired: list[str], *, repair: bool
) -> None:
    if plan is None:
        return
    index = store.open_index(plan)
    try:
        faults = index.faults(plan.reduced())
        if faults and repair:
            index.put(plan.clusters, plan.reduced())
            repaired.append("put the plan's centroids into the index again")
        problems += faults
    except CacheError as error:
        problems.append(str(error))
    finally:
        index.close()


def _check_plans(store: Store, problems: list[str], repaired: list[str], *, repair: bool) -> None:
    for path in store.plans.files():
        try:
            store.plans.read(path)
        except CacheError as error:
            problems.append(str(error))
            if repair and not isinstance(error, CacheForbidden):
                set_aside(path, store.path / "quarantine")
                repaired.append(f"set aside {path.name}")
    for path in sorted(store.plans.folder.glob("*.pointer")):
        fault = _pointer_fault(path)
        if fault is not None:
            problems.append(fault)
            if repair and not is_forbidden(path):
                # Without it the newest readable version is in force.
                set_aside(path, store.path / "quarantine")
                repaired.append(f"set aside {path.name}")


def _pointer_fault(path: Path) -> str | None:
    try:
        pointer = read_pointer(path)
    except CacheError as error:
        return str(error)
    if pointer is None or path.with_name(f"{path.stem}-{pointer.in_force:06d}.plan").exists():
        return None
    return f"{path}: points at plan version {pointer.in_force}, which is not there"
