"""The partitions of a set's network: files, each locked by the process that wants it.

A partition is in force as long as its file is locked. The kernel releases the lock when that
process ends, however it ends, so no partition outlives who caused it.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Collection
from itertools import product
from pathlib import Path

from pytest_vmss.errors import HostError
from pytest_vmss.guest_platform.virtual_network.config import NetworkFiles
from pytest_vmss.host.locks import Lock, is_locked, try_lock
from pytest_vmss.untrusted import UnreadableError, read_json, read_regular

__all__ = ["Pairs", "read_partitions", "write_partition"]

#: Pairs of instances that are cut off from each other.
Pairs = frozenset[frozenset[int]]

_NAME = "cut-{}"
_BYTES = 64 * 1024
#: The folder is the owner's alone; the process that carries the frames may have another account.
_MODE = 0o644


def write_partition(files: NetworkFiles, group: Collection[int], others: Collection[int]) -> Lock:
    """Cuts instances off from others, once the process that carries their frames looks again.

    Args:
        files: The network's files.
        group: Numbers of instances.
        others: Numbers of those that they are cut off from.

    Returns:
        The lock for which it lasts; to be removed.

    Raises:
        HostError: It cannot be written.
    """
    path = files.folder / _NAME.format(secrets.token_hex(6))
    try:
        lock = try_lock(path)
        if lock is None:  # pragma: no cover - nobody else knows the name
            raise HostError(f"{path} is locked by another process")
        try:
            path.chmod(_MODE)
            path.write_text(json.dumps([sorted(group), sorted(others)]))
        except BaseException:
            lock.remove()
            raise
    except OSError as error:
        raise HostError(f"{path} cannot be written: {error.strerror}") from error
    return lock


def read_partitions(folder: Path) -> Pairs:
    """Reads the partitions that are in force; removes those whose process has ended."""
    found: set[frozenset[int]] = set()
    for path in folder.glob(_NAME.format("*")):
        with contextlib.suppress(OSError):
            if is_locked(path):
                found |= _read(path)
            else:
                path.unlink()
    return frozenset(found)


def _read(path: Path) -> Pairs:
    """The pairs in a file; none if it is not written yet."""
    try:
        group, others = read_json(read_regular(path, _BYTES).decode())
        return frozenset(frozenset((int(a), int(b))) for a, b in product(group, others))
    except (UnreadableError, ValueError, TypeError):
        return frozenset()
