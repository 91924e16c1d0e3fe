"""A running guest: waits for its boot and cloud-init, runs extensions and checks."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Protocol

from pytest_vmss.clock import Clock, wait_for
from pytest_vmss.errors import (
    CloudInitError,
    GuestCommandError,
    GuestUnreachableError,
    HypervisorError,
    InstanceError,
    KernelPanicError,
    NoBootError,
    NotProvisionedError,
    WaitTimeoutError,
    error_text,
)
from pytest_vmss.guest.agent import Ask, run_program
from pytest_vmss.guest.check import Check, asked
from pytest_vmss.guest.cloud_init import AGAIN, LOGS, WAIT, CloudInitResult, read_verdict
from pytest_vmss.guest.console import Console
from pytest_vmss.guest.extensions import Target, broken_handler, find_handler, guarded, redact
from pytest_vmss.guest.extensions.checked import checked_result, checked_words
from pytest_vmss.guest.shell import HostKeyMismatchError, Lasting, Shell
from pytest_vmss.guest.testinfra_host import testinfra_host
from pytest_vmss.guest_platform.sightings import Sightings
from pytest_vmss.hypervisor import PowerState
from pytest_vmss.model import Extension
from pytest_vmss.model.extension_result import ExtensionResult
from pytest_vmss.settings import Timeouts
from pytest_vmss.untrusted import UnreadableError, clean, one_line

__all__ = [
    "SSH_PORT",
    "BootFacts",
    "Check",
    "Guest",
    "LinuxGuest",
    "SshAccess",
    "parse_facts",
    "parse_listening",
]


@dataclass(frozen=True)
class BootFacts:
    """What a booted guest reports about itself.

    Attributes:
        boot_id: The kernel's boot id, new with every boot.
        kernel: Release, as printed by ``uname -r``.
        image_version: ``IMAGE_VERSION`` in its os-release; None if there is none (E2).
        host_key: The SSH host key that it showed, in OpenSSH's format.
    """

    boot_id: str
    kernel: str
    image_version: str | None
    host_key: str = ""

    def __post_init__(self) -> None:
        """Cleans and limits text from the guest."""
        for name in ("boot_id", "kernel", "image_version"):
            told = getattr(self, name)
            object.__setattr__(self, name, told and one_line(told, _FACT_CHARS))


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

    def sync(self) -> None:
        """Flushes the guest's file systems, so that a power cut loses nothing written so far."""

    def check(self, check: Check) -> tuple[bool, str]:
        """Runs a health check; returns whether it passed, and what was observed (F4)."""

    def listening(self) -> set[int]:
        """Returns the TCP ports on which the guest listens."""

    def shell(self) -> Shell:
        """Returns the SSH connection to it, as the administrator.

        Raises:
            GuestUnreachableError: It does not answer.
        """

    def close(self) -> None:
        """Closes the connection to it."""


#: The guests' own SSH port.
SSH_PORT = 22


@dataclass(frozen=True)
class SshAccess:
    """How to log in to one generation of an instance.

    Attributes:
        address: Loopback address that leads to the guest.
        port: Port on it.
        user: Login name.
        key: Path of the private key.
        host_key: The only host key to accept; empty before the first login to a guest that makes
            its own.
        server: Returns the user id of the process that leads there. It is asked for where there is
            no host key yet: nobody else's connection is taken for the guest's (M6).
    """

    address: str
    port: int
    user: str
    key: Path
    host_key: str
    server: Callable[[], int] | None = None


_FACTS = """\
cat /proc/sys/kernel/random/boot_id
uname -r
. /etc/os-release
echo "$IMAGE_VERSION"
"""

