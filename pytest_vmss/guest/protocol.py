"""The interface to a guest that the rest of the package uses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from pytest_vmss.guest.boot_facts import BootFacts
from pytest_vmss.guest.check import Check
from pytest_vmss.guest.cloud_init import CloudInitResult
from pytest_vmss.guest.logs import GuestLog
from pytest_vmss.guest.shell import Shell
from pytest_vmss.model import Extension
from pytest_vmss.model.extension_result import ExtensionResult

__all__ = ["Guest"]


class Guest(Protocol):
    """The interface to a guest that the engine uses."""

    def wait_boot(self, previous_boot_id: str | None) -> BootFacts:
        """Waits for a boot other than the previous one, and returns its facts."""

    def wake(self) -> str:
        """Makes a restored guest current: its clock and random numbers; returns its boot id."""

    def wait_cloud_init(self) -> CloudInitResult:
        """Waits for cloud-init to finish; raises if its status is ``error``."""

    def run_extension(self, extension: Extension, run: str, timeout: float) -> ExtensionResult:
        """Runs an extension, once per run id.

        Args:
            extension: The extension with its settings.
            run: Id of the run, the same after a crash.
            timeout: Seconds that it may take.

        Returns:
            The result, or that of the earlier run with the same id.
        """

    def remove_extension(self, extension: Extension, timeout: float) -> str:
        """Removes an extension that the model no longer contains.

        Args:
            extension: The extension as it was last run.
            timeout: Seconds that it may take.

        Returns:
            What went wrong; empty if nothing did.
        """

    def report_extension(self, extension: Extension, last: ExtensionResult) -> ExtensionResult:
        """Returns an extension's current status.

        Args:
            extension: The extension as it was last run.
            last: The result of that run.
        """

    def sync(self, *, patient: bool = True) -> None:
        """Flushes the guest's file systems, so that a power cut loses nothing written so far.

        Args:
            patient: Wait for a guest that does not answer at once, or takes long.
        """

    def check(self, check: Check) -> tuple[bool, str]:
        """Runs a health check; returns whether it passed, and what was observed (F4)."""

    def listening(self) -> set[int]:
        """Returns the TCP ports on which the guest listens."""

    def logs(self, names: Iterable[str], *, timeout: float, each: float) -> Iterator[GuestLog]:
        """Yields what the guest tells about itself, whatever state its services are in (L3).

        A guest that does not answer at once is not waited for.

        Args:
            names: Which of :data:`~pytest_vmss.guest.logs.LOGS`.
            timeout: Seconds for all of them.
            each: Seconds for each.

        Raises:
            BootError: It does not answer, or does not run.
        """

    def shell(self) -> Shell:
        """Returns the SSH connection to it, as the administrator.

        Raises:
            GuestUnreachableError: It does not answer.
        """

    def close(self) -> None:
        """Closes the connection to it."""
