"""A blob store from which guests download files with tokens that expire (H5).

It is small, read-only and on the host's loopback, with tokens like Azure's shared access
signatures, so that suites can rehearse ``fileUris`` and what happens once a token is no
longer valid. Guests reach it through QEMU's user network.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hmac
import os
import re
import secrets
import socket
import threading
import zlib
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from pytest_vmss.clock import Clock, Deadline
from pytest_vmss.errors import HostError, NotFoundError, VmssError
from pytest_vmss.file_server.server import Answer, FileServer
from pytest_vmss.host.files import write_durably
from pytest_vmss.store import PortRecord, ScaleSetRecord, Store
from pytest_vmss.untrusted import read_regular

__all__ = ["GUEST_VIEW", "Blobs", "names_server"]

#: The address of the host's loopback in QEMU's user network.
GUEST_VIEW = "10.0.2.2"

_HOST = "127.0.0.1"
_VERSION = "2026-01-01"
_STAMP = "%Y-%m-%dT%H:%M:%SZ"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_GZIP = b"\x1f\x8b"
#: Maximum size of a file in bytes.
_BLOB_BYTES = 1024**3
_FIRST_YEAR = 1000
#: Maximum number of bytes of unpacked custom data that are searched.
_CUSTOM_DATA_MAX = 1 << 20
_PROBE = "/lab/"
_CHALLENGE = re.compile(r"[0-9a-f]{32}")
_PROBE_S = 5.0
#: The same timeout for a guest's download, which fails if a busy host misses it.
_DIAL_S = 30.0
#: The same timeout for a mere check of who listens.
_LOOK_S = 1.0
#: Maximum size in bytes of the response to a challenge, with its headers.
_PROOF_BYTES = 4096
_PROOF = re.compile(rb"HTTP/1\.1 200 .*?\r\n\r\n([0-9a-f]{64})", re.DOTALL)
#: Maximum number of fields in a query; a token has five.
_FIELDS = 32
#: Attempts at a port that is neither free nor this lab's.
_TRIES = 3
#: Seconds between two attempts to take over from another process.
_TAKE_OVER_S = 0.25
_REFUSED = """\
<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>
"""


class Blobs:
    """The blob store of one lab; serves from the first :meth:`url` or :meth:`serve` on.

    The port stays the lab's, so that URLs outlive this process; they work while some process of
    the lab serves, as every operation that needs it does. If another process of the lab is
    already serving, this one stands by, and takes over when that one ends.

    Args:
        folder: Folder of the files.
        store: Stores the port.
        clock: The clock by which tokens expire.
    """

    def __init__(self, folder: Path, store: Store, clock: Clock) -> None:
        self._folder = folder
        self._store = store
        self._clock = clock
        self._server: FileServer | None = None
        self._standby: threading.Thread | None = None
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._unproved = 0

    # Files.

    def put(self, name: str, content: str | bytes | Path) -> None:
        """Stores a file, replacing any of the same name.

        Args:
            name: Letters, digits, '.', '_' and '-'.
            content: The path of a file to copy, or the content.

        Raises:
            ValueError: The name is invalid.
            HostError: The file cannot be stored; an older one of that name is unchanged.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a blob; use letters, digits, '.', '_', '-'")
        try:
            if isinstance(content, Path):
                content = read_regular(content, _BLOB_BYTES)
            data = content.encode() if isinstance(content, str) else content
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_durably(self._folder / name, data)
        except (OSError, UnicodeError) as error:
            raise HostError(f"the blob {name!r} cannot be stored: {error}") from error

    def names(self) -> list[str]:
        """Returns the names of all files."""
        if not self._folder.exists():
            return []
        with os.scandir(self._folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
            )

    def url(self, name: str, *, expires_in: float = 3600.0) -> str:
        """Returns a URL from which guests can download a file, with a token like Azure's SAS.

        Args:
            name: Name of the file.
            expires_in: Seconds until the token expires; with 0 or less it has already expired.

        Raises:
            ValueError: The seconds are not a number, or lead to a year without four digits.
            NotFoundError: There is no such file.
            HostError: The port that the lab has used before is taken.
        """
        expiry = self.expiry(expires_in)
        if name not in self.names():
            known = ", ".join(self.names()) or "none"
            raise NotFoundError(f"there is no blob {name!r}; there are: {known}")
        path = f"/blobs/{quote(name)}"
        token = {
            "sv": _VERSION,
            "se": expiry,
            "sr": "b",
            "sp": "r",
            "sig": self._sign(name, expiry),
        }
        return f"http://{GUEST_VIEW}:{self.serve()}{path}?{urlencode(token)}"

    def expiry(self, expires_in: float) -> str:
        """Returns the expiry of a token issued now, in the format used in URLs.

        Raises:
            ValueError: The seconds are not a number, or lead to a year without four digits.
        """
        try:
            moment = self._clock.now() + timedelta(seconds=expires_in)
        except (OverflowError, ValueError):
            moment = None
        if moment is None or moment.year < _FIRST_YEAR:
            raise ValueError(
                f"a token cannot expire in {expires_in!r} s; give seconds, e.g. 3600 for an hour"
            )
        return moment.strftime(_STAMP)

    def _sign(self, name: str, expiry: str) -> str:
        what = f"r\n{expiry}\n/blobs/{name}\n{_VERSION}".encode()
        return base64.b64encode(hmac.digest(self._key, what, "sha256")).decode()

    @property
    def _key(self) -> bytes:
        """The key that signs tokens; created on first use, and readable only by its owner.

        Raises:
            HostError: It cannot be created or read.
        """
        path = self._folder / ".key"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not path.exists():
                with contextlib.suppress(FileExistsError):  # another process was first
                    write_durably(path, secrets.token_bytes(32), replace=False)
            return path.read_bytes()
        except OSError as error:
            raise HostError(
                f"the key {path} of this lab's file server cannot be had: {error}"
            ) from error

    # Server.

    def serve(self) -> int:
        """Ensures that the lab's files are served until :meth:`close`, by this process or another.

        Returns:
            The port.

        Raises:
            HostError: The port that the lab has used before is another program's.
        """
        with self._lock:
            if self._server is not None:
                return self._server.port
            self._closing.clear()
            for _ in range(_TRIES):  # the serving process may end between the two calls
                port, bound = self._bind()
                if bound:
                    return port
                try:
                    ours = self._is_ours(port)
                except TimeoutError:
                    break
                if ours:
                    self._stand_by()
                    return port
            self._stand_by()
            raise HostError(self._told_taken(port))

    def serve_if_used(self, *, needed: bool = True) -> None:
        """Serves if the lab has issued URLs, in this process or an earlier one.

        Args:
            needed: Whether the caller depends on it; if not, this does not wait, and a HostError is
                suppressed.

        Raises:
            HostError: It is needed, and the lab's port is another program's.
        """
        if self.port is None:
            return
        if needed:
            self.serve()
            return
        with self._lock, contextlib.suppress(HostError):
            self._closing.clear()
            if self._server is None and not self._bind()[1]:
                self._stand_by()

    @property
    def port(self) -> int | None:
        """The port of the lab's URLs; None if no URL was issued."""
        known = self._store.get(PortRecord, "blobs")
        return None if known is None else known.port

    def _bind(self) -> tuple[int, bool]:
        """Starts serving on the lab's port, unless that is taken.

        Returns:
            The port, and whether this process now serves on it.

        Raises:
            HostError: The socket cannot be created or bound.
        """
        port = self.port or 0
        try:
            server = FileServer((_HOST, port), self.answer)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return port, False
            raise HostError(
                f"files cannot be served to guests at {_HOST}:{port}: {error}"
            ) from error
        mine = server.port
        try:
            with self._store.transaction():
                known = self.port
                if known is None:
                    self._store.put(PortRecord(name="blobs", port=mine))
        except BaseException:
            server.close()
            raise
        if known not in (None, mine):  # another process of the lab was first
            server.close()
            return known, False
        self._server = server
        server.start()
        return mine, True

    def dial(self) -> socket.socket:
        """Connects to the lab's server, after it has proved on the connection that it is the lab's.

        Another program may have taken the port since the serving process ended.

        Raises:
            HostError: No server of this lab is running.
            OSError: The server does not respond.
        """
        port = self.port
        link = None if port is None else self._proved(port, _DIAL_S)
        if link is None:
            raise HostError(self._told_taken(port))
        return link

    def _is_ours(self, port: int) -> bool:
        """Whether the server that listens on a port is this lab's.

        Raises:
            TimeoutError: Something listens there, but does not respond.
        """
        try:
            link = self._proved(port)
        except TimeoutError:
            raise
        except OSError:
            return False
        if link is not None:
            link.close()
        return link is not None

    def _proved(self, port: int, timeout: float = _PROBE_S) -> socket.socket | None:
        """Connects to a port; returns None if the server there is not this lab's.

        Raises:
            OSError: Nothing listens there, or it does not respond in time.
        """
        challenge = secrets.token_hex(16)
        deadline = Deadline(timeout)
        answer = b""
        with contextlib.ExitStack() as failed:
            link = failed.enter_context(socket.create_connection((_HOST, port), timeout))
            link.sendall(f"GET {_PROBE}{challenge} HTTP/1.1\r\nHost: lab\r\n\r\n".encode())
            while (proof := _PROOF.fullmatch(answer)) is None:
                if not (left := deadline.left()):
                    raise TimeoutError(f"no proof within {timeout:g} s")
                link.settimeout(left)
                part = link.recv(_PROOF_BYTES)
                if not part:
                    raise ConnectionResetError("the connection ended before a proof")
                answer += part
                if len(answer) > _PROOF_BYTES:
                    return None
            if not hmac.compare_digest(proof[1], self._prove(challenge)):
                return None
            link.settimeout(_PROBE_S)
            failed.pop_all()
            return link

    @staticmethod
    def _told_taken(port: int | None) -> str:
        return (
            f"the port {port} of {_HOST}, at which this lab serves files to guests, is taken by "
            "another program; end what listens there (`ss -ltnp` tells), and try again"
        )

    def _watch(self, port: int) -> None:
        """Warns, once, if another program has taken the port from which guests download."""
        try:
            link = self._proved(port, _LOOK_S)
        except (TimeoutError, ConnectionRefusedError):
            return  # busy, or gone: the next check will show
        except OSError:
            link = None
        if link is not None:
            link.close()
            self._unproved = 0
            return
        self._unproved += 1  # the server may have ended during the exchange
        if self._unproved == _TRIES:
            for record in self._store.select(ScaleSetRecord):
                self._store.event(record.name, "warning", self._told_taken(port))

    def _prove(self, challenge: str) -> bytes:
        """Returns the response to a challenge, which only processes of this lab can compute."""
        return hmac.digest(self._key, f"probe\n{challenge}".encode(), "sha256").hex().encode()

    def _stand_by(self) -> None:
        """Starts a thread that takes the port over as soon as it is free."""
        if self._standby is not None and self._standby.is_alive():
            return

        def run() -> None:
            while not self._closing.wait(_TAKE_OVER_S):
                with contextlib.suppress(VmssError):
                    with self._lock:
                        if self._closing.is_set() or self._server is not None:
                            return
                        port, is_bound = self._bind()
                        if is_bound:
                            return
                    self._watch(port)

        self._standby = threading.Thread(target=run, name="vmss-blobs-standby", daemon=True)
        self._standby.start()

    def close(self) -> None:
        """Stops serving, and standing by."""
        self._closing.set()
        if self._standby is not None:
            self._standby.join()
        with self._lock:
            if self._server is not None:
                self._server.close()
                self._server = None

    def answer(self, target: str) -> Answer:
        """Returns the response to a request.

        Raises:
            ValueError: The target is not a valid URL.
            HostError: The host failed.
        """
        parts = urlsplit(target)
        challenge = parts.path.removeprefix(_PROBE)
        if challenge != parts.path and _CHALLENGE.fullmatch(challenge):
            return Answer(200, self._prove(challenge), goes_on=True)
        name = unquote(parts.path.removeprefix("/blobs/"))
        fields = parse_qs(parts.query, max_num_fields=_FIELDS)
        query = {key: values[0] for key, values in fields.items()}
        wanted = self._sign(name, query.get("se", ""))
        given = query.get("sig", "").encode(errors="replace")
        if not _NAME.fullmatch(name) or not hmac.compare_digest(wanted.encode(), given):
            return _refuse(403, "AuthenticationFailed", "The signature does not match.")
        expiry = datetime.strptime(query["se"] + "+0000", _STAMP + "%z")
        if self._clock.now() > expiry:
            return _refuse(403, "AuthenticationFailed", "Signature not valid in the specified time")
        if name not in self.names():
            return _refuse(404, "BlobNotFound", "The specified blob does not exist.")
        return Answer(200, self._folder / name, share=f"{name} {query['se']}")


def names_server(value: Any, port: int | None) -> bool:
    """Whether a model, or part of it, contains a URL of a lab's server, even base64-encoded.

    Args:
        value: A JSON value.
        port: The server's port; None for any.
    """
    if isinstance(value, dict):
        return any(names_server(part, port) for part in value.values())
    if isinstance(value, list):
        return any(names_server(part, port) for part in value)
    if not isinstance(value, str):
        return False
    ending = "" if port is None else rf":{port}\b"
    wanted = re.compile(rf"//{re.escape(GUEST_VIEW)}\b{ending}".encode())
    content = value.encode()
    if wanted.search(content):
        return True
    with contextlib.suppress(ValueError, zlib.error):
        content = base64.b64decode(content, validate=True)
        if content.startswith(_GZIP):
            content = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(content, _CUSTOM_DATA_MAX)
        return wanted.search(content) is not None
    return False


def _refuse(status: int, code: str, message: str) -> Answer:
    return Answer(status, _REFUSED.format(code=code, message=message).encode(), code)
