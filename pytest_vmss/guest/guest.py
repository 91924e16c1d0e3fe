"""A Linux guest over SSH: puts together its connection, boot, cloud-init and extensions."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator

from pytest_vmss.clock import Clock, Deadline
from pytest_vmss.guest.agent import Ask
from pytest_vmss.guest.boot import Boot
from pytest_vmss.guest.boot_facts import BootFacts
from pytest_vmss.guest.boot_watch import BootWatch
from pytest_vmss.guest.check import Check, run_command_check, run_function_check
from pytest_vmss.guest.cloud_init import CloudInitResult
from pytest_vmss.guest.cloud_init_wait import wait_cloud_init
from pytest_vmss.guest.connection import ANSWER_BYTES, Connection, ReconnectingRunner, SshAccess
from pytest_vmss.guest.console import Console
from pytest_vmss.guest.extension_runner import ExtensionRunner
from pytest_vmss.guest.listening import LISTENING, parse_listening
from pytest_vmss.guest.log_access import log_access
from pytest_vmss.guest.logs import GuestLog, read_logs
from pytest_vmss.guest.shell import Shell
from pytest_vmss.guest.testinfra_host import testinfra_host
from pytest_vmss.guest.wake import wake
from pytest_vmss.guest_platform.sightings import Sightings
from pytest_vmss.hypervisor import PowerState
from pytest_vmss.model import Extension
from pytest_vmss.model.extension_result import ExtensionResult
from pytest_vmss.settings import Timeouts

__all__ = ["LinuxGuest"]

_CHECK_S = 60.0
#: Seconds in which a guest answers that is not waited for, if it ever does.
_ANSWER_S = 2.0


class LinuxGuest:
    """A Linux guest, accessed over SSH.

    Args:
        name: The instance's name, for messages.
        access: How to log in.
        console: Its console.
        timeouts: Returns the current timeouts, already scaled.
        clock: The lab's clock.
        power_state: Returns the power state of its VM.
        agent_connected: Whether its guest agent has connected.
        factor: How many times slower it is than under KVM.
        files_port: Returns the current port of the lab's file server; None if it is not running.
        dial_files: Connects to that server, verifying that it is the lab's.
        warn: Told why its downloads may fail, from any thread.
        ask: Sends a command to its guest agent; None if it has none.
        sightings: Returns what Azure's platform saw of it; None if it has no platform (O2).
        serve: Makes sure that its network is there.
        mask: Masks the secrets in a text of its own that becomes part of an error.
    """

    def __init__(
        self,
        name: str,
        *,
        access: SshAccess,
        console: Console,
        timeouts: Callable[[], Timeouts],
        clock: Clock,
        power_state: Callable[[], PowerState],
        agent_connected: Callable[[], bool],
        factor: float = 1.0,
        files_port: Callable[[], int | None] = lambda: None,
        dial_files: Callable[[], socket.socket] | None = None,
        warn: Callable[[str], None] = lambda _: None,
        ask: Ask | None = None,
        sightings: Callable[[], Sightings | None] = lambda: None,
        serve: Callable[[], None] = lambda: None,
        mask: Callable[[str], str] = str,
    ) -> None:
        self.name = name
        self._timeouts = timeouts
        self._clock = clock
        self._factor = factor
        self._agent_connected = agent_connected
        self._ask = ask
        self._connection = Connection(
            access,
            BootWatch(name, console, power_state),
            clock=clock,
            factor=factor,
            serve=serve,
            mask=mask,
        )
        self._boot = Boot(self._connection, agent_connected=agent_connected, sightings=sightings)
        self._extensions = ExtensionRunner(
            self._connection,
            factor=factor,
            files_port=files_port,
            dial_files=dial_files,
            warn=warn,
        )

    def wait_boot(self, previous_boot_id: str | None) -> BootFacts:
        """Waits for a boot other than the previous one; see :meth:`Boot.wait`."""
        return self._boot.wait(previous_boot_id, timeout=self._timeouts().boot)

    def wake(self) -> str:
        """Makes a restored guest current; see :func:`~pytest_vmss.guest.wake.wake`."""
        return wake(self._connection, self._ask if self._agent_connected() else None)

    def wait_cloud_init(self) -> CloudInitResult:
        """Waits for cloud-init to finish.

        Raises:
            CloudInitError: It failed, or did not finish in time.
            GuestUnreachableError: The guest no longer answers.
        """
        return wait_cloud_init(self._connection, timeout=self._timeouts().cloud_init)

    def run_extension(self, extension: Extension, run: str, timeout: float) -> ExtensionResult:
        """Runs an extension, once per run id; see :meth:`ExtensionRunner.run`."""
        return self._extensions.run(extension, run, timeout)

    def remove_extension(self, extension: Extension, timeout: float) -> str:
        """Removes an extension; see :meth:`ExtensionRunner.remove`."""
        return self._extensions.remove(extension, timeout)

    def report_extension(self, extension: Extension, last: ExtensionResult) -> ExtensionResult:
        """Returns an extension's current status; see :meth:`ExtensionRunner.report`."""
        return self._extensions.report(extension, last)

    def sync(self, *, patient: bool = True) -> None:
        """Flushes the guest's file systems.

        Args:
            patient: Wait for a guest that does not answer at once, or takes long.

        Raises:
            GuestCommandError: The command failed.
            GuestUnreachableError: The guest no longer answers.
        """
        if patient:
            self._connection.runner().check("sync", timeout=self._connection.login_limit * 2)
        else:
            self._connection.require().check("sync", timeout=_ANSWER_S * self._factor)

    def logs(self, names: Iterable[str], *, timeout: float, each: float) -> Iterator[GuestLog]:
        """Yields what the guest tells about itself; see :class:`~pytest_vmss.guest.Guest`.

        Over SSH, or else over its guest agent, which needs no network and no account.

        Raises:
            BootError: It does not answer, or does not run.
        """
        deadline = Deadline(timeout)
        run = log_access(
            self._connection,
            self._ask if self._agent_connected() else None,
            patience=_ANSWER_S * self._factor,
        )
        return read_logs(run, names, deadline=deadline, each=each)

    def shell(self) -> Shell:
        """Returns the connection to the guest, reconnecting if it broke.

        Raises:
            GuestUnreachableError: The guest does not answer.
        """
        return self._connection.wait()

    def check(self, check: Check) -> tuple[bool, str]:
        """Runs a health check; returns whether it passed, and what was observed.

        Raises:
            GuestUnreachableError: The guest does not answer over SSH now.
            GuestCommandError: The connection broke.
        """
        self._connection.require()
        if isinstance(check, str):
            runner = ReconnectingRunner(self._connection.require, most=ANSWER_BYTES)
            return run_command_check(check, runner, timeout=self._connection.login_limit)
        return run_function_check(
            check,
            testinfra_host(self.name, self.shell),
            timeout=_CHECK_S * self._factor,
            pulse=lambda: self._clock.sleep(0.0),
        )

    def listening(self) -> set[int]:
        """Returns the TCP ports on which the guest listens, from the kernel's tables.

        Raises:
            GuestUnreachableError: It does not answer over SSH.
        """
        return parse_listening(self._connection.runner().check(LISTENING))

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()
