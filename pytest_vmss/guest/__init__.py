"""Access to a guest: its console, SSH, cloud-init and extensions."""

from __future__ import annotations

from pytest_vmss.guest.boot_facts import BootFacts
from pytest_vmss.guest.check import Check
from pytest_vmss.guest.cloud_init import CloudInitResult
from pytest_vmss.guest.connection import SSH_PORT, SshAccess
from pytest_vmss.guest.guest import LinuxGuest
from pytest_vmss.guest.protocol import Guest
from pytest_vmss.guest.runner import CommandResult
from pytest_vmss.guest.shell import Shell

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
