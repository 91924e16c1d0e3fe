"""Makes a load balancer's health probes (F2)."""

from __future__ import annotations

import http.client
import socket
import ssl

from pytest_vmss.clock import Deadline
from pytest_vmss.health.observation import Observation
from pytest_vmss.host.http import http_status
from pytest_vmss.model import Probe

__all__ = ["probe_once"]


def probe_once(probe: Probe, address: str, port: int, *, timeout: float) -> Observation:
    """Probes an instance once; HTTP status 200 or a TCP connection means healthy.

    Args:
        probe: The probe.
        address: Loopback address that leads to the guest.
        port: Port on it that leads to the probe's port.
        timeout: For the whole probe, in seconds.
    """
    where = f"{probe.protocol.lower()}://…:{probe.port}{probe.request_path or ''}"
    try:
        if probe.protocol == "Tcp":
            return _probe_tcp(address, port, where, timeout)
        return _probe_http(probe, address, port, where, timeout)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return Observation.of(False, f"{where}: {error or type(error).__name__}")


def _probe_tcp(address: str, port: int, where: str, timeout: float) -> Observation:
    deadline = Deadline(timeout)
    with socket.create_connection((address, port), timeout=timeout) as link:
        # QEMU's user network accepts the connection itself, and closes it at once if nothing
        # listens in the guest.
        link.settimeout(min(max(deadline.left(), 0.001), 0.5))
        try:
            if link.recv(1) == b"":
                return Observation.of(False, f"{where}: connection refused")
        except TimeoutError:
            pass  # open but silent
    return Observation.of(True, f"{where}: connected")


def _probe_http(probe: Probe, address: str, port: int, where: str, timeout: float) -> Observation:
    tls = None
    if probe.protocol == "Https":
        tls = ssl._create_unverified_context()  # noqa: S323 - Azure's probes accept any certificate
    status = http_status(
        "GET", address, port, probe.request_path or "/", tls=tls, timeout=timeout
    )  # fmt: skip
    return Observation.of(status == 200, f"{where}: HTTP status {status}")
