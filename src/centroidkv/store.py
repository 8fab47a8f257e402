"""The store folder: what lies where, and opening it.

::

    store.json          format version; of an encrypted store, its key, sealed
    manifest.sqlite     which blocks exist, cluster prefixes, counters
    blocks/ab/ab….safetensors   one file per KV block
    plans/*.plan        one file per plan version
    plans/*.pointer     which version is in force, one per embedder and tenant
    plans/*.lock        held while versions are written
    figures.sqlite      what requests cost, per plan version and model
    history.sqlite      questions seen
    drafts.sqlite       answers that later ones are guessed from
    answers.sqlite      answers kept by an answer cache
    codec-reports/*.json    what each KV level costs, one file per model
    chroma/             centroid index, made from the plan
    chroma.digest       what chroma/ held when it was closed
    chroma.lock         held by the process that has chroma/ open
    passages.jsonl      the knowledge base of a store built by the command line
    heads/              what prompts begin with, for passages that are blended
    gate/               how far each model's blended prompts were from computed ones
    locks/              held while a prefix is computed, so that one process does
    quarantine/         damaged files, set aside
"""

import base64
import contextlib
import copy
import logging
import sqlite3
from dataclasses import replace
from pathlib import Path

from centroidkv.centroids import Centroids, EmbeddedCentroids, ScannedCentroids, ServedCentroids
from centroidkv.config import EngineConfig
from centroidkv.errors import StoreError, StoreNotFound
from centroidkv.kv.disk import DiskBlocks
from centroidkv.kv.holdings import owner_of
from centroidkv.kv.memory import MemoryBlocks
from centroidkv.kv.owners import note_ttl, noted_ttls
from centroidkv.kv.remote import RemoteBlocks
from centroidkv.kv.remote_opening import open_remote
from centroidkv.kv.tiers import TieredBlocks
from centroidkv.kv.write_behind import WriteBehind
from centroidkv.links import require_no_links
from centroidkv.observers.fan_out import Observers, open_observers
from centroidkv.observers.health import StoreParts
from centroidkv.observing import NO_OBSERVER, Observer
from centroidkv.precision.levels import Precision
from centroidkv.protocols import CentroidIndex
from centroidkv.remote_settings import RemoteSettings
from centroidkv.routing.history import History, open_history
from centroidkv.routing.plan import Plan, PlanFolder
from centroidkv.sealing import derived_key
from centroidkv.serving.answers import AnswerStore
from centroidkv.serving.drafts import DraftStore
from centroidkv.serving.prefetching import Prefetcher
from centroidkv.serving.prefill_speed import PrefillSpeed
from centroidkv.serving.queueing import RequestQueue
from centroidkv.serving.single_flight import SingleFlight
from centroidkv.serving.streaming import StreamingPolicy
from centroidkv.sqlite_sharing import SharedFiles
from centroidkv.store_marker import MARKER, create_store, open_vault, store_id

_log = logging.getLogger("centroidkv")

# What waits to be written holds KV: a quarter of the memory budget, and room for some blocks.
LEAST_QUEUE_BYTES = 16 << 20
# What the files of an open store need at the least before anything is stored.
PROBE_BYTES = 256 << 10
# Damaged links are set aside into the one, and the other is set aside with the links in it.
LINKS_ASIDE = ("quarantine", "chroma")

__all__ = ["Store"]


