"""Settings of the remote tier: where blocks are kept beyond this machine, and on what terms."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from centroidkv.errors import ConfigError
from centroidkv.secret_keys import masked, secret_bytes
from centroidkv.settings import Settings, is_count, is_number, require

__all__ = ["RemoteSettings"]


@dataclass(frozen=True, slots=True)
class RemoteSettings(Settings):
    """A remote tier.

    `url` is `s3://bucket/prefix`, `gs://`, `az://`, `file:///mnt/share/kv`, `memory://kv`, or
    any other that fsspec knows; or `redis://host:port/0?prefix=kv`, `valkey://` alike. `options`
    go to the file system, or to the Redis client, as they are.

    `write="through"` sends a block behind the write to disk; `"back"` when it leaves the disk, at
    `flush` and when the engine closes. `budget_bytes` bounds what lies under the prefix, None does
    not. A call takes `timeout_s` at most and is tried again up to `retries` times; a prompt's
    lookup takes `lookup_s` at most, and is left out where fewer than `min_tokens` could be gained.
    `key` seals every entry with AES-GCM: 32 bytes in base64, or `env:NAME` of a variable that
    holds them.
    """

    url: str = field(repr=False)  # may hold a password; see `shown_url`
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    write: str = "through"
    budget_bytes: int | None = None
    timeout_s: float = 5.0
    lookup_s: float = 0.5
    retries: int = 2
    min_tokens: int = 256
    key: str | None = field(default=None, repr=False)
    read_only: bool = False

    @classmethod
    def given(cls, remote: "str | Mapping[str, Any] | RemoteSettings") -> "RemoteSettings":
        """Accept a URL, a mapping of settings, or settings.

        Raises:
            ConfigError: It is something else, or one of the settings is wrong.
        """
        if isinstance(remote, RemoteSettings):
            return remote
        if isinstance(remote, str):
            return cls(remote)
        if isinstance(remote, Mapping) and "url" in remote:
            return cls.of(remote)
        raise ConfigError(f"remote must be a URL or a mapping with a url, not {remote!r}")

    def __post_init__(self) -> None:
        require(
            isinstance(self.url, str) and "://" in self.url and _is_url(self.url),
            f"remote: the url must look like s3://bucket/prefix, not {masked(repr(self.url))}",
        )
        require(
            self.write in ("through", "back"),
            f"remote: write must be 'through' or 'back', not {self.write!r}",
        )
        require(
            self.budget_bytes is None or is_count(self.budget_bytes, 1),
            f"remote: budget_bytes must be a whole number, or None, not {self.budget_bytes!r}",
        )
        for name in ("timeout_s", "lookup_s"):
            value = getattr(self, name)
            require(
                is_number(value) and value > 0,
                f"remote: {name} must be a number of seconds above 0, not {value!r}",
            )
        for name, least in (("retries", 0), ("min_tokens", 1)):
            value = getattr(self, name)
            require(
                is_count(value, least),
                f"remote: {name} must be a whole number of at least {least}, not {value!r}",
            )
        require(
            isinstance(self.options, Mapping),
            f"remote: options must be a mapping, not {type(self.options).__name__}",
        )
        self.key_bytes()

    @property
    def shown_url(self) -> str:
        """The URL without a password, for messages and reports."""
        return masked(self.url)

    @property
    def identity(self) -> str:
        """What tells this remote from others: the URL, and a digest of the key if there is one."""
        key = self.key_bytes()
        return f"{self.shown_url} {hashlib.sha256(key).hexdigest()[:16] if key else 'clear'}"

    def key_bytes(self) -> bytes | None:
        """Return the key that entries are sealed with, None for none.

        Raises:
            ConfigError: There is no such variable, or it is no key.
        """
        return secret_bytes(self.key, "remote: key")


def _is_url(text: str) -> bool:
    try:
        urlsplit(text)
    except ValueError:
        return False
    return True
