"""A small HTTP server, which stands for an application."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable


class HttpServer:
    """Answers on a loopback port of its own until it is closed.

    Args:
        answer: Gives status and body for a path.
        take: The same for a path and what is posted to it.
    """

    def __init__(
        self,
        answer: Callable[[str], tuple[int, bytes]] = lambda _: (404, b""),
        take: Callable[[str, bytes], tuple[int, bytes]] = lambda *_: (405, b""),
    ) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(*answer(self.path))

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                self.reply(*take(self.path, content))

            def reply(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Answers no more."""
        self._server.shutdown()
        self._server.server_close()
