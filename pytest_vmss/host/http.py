"""One HTTP request, of which only the answer's status counts, within a total limit.

Answers are guests' to write. Of one the status line is read, and its headers are passed over
as bytes: Python's own parsers of headers take quadratic time for some, and nobody can stop them.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import time
from collections.abc import Mapping, Sequence

from pytest_vmss.untrusted import one_line

__all__ = ["http_status", "read_status"]

#: Of an answer until its body, which is not read; also of interim answers.
_HEAD_BYTES = 128 * 1024
_CHUNK = 16 * 1024
_STATUS_LINE = re.compile(rb"HTTP/[0-9]\.[0-9] {1,8}([1-9][0-9]{2})(?: [^\n]*)?")
_HEAD_END = re.compile(rb"\n\r?\n")
_SWITCHING = 101


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
    try:
        link = _connect(addresses or (host,), port, end)
        if tls is not None:
            # The handshake comes later, where its time is what is left.
            link = tls.wrap_socket(link, server_hostname=host, do_handshake_on_connect=False)
        with contextlib.closing(link):
            if isinstance(link, ssl.SSLSocket):
                link.settimeout(_left(end))
                link.do_handshake()
            # It sees that nothing in the request begins a line of its own.
            connection = http.client.HTTPConnection(host, port)
            connection.sock = link
            link.settimeout(_left(end))
            connection.request(method, target, headers={"Connection": "close", **(headers or {})})
            return read_status(link, end)
    except TimeoutError as error:
        raise TimeoutError(f"no answer within {timeout:g} s") from error


def _left(end: float) -> float:
    """Seconds until a time of the monotonic clock.

    Raises:
        TimeoutError: It has passed.
    """
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _connect(addresses: Sequence[str], port: int, end: float) -> socket.socket:
    """Connects to the first address that answers.

    Raises:
        OSError: None does.
    """
    for address in addresses[:-1]:
        with contextlib.suppress(ConnectionError, TimeoutError, socket.gaierror):
            return socket.create_connection((address, port), timeout=_left(end))
    return socket.create_connection((addresses[-1], port), timeout=_left(end))


def read_status(link: socket.socket, end: float) -> int:
    """Reads the status of an answer from a connection, and its headers as mere bytes.

    Args:
        link: The connection; its timeout is changed.
        end: Until when all of the head must have come, on the monotonic clock.

    Raises:
        OSError: The connection breaks, or the head does not come in time.
        http.client.HTTPException: It is no answer, or its head has no end.
    """
    received = bytearray()
    size = 0
    while True:
        searched = 0
        # Cut once for each answer, not for each line: what is passed over is copied once.
        while (found := _HEAD_END.search(received, searched)) is None:
            searched = max(0, len(received) - 2)
            if size >= _HEAD_BYTES:
                raise http.client.HTTPException(
                    f"more than {_HEAD_BYTES >> 10} KiB came before the answer's body"
                )
            link.settimeout(_left(end))
            part = link.recv(_CHUNK)
            if not part:
                return _status(received)
            received += part
            size += len(part)
        status = _status(received)
        if status >= 200 or status == _SWITCHING:
            return status
        del received[: found.end()]  # an interim answer, after which the real one comes


def _status(head: bytes | bytearray) -> int:
    """The status of an answer's first line.

    Raises:
        http.client.HTTPException: There is none.
    """
    if not head:
        raise http.client.RemoteDisconnected("the server closed the connection without an answer")
    line = bytes(head[: head.find(b"\n") if b"\n" in head else len(head)]).rstrip(b"\r")
    found = _STATUS_LINE.fullmatch(line)
    if found is None:
        raise http.client.BadStatusLine(one_line(line))
    return int(found[1])
