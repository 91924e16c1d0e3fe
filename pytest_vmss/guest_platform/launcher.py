"""Starts the process that serves a VM's guest, and makes sure that it runs."""

from __future__ import annotations

import sys

from pytest_vmss.clock import SystemClock, wait_for
from pytest_vmss.errors import HostError, ToolError, WaitTimeoutError
from pytest_vmss.guest_platform.config import Platform, PlatformFiles
from pytest_vmss.guest_platform.events_file import publish
from pytest_vmss.host.locks import is_locked
from pytest_vmss.host.process import run

__all__ = ["ensure", "is_served", "prepare"]

_START_S = 60.0
_END_S = 10.0


def is_served(files: PlatformFiles) -> bool:
    """Whether a process serves the guest."""
    return is_locked(files.lock)


def prepare(platform: Platform) -> None:
    """Prepares for the start of a VM that does not run.

    Raises:
        HostError: The files cannot be written, or the process of its last run does not end.
    """
    try:
        wait_for(
            "the last run's network to end",
            lambda: not is_served(platform.files) or None,
            timeout=_END_S,
            clock=SystemClock(),
            interval=0.01,
        )
        platform.write()
        platform.files.nic.parent.mkdir(mode=0o700, exist_ok=True)
        publish(platform.files)  # what was to come has begun
        for old in (platform.files.nic, platform.files.health_port, platform.files.health):
            old.unlink(missing_ok=True)
    except WaitTimeoutError as error:
        raise HostError(f"the guest at {platform.files.folder}: {error.message}") from error
    except OSError as error:
        raise HostError(f"{platform.files.nic} cannot be made: {error.strerror}") from error


def ensure(platform: Platform) -> None:
    """Serves the guest of a running VM, unless a process does.

    Raises:
        HostError: It cannot be served.
    """
    if is_served(platform.files):
        return
    platform.write()
    try:
        run(
            [sys.executable, "-m", "pytest_vmss.guest_platform.process", platform.files.folder],
            what=f"serving the guest of {platform.names['instance']}",
            timeout=_START_S,
            daemon=True,
        )
    except ToolError as error:
        if not is_served(platform.files):  # two threads may have started one
            raise HostError(error.stderr or error.message) from error
