"""A remote over Redis or Valkey. The only file that knows their client."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from centroidkv.errors import ConfigError, MissingExtra
from centroidkv.kv.byte_store import Entry
from centroidkv.remote_settings import RemoteSettings

_AT_ONCE = 512

__all__ = ["RedisStore", "open_redis_store"]


def open_redis_store(settings: RemoteSettings) -> "RedisStore":
    """Make a client for a `redis://` or `valkey://` URL; nothing is asked of the server yet.

    `?prefix=` in the URL stands in front of every key.

    Raises:
        ConfigError: The URL or the options are not what the client takes.
        MissingExtra: `redis` is not installed.
    """
    try:
        import redis
    except ImportError as error:
        raise MissingExtra("redis", command="pip install 'centroidkv[redis]'") from error
    parts = urlsplit(settings.url)
    query = dict(parse_qsl(parts.query))
    prefix = query.pop("prefix", "centroidkv")
    scheme = parts.scheme.replace("valkey", "redis")  # a server may be called that, too
    url = urlunsplit(parts._replace(scheme=scheme, query=urlencode(query)))
    limits = {"socket_timeout": settings.timeout_s, "socket_connect_timeout": settings.timeout_s}
    try:
        client = redis.Redis.from_url(url, **{**limits, "retry": None, **settings.options})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"remote: {settings.shown_url} cannot be opened: {error}") from error
    return RedisStore(client, prefix)


class RedisStore:
    """Bytes as strings of a Redis server, `<prefix>/<name>`. See `ByteStore`."""

    names_at_once = _AT_ONCE

    def __init__(self, client: Any, prefix: str) -> None:
        self._client = client
        self._prefix = prefix.rstrip("/")

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        with _translated():
            pipe = self._client.pipeline(transaction=False)
            for name in names:
                pipe.strlen(self._key(name))
            # Nothing of ours is empty: a length of 0 says that there is no such key.
            return [int(n) or None for n in pipe.execute()]

    def read(self, name: str, most_bytes: int) -> bytes | None:
        with _translated():
            # Nothing of ours is empty: nothing says that there is no such key.
            return bytes(self._client.getrange(self._key(name), 0, most_bytes)) or None

    def write(self, name: str, raw: bytes) -> None:
        with _translated():
            self._client.set(self._key(name), raw)

    def delete(self, names: Sequence[str]) -> None:
        with _translated():
            if names:
                self._client.unlink(*(self._key(n) for n in names))

    def listing(self) -> Iterator[Entry]:
        start = len(self._prefix) + 1
        with _translated():
            keys = list(self._client.scan_iter(match=f"{self._prefix}/*", count=_AT_ONCE))
            now = time.time()
            for at in range(0, len(keys), _AT_ONCE):
                part = keys[at : at + _AT_ONCE]
                pipe = self._client.pipeline(transaction=False)
                for key in part:
                    pipe.strlen(key).object("IDLETIME", key)
                answers = pipe.execute(raise_on_error=False)
                for key, size, idle in zip(part, answers[::2], answers[1::2], strict=True):
                    # Under an LFU policy the server does not tell how long a key lay idle.
                    idle_s = float(idle) if isinstance(idle, int) else 0.0
                    if isinstance(size, int) and size:
                        yield Entry(key.decode()[start:], size, now - idle_s)

    def close(self) -> None:
        self._client.close()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    from redis.exceptions import (
        AuthenticationError,
        AuthorizationError,
        NoPermissionError,
        RedisError,
    )

    try:
        yield
    except (AuthenticationError, AuthorizationError, NoPermissionError) as error:
        raise PermissionError(str(error)) from error
    except RedisError as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
