"""Maps ports of guests and load balancers to ports of the host."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["LAST_PORT", "host_port", "host_ports"]

LAST_PORT = 65535

_PRIVILEGED = 1024
_RAISE = 10000


def host_port(port: int) -> int:
    """Returns the host's port for a port: the same, or below 1024 plus 10000, to need no root."""
    return port + _RAISE if port < _PRIVILEGED else port


def host_ports(ports: Iterable[int]) -> dict[int, int]:
    """Maps several ports to different ports of the host on one address.

    If both 80 and 10080 are requested, 80 is mapped to 20080.

    Args:
        ports: From 1 to 65535; the order does not matter.
    """
    wanted = sorted(set(ports))
    taken = {port for port in wanted if port >= _PRIVILEGED}
    given = {}
    for port in wanted:
        host = host_port(port)
        while port < _PRIVILEGED and host in taken:
            host += _RAISE
            if host > LAST_PORT:  # no real set forwards so many
                host = next(
                    number for number in range(_PRIVILEGED, LAST_PORT) if number not in taken
                )
        taken.add(host)
        given[port] = host
    return given
