"""One HTTP request, of which only the answer's status counts, within a total limit."""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer

__all__ = ["http_status", "read_status_line"]

#: Of an answer until its body, which is not read; also of interim answers.
_HEAD_BYTES = 128 * 1024


def http_status(
    method: str,
    host: str,
    port: int,
    target: str,
    *,
    tls: ssl.SSLContext | None,
    timeout: float,
    headers: Mapping[str, str] | None = None,
    addresses: Sequence[str] = (),
) -> int:
    """Asks a server, and returns the status of its answer.

    Args:
        method: E.g. ``GET``.
        host: Name or address.
        port: Port.
        target: Path and query, encoded.
        tls: How the server is verified; None for plain HTTP.
        timeout: Limit in seconds of all of it, also for a server that answers byte after byte.
        headers: Besides ``Connection: close``.
        addresses: Where it is asked, in place of wherever its name leads.

    Raises:
        OSError: The server does not answer in time.
        http.client.HTTPException: Its answer is not one, or has no end.
    """
    end = time.monotonic() + timeout
    link = _connect(addresses or (host,), port, timeout)
    if tls is not None:
        # The handshake comes later, where it is watched.
        link = tls.wrap_socket(link, server_hostname=host, do_handshake_on_connect=False)
    with contextlib.closing(link), _cut(link, end - time.monotonic()) as late:
        try:
            if isinstance(link, ssl.SSLSocket):
                link.do_handshake()
            connection = http.client.HTTPConnection(host, port, timeout=timeout)
            connection.response_class = _Answer
            connection.sock = link
            connection.request(method, target, headers={"Connection": "close", **(headers or {})})
            status = connection.getresponse().status
            if late.is_set():  # what was cut off may look complete
                raise TimeoutError
            return status
        except (OSError, http.client.HTTPException) as error:
            if late.is_set():
                raise TimeoutError(f"no answer within {timeout:g} s") from error
            raise


def _connect(addresses: Sequence[str], port: int, timeout: float) -> socket.socket:
    """Connects to the first address that answers.

    Raises:
        OSError: None does.
    """
    for address in addresses[:-1]:
        with contextlib.suppress(OSError):
            return socket.create_connection((address, port), timeout=timeout)
    return socket.create_connection((addresses[-1], port), timeout=timeout)


class _Bounded(io.RawIOBase):
    """The beginning of a stream; asked for more, it refuses."""

    def __init__(self, stream: io.RawIOBase, size: int) -> None:
        super().__init__()
        self._stream = stream
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int | None:
        if self._left <= 0:
            raise http.client.HTTPException(
                f"more than {_HEAD_BYTES >> 10} KiB came before the answer's body"
            )
        part = memoryview(buffer)[: self._left]
        count: int | None = self._stream.readinto(part)
        self._left -= count or 0
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    """An answer of which little is read."""

    def __init__(self, sock: socket.socket, *others: Any, **named: Any) -> None:
        super().__init__(sock, *others, **named)
        self.fp = io.BufferedReader(_Bounded(self.fp.detach(), _HEAD_BYTES))


def read_status_line(link: socket.socket) -> int:
    """Reads the status of an answer from a connection.

    Raises:
        OSError: The connection breaks.
        http.client.HTTPException: It is no answer, or has no end.
    """
    answer = _Answer(link, method="GET")
    try:
        answer.begin()
        return answer.status
    finally:
        answer.close()


@contextlib.contextmanager
def _cut(link: socket.socket, seconds: float) -> Iterator[threading.Event]:
    """Cuts a connection that lasts too long; tells whether it did."""
    late = threading.Event()

    def cut() -> None:
        late.set()
        with contextlib.suppress(OSError):
            socket.socket.shutdown(link, socket.SHUT_RDWR)

    timer = threading.Timer(max(seconds, 0.0), cut)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()