#: Power states in which no boot can succeed, with the reason.
_ENDED = {
    PowerState.STOPPED: "the machine ended while it booted",
    PowerState.ABSENT: "the machine ended while it booted, and libvirt has forgotten it",
    PowerState.PAUSED: "QEMU paused the machine, for it cannot write to its disks: make room on "
    "the host",
}
_LISTENING = "cat /proc/net/tcp /proc/net/tcp6 2> /dev/null || true"
_LISTEN = "0A"
_PORT = re.compile(r"[0-9A-F]{8,32}:([0-9A-F]{4})")
_TOLD_CHARS = 200
_FACT_CHARS = 100
_BOOT_ID = re.compile(r"[0-9a-f-]{8,64}")
#: Maximum output in bytes when the lab itself runs a command in a guest.
_ANSWER_BYTES = 1024 * 1024
#: The same for extension handlers, which may be a suite's own.
_HANDLER_BYTES = 8 * 1024 * 1024
_LOGIN_S = 10.0
_CHECK_S = 60.0
#: Seconds between two attempts to log in while a guest boots.
_PATIENCE_S = 6.0
#: The same once a guest has reported that it is ready; its SSH server starts later.
_AFTER_READY_S = 0.5


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
        ask: Sends a command to its guest agent; None if it has none.
        sightings: Returns what Azure's platform saw of it; None if it has no platform (O2).
        serve: Makes sure that its network is there.
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
        ask: Ask | None = None,
        sightings: Callable[[], Sightings | None] = lambda: None,
        serve: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self._serve = serve
        self._sightings = sightings
        self._access = access
        self._console = console
        self._timeouts = timeouts
        self._clock = clock
        self._power_state = power_state
        self._agent_connected = agent_connected
        self._next_try = clock.monotonic() + _PATIENCE_S
        self._factor = factor
        self._files_port = files_port
        self._dial_files = dial_files
        self._ask = ask
        self._login_limit = _LOGIN_S * factor
        self._shell: Shell | None = None
        self._connecting = threading.Lock()

    def wait_boot(self, previous_boot_id: str | None) -> BootFacts:
        """Waits until SSH answers from a new boot.

        Args:
            previous_boot_id: Id of the previous boot, which does not count.

        Returns:
            What the guest reports about itself.

        Raises:
            KernelPanicError: The kernel panicked.
            NoBootError: Nothing to boot was found, or the VM stopped.
            NotProvisionedError: The guest reported that it could not be provisioned (O2).
            GuestUnreachableError: SSH did not answer in time, or the guest did not report that
                it is ready.
        """
        timeout = self._timeouts().boot

        def probe() -> BootFacts | None:
            self._check_console()
            if not self._is_provisioned(previous_boot_id):
                return None
            shell = self._connect() if self._worth_trying() else None
            if shell is None:
                return None
            try:
                told = shell.check(_FACTS, timeout=self._login_limit, most=_ANSWER_BYTES)
            except GuestCommandError:
                self.close()
                return None
            facts = parse_facts(told)
            if not _BOOT_ID.fullmatch(facts.boot_id):
                self.close()  # it proves no boot yet, so try again
                return None
            if facts.boot_id == previous_boot_id:
                self.close()  # the old boot, on its way down
                return None
            return replace(facts, host_key=shell.host_key)

        try:
            return wait_for(
                f"{self.name} to boot and answer over SSH",
                probe,
                timeout=timeout,
                clock=self._clock,
                describe=self._console.milestone,
            )
        except WaitTimeoutError as error:
            raise GuestUnreachableError(
                f"{self._missing(previous_boot_id)} within {timeout:.0f} s; the boot "
                f"{self._console.milestone()}",
                instance=self.name,
                console_tail=self._console.tail(),
                log=self._console.path,
            ) from error

    def _is_provisioned(self, previous_boot_id: str | None) -> bool:
        """Whether the guest has reported to Azure's wire server that it is ready (O2).

        It does so at the first boot of an OS disk only; other guests never do.

        Raises:
            NotProvisionedError: It has reported that it is not.
        """
        seen = self._sightings()
        if seen is None or previous_boot_id is not None:
            return True
        if seen.health is None:
            return False
        if seen.health.state == "Ready":
            # Its network is up, so its kernel refuses what comes too early, at no cost.
            self._next_try = min(self._next_try, self._clock.monotonic() + _AFTER_READY_S)
            return True
        told = " ".join(filter(None, (seen.health.sub_status, seen.health.description)))
        raise NotProvisionedError(
            f"the guest reported that it could not be provisioned: {told or 'without a reason'}",
            instance=self.name,
            console_tail=self._console.tail(),
            log=self._console.path,
        )

    def _missing(self, previous_boot_id: str | None) -> str:
        """What did not happen at a boot, in words."""
        seen = self._sightings()
        if seen is None or previous_boot_id is not None or seen.health is not None:
            return "did not answer over SSH"
        return f"did not report that it is provisioned ({seen.hint(self._console.datasource())})"

    def wake(self) -> str:
        """Sets a restored guest's clock and reseeds its random number generator.

        Over the guest agent where it is connected, since a login takes longer than the restore.

        Returns:
            The id of the boot that it continues.

        Raises:
            GuestUnreachableError: The guest does not answer.
            GuestCommandError: It could not be done.
        """
        program = ["/usr/bin/python3", "-I", "-S", "-c", _in_guest("wake.py")]

        def told() -> bytes:
            return json.dumps({"time": time.time_ns(), "seed": secrets.token_hex(64)}).encode()

        if self._ask is not None and self._agent_connected():
            try:
                return one_line(
                    run_program(
                        self._ask, program, told(), timeout=self._login_limit, clock=self._clock
                    ),
                    _FACT_CHARS,
                )
            except (HypervisorError, WaitTimeoutError):
                pass  # the agent may not be allowed to run programs
        done = self.shell().run(
            shlex.join(program), stdin=told(), sudo=True, timeout=self._login_limit,
            most=_ANSWER_BYTES,
        )  # fmt: skip
        if done.exit_code != 0:
            raise GuestCommandError(
                f"could not be made current after its restore: {done.stderr.strip()[-_TOLD_CHARS:]}",
                instance=self.name, exit_code=done.exit_code, stderr=done.stderr,
            )  # fmt: skip
        return one_line(done.stdout, _FACT_CHARS)

    def wait_cloud_init(self) -> CloudInitResult:
        """Waits until cloud-init has finished.

        Raises:
            CloudInitError: It failed, or did not finish in time.
            GuestUnreachableError: The guest no longer answers.
        """
        timeout = self._timeouts().cloud_init
        away = False

        def probe() -> str | None:
            nonlocal away
            self._check_console()
            shell = self._connect()
            away = shell is None
            if shell is None:
                return None
            try:
                result = shell.run(WAIT, sudo=True, timeout=self._login_limit, most=_ANSWER_BYTES)
            except GuestCommandError:
                self.close()
                return None
            return None if result.exit_code in (AGAIN, -1) else result.stdout

        try:
            answer = wait_for(
                f"cloud-init on {self.name} to end",
                probe,
                timeout=timeout,
                clock=self._clock,
                interval=0.05,
                describe=self._console.milestone,
            )
        except WaitTimeoutError as error:
            told = f"cloud-init did not end within {timeout:.0f} s"
            kind: type[CloudInitError | GuestUnreachableError] = CloudInitError
            if away:
                kind = GuestUnreachableError
                told += ", and the guest does not answer over SSH"
            raise kind(
                f"{told}; the boot {self._console.milestone()}",
                instance=self.name,
                console_tail=self._console.tail(),
                log=self._console.path,
            ) from error
        try:
            verdict = read_verdict(answer)
        except UnreadableError as error:
            raise CloudInitError(
                f"cloud-init's result cannot be read: {error}",
                instance=self.name,
                console_tail=self._console.tail(),
                log=self._save_logs(),
            ) from error
        if verdict.status == "error":
            raise CloudInitError(
                f"cloud-init ended in error: {'; '.join(verdict.problems)}",
                instance=self.name,
                errors=verdict.problems,
                console_tail=self._console.tail(),
                log=self._save_logs(),
            )
        return verdict

    def _save_logs(self) -> Path:
        """Saves cloud-init's logs beside the console's; returns their path, else the console's."""
        path = self._console.path.with_name(self._console.path.stem + "-cloud-init.log")
        try:
            done = self.shell().run(LOGS, sudo=True, timeout=self._login_limit, most=_ANSWER_BYTES)
            # An error here, such as a full disk, must not hide cloud-init's failure.
            flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
                file.write(clean(done.stdout))
        except (InstanceError, OSError):
            return self._console.path
        return path

    def run_extension(self, extension: Extension, run: str, timeout: float) -> ExtensionResult:
        """Runs an extension, once per run id.

        Raises:
            GuestUnreachableError: The guest no longer answers.
        """
        handler = find_handler(extension.publisher, extension.type)
        self.shell()  # if the guest does not answer, fail early
        return guarded(
            lambda: checked_result(
                handler.run(self._target(timeout, self._with_files), extension, run=run), extension
            ),
            lambda failure: broken_handler(extension, failure),
        )

    def _target(self, timeout: float, connect: Callable[[], Shell] | None = None) -> Target:
        runner = Lasting(connect or self.shell, most=_HANDLER_BYTES)
        return Target(runner, self._clock, timeout, self._factor, self._files_port())

    def _with_files(self) -> Shell:
        """Returns the connection, with the tunnel to the lab's file server open.

        Raises:
            GuestUnreachableError: The guest does not answer.
        """
        shell, port = self.shell(), self._files_port()
        if port is not None:
            # If it cannot be opened, downloads fail and say so, or use another process's tunnel.
            shell.lead_to(port, self._dial_files)
        return shell

    def remove_extension(self, extension: Extension, timeout: float) -> str:
        """Removes an extension that the model no longer contains; returns what went wrong.

        Raises:
            GuestUnreachableError: The guest no longer answers.
            GuestCommandError: The connection broke.
        """
        handler = find_handler(extension.publisher, extension.type)
        return guarded(
            lambda: checked_words(handler.remove(self._target(timeout), extension), extension),
            lambda failure: redact(error_text(failure), extension),
        )

    def report_extension(self, extension: Extension, last: ExtensionResult) -> ExtensionResult:
        """Returns an extension's current status.

        Raises:
            GuestUnreachableError: The guest does not answer over SSH now.
            GuestCommandError: The connection broke.
        """
        handler = find_handler(extension.publisher, extension.type)
        if not handler.reports:
            return last
        target = self._target(self._login_limit, self._answering)
        return guarded(
            lambda: checked_result(
                handler.report(target, extension, last), extension, is_running=True
            ),
            lambda _: last,
        )

    def sync(self) -> None:
        """Flushes the guest's file systems.

        Raises:
            GuestCommandError: The command failed.
            GuestUnreachableError: The guest no longer answers.
        """
        self.shell().check("sync", timeout=self._login_limit * 2)

    def shell(self) -> Shell:
        """Returns the connection to the guest, reconnecting if it broke.

        Raises:
            GuestUnreachableError: The guest does not answer.
        """

        def probe() -> Shell | None:
            self._check_console()
            return self._connect()

        try:
            return wait_for(
                f"{self.name} to answer over SSH",
                probe,
                timeout=self._login_limit * 2,
                clock=self._clock,
                describe=self._console.milestone,
            )
        except WaitTimeoutError as error:
            raise GuestUnreachableError(
                f"does not answer over SSH; the boot {self._console.milestone()}",
                instance=self.name,
                console_tail=self._console.tail(),
                log=self._console.path,
            ) from error

    def check(self, check: Check) -> tuple[bool, str]:
        """Runs a health check; returns whether it passed, and what was observed.

        Raises:
            GuestUnreachableError: The guest does not answer over SSH now.
            GuestCommandError: The connection broke.
        """
        shell = self._answering()
        if isinstance(check, str):
            done = shell.run(check, timeout=self._login_limit, most=_ANSWER_BYTES)
            told = (done.stdout + done.stderr).strip()[-_TOLD_CHARS:]
            seen = f"`{check}` ended with status {done.exit_code}"
            return done.exit_code == 0, f"{seen}: {told}" if told else seen
        return asked(
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
        return parse_listening(self.shell().check(_LISTENING, most=_ANSWER_BYTES))

    def close(self) -> None:
        """Closes the connection."""
        if self._shell is not None:
            self._shell.close()
            self._shell = None

    def _worth_trying(self) -> bool:
        """Whether to try SSH now: always once the agent has connected, rarely before.

        QEMU's user network accepts connections before the guest does, and each of them costs it
        an sshd process later, in the middle of its boot. As not every image has an agent, try
        occasionally anyway.
        """
        if self._agent_connected():
            return True
        if self._clock.monotonic() < self._next_try:
            return False
        self._next_try = self._clock.monotonic() + _PATIENCE_S
        return True

    def _answering(self) -> Shell:
        """Returns the connection without waiting for the guest.

        Raises:
            GuestUnreachableError: The guest does not answer now.
        """
        shell = self._connect()
        if shell is None:
            raise GuestUnreachableError("does not answer over SSH", instance=self.name)
        return shell

    def _connect(self) -> Shell | None:
        with self._connecting:
            return self._connected()

    def _connected(self) -> Shell | None:
        if self._shell is not None and self._shell.alive:
            return self._shell
        self._serve()
        try:
            self._shell = Shell.connect(
                self._access.address,
                self._access.port,
                user=self._access.user,
                key=self._access.key,
                host_key=self._access.host_key,
                server=self._access.server,
                name=self.name,
                timeout=self._login_limit,
            )
        except HostKeyMismatchError as error:
            told = (
                f"answers over SSH with another host key than its seed gave it ({error}); "
                "does the custom data or the image bring ssh_keys of its own?"
                if self._access.host_key
                else f"is answered for by another account's process ({error}); end what listens at "
                f"{self._access.address}:{self._access.port} (`ss -ltnp` tells), and try again"
            )
            raise GuestUnreachableError(
                told,
                instance=self.name,
                console_tail=self._console.tail(),
                log=self._console.path,
            ) from error
        return self._shell

    def _check_console(self) -> None:
        """Raises if the console or the VM's state shows that waiting is hopeless."""
        trouble = self._console.trouble()
        if trouble == "panic":
            raise KernelPanicError(
                f"the kernel panicked; the boot {self._console.milestone()}",
                instance=self.name,
                console_tail=self._console.tail(),
                log=self._console.path,
            )
        what = "found nothing to boot" if trouble == "no boot" else _ENDED.get(self._power_state())
        if what is not None:
            raise NoBootError(
                f"{what}; {self._console.milestone()}",
                instance=self.name,
                console_tail=self._console.tail(),
                log=self._console.path,
            )


def _in_guest(name: str) -> str:
    """The source of a program that runs in guests."""
    return (files("pytest_vmss.guest.in_guest") / name).read_text(encoding="utf-8")


def parse_facts(text: str) -> BootFacts:
    """Parses the output of the facts script; missing values are empty."""
    boot_id, kernel, version = [*text.split("\n", 3), "", "", ""][:3]
    return BootFacts(boot_id.strip(), kernel.strip(), version.strip() or None)


def parse_listening(table: str) -> set[int]:
    """Returns the listening ports in the kernel's tables of TCP sockets."""
    rows = [line.split(maxsplit=4) for line in table.splitlines()]
    return {
        int(found[1], 16)
        for row in rows
        if len(row) > 3 and row[3] == _LISTEN and (found := _PORT.fullmatch(row[1]))
    }
