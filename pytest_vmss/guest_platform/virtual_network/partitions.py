"""The partitions of a set's network: files, each locked by the process that wants it.

A partition is in force as long as its file is locked. The kernel releases the lock when that
process ends, however it ends, so no partition outlives who caused it.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Collection, Iterator
from itertools import product
from pathlib import Path

from pytest_vmss.errors import ConflictError, HostError
from pytest_vmss.guest_platform.virtual_network.config import NetworkFiles
from pytest_vmss.host.locks import Lock, try_lock, wait_for_lock
from pytest_vmss.untrusted import UnreadableError, read_json_file

__all__ = ["Pairs", "are_partitions", "read_partitions", "write_partition"]

#: Pairs of instances that are cut off from each other.
Pairs = frozenset[frozenset[int]]

_NAME = "cut-{}"
_BYTES = 64 * 1024
#: Seconds in which nobody looks at a new file any more.
_LOOK_S = 10.0
#: The folder is the owner's alone; the process that carries the frames may have another account.
_MODE = 0o644


def write_partition(files: NetworkFiles, group: Collection[int], others: Collection[int]) -> Lock:
    """Cuts instances off from others, once the process that carries their frames looks again.

    Args:
        files: The network's files.
        group: Numbers of instances.
        others: Numbers of those that they are cut off from; of none, it is all that there are, now
            or later.

    Returns:
        The lock for which it lasts; to be removed.

    Raises:
        HostError: It cannot be written.
    """
    path = files.folder / _NAME.format(secrets.token_hex(6))
    try:
        lock = wait_for_lock(path, what="looks at the partition", timeout=_LOOK_S)
        try:
            lock.write(json.dumps([sorted(group), sorted(others)]).encode(), _MODE)
        except BaseException:
            lock.remove()
            raise
    except ConflictError as error:  # pragma: no cover - a look takes a moment
        raise HostError(error.message) from error
    except OSError as error:
        raise HostError(f"{path} cannot be written: {error.strerror}") from error
    return lock


def are_partitions(folder: Path) -> bool:
    """Whether partitions are in force; removes those whose process has ended."""
    return bool(list(_in_force(folder)))


def read_partitions(folder: Path, there: Collection[int]) -> Pairs:
    """Reads the partitions that are in force; removes those whose process has ended.

    Args:
        folder: The network's folder.
        there: Numbers of the instances that there are.
    """
    return frozenset(pair for path in _in_force(folder) for pair in _read(path, there))


def _in_force(folder: Path) -> Iterator[Path]:
    for path in folder.glob(_NAME.format("*")):
        with contextlib.suppress(OSError):
            lock = try_lock(path)
            if lock is None:
                yield path
            else:  # removed while locked: it may be a new one, whose process then makes it again
                lock.remove()


def _read(path: Path, there: Collection[int]) -> Pairs:
    """The pairs in a file; none if it is not written yet."""
    try:
        group, others = read_json_file(path, _BYTES)
        pairs = product(group, others or there)
        return frozenset(frozenset((int(a), int(b))) for a, b in pairs if a != b)
    except (OSError, UnreadableError, ValueError, TypeError):
        return frozenset()