class Store:
    """An open store folder: block tiers, plans, and the queue that writes behind the answers."""

    def __init__(self, path: Path, config: EngineConfig, *, read_only: bool) -> None:
        self.path = path
        self.config = config
        self.read_only = read_only
        self.vault = open_vault(path, config.encryption_key_bytes)
        self.files = SharedFiles()
        try:
            disk = DiskBlocks(
                path,
                budget_bytes=config.disk_budget_bytes,
                read_only=read_only,
                policy=config.eviction,
                vault=self.vault,
            )
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"cannot open the store {path}: {error}") from error
        arenas = config.arena_budget_bytes + config.draft_arena_budget_bytes
        memory = MemoryBlocks(
            budget_bytes=config.memory_budget_bytes - arenas, policy=config.eviction
        )
        self.blocks = TieredBlocks(memory, disk, _open_remote(config, disk))
        self.plans = PlanFolder(path / "plans", self.vault)
        self.writer = WriteBehind(
            budget_bytes=max(LEAST_QUEUE_BYTES, config.memory_budget_bytes // 4)
        )
        self.blocks.promotion.later = lambda job, size: self.writer.submit(job, num_bytes=size)
        self.prefill_speed = PrefillSpeed()
        self.flights = SingleFlight(path / "locks")
        self.streaming = StreamingPolicy(
            self.blocks.meter, self.prefill_speed, objective_s=config.ttft_objective_s
        )
        self.prefetcher = Prefetcher(self.blocks)
        self.requests = RequestQueue(max_running=config.max_running, max_waiting=config.max_waiting)
        self.centroids = self._open_centroids()
        self.parts = StoreParts(self.blocks, self.writer, self.requests, self.centroids)
        self.observers = self._open_observers(self.parts)
        self.precisions: dict[str, Precision] = {}  # by model; see `approval.settled_precision`
        self.is_owner = True
        if config.tenant:
            self._settle_ttl(config.ttl_s)

    @classmethod
    def open(
        cls, path: str | Path, config: EngineConfig | None = None, *, create: bool = True
    ) -> "Store":
        """Open a store, or make a new one in an empty or missing folder.

        Raises:
            StoreNotFound: There is none, and `create` is off.
            StoreError: The path is something else, of a newer format, needs another key, or has
                links in it.
            MissingExtra: There is a key, and `cryptography` is not installed.
        """
        # As it is now: a process may change its folder.
        folder, config = Path(path).expanduser().absolute(), config or EngineConfig()
        if not (folder / MARKER).exists():
            if not create or config.read_only:
                raise StoreNotFound(
                    f"there is no store at {path}; make one with: "
                    f"centroidkv build --questions q.csv --passages p.jsonl --store {path}"
                )
            create_store(folder, config.encryption_key_bytes)
        require_no_links(folder, apart_from=LINKS_ASIDE)
        return cls(folder, config, read_only=config.read_only or not _is_writable(folder))

    def _open_centroids(self) -> Centroids:
        if self.config.chroma is None and self.vault.is_sealed:
            return ScannedCentroids()
        if self.config.chroma is None:
            return EmbeddedCentroids(self.path, read_only=self.read_only)
        manifest, writer = self.blocks.disk.manifest, self.writer

        def count(name: str) -> None:
            if not self.read_only:
                writer.submit(lambda: manifest.count([name]))

        return ServedCentroids(
            self.config.chroma,
            count,
            store=store_id(self.path, may_write=not self.read_only),
            with_texts=not self.vault.is_sealed,
        )

    def _open_observers(self, parts: StoreParts) -> Observers | None:
        try:
            return open_observers(self.config, parts)
        except BaseException:
            self._close_blocks()
            raise

    @property
    def observer(self) -> Observer:
        """Who is told what requests do."""
        return self.observers or NO_OBSERVER

    def open_index(self, plan: Plan) -> CentroidIndex:
        """Open the centroid index of a plan: in Chroma, or of an encrypted store in memory.

        Raises:
            IndexUnavailable: The store's own Chroma is in use by another process, or refuses.
        """
        return self.centroids.open(plan)

    def drop_index(self, plan_id: str) -> None:
        """Delete the centroids of a plan that is kept no longer.

        Raises:
            IndexUnavailable: Chroma is down, or not open in this process.
        """
        self.centroids.drop(plan_id)

    def erase_index(self, namespace: str) -> None:
        """Delete the centroids of all plans of a namespace, and what Chroma's files keep of them.

        None of these is open.

        Raises:
            IndexUnavailable: Chroma is down, or another process has the folder open.
        """
        self.centroids.erase(namespace)

    # files that are opened on demand

    def open_history(self, namespace: str) -> History:
        """Open the questions seen of a plan namespace; a damaged file is begun anew.

        Raises:
            sqlite3.Error: It cannot be opened.
        """
        return open_history(
            self.path / "history.sqlite",
            namespace,
            quarantine=self.path / "quarantine",
            vault=self.vault,
            files=self.files,
        )

    def open_answers(self, namespace: str) -> AnswerStore:
        """Open the kept answers of a namespace.

        Raises:
            StoreError: They cannot be read or written.
        """
        return AnswerStore(self.path, namespace, vault=self.vault)

    def open_drafts(self, namespace: str) -> DraftStore:
        """Open what answers of a KV namespace are guessed from; a damaged file is begun anew.

        Raises:
            sqlite3.Error: It cannot be opened.
        """
        return DraftStore(
            self.path / "drafts.sqlite",
            namespace,
            quarantine=self.path / "quarantine",
            vault=self.vault,
            files=self.files,
        )

    def require_writable(self, purpose: str) -> None:
        """Refuse what only makes sense when it can be kept.

        Raises:
            StoreError: The store is read-only.
        """
        if self.read_only:
            raise StoreError(f"cannot {purpose}: the store {self.path} is read-only")

    def for_tenant(self, tenant: str, ttl_s: float | None = None) -> "Store":
        """Return this store with another tenant's settings; files and budgets stay shared.

        Its `ttl_s` is the one given, or given before, or this store's.
        """
        view = copy.copy(self)
        own_s = self.config.ttl_s if ttl_s is None else ttl_s
        view.config = replace(self.config, tenant=tenant, ttl_s=own_s)
        view._settle_ttl(ttl_s)
        view.is_owner = False
        return view

    def _settle_ttl(self, given_s: float | None) -> None:
        """Note how long this tenant's entries live, or if nothing is said now, recall it."""
        owner, manifest = owner_of(self.config.tenant_key), self.blocks.disk.manifest
        try:
            if given_s is None:
                ttl_s = noted_ttls(manifest).get(owner, self.config.ttl_s)
                self.config = replace(self.config, ttl_s=ttl_s)
            elif not self.read_only:
                note_ttl(manifest, owner, given_s)
        except sqlite3.Error as error:
            _log.warning("the manifest does not keep the tenant's ttl_s: %s", error)

    def flush(self) -> None:
        """Wait until everything learnt so far is on disk, and sent to the remote, if there is one.

        A remote that does not answer is not waited for.
        """
        if self.blocks.uploads is not None and not self.read_only:
            self.writer.submit(self.blocks.uploads.send_owed)
        self.writer.flush()

    def finish(self) -> None:
        """Finish the loads and writes under way."""
        if self.is_owner:
            self.prefetcher.close()
            self.centroids.close()
            self.flush()
            self.writer.close()
        else:
            self.writer.flush()

    def close(self) -> None:
        """Finish the writes and release the files, unless another view still uses them."""
        self.finish()
        if self.is_owner:
            if self.observers is not None:
                self.observers.close()
            self._close_blocks()

    def _close_blocks(self) -> None:
        self.blocks.disk.close()
        if self.blocks.remote is not None:
            self.blocks.remote.close()


def _open_remote(config: EngineConfig, disk: DiskBlocks) -> RemoteBlocks | None:
    if config.remote is None:
        return None

    def count(name: str) -> None:
        with contextlib.suppress(sqlite3.Error):
            if not disk.read_only:
                disk.manifest.count([name])

    settings = RemoteSettings.given(config.remote)
    key = config.encryption_key_bytes
    if settings.key is None and key is not None:
        own = base64.b64encode(derived_key(key, "remote")).decode()
        settings = replace(settings, key=own)
    try:
        return open_remote(settings, count=count, standing=disk.manifest.standing)
    except BaseException:
        disk.close()
        raise


def _is_writable(folder: Path) -> bool:
    probe = folder / ".probe"
    try:
        try:
            probe.write_bytes(bytes(PROBE_BYTES))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("%s is not writable (%s); it is used read-only", folder, error.strerror)
        return False
    return True
