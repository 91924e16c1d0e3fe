"""Checks whether the host has enough memory and disk space (M7)."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil

from pytest_vmss.errors import CapacityError

__all__ = ["RESERVE_MIB", "available_mib", "check_capacity", "memory_of"]

#: Memory of a QEMU process besides the guest's, in MiB (measured; TCG's with a cache of half the size,
#: and the other half added).
_OVERHEAD_MIB = {"kvm": 96, "tcg": 384}
#: Memory left for the host, in MiB.
RESERVE_MIB = 256
#: Minimum that an instance writes to its OS disk, in MiB.
_OS_DISK_MIB = 512


def available_mib() -> int:
    """The memory that the host has available, in MiB."""
    return int(psutil.virtual_memory().available // 1024**2)


def memory_of(memory_mib: int, accelerator: str) -> int:
    """The memory that an instance takes with its QEMU process, in MiB."""
    return memory_mib + _OVERHEAD_MIB[accelerator]


def check_capacity(
    count: int, memory_mib: int, *, accelerator: str, folder: Path, what: str
) -> None:
    """Checks the capacity for new instances before anything is created.

    Args:
        count: Number of new instances.
        memory_mib: Memory of each in MiB.
        accelerator: ``kvm`` or ``tcg``.
        folder: Folder of their disks.
        what: Describes the request, for the message.

    Raises:
        CapacityError: Memory or disk space is insufficient; the message has the numbers.
    """
    overhead = _OVERHEAD_MIB[accelerator]
    needed = count * (memory_mib + overhead) + RESERVE_MIB
    available = available_mib()
    if needed > available:
        raise CapacityError(
            f"{what} needs {needed} MiB of memory ({count} x ({memory_mib} + {overhead}) + "
            f"{RESERVE_MIB} for the host), and {available} MiB are available; "
            "use a smaller size or fewer instances"
        )
    free = shutil.disk_usage(folder).free // 1024**2
    disk = count * _OS_DISK_MIB
    if disk > free:
        raise CapacityError(
            f"{what} needs at least {disk} MiB of disk ({count} x {_OS_DISK_MIB}), and {free} MiB "
            f"are free at {folder}; make room, or use another state directory (VMSS_STATE_DIR)"
        )
