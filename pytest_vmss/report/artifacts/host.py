"""Facts about the host that explain a failure: versions, accelerator, room."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

from pytest_vmss.api.lab import Lab

__all__ = ["host_facts", "package_version"]


def package_version() -> str:
    """The version of pytest-vmss that is installed."""
    try:
        return version("pytest-vmss")
    except PackageNotFoundError:
        return "unknown"


def host_facts(lab: Lab) -> dict[str, Any]:
    """Returns facts about this host, and how the lab runs on it; nothing that is secret."""
    settings, memory = lab.settings, psutil.virtual_memory()
    disk = psutil.disk_usage(str(lab.paths.folder))
    hypervisor = lab.hypervisor
    return {
        "pytest-vmss": package_version(),
        "python": sys.version,
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "cpusUsable": len(os.sched_getaffinity(0)),
        "loadAverage": os.getloadavg(),
        "memoryMiB": {"total": memory.total >> 20, "available": memory.available >> 20},
        "diskMiB": {"total": disk.total >> 20, "free": disk.free >> 20},
        "accelerator": hypervisor.accelerator,
        "slowFactor": hypervisor.slow_factor,
        "hypervisor": hypervisor.fingerprint,
        "lab": lab.paths.folder.name,
        "guestNetwork": settings.guest_network,
        "timeouts": vars(lab.environment.timeouts),
        "size": settings.size,
    }
