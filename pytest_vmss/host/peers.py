"""Whose process is at the other end of a connection within this host."""

from __future__ import annotations

import socket
from pathlib import Path

__all__ = ["owner_of_peer"]

_TABLE = Path("/proc/self/net/tcp")
#: Columns of the table: the socket's own address, the one that it is connected to, its owner.
_LOCAL, _REMOTE, _OWNER = 1, 2, 7


def owner_of_peer(link: socket.socket) -> int | None:
    """Returns the user id that has the other end of a TCP connection over IPv4.

    Args:
        link: The connection. The other end must have accepted it: until then nobody has it.

    Returns:
        The user id; None if the kernel lists no such socket, or its list cannot be read.
    """
    try:
        ends = [_listed(link.getpeername()), _listed(link.getsockname())]
        lines = _TABLE.read_text().splitlines()[1:]
    except OSError:
        return None
    found = (line.split() for line in lines)
    return next((int(row[_OWNER]) for row in found if [row[_LOCAL], row[_REMOTE]] == ends), None)


def _listed(address: tuple[str, int]) -> str:
    """An address as the table has it: in the host's byte order, which is little-endian here."""
    host, port = address
    return f"{socket.inet_aton(host)[::-1].hex().upper()}:{port:04X}"
