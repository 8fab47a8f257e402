"""A TCP proxy in front of a server that can go on answering `/` while all behind it hangs."""

import contextlib
import socket
import socketserver
import threading
from urllib.parse import urlparse

__all__ = ["HalfDeadProxy"]

FROM_THE_PROXY = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class HalfDeadProxy:
    """Passes bytes on, on a port of its own, or holds them while it hangs."""

    def __init__(self, upstream: str) -> None:
        address = urlparse(upstream)
        self._upstream = (address.hostname, address.port)
        self._sound = threading.Event()
        self._sound.set()
        proxy = self

        class Connection(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    proxy._serve(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Connection)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def hang(self) -> None:
        """Answer `/`, and nothing else any more."""
        self._sound.clear()

    def go_on(self) -> None:
        """Pass on what was held, and all that comes."""
        self._sound.set()

    def _serve(self, client: socket.socket) -> None:
        first = client.recv(1 << 16)
        if not self._sound.is_set() and first.startswith(b"GET / "):
            client.sendall(FROM_THE_PROXY)
            return
        self._sound.wait()
        with socket.create_connection(self._upstream) as server:
            back = threading.Thread(target=self._pass_on, args=(server, client), daemon=True)
            back.start()
            server.sendall(first)
            self._pass_on(client, server)
            back.join()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                self._sound.wait()
                target.sendall(piece)
        # Whoever waits at the other end learns that it is over.
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "HalfDeadProxy":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on()
        self._server.shutdown()
        self._server.server_close()
