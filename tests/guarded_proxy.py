"""A reverse proxy as servers are put behind: Basic credentials, and a path prefix of its own."""

import base64
import http.client
import http.server
import threading
from urllib.parse import urlparse

__all__ = ["GuardedProxy"]


class GuardedProxy:
    """Passes requests on without the prefix; refuses those that lack it, or the credentials."""

    def __init__(self, upstream: str, *, prefix: str, user: str, password: str) -> None:
        address = urlparse(upstream)
        expected = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self.num_passed = 0
        self.refused: list[str] = []
        proxy = self

        class Passing(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Authorization") != expected:
                    self.refuse(401)
                elif not f"{self.path}/".startswith(f"{prefix}/"):
                    self.refuse(404)
                else:
                    self.pass_on(body)

            def refuse(self, status: int) -> None:
                proxy.refused.append(f"{status} {self.command} {self.path}")
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def pass_on(self, body: bytes) -> None:
                proxy.num_passed += 1
                server = http.client.HTTPConnection(address.hostname, address.port, timeout=10)
                kept = {
                    k: v
                    for k, v in self.headers.items()
                    if k.lower() not in ("host", "authorization", "connection", "accept-encoding")
                }
                server.request(self.command, self.path.removeprefix(prefix) or "/", body, kept)
                answer = server.getresponse()
                content = answer.read()
                server.close()
                self.send_response(answer.status)
                kind = answer.getheader("Content-Type") or "application/json"
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None: ...

        for method in ("POST", "PUT", "DELETE", "PATCH"):
            setattr(Passing, f"do_{method}", Passing.do_GET)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Passing)
        self._server.daemon_threads = True
        self.port = self._server.server_port

    def __enter__(self) -> "GuardedProxy":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
