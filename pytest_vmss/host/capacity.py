"""Whether the host has room for what is asked of it (M7)."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil

from pytest_vmss.errors import CapacityError

__all__ = ["check_capacity"]

#: What a QEMU process takes besides the guest's memory, in MiB (measured).
_OVERHEAD_MIB = {"kvm": 96, "tcg": 256}
#: What stays free for the host, in MiB.
_RESERVE_MIB = 256
#: What an instance writes to its OS disk, in MiB, at the least.
_OS_DISK_MIB = 512


def check_capacity(
    count: int, memory_mib: int, *, accelerator: str, folder: Path, what: str
) -> None:
    """Refuses what does not fit, before anything is made.

    Args:
        count: Number of new instances.
        memory_mib: Memory of each in MiB.
        accelerator: ``kvm`` or ``tcg``.
        folder: Where their disks will be.
        what: What is asked for, for the message.

    Raises:
        CapacityError: With the numbers.
    """
    overhead = _OVERHEAD_MIB[accelerator]
    needed = count * (memory_mib + overhead) + _RESERVE_MIB
    available = psutil.virtual_memory().available // 1024**2
    if needed > available:
        raise CapacityError(
            f"{what} needs {needed} MiB of memory ({count} x ({memory_mib} + {overhead}) + "
            f"{_RESERVE_MIB} for the host), and {available} MiB are available; "
            "use a smaller size or fewer instances"
        )
    free = shutil.disk_usage(folder).free // 1024**2
    disk = count * _OS_DISK_MIB
    if disk > free:
        raise CapacityError(
            f"{what} needs at least {disk} MiB of disk ({count} x {_OS_DISK_MIB}), and {free} MiB "
            f"are free at {folder}; make room, or use another state directory (VMSS_STATE_DIR)"
        )
