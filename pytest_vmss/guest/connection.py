"""The SSH connection to one generation of a guest: logs in, and again when it broke (M6)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pytest_vmss.clock import Clock, wait_for
from pytest_vmss.errors import GuestUnreachableError, WaitTimeoutError
from pytest_vmss.guest.boot_watch import BootWatch
from pytest_vmss.guest.login import HostKeyMismatchError, log_in
from pytest_vmss.guest.runner import CommandResult
from pytest_vmss.guest.shell import OUTPUT_BYTES, Shell
from pytest_vmss.guest.transport import ConnectionBrokenError

__all__ = [
    "ANSWER_BYTES",
    "SSH_PORT",
    "Connection",
    "ReconnectingRunner",
    "SshAccess",
    "with_connection",
]

_Runner = TypeVar("_Runner")
_Result = TypeVar("_Result")

#: Maximum output in bytes when the lab itself runs a command in a guest.
ANSWER_BYTES = 1024 * 1024
_LOGIN_S = 10.0
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


class Connection:
    """The current SSH connection to a guest; safe to use from several threads.

    Args:
        access: How to log in.
        watch: Tells when no login can succeed any more.
        clock: The lab's clock.
        factor: How many times slower the guest is than under KVM.
        serve: Makes sure that its network is there.
        mask: Masks the secrets in a text of its own that becomes part of an error.

    Attributes:
        login_limit: Timeout of a login and of a short command, in seconds.
    """

    def __init__(
        self,
        access: SshAccess,
        watch: BootWatch,
        *,
        clock: Clock,
        factor: float = 1.0,
        serve: Callable[[], None] = lambda: None,
        mask: Callable[[str], str] = str,
    ) -> None:
        self.watch = watch
        self.clock = clock
        self.login_limit = _LOGIN_S * factor
        self._access = access
        self._serve = serve
        self._mask = mask
        self._shell: Shell | None = None
        self._connecting = threading.Lock()

    @property
    def name(self) -> str:
        """The instance's name."""
        return self.watch.name

    def wait(self) -> Shell:
        """Returns the connection, reconnecting if it broke; waits for the guest to answer.

        Raises:
            GuestUnreachableError: The guest does not answer in time.
            KernelPanicError: The kernel panicked.
            NoBootError: Nothing to boot was found, or the VM stopped.
        """

        def probe() -> Shell | None:
            self.watch.check()
            return self.connect()

        try:
            return wait_for(
                f"{self.name} to answer over SSH",
                probe,
                timeout=self.login_limit * 2,
                clock=self.clock,
                describe=self.watch.milestone,
            )
        except WaitTimeoutError as error:
            raise self.watch.failure(
                GuestUnreachableError,
                f"does not answer over SSH; the boot {self.watch.milestone()}",
            ) from error

    def require(self) -> Shell:
        """Returns the connection without waiting for the guest.

        Raises:
            GuestUnreachableError: The guest does not answer now.
        """
        shell = self.connect()
        if shell is None:
            raise GuestUnreachableError("does not answer over SSH", instance=self.name)
        return shell

    def connect(self) -> Shell | None:
        """Returns the connection, trying once to log in if there is none.

        Returns:
            The connection; None if the guest does not answer, or does not let the user in, yet.

        Raises:
            GuestUnreachableError: Something else answers in the guest's place.
        """
        with self._connecting:
            if self._shell is None or not self._shell.alive:
                self._serve()
                self._shell = self._log_in()
            return self._shell

    def runner(self) -> ReconnectingRunner:
        """Returns what runs the lab's own commands; each waits for the guest to answer."""
        return ReconnectingRunner(self.wait, most=ANSWER_BYTES)

    def close(self) -> None:
        """Closes the connection."""
        if self._shell is not None:
            self._shell.close()
            self._shell = None

    def _log_in(self) -> Shell | None:
        access = self._access
        try:
            return log_in(
                access.address,
                access.port,
                user=access.user,
                key=access.key,
                host_key=access.host_key,
                server=access.server,
                name=self.name,
                timeout=self.login_limit,
                mask=self._mask,
            )
        except HostKeyMismatchError as error:
            told = (
                f"answers over SSH with another host key than its seed gave it ({error}); "
                "does the custom data or the image bring ssh_keys of its own?"
                if access.host_key
                else f"is answered for by another account's process ({error}); end what listens at "
                f"{access.address}:{access.port} (`ss -ltnp` tells), and try again"
            )
            raise self.watch.failure(GuestUnreachableError, told) from error


def with_connection(connect: Callable[[], _Runner], run: Callable[[_Runner], _Result]) -> _Result:
    """Runs a command over the current connection.

    One that looks open may have broken, which shows only when it is used. If the guest has not
    seen the command, it is run over another one.

    Args:
        connect: Returns an open connection.
        run: Runs the command over it.

    Raises:
        GuestCommandError: The connection broke while the command ran, or the new one did too.
    """
    try:
        return run(connect())
    except ConnectionBrokenError:
        return run(connect())


class ReconnectingRunner:
    """Runs each command over the current connection, reconnecting if that broke.

    Args:
        connect: Returns an open connection.
        most: Maximum number of bytes that a command may write to each of its outputs.
    """

    def __init__(self, connect: Callable[[], Shell], *, most: int = OUTPUT_BYTES) -> None:
        self._connect = connect
        self._most = most

    def run(
        self,
        command: str,
        *,
        stdin: bytes = b"",
        sudo: bool = False,
        timeout: float = 60.0,
        silence: float | None = None,
    ) -> CommandResult:
        """See :meth:`Shell.run`."""

        def over(shell: Shell) -> CommandResult:
            return shell.run(
                command, stdin=stdin, sudo=sudo, timeout=timeout, silence=silence, most=self._most
            )

        return with_connection(self._connect, over)

    def check(
        self, command: str, *, stdin: bytes = b"", sudo: bool = False, timeout: float = 60.0
    ) -> str:
        """See :meth:`Shell.check`."""

        def over(shell: Shell) -> str:
            return shell.check(command, stdin=stdin, sudo=sudo, timeout=timeout, most=self._most)

        return with_connection(self._connect, over)
