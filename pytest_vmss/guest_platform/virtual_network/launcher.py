"""Starts the process that carries a set's frames, and tells it what has changed."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from pytest_vmss.errors import ConflictError, HostError, ToolError
from pytest_vmss.guest_platform.virtual_network.config import NetworkFiles, VirtualNetwork
from pytest_vmss.guest_platform.virtual_network.partitions import are_partitions, write_partition
from pytest_vmss.guest_platform.virtual_network.process import DONE, END, LOOK
from pytest_vmss.host.locks import is_locked, wait_for_lock
from pytest_vmss.host.process import run
from pytest_vmss.untrusted import one_line

__all__ = ["end", "ensure", "is_carried", "leave", "look", "partitioned", "prepare"]

_START_S = 60.0
#: Seconds in which the process must answer.
_ANSWER_S = 10.0
_ANSWER_BYTES = 4096
#: Seconds between two tries to reach a process that too many others talk to.
_AGAIN_S = 0.01


def is_carried(files: NetworkFiles) -> bool:
    """Whether a process carries the network's frames."""
    return is_locked(files.lock)


def prepare(network: VirtualNetwork) -> None:
    """Prepares for the start of a VM, from when on the network stays for it.

    Raises:
        HostError: The folder cannot be made.
    """
    with _alone(network.files):
        network.files.folder.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            # The VM replaces it by its socket.
            os.close(os.open(network.guest_end, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def ensure(network: VirtualNetwork) -> None:
    """Carries the frames of a running VM, and of all others of its set.

    Nothing is done where no VM has been started, or none is left.

    Raises:
        HostError: They cannot be carried.
    """
    files, command = network.files, LOOK + str(network.instance_id).encode()
    answer = _tell(files, command)
    if not answer and files.folder.is_dir():
        with _alone(files):
            answer = _tell(files, command)
            if not answer and files.instances:
                _start(network)
                answer = _tell(files, command)
    if answer not in (b"", DONE):
        raise HostError(
            f"instance {network.instance_id} is not connected to the network at {files.folder}: "
            f"{one_line(answer)}"
        )


def _start(network: VirtualNetwork) -> None:
    module = "pytest_vmss.guest_platform.virtual_network.process"
    try:
        run(
            [sys.executable, "-m", module, network.files.folder, network.prefix],
            what=f"carrying the frames of {network.prefix}'s instances",
            timeout=_START_S,
            daemon=True,
        )
    except ToolError as error:
        raise HostError(error.stderr or error.message) from error


@contextlib.contextmanager
def _alone(files: NetworkFiles) -> Iterator[None]:
    """Keeps others from making or removing the network, or starting its process, meanwhile.

    Raises:
        HostError: Others did not end in time, or a file cannot be made or removed.
    """
    try:
        with wait_for_lock(
            files.starting, what=f"is starting the network at {files.folder}", timeout=_START_S
        ):
            yield
    except ConflictError as error:
        raise HostError(error.message) from error
    except OSError as error:
        raise HostError(f"{files.folder} cannot be used: {error.strerror}") from error


def look(files: NetworkFiles) -> bool:
    """Makes the process see at once what has changed; False if there is none."""
    return _tell(files, LOOK) == DONE


@contextlib.contextmanager
def partitioned(network: VirtualNetwork, others: Collection[int]) -> Iterator[None]:
    """Cuts an instance off from others for a block, in force when it begins.

    Args:
        network: The instance's place in the network.
        others: Numbers of the others; of none, it is all that there are, now or later.

    Raises:
        HostError: The frames cannot be carried, or the partition not be written.
    """
    with _alone(network.files):
        lock = write_partition(network.files, [network.instance_id], others)
    try:
        ensure(network)
        yield
    finally:
        lock.remove()
        with _alone(network.files):
            _look_or_end(network.files)


def leave(network: VirtualNetwork) -> None:
    """Removes an instance from the network; the last one takes the network along.

    Raises:
        HostError: It cannot be removed.
    """
    with _alone(network.files):
        network.guest_end.unlink(missing_ok=True)
        _look_or_end(network.files)


def _look_or_end(files: NetworkFiles) -> None:
    """Goes on with those that are left, or ends the network; nobody else may change it meanwhile."""
    # An instance that is cut off may come back, and is cut off then.
    if files.instances or are_partitions(files.folder):
        look(files)
    else:
        end(files)


def end(files: NetworkFiles) -> None:
    """Ends the process, if there is one, and removes the network's files."""
    _tell(files, END)
    files.remove()


def _tell(files: NetworkFiles, command: bytes) -> bytes:
    """Tells the process something; returns its answer, empty without one."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(_ANSWER_S)
        _connect(link, files.control)
        link.sendall(command)
        return link.recv(_ANSWER_BYTES)
    return b""


def _connect(link: socket.socket, path: Path) -> None:
    """Connects to a socket, whose path may be too long for the kernel, and to none by a link."""
    found, end = os.open(path, os.O_PATH | os.O_NOFOLLOW), time.monotonic() + _ANSWER_S
    try:
        while True:
            try:
                return link.connect(f"/proc/self/fd/{found}")
            except BlockingIOError:  # more connect at once than may wait
                if time.monotonic() > end:
                    raise
                time.sleep(_AGAIN_S)
    finally:
        os.close(found)
