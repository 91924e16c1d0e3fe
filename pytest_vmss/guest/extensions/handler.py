"""The base class of extension handlers, also of a suite's own (H2)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from pytest_vmss.clock import Clock, Deadline, wait_for
from pytest_vmss.errors import GuestCommandError, GuestUnreachableError, WaitTimeoutError
from pytest_vmss.guest.runner import CommandResult, Runner
from pytest_vmss.model import Extension
from pytest_vmss.model.extension_result import ExtensionResult

__all__ = ["Handler", "Target"]


@dataclass(frozen=True)
class Target:
    """The guest in which an extension is run.

    Attributes:
        shell: Runs commands in it; each call reconnects if the connection broke.
        clock: The lab's clock.
        timeout: Seconds that the extension may take.
        factor: How many times slower the guest is than under KVM; scales timeouts inside it.
        files_port: Port of the lab's file server on the guest's own loopback; None if there is
            none.
    """

    shell: Runner
    clock: Clock
    timeout: float
    factor: float = 1.0
    files_port: int | None = None

    def insist(self, command: str, *, stdin: bytes = b"") -> CommandResult:
        """Runs an idempotent command as root, retrying until it finishes.

        If the connection breaks, the command is run again as soon as the guest answers.

        Args:
            command: For the guest's shell.
            stdin: Its standard input.

        Returns:
            The result, whatever its exit status.

        Raises:
            GuestCommandError: The guest cannot be reached, or the command does not finish, within
                the timeout.
            BootError: Its VM has stopped, or its kernel panicked.
        """
        deadline = Deadline(self.timeout, self.clock.monotonic)
        last: list[GuestCommandError | GuestUnreachableError] = []

        def probe() -> CommandResult | None:
            left = max(deadline.left(), 1.0)
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
    """Base class for handlers, each of which runs the extensions of one type.

    Subclasses need only implement :meth:`run`.

    Attributes:
        publisher: Publisher of the extension.
        type: Type of the extension.
        version: Version of the handler; a higher one reaches instances by an extension upgrade.
        reports: Whether its extensions continue to report their status after their run.
    """

    publisher: str
    type: str
    version: str
    reports: bool = False

    @property
    def fingerprint(self) -> str | None:
        """Identifies what it runs in guests, for checkpoints of booted sets.

        None if that may change unnoticed, as for handlers of a suite; sets with its extensions
        are then booted every time.
        """
        return self.version if type(self).__module__.startswith("pytest_vmss.") else None

    def check(self, extension: Extension) -> list[str]:  # noqa: ARG002
        """Validates an extension's settings before anything is created; returns the problems."""
        return []

    @abstractmethod
    def run(self, target: Target, extension: Extension, *, run: str) -> ExtensionResult:
        """Runs an extension in the guest, once per run id.

        Args:
            target: The guest.
            extension: The extension with its settings.
            run: Id of the run, the same after a crash.

        Returns:
            The result, or that of the earlier run with the same id.
        """

    def remove(self, target: Target, extension: Extension) -> str:  # noqa: ARG002
        """Removes an extension from a guest after it was removed from the model.

        May be called again after a crash.

        Returns:
            What went wrong; empty if nothing did.
        """
        return ""

    def report(
        self,
        target: Target,  # noqa: ARG002
        extension: Extension,  # noqa: ARG002
        last: ExtensionResult,
    ) -> ExtensionResult:
        """Returns an extension's current status.

        Args:
            target: The guest.
            extension: The extension with its settings.
            last: The result of its last run.
        """
        return last
