"""Files for guests to download, behind tokens that expire (H5).

A small read-only blob store on the host's loopback, with Azure's shape of shared
access signatures, so that suites can rehearse ``fileUris`` and what becomes of them
when a token is no longer valid. QEMU's user network leads guests to it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.server
import os
import re
import secrets
import socket
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from pytest_vmss.clock import Clock
from pytest_vmss.errors import HostError, NotFoundError
from pytest_vmss.store import PortRecord, Store

__all__ = ["GUEST_VIEW", "Blobs"]

#: The host's loopback, as guests see it through QEMU's user network.
GUEST_VIEW = "10.0.2.2"

_HOST = "127.0.0.1"
_VERSION = "2026-01-01"
_STAMP = "%Y-%m-%dT%H:%M:%SZ"
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$")
_REFUSED = """\
<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>
"""


class Blobs:
    """The blob store of one lab; serves from its first :meth:`url` or :meth:`serve`.

    Its port stays the lab's, so that URLs outlive this process; they work while some
    process of the lab serves, which every operation does that needs it.

    Args:
        folder: Where the files are.
        store: Remembers the port.
        clock: By which tokens expire.
    """

    def __init__(self, folder: Path, store: Store, clock: Clock) -> None:
        self._folder = folder
        self._store = store
        self._clock = clock
        self._server: http.server.ThreadingHTTPServer | None = None
        self._lock = threading.Lock()

    # Its files.

    def put(self, name: str, content: str | bytes | Path) -> None:
        """Stores a file, in place of an older one of its name.

        Args:
            name: Letters, digits, '.', '_' and '-'.
            content: A file, or what is in it.

        Raises:
            ValueError: Not such a name.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a blob; use letters, digits, '.', '_', '-'")
        if isinstance(content, Path):
            content = content.read_bytes()
        data = content.encode() if isinstance(content, str) else content
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = self._folder / f".{name}.part"
        with os.fdopen(os.open(part, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
        part.rename(self._folder / name)

    def names(self) -> list[str]:
        """The files' names."""
        if not self._folder.exists():
            return []
        return sorted(path.name for path in self._folder.iterdir() if _NAME.fullmatch(path.name))

    def url(self, name: str, *, expires_in: float = 3600.0) -> str:
        """A URL by which guests may read a file for a while, with a token like Azure's SAS.

        Args:
            name: The file.
            expires_in: Seconds; with 0 or less the token has expired already.

        Raises:
            NotFoundError: There is no such file.
            HostError: The port that the lab has used before is taken.
        """
        if name not in self.names():
            known = ", ".join(self.names()) or "none"
            raise NotFoundError(f"there is no blob {name!r}; there are: {known}")
        expiry = (self._clock.now() + timedelta(seconds=expires_in)).strftime(_STAMP)
        path = f"/blobs/{quote(name)}"
        token = {
            "sv": _VERSION,
            "se": expiry,
            "sr": "b",
            "sp": "r",
            "sig": self._sign(name, expiry),
        }
        return f"http://{GUEST_VIEW}:{self.serve()}{path}?{urlencode(token)}"

    def _sign(self, name: str, expiry: str) -> str:
        what = f"r\n{expiry}\n/blobs/{name}\n{_VERSION}".encode()
        return base64.b64encode(hmac.digest(self._key, what, "sha256")).decode()

    @property
    def _key(self) -> bytes:
        """Signs tokens; made once, and nobody else's to read."""
        path = self._folder / ".key"
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            part = self._folder / f".key-{secrets.token_hex(4)}"
            with os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as new:
                new.write(secrets.token_bytes(32))
            with contextlib.suppress(FileExistsError):  # another process was first
                os.link(part, path)
            part.unlink()
        return path.read_bytes()

    # Its server.

    def serve(self) -> int:
        """Serves from now on, until :meth:`close`.

        Returns:
            The port.

        Raises:
            HostError: The port that the lab has used before is taken.
        """
        with self._lock:
            if self._server is None:
                self._server = self._bind()
                threading.Thread(
                    target=self._server.serve_forever, name="vmss-blobs", daemon=True
                ).start()
            return self._server.server_address[1]

    def serve_if_used(self) -> None:
        """Serves where the lab has given out URLs, in this process or an earlier one."""
        if self._store.get(PortRecord, "blobs") is not None:
            self.serve()

    def _bind(self) -> http.server.ThreadingHTTPServer:
        known = self._store.get(PortRecord, "blobs")
        port = 0 if known is None else known.port
        try:
            server = _Server((_HOST, port), _handler(self))
        except OSError as taken:
            raise HostError(
                f"the port {port} of {_HOST}, at which this lab serves files to guests, is taken: "
                f"{taken}; end what listens there, or another process of this lab"
            ) from taken
        if known is None:
            self._store.put(PortRecord(name="blobs", port=server.server_address[1]))
        return server

    def close(self) -> None:
        """Serves no longer."""
        with self._lock:
            if self._server is not None:
                self._server.shutdown()
                self._server.server_close()
                self._server = None

    def answer(self, target: str) -> tuple[int, str, bytes]:
        """What a request gets.

        Returns:
            HTTP's status, Azure's error code (empty where there is none), and the body.
        """
        parts = urlsplit(target)
        name = unquote(parts.path.removeprefix("/blobs/"))
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        wanted = self._sign(name, query.get("se", ""))
        if not hmac.compare_digest(wanted.encode(), query.get("sig", "").encode()):
            return _refuse(403, "AuthenticationFailed", "The signature does not match.")
        expiry = datetime.strptime(query["se"] + "+0000", _STAMP + "%z")
        if self._clock.now() > expiry:
            return _refuse(403, "AuthenticationFailed", "Signature not valid in the specified time")
        if name not in self.names():
            return _refuse(404, "BlobNotFound", "The specified blob does not exist.")
        return 200, "", (self._folder / name).read_bytes()


class _Server(http.server.ThreadingHTTPServer):
    """Takes its own port again at once, and no other's."""

    allow_reuse_address = True
    daemon_threads = True
    address_family = socket.AF_INET


def _refuse(status: int, code: str, message: str) -> tuple[int, str, bytes]:
    return status, code, _REFUSED.format(code=code, message=message).encode()


def _handler(blobs: Blobs) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        """Reads, and nothing else."""

        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def _answer(self, *, with_body: bool) -> None:
            status, code, body = blobs.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
            if code:
                self.send_header("x-ms-error-code", code)
            else:
                digest = hashlib.md5(body, usedforsecurity=False).digest()
                self.send_header("Content-MD5", base64.b64encode(digest).decode())
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: its lines would hold tokens."""

    return Handler
