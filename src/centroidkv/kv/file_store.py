"""A remote over fsspec: S3, GCS, Azure, a file share, memory.

The only file that knows fsspec and obstore. Object storage goes by obstore's own file system for
fsspec where it is installed, and by what fsspec knows otherwise.
"""

import contextlib
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib.util import find_spec
from typing import Any

from centroidkv.errors import ConfigError, MissingExtra
from centroidkv.kv.byte_store import Entry
from centroidkv.remote_settings import RemoteSettings

_EXTRA = "pip install 'centroidkv[remote]'"
_OBJECT_STORES = ("s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss")

__all__ = ["FileStore", "open_file_store"]


def open_file_store(settings: RemoteSettings) -> "FileStore":
    """Open the file system that a URL names.

    Raises:
        ConfigError: There is no such file system, or it takes no such options.
        MissingExtra: What it needs is not installed.
    """
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtra("fsspec", command=_EXTRA) from error
    protocol, _, path = settings.url.partition("://")
    try:
        files = _object_files(protocol, settings) or fsspec.filesystem(protocol, **settings.options)
    except ImportError as error:
        raise MissingExtra(f"what reads {protocol}://", command=_EXTRA) from error
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"remote: {settings.shown_url} cannot be opened: {error}") from error
    return FileStore(files, files._strip_protocol(settings.url) if path else "")


def _object_files(protocol: str, settings: RemoteSettings) -> Any:
    """Open object storage by obstore, if it is installed and its options are what was given."""
    if protocol not in _OBJECT_STORES or find_spec("obstore") is None:
        return None
    from obstore import fsspec as object_files

    open_files: Any = object_files.FsspecStore
    timeout = f"{max(1, round(1000 * settings.timeout_s))}ms"
    given = dict(settings.options)
    client = {"timeout": timeout, "connect_timeout": timeout, **given.pop("client_options", {})}
    retry = given.pop("retry_config", {"max_retries": 0})
    return open_files(protocol, client_options=client, retry_config=retry, **given)


class FileStore:
    """Bytes as files of an fsspec file system, under one folder. See `ByteStore`."""

    names_at_once = 1

    def __init__(self, files: Any, folder: str) -> None:
        self._files = files
        self._folder = str(folder).rstrip("/")
        # Object stores put whole objects; elsewhere a reader could see half a file.
        protocols = (
            files.protocol if isinstance(files.protocol, (tuple, list)) else [files.protocol]
        )
        self._renames = not set(protocols) & {*_OBJECT_STORES, "memory"}

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}" if self._folder else name

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        return [self._size(self._path(name)) for name in names]

    def _size(self, path: str) -> int | None:
        with _translated():
            return int(self._files.info(path)["size"])
        return None

    def read(self, name: str, most_bytes: int) -> bytes | None:
        with _translated():
            return bytes(self._files.cat_file(self._path(name), start=0, end=most_bytes + 1))
        return None

    def write(self, name: str, raw: bytes) -> None:
        path = self._path(name)
        with _translated():
            if not self._renames:
                self._files.pipe_file(path, raw)
                return
            self._files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            temporary = f"{path}.{uuid.uuid4().hex}.writing"
            self._files.pipe_file(temporary, raw)
            self._files.mv(temporary, path)

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            with _translated():
                self._files.rm_file(self._path(name))

    def listing(self) -> Iterator[Entry]:
        found: dict[str, Any] = {}
        with _translated():
            self._files.invalidate_cache()
            found = self._files.find(self._folder, detail=True)
            # What was listed would be taken for all there is, whatever others write from now on.
            self._files.invalidate_cache()
        for path, entry in found.items():
            relative = path[len(self._folder) :].lstrip("/") if self._folder else path
            yield Entry(relative, int(entry.get("size") or 0), _written(entry))

    def close(self) -> None:
        """File systems keep nothing that has to be released."""


def _written(entry: dict[str, Any]) -> float:
    """Return when a file was written; file systems have several words for it."""
    for word in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = entry.get(word)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, (int, float)):
            return float(value)
    return time.time()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Let a missing file pass, and raise whatever else a file system raises as `OSError`."""
    try:
        yield
    except FileNotFoundError:
        return
    except OSError:
        raise
    except Exception as error:
        kind = type(error).__name__
        if kind in ("NotFoundError", "ResourceNotFoundError"):
            return
        if kind in ("PermissionDeniedError", "UnauthenticatedError", "NoCredentialsError"):
            raise PermissionError(str(error)) from error
        raise OSError(f"{kind}: {error}") from error
