"""Where a Chroma server is, read once from the URL that users give.

One reading for all who ask the server, so that they agree on its port, prefix and credentials.
"""

import base64
import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from centroidkv.errors import ConfigError
from centroidkv.secret_keys import given_text, masked
from centroidkv.settings import require

__all__ = ["ServerAddress", "address_of"]

_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)*/?")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """A server's address in parts; `headers` hold the credentials and are in no message."""

    scheme: str
    host: str
    port: int
    prefix: str = ""
    headers: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def url(self) -> str:
        """The whole URL without credentials, its port always in it: for calls and messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.prefix}"


def address_of(given: object) -> ServerAddress:
    """Read `http://[user:password@]host[:port][/prefix]`, or `env:NAME` of a variable with one.

    Without a port it is the scheme's own, 80 or 443, as of any URL.

    Raises:
        ConfigError: It is none, or has what cannot be served. No password stands in the message.
    """
    text = given_text(given, "chroma")
    shown = masked(text)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ConfigError(
            f"chroma is no URL: {shown!r}; write special characters of a password as %XX"
        ) from None  # which quotes what it takes for the port
    require(
        parts.scheme in _PORTS and bool(host) and not re.search(r"\s", text),
        f"chroma must be the http:// address of a Chroma server, not {shown!r}",
    )
    require(
        not parts.query and not parts.fragment and _PREFIX.fullmatch(parts.path),
        "chroma: behind the host only a path of letters, digits and . _ ~ - may stand, no query; "
        "write special characters of a password as %XX",
    )
    require(
        (parts.username is None) == (parts.password is None) and parts.username != "",
        f"chroma: credentials are user:password@ in front of the host; {host} has only one of them",
    )
    headers = {}
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    number = _PORTS[parts.scheme] if port is None else port
    return ServerAddress(parts.scheme, host or "", number, parts.path.rstrip("/"), headers)
