"""Reads the TCP ports on which a guest listens from its kernel's tables."""

from __future__ import annotations

import re

__all__ = ["LISTENING", "parse_listening"]

#: A command for the guest's shell that prints the tables.
LISTENING = "cat /proc/net/tcp /proc/net/tcp6 2> /dev/null || true"
#: The kernel's code of the state, and a local address with its port.
_LISTEN = "0A"
_PORT = re.compile(r"[0-9A-F]{8,32}:([0-9A-F]{4})")


def parse_listening(table: str) -> set[int]:
    """Returns the listening ports in the kernel's tables of TCP sockets."""
    rows = [line.split(maxsplit=4) for line in table.splitlines()]
    return {
        int(found[1], 16)
        for row in rows
        if len(row) > 3 and row[3] == _LISTEN and (found := _PORT.fullmatch(row[1]))
    }
