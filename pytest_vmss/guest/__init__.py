"""Access to a guest: its console, SSH, cloud-init and extensions."""

from __future__ import annotations

from pytest_vmss.guest.cloud_init import CloudInitResult
from pytest_vmss.guest.guest import SSH_PORT, BootFacts, Check, Guest, LinuxGuest, SshAccess
from pytest_vmss.guest.shell import CommandResult, Shell

__all__ = [
    "SSH_PORT",
    "BootFacts",
    "Check",
    "CloudInitResult",
    "CommandResult",
    "Guest",
    "LinuxGuest",
    "Shell",
    "SshAccess",
]
