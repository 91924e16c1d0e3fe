"""The process that gives one VM its network and Azure's two servers (O1).

It is not part of the lab's process, so a guest keeps its network when that ends or is killed. It
ends by itself when QEMU does.

Usage: ``python -m pytest_vmss.guest_platform.process FOLDER``; it returns when the guest is
served, and goes on in the background.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pytest_vmss.errors import HostError
from pytest_vmss.guest_platform.addresses import Lease
from pytest_vmss.guest_platform.background import drop_rights, in_background
from pytest_vmss.guest_platform.config import PlatformFiles, read_config
from pytest_vmss.guest_platform.events_file import Approvals, read_events
from pytest_vmss.guest_platform.exchange import Request, Response
from pytest_vmss.guest_platform.health_port import connect, keep_in_thread
from pytest_vmss.guest_platform.http_server import HttpServer
from pytest_vmss.guest_platform.metadata_service import MetadataService
from pytest_vmss.guest_platform.network import FrameStream, Network, lease_of
from pytest_vmss.guest_platform.scheduled_events import ScheduledEvents
from pytest_vmss.guest_platform.sightings import Recorder
from pytest_vmss.guest_platform.virtual_network.cable import GuestCable
from pytest_vmss.guest_platform.virtual_network.config import NetworkFiles, VirtualNetwork
from pytest_vmss.guest_platform.wire_server import WireServer
from pytest_vmss.host.locks import Lock, try_lock

__all__ = ["main"]

_METADATA, _WIRE_SERVER = "metadata", "wire"
#: Seconds in which QEMU must have made its socket, and the process before must have ended.
_READY_S = 10.0
_LOOK_S = 0.02


def main(folder: Path) -> int:
    """Serves a guest in a process of its own; returns once it is served.

    Args:
        folder: The platform's folder.

    Returns:
        0, or 1 after a message on standard error.
    """
    return in_background(lambda: _Served(PlatformFiles(folder)).run)


class _Served:
    """A guest that is served.

    Raises:
        HostError: It cannot be served.
        OSError: Likewise.
    """

    def __init__(self, files: PlatformFiles) -> None:
        # Paths are relative, since the length of socket paths is limited.
        os.chdir(files.folder)
        self._files = files
        # libvirt lets no other account connect.
        self._health = connect(os.path.relpath(files.health_port))
        drop_rights()
        self._lock = _lock(files)
        config = read_config(files.config)
        recorder = Recorder(files.sightings, config["generation"])
        lease = lease_of(config["instanceId"], config["mac"], outbound=config["outbound"])
        metadata = MetadataService(
            lambda: _instance(files),
            ScheduledEvents(lambda: read_events(files.events), Approvals(files.approvals).add),
        )
        wire_server = WireServer(
            **config["names"],
            address=str(lease.address),
            saw=recorder.saw,
            report=recorder.report,
        )

        def ask_metadata(request: Request) -> Response:
            recorder.saw("metadata" if request.path[:1] == ["metadata"] else "another cloud")
            return metadata.answer(request)

        self._server = HttpServer({_METADATA: ask_metadata, _WIRE_SERVER: wire_server.answer})
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _loop, _context: None)
        self._loop.run_until_complete(self._server.listen())
        stream = FrameStream(_connect(files.nic))
        self._network = Network(
            stream, lease, outbound=config["outbound"], saw=recorder.saw,
            cable=_cable(config, lease),
        )  # fmt: skip
        self._network.serve(_METADATA, _WIRE_SERVER)
        for address, port, guest_port in config["forwards"]:
            self._network.forward(address, port, guest_port)

    def run(self) -> None:
        """Serves until QEMU ends."""
        if self._health is not None:
            keep_in_thread(self._health, self._files.health)
        threading.Thread(target=self._loop.run_forever, name="vmss-platform", daemon=True).start()
        self._network.run()


def _lock(files: PlatformFiles) -> Lock:
    """Waits until the process before, which served the last OS disk, has ended.

    Raises:
        HostError: It does not end.
    """
    end = time.monotonic() + _READY_S
    while time.monotonic() < end:
        lock = try_lock(files.lock)
        if lock is not None:
            return lock
        time.sleep(_LOOK_S)
    raise HostError(f"another process serves the guest at {files.folder}")


def _connect(path: Path) -> socket.socket:
    """Connects to QEMU.

    Raises:
        HostError: It does not listen.
    """
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    near = os.path.relpath(path)
    end = time.monotonic() + _READY_S
    while time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            link.connect(near)
            return link
        time.sleep(_LOOK_S)
    link.close()
    raise HostError(f"QEMU does not listen at {path}")


def _cable(config: dict[str, Any], lease: Lease) -> GuestCable | None:
    """The guest's cable to the switch of its set; None if that has no private network (A9)."""
    network = config["network"]
    if network is None:
        return None
    files = NetworkFiles(Path(network["folder"]))
    return GuestCable(VirtualNetwork(files, config["instanceId"], network["prefix"]), lease)


def _instance(files: PlatformFiles) -> dict[str, Any]:
    """What the metadata service knows now: the lab may have changed it."""
    found: dict[str, Any] = read_config(files.config)["instance"]
    return found


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
