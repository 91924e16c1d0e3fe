"""Starts the process that carries a set's frames, and tells it what has changed."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from pytest_vmss.errors import ConflictError, HostError, ToolError
from pytest_vmss.guest_platform.virtual_network.config import NetworkFiles, VirtualNetwork
from pytest_vmss.guest_platform.virtual_network.partitions import write_partition
from pytest_vmss.guest_platform.virtual_network.process import DONE, END, LOOK
from pytest_vmss.host.locks import is_locked, wait_for_lock
from pytest_vmss.host.process import run

__all__ = ["end", "ensure", "is_carried", "leave", "look", "partitioned", "prepare"]

_START_S = 60.0
#: Seconds in which the process must answer.
_ANSWER_S = 10.0


def is_carried(files: NetworkFiles) -> bool:
    """Whether a process carries the network's frames."""
    return is_locked(files.lock)


def prepare(network: VirtualNetwork) -> None:
    """Prepares for the start of a VM.

    Raises:
        HostError: The folder cannot be made.
    """
    try:
        network.files.folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise HostError(f"{network.files.folder} cannot be made: {error.strerror}") from error


def ensure(network: VirtualNetwork) -> None:
    """Carries the frames of a running VM, and of all others of its set.

    Raises:
        HostError: They cannot be carried.
    """
    files = network.files
    if look(files):
        return
    prepare(network)
    module = "pytest_vmss.guest_platform.virtual_network.process"
    try:
        with wait_for_lock(
            files.starting, what=f"is starting the network at {files.folder}", timeout=_START_S
        ):
            if not look(files):
                run(
                    [sys.executable, "-m", module, files.folder, network.prefix],
                    what=f"carrying the frames of {network.prefix}'s instances",
                    timeout=_START_S,
                    daemon=True,
                )
    except (ToolError, ConflictError) as error:
        told = error.stderr if isinstance(error, ToolError) else ""
        raise HostError(told or error.message) from error
    except OSError as error:
        raise HostError(f"{files.starting} cannot be locked: {error.strerror}") from error


def look(files: NetworkFiles) -> bool:
    """Makes the process see at once what has changed; False if there is none."""
    return _tell(files, LOOK)


@contextlib.contextmanager
def partitioned(network: VirtualNetwork, others: Collection[int]) -> Iterator[None]:
    """Cuts an instance off from others for a block, in force when it begins.

    Args:
        network: The instance's place in the network.
        others: Numbers of the others; of none, it is all that there are, now or later.

    Raises:
        HostError: The frames cannot be carried, or the partition not be written.
    """
    prepare(network)
    lock = write_partition(network.files, [network.instance_id], others)
    try:
        ensure(network)
        yield
    finally:
        lock.remove()
        look(network.files)


def leave(network: VirtualNetwork) -> None:
    """Removes an instance from the network; the last one takes the network along."""
    network.guest_end.unlink(missing_ok=True)
    if network.files.instances:
        look(network.files)
    else:
        end(network.files)


def end(files: NetworkFiles) -> None:
    """Ends the process, if there is one, and removes the network's files."""
    _tell(files, END)
    files.remove()


def _tell(files: NetworkFiles, command: bytes) -> bool:
    """Tells the process something; returns whether it has answered."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.settimeout(_ANSWER_S)
    with link, contextlib.suppress(OSError):
        _connect(link, files.control)
        link.sendall(command)
        return link.recv(len(DONE)) == DONE
    return False


def _connect(link: socket.socket, path: Path) -> None:
    """Connects to a socket whose path may be too long for the kernel."""
    folder = os.open(path.parent, os.O_PATH)
    try:
        link.connect(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
