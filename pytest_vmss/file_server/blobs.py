"""Files for guests to download, behind tokens that expire (H5).

A small read-only blob store on the host's loopback, with Azure's shape of shared
access signatures, so that suites can rehearse ``fileUris`` and what becomes of them
when a token is no longer valid. QEMU's user network leads guests to it.
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
import time
import zlib
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from pytest_vmss.clock import Clock
from pytest_vmss.errors import HostError, NotFoundError, VmssError
from pytest_vmss.file_server.server import Answer, FileServer
from pytest_vmss.host.files import write_durably
from pytest_vmss.store import PortRecord, ScaleSetRecord, Store
from pytest_vmss.untrusted import read_regular

__all__ = ["GUEST_VIEW", "Blobs", "names_server"]

#: The host's loopback, as guests see it through QEMU's user network.
GUEST_VIEW = "10.0.2.2"

_HOST = "127.0.0.1"
_VERSION = "2026-01-01"
_STAMP = "%Y-%m-%dT%H:%M:%SZ"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_GZIP = b"\x1f\x8b"
#: Bytes of unpacked custom data that are searched.
#: Bytes of a file.
_BLOB_BYTES = 1024**3
_FIRST_YEAR = 1000
_CUSTOM_DATA_MAX = 1 << 20
_PROBE = "/lab/"
_CHALLENGE = re.compile(r"[0-9a-f]{32}")
_PROBE_S = 5.0
#: The same where it is only looked whether all is well.
_LOOK_S = 1.0
#: Bytes of the answer to a challenge, with its headers.
_PROOF_BYTES = 4096
_PROOF = re.compile(rb"HTTP/1\.1 200 .*?\r\n\r\n([0-9a-f]{64})", re.DOTALL)
#: Fields of a query; a token has five.
_FIELDS = 32
#: How often a port is tried that has been neither free nor this lab's.
_TRIES = 3
#: Seconds between two tries to take over from another process.
_TAKE_OVER_S = 0.25
_REFUSED = """\
<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>
"""


class Blobs:
    """The blob store of one lab; serves from its first :meth:`url` or :meth:`serve`.

    Its port stays the lab's, so that URLs outlive this process; they work while some
    process of the lab serves, which every operation does that needs it. Where another
    process of the lab serves already, this one leaves it to that, and takes over when
    that ends.

    Args:
        folder: Where the files are.
        store: Remembers the port.
        clock: By which tokens expire.
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

    # Its files.

    def put(self, name: str, content: str | bytes | Path) -> None:
        """Stores a file, in place of an older one of its name.

        Args:
            name: Letters, digits, '.', '_' and '-'.
            content: A file, or what is in it.

        Raises:
            ValueError: Not such a name.
            HostError: It cannot be stored; an older file of that name is as it was.
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
        """The files' names."""
        if not self._folder.exists():
            return []
        with os.scandir(self._folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
            )

    def url(self, name: str, *, expires_in: float = 3600.0) -> str:
        """A URL by which guests may read a file for a while, with a token like Azure's SAS.

        Args:
            name: The file.
            expires_in: Seconds; with 0 or less the token has expired already.

        Raises:
            ValueError: The seconds are not a number, or lead to no year of four digits.
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
        """When a token that is made now expires, as it is written into a URL.

        Raises:
            ValueError: The seconds are not a number, or lead to no year of four digits.
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
        """Signs tokens; made once, and nobody else's to read.

        Raises:
            HostError: It cannot be made or read.
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

    # Its server.

    def serve(self) -> int:
        """Sees that the lab's files are served from now on, until :meth:`close`.

        Returns:
            The port.

        Raises:
            HostError: The port that the lab has used before is another program's.
        """
        with self._lock:
            if self._server is not None:
                return self._server.port
            self._closing.clear()
            for _ in range(_TRIES):  # whoever serves may end between the two questions
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
        """Serves where the lab has given out URLs, in this process or an earlier one.

        Args:
            needed: Whether what is to be done cannot do without; else nothing is waited for.

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
        """The port of the lab's URLs; None where none was given out."""
        known = self._store.get(PortRecord, "blobs")
        return None if known is None else known.port

    def _bind(self) -> tuple[int, bool]:
        """Serves at the lab's port, unless that is taken.

        Returns:
            The port, and whether this process serves there now.

        Raises:
            HostError: Its socket cannot be had.
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
        """Connects to the lab's server, which has proved on this connection that it is the lab's.

        Another program can have the port since the process ended that served there.

        Raises:
            HostError: There is no server of this lab's.
            OSError: It does not answer.
        """
        port = self.port
        link = None if port is None else self._proved(port)
        if link is None:
            raise HostError(self._told_taken(port))
        return link

    def _is_ours(self, port: int) -> bool:
        """Whether it is this lab's server that listens at a port.

        Raises:
            TimeoutError: Something listens there, and does not answer.
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
        """Connects to a port; None where it is not this lab's server that answers.

        Raises:
            OSError: Nothing listens there, or it does not answer in time.
        """
        challenge = secrets.token_hex(16)
        end = time.monotonic() + timeout
        answer = b""
        with contextlib.ExitStack() as failed:
            link = failed.enter_context(socket.create_connection((_HOST, port), timeout))
            link.sendall(f"GET {_PROBE}{challenge} HTTP/1.1\r\nHost: lab\r\n\r\n".encode())
            while (proof := _PROOF.fullmatch(answer)) is None:
                if (left := end - time.monotonic()) <= 0:
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
        """Tells, once, that another program has the lab's port, where guests may ask it."""
        try:
            link = self._proved(port, _LOOK_S)
        except (TimeoutError, ConnectionRefusedError):
            return  # busy, or gone: the next look will tell
        except OSError:
            link = None
        if link is not None:
            link.close()
            self._unproved = 0
            return
        self._unproved += 1  # the server may have ended in the middle of the question
        if self._unproved == _TRIES:
            for record in self._store.select(ScaleSetRecord):
                self._store.event(record.name, "warning", self._told_taken(port))

    def _prove(self, challenge: str) -> bytes:
        """What only a process of this lab can answer."""
        return hmac.digest(self._key, f"probe\n{challenge}".encode(), "sha256").hex().encode()

    def _stand_by(self) -> None:
        """Takes the port over as soon as it is free."""
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
        """Serves no longer."""
        self._closing.set()
        if self._standby is not None:
            self._standby.join()
        with self._lock:
            if self._server is not None:
                self._server.close()
                self._server = None

    def answer(self, target: str) -> Answer:
        """What a request gets.

        Raises:
            ValueError: It is no URL.
            HostError: The host is at fault.
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
    """Whether a model, or a part of it, names a lab's server; also in base64, as custom data is.

    Args:
        value: What JSON may hold.
        port: The server's; None for any.
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
