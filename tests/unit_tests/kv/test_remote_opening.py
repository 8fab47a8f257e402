"""What a URL of a remote names, and what is said of one that names nothing."""

import pytest

from centroidkv.errors import ConfigError
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
