"""HTTP requests of which little of the response is read, within a total timeout.

Responses may come from guests. Only the status line is parsed, and headers are skipped as
bytes: Python's own header parsers take quadratic time for some, and cannot be interrupted.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import ssl
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from pytest_vmss.clock import Deadline
from pytest_vmss.untrusted import one_line

__all__ = ["http_status", "post_json", "read_status"]

#: Maximum size in bytes of a response without its body, including interim responses.
_HEAD_BYTES = 128 * 1024
_CHUNK = 16 * 1024
#: Maximum size in bytes of a response's body.
_BODY_BYTES = 64 * 1024
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
    """Makes a request, and returns the status of the response.

    Args:
        method: E.g. ``GET``.
        host: Name or address of the server.
        port: Port of the server.
        target: Path and query, encoded.
        tls: How to verify the server; None for plain HTTP.
        timeout: For the whole exchange, in seconds, even if the server sends byte after byte.
        headers: Sent besides ``Connection: close``.
        addresses: Addresses to connect to instead of resolving the host.

    Raises:
        OSError: The server does not respond in time.
        http.client.HTTPException: The response is malformed, or its head is too long.
    """
    deadline = Deadline(timeout)
    try:
        link = _connect(addresses or (host,), port, deadline)
        if tls is not None:
            # The handshake is made separately, with the time that is left.
            link = tls.wrap_socket(link, server_hostname=host, do_handshake_on_connect=False)
        with contextlib.closing(link):
            if isinstance(link, ssl.SSLSocket):
                link.settimeout(deadline.require())
                link.do_handshake()
            # It checks that no part of the request contains a line break.
            connection = http.client.HTTPConnection(host, port)
            connection.sock = link
            link.settimeout(deadline.require())
            connection.request(method, target, headers={"Connection": "close", **(headers or {})})
            return read_status(link, deadline)
    except TimeoutError as error:
        raise TimeoutError(f"no answer within {timeout:g} s") from error


def post_json(url: str, body: Mapping[str, Any], *, timeout: float) -> tuple[int, bytes]:
    """Posts JSON to a server that the suite itself runs.

    Args:
        url: An ``http`` URL.
        body: What is sent.
        timeout: For each of connecting, sending and reading, in seconds.

    Returns:
        The response's status, and its body.

    Raises:
        OSError: The server does not respond in time.
        http.client.HTTPException: The response is malformed, or its body is too long.
    """
    parts = urlsplit(url)
    target = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
    connection = http.client.HTTPConnection(
        parts.hostname or "", parts.port or http.client.HTTP_PORT, timeout=timeout
    )
    with contextlib.closing(connection):
        headers = {"Content-Type": "application/json", "Connection": "close"}
        connection.request("POST", target, body=json.dumps(body), headers=headers)
        response = connection.getresponse()
        content = response.read(_BODY_BYTES + 1)
    if len(content) > _BODY_BYTES:
        raise http.client.HTTPException(f"the answer is longer than {_BODY_BYTES >> 10} KiB")
    return response.status, content


def _connect(addresses: Sequence[str], port: int, deadline: Deadline) -> socket.socket:
    """Connects to the first address that accepts; each has an equal share of the time left.

    Raises:
        OSError: None does.
    """
    for waiting, address in zip(range(len(addresses), 1, -1), addresses, strict=False):
        with contextlib.suppress(OSError):
            return socket.create_connection((address, port), timeout=deadline.require() / waiting)
    return socket.create_connection((addresses[-1], port), timeout=deadline.require())


def read_status(link: socket.socket, deadline: Deadline) -> int:
    """Reads the status of a response from a connection, skipping its headers unparsed.

    Args:
        link: The connection; its timeout is changed.
        deadline: When the whole head must have arrived.

    Raises:
        OSError: The connection breaks, or the head does not arrive in time.
        http.client.HTTPException: The response is malformed, or its head is too long.
    """
    received = bytearray()
    size = 0
    while True:
        searched = 0
        # Cut once per response, not per line, so that skipped bytes are copied only once.
        while (found := _HEAD_END.search(received, searched)) is None:
            searched = max(0, len(received) - 2)
            if size >= _HEAD_BYTES:
                raise http.client.HTTPException(
                    f"more than {_HEAD_BYTES >> 10} KiB came before the answer's body"
                )
            link.settimeout(deadline.require())
            part = link.recv(_CHUNK)
            if not part:
                return _status(received)
            received += part
            size += len(part)
        status = _status(received)
        if status >= 200 or status == _SWITCHING:
            return status
        del received[: found.end()]  # an interim response, which the final one follows


def _status(head: bytes | bytearray) -> int:
    """Parses the status in a response's first line.

    Raises:
        http.client.HTTPException: The line is malformed or missing.
    """
    if not head:
        raise http.client.RemoteDisconnected("the server closed the connection without an answer")
    line = bytes(head[: head.find(b"\n") if b"\n" in head else len(head)]).rstrip(b"\r")
    found = _STATUS_LINE.fullmatch(line)
    if found is None:
        raise http.client.BadStatusLine(one_line(line))
    return int(found[1])
