"""From settings to an open remote: which client, how long it is waited for, what bounds it."""

from collections.abc import Callable

from centroidkv.breaker import Breaker
from centroidkv.kv.byte_store import ByteStore
from centroidkv.kv.remote import RemoteBlocks
from centroidkv.kv.remote_budget import RemoteBudget, Standing
from centroidkv.kv.remote_calls import RemoteCalls
from centroidkv.remote_settings import RemoteSettings

__all__ = ["open_byte_store", "open_remote"]

_REDIS = ("redis", "rediss", "valkey", "valkeys")


def open_byte_store(settings: RemoteSettings) -> ByteStore:
    """Make the client that a URL asks for; the remote itself is not asked anything yet.

    Raises:
        ConfigError: The URL or its options name nothing that there is.
        MissingExtra: The client is not installed.
    """
    if settings.url.partition("://")[0] in _REDIS:
        from centroidkv.kv.redis_store import open_redis_store

        return open_redis_store(settings)
    from centroidkv.kv.file_store import open_file_store

    return open_file_store(settings)


def open_remote(
    settings: RemoteSettings, *, count: Callable[[str], None], standing: Standing
) -> RemoteBlocks:
    """Open a remote tier.

    Args:
        settings: Where and how.
        count: Notes a fault by its counter's name.
        standing: What this machine knows of a block: its parent and worth.

    Raises:
        ConfigError: As `open_byte_store`.
        MissingExtra: As `open_byte_store`.
    """
    calls = RemoteCalls(
        settings.shown_url,
        timeout_s=settings.timeout_s,
        retries=settings.retries,
        breaker=Breaker(),
        count=count,
    )
    bound = settings.budget_bytes
    budget = RemoteBudget(bound, standing) if bound is not None else None
    return RemoteBlocks(open_byte_store(settings), settings, calls, budget=budget)
