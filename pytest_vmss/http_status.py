"""One HTTP request, of which only the answer's status counts, within a total limit."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

__all__ = ["http_status"]


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
        http.client.HTTPException: Its answer is not one.
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
            connection.sock = link
            connection.request(method, target, headers={"Connection": "close", **(headers or {})})
            return connection.getresponse().status
        except (OSError, http.client.HTTPException) as failed:
            if late.is_set():
                raise TimeoutError(f"no answer within {timeout:g} s") from failed
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
