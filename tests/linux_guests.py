"""Linux guests for tests that replace their connections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytest_vmss.clock import Clock
from pytest_vmss.guest import LinuxGuest, SshAccess
from pytest_vmss.guest.console import Console
from pytest_vmss.hypervisor import PowerState
from pytest_vmss.settings import Timeouts

__all__ = ["linux_guest"]


def linux_guest(
    folder: Path, clock: Clock, *, host_key: str = "ssh-ed25519 AAAA", **options: Any
) -> LinuxGuest:
    """A guest whose machine runs, at an address where nothing listens.

    Args:
        folder: Folder of its console's log, ``console.log``.
        clock: The clock.
        host_key: What its server is to show.
        options: Arguments of :class:`~pytest_vmss.guest.LinuxGuest` that differ.
    """
    usual = {
        "console": Console(folder / "console.log"),
        "timeouts": Timeouts,
        "power_state": lambda: PowerState.RUNNING,
        "agent_connected": lambda: False,
    }
    return LinuxGuest(
        "web_0",
        access=SshAccess("127.0.0.1", 1, "azureuser", folder / "key", host_key),
        clock=clock,
        **{**usual, **options},
    )
