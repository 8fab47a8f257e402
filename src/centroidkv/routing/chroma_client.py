"""Chroma's client of a server, whose every call has a time limit, and its errors. Knows no plan.

The client that Chroma gives out waits for ever, has no setting for it, and asks the server already
while it is made: twice through a session of its own, once through another. It also leaves both
sessions to the garbage collector, and one of them in a table where that never finds it.
"""

import contextlib
from collections.abc import Iterator

from chromadb.api.client import Client
from chromadb.api.shared_system_client import SharedSystemClient
from chromadb.auth import UserIdentity
from chromadb.config import Settings

from centroidkv.bounds import one_line
from centroidkv.errors import IndexUnavailable
from centroidkv.secret_keys import masked
from centroidkv.server_address import ServerAddress

__all__ = ["connect", "translated"]

# A query of a server takes some milliseconds, the upload of a batch some hundred.
CALL_S = 2.0
# What a client asks while it is made is answered at once, so a server that hangs is soon known.
CONNECT_S = 1.0
# Characters of a server's own words that are looked at.
MOST_SAID = 2000


class _BoundedClient(Client):
    """Gives each session its time limit before it is first used, and lets go of both at its end."""

    def get_user_identity(self) -> UserIdentity:
        _bound(self._server, CONNECT_S)
        return super().get_user_identity()

    def _validate_tenant_database(self, tenant: str, database: str) -> None:
        _bound(getattr(self._admin_client, "_server", None), CONNECT_S)
        self._leave_table()
        super()._validate_tenant_database(tenant=tenant, database=database)

    def _leave_table(self) -> None:
        """Undo that the admin client noted this one's system a second time, which nobody undoes."""
        table = getattr(SharedSystemClient, "_identifier_to_system", {})
        for name, system in list(table.items()):
            if system is self._system and name != self._identifier:
                table.pop(name, None)

    def close(self) -> None:
        super().close()
        for part in (self._server, getattr(self._admin_client, "_server", None)):
            session = getattr(part, "_session", None)
            if session is not None:
                session.close()


def _bound(server: object, seconds: float) -> None:
    session = getattr(server, "_session", None)
    if session is None:
        raise IndexUnavailable("calls of this chromadb cannot be given a time limit")
    session.timeout = seconds


def connect(address: ServerAddress) -> Client:
    """Return a client of a server; no call takes longer than CALL_S, none here than CONNECT_S.

    Raises:
        IndexUnavailable: The server does not answer, or this chromadb cannot be bounded.
    """
    settings = Settings(
        anonymized_telemetry=False,
        chroma_api_impl="chromadb.api.fastapi.FastAPI",
        # Given a whole URL, Chroma keeps its path and adds no port.
        chroma_server_host=address.url,
        chroma_server_http_port=address.port,
        chroma_server_ssl_enabled=address.scheme == "https",
        chroma_server_headers=dict(address.headers),
        # Reading all authorities' certificates takes longer than the rest of connecting.
        chroma_server_ssl_verify=None if address.scheme == "https" else False,
    )
    with translated():
        client = _BoundedClient(settings=settings)
        _bound(client._server, CALL_S)
    return client


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn whatever Chroma raises, its native panics included, into one error of ours."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, IndexUnavailable):
        raise
    except BaseException as error:
        raise IndexUnavailable(f"Chroma: {_said(error)}") from error


def _said(error: BaseException) -> str:
    """Say in one line what Chroma raised; of an answer that is no Chroma's, its status too."""
    # Chroma raises the bare text of such an answer, which may be a page of HTML, or empty.
    answer, inner = None, error.__context__
    while answer is None and inner is not None:
        answer, inner = getattr(inner, "response", None), inner.__context__
    status = "" if answer is None else f"HTTP {answer.status_code} {answer.reason_phrase}: "
    return one_line(masked(f"{status}{type(error).__name__}: {error}"[:MOST_SAID]))
