"""What an extension's handler is, a suite's own as well (H2)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from pytest_vmss.clock import Clock, wait_for
from pytest_vmss.errors import GuestCommandError, GuestUnreachableError, WaitTimeoutError
from pytest_vmss.guest.shell import CommandResult, Runner
from pytest_vmss.model import Extension
from pytest_vmss.model.extension_result import ExtensionResult

__all__ = ["Handler", "Target"]


@dataclass(frozen=True)
class Target:
    """The guest in which an extension is run.

    Attributes:
        shell: Runs commands in it; each call makes the connection anew where that broke.
        clock: The lab's.
        timeout: Seconds that it may take.
        factor: By how much the guest is slower than under KVM; for limits inside it.
        files_port: Port of the lab's file server, which the guest reaches by its own loopback.
    """

    shell: Runner
    clock: Clock
    timeout: float
    factor: float = 1.0
    files_port: int | None = None

    def insist(self, command: str, *, stdin: bytes = b"") -> CommandResult:
        """Runs a command as root that may be run again without harm, until it has ended.

        Where the connection breaks, the guest is asked again as soon as it answers.

        Args:
            command: For the guest's shell.
            stdin: What it reads.

        Raises:
            GuestCommandError: It cannot be reached, or does not end, within the limit.
            BootError: Its machine has ended, or its kernel panicked.
        """
        end = self.clock.monotonic() + self.timeout
        last: list[GuestCommandError | GuestUnreachableError] = []

        def probe() -> CommandResult | None:
            left = max(end - self.clock.monotonic(), 1.0)
            try:
                done = self.shell.run(command, stdin=stdin, sudo=True, timeout=left)
            except (GuestCommandError, GuestUnreachableError) as error:
                last[:] = [error]
                return None
            return None if done.exit_code < 0 else done

        try:
            return wait_for(
                "the guest", probe, timeout=self.timeout, clock=self.clock, interval=0.5
            )
        except WaitTimeoutError as error:
            told = f": {last[0].message}" if last else ""
            raise GuestCommandError(
                f"the guest could not be asked within {self.timeout:g} s{told}",
                instance="", exit_code=-1, stderr="",
            ) from error  # fmt: skip


class Handler(ABC):
    """Runs the extensions of one type.

    Only :meth:`run` must be written.

    Attributes:
        publisher: Of the extension.
        type: Of the extension.
        version: Of the handler itself; a higher one reaches instances by an extension upgrade.
        reports: Whether its extensions go on saying how they are after their run.
    """

    publisher: str
    type: str
    version: str
    reports: bool = False

    def check(self, extension: Extension) -> list[str]:  # noqa: ARG002
        """What is wrong with its settings, before anything is created."""
        return []

    @abstractmethod
    def run(self, target: Target, extension: Extension, *, run: str) -> ExtensionResult:
        """Runs it in the guest once for each run; an earlier result of it is returned as it is.

        Args:
            target: The guest.
            extension: The extension with its settings.
            run: Names the run, the same after a crash.
        """

    def remove(self, target: Target, extension: Extension) -> str:  # noqa: ARG002
        """Removes it from a guest whose model names it no longer.

        May be called again after a crash.

        Returns:
            What went wrong, in words; empty where nothing did.
        """
        return ""

    def report(
        self,
        target: Target,  # noqa: ARG002
        extension: Extension,  # noqa: ARG002
        last: ExtensionResult,
    ) -> ExtensionResult:
        """What an extension says of itself now.

        Args:
            target: The guest.
            extension: The extension with its settings.
            last: What came of its last run.
        """
        return last
