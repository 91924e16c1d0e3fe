"""Runs VMs: the interface, and its implementation with QEMU through libvirt."""

from __future__ import annotations

import os

from pytest_vmss.hypervisor.protocol import (
    Disk,
    Forward,
    Hypervisor,
    Machine,
    PowerState,
    Seed,
)

__all__ = ["Disk", "Forward", "Hypervisor", "Machine", "PowerState", "Seed"]

# Otherwise libvirt's embedded driver logs to standard error. It reads this when it is loaded,
# below this package; every failure is raised as an exception too.
os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", "3:file:/dev/null")
