"""Chroma in the store's own folder.

Its native code crashes the whole process on a damaged index file, so the folder is digested when
it is closed and opened only while the digest still holds; otherwise it is set aside and rebuilt.
It is for one process: a lock file keeps a second one out, which then routes from the plan in
memory.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromadb
from chromadb.config import Settings
from filelock import Timeout

from centroidkv.errors import IndexUnavailable
from centroidkv.files import write_atomic
from centroidkv.locks import StoreLock
from centroidkv.routing.chroma_client import translated
from centroidkv.routing.chroma_collections import drop_collection, erase_collections
from centroidkv.routing.chroma_index import OF_THE_FOLDER, ChromaIndex
from centroidkv.routing.exclusion import Exclusion
from centroidkv.routing.index_folder import (
    digest_of,
    drop_strays,
    erase_folder,
    prepare_folder,
    scrub_file,
    shield,
    zero_unused,
)
from centroidkv.routing.plan import Plan

__all__ = ["EmbeddedChroma"]


class EmbeddedChroma:
    """The Chroma folder of a store: one client for all plans in use, sealed behind the last."""

    def __init__(self, folder: Path, *, quarantine: Path) -> None:
        self._folder = folder
        self._quarantine = quarantine
        # The thread that opens the folder need not be the one that closes it.
        self._file_lock = StoreLock(folder.with_name("chroma.lock"), mode=0o600, thread_local=False)
        self._lock = threading.Lock()
        # Chroma has a SQLite of its own. Two of them in one process do not keep each other out of
        # a file: where one closes it, the locks of the other are gone.
        self._calls = Exclusion()
        self._client: Any = None
        self._num_users = 0
        self._is_sound = True

    def open(self, plan: Plan) -> ChromaIndex:
        """Open the index of a plan; the folder is opened, or rebuilt, for the first one.

        Raises:
            IndexUnavailable: Another process or engine has the folder open, or Chroma refuses.
        """
        with self._lock:
            if self._num_users == 0:
                self._open_folder()
            self._num_users += 1
        try:
            return ChromaIndex(self._client, plan, self._leave, calling=self._calling)
        except BaseException:
            # Not sealed behind this, so the next one to open it makes it anew.
            self._is_sound = False
            self._leave()
            raise

    def drop(self, plan_id: str) -> None:
        """Delete the collection of a plan that is kept no longer.

        Raises:
            IndexUnavailable: The folder is not open here, or Chroma refuses.
        """
        with self._lock:
            if self._client is None:
                raise IndexUnavailable(f"{self._folder} is not open in this process")
            with self._calls.together():
                drop_collection(self._client, plan_id, OF_THE_FOLDER)

    def erase(self, namespace: str) -> None:
        """Delete the collections of a namespace's plans, and what files still hold of them.

        None of these is open.

        Where nothing is open the whole folder goes; it is made again from the plans.

        Raises:
            IndexUnavailable: Another process has the folder open, or Chroma refuses.
        """
        with self._lock:
            if self._client is None:
                erase_folder(self._folder)
                return
            with self._calls.alone():
                erase_collections(self._client, namespace, OF_THE_FOLDER)
                scrub_file(self._folder / "chroma.sqlite3")
                drop_strays(self._folder)

    @contextlib.contextmanager
    def _calling(self) -> Iterator[None]:
        with self._calls.together(), translated():
            yield

    def _open_folder(self) -> None:
        try:
            self._file_lock.acquire(timeout=0)
        except Timeout as error:
            raise IndexUnavailable(
                f"{self._folder} is in use by another process, or another engine of this one; "
                "here routing goes on from the plan in memory. Close the other one, or, to share "
                "one index, run a Chroma server and give chroma='http://...'"
            ) from error
        except OSError as error:
            raise IndexUnavailable(f"{self._folder} cannot be locked: {error}") from error
        self._is_sound = True
        try:
            prepare_folder(self._folder, self._quarantine)
            with translated():
                self._client = chromadb.PersistentClient(
                    path=str(self._folder), settings=_settings()
                )
        except BaseException:
            self._file_lock.release()
            raise

    def _leave(self) -> None:
        with self._lock:
            self._num_users -= 1
            if self._num_users:
                return
            client, self._client = self._client, None
            try:
                client.close()
                with contextlib.suppress(sqlite3.Error, OSError):
                    drop_strays(self._folder)
                zero_unused(self._folder)
                shield(self._folder)
                if self._is_sound:
                    write_atomic(
                        self._folder.with_name("chroma.digest"), digest_of(self._folder).encode()
                    )
            finally:
                self._file_lock.release()


def _settings() -> Settings:
    return Settings(anonymized_telemetry=False)
