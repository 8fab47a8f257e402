"""What a URL of a remote names, and what is said of one that names nothing."""

from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from centroidkv.errors import ConfigError
from centroidkv.kv.file_store import FileStore
from centroidkv.kv.redis_store import open_redis_store
from centroidkv.remote_settings import RemoteSettings


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("redis://valkey:6380/0", "valkey"),
        ("valkey://valkey.internal/0?prefix=valkey", "valkey.internal"),
        ("valkeys://cache/0", "cache"),
    ],
)
def test_a_server_keeps_its_name(url: str, host: str) -> None:
    pytest.importorskip("redis")
    store = open_redis_store(RemoteSettings(url))
    assert store._client.connection_pool.connection_kwargs["host"] == host
    store.close()


@pytest.mark.parametrize("url", ["redis://[bad", "s3://[bad/prefix"])
def test_a_url_that_is_none_is_named(url: str) -> None:
    with pytest.raises(ConfigError, match="url"):
        RemoteSettings(url)


class CachingFiles(LocalFileSystem):
    """Files whose listing is kept and believed, as fsspec's own object stores do."""

    cachable = False

    def find(self, path: str, *args: Any, **options: Any) -> Any:
        self.dircache[path] = super().find(path, *args, **options)
        return self.dircache[path]

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        for known in self.dircache.values():
            if path not in known:
                raise FileNotFoundError(path)
        return super().info(path, **options)

    def invalidate_cache(self, path: str | None = None) -> None:
        self.dircache.clear()


def test_a_listing_hides_nothing_that_comes_after_it(tmp_path: Path) -> None:
    store = FileStore(CachingFiles(), str(tmp_path))
    store.write("aa/one.raw", b"1")
    assert [entry.name for entry in store.listing()] == ["aa/one.raw"]
    (tmp_path / "aa" / "two.raw").write_bytes(b"of another machine")
    assert store.sizes(["aa/two.raw"]) == [18]
