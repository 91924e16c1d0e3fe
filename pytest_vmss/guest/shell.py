"""Runs commands in a guest over one SSH connection; every wait for the guest ends (Q1, R2)."""

from __future__ import annotations

import contextlib
import shlex
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import paramiko

from pytest_vmss.errors import GuestCommandError
from pytest_vmss.guest.command_io import (
    CommandLimits,
    CommandOutput,
    TooMuchOutputError,
    watchdog,
)
from pytest_vmss.guest.runner import CommandResult
from pytest_vmss.guest.transport import (
    ConnectionBrokenError,
    GuestTransport,
    close_transport,
    transport_errors,
)
from pytest_vmss.guest.tunnel import Tunnel
from pytest_vmss.untrusted import ending

__all__ = ["OUTPUT_BYTES", "Shell"]

#: Maximum number of bytes that a command may write to each of its outputs.
OUTPUT_BYTES = 64 * 1024 * 1024
#: Characters of a failed command's standard error that are kept, and those in the message.
_STDERR_CHARS, _TOLD_CHARS = 64 * 1024, 500
#: Timeout in seconds for a connection to the lab's file server.
_CONNECT_S = 2.0
#: Timeout in seconds for the guest's answer to a forwarding request.
_FORWARD_S = 60.0
#: Timeout in seconds for telling the other side that a channel is closed.
_CLOSE_S = 1.0


class Shell:
    """An SSH connection; several commands may run over it concurrently.

    Made by :func:`~pytest_vmss.guest.login.log_in`.

    Attributes:
        host_key: The key that the guest's server showed, in OpenSSH's format.
    """

    def __init__(
        self,
        transport: GuestTransport,
        name: str,
        host_key: str,
        mask: Callable[[str], str] = str,
    ) -> None:
        self.host_key = host_key
        self._transport = transport
        self._name = name
        self._mask = mask
        self._tunnels: dict[int, Tunnel] = {}
        self._commands = 0
        self._counting = threading.Lock()

    @property
    def alive(self) -> bool:
        """Whether the connection is still open."""
        return bool(self._transport.is_active())

    def lead_to(
        self,
        port: int,
        dial: Callable[[], socket.socket] | None = None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> bool:
        """Opens a tunnel from the guest to the lab's file server, for the life of this connection.

        Args:
            port: Port of the server on the host's loopback, used on the guest's loopback too.
            dial: Connects to the server; the default does not verify that it is the lab's.
            warn: Told why a download may fail, from any thread.

        Returns:
            Whether the guest's SSH server listens there for this connection.
        """
        timeouts = CommandLimits(_FORWARD_S, None)
        with watchdog(timeouts.rest(), self.close):
            dial = dial or (lambda: socket.create_connection(("127.0.0.1", port), _CONNECT_S))
            tunnel = Tunnel(self._transport, port, instance=self._name, dial=dial, warn=warn)
            return self._tunnels.setdefault(port, tunnel).open()

    def run(
        self,
        command: str,
        *,
        stdin: bytes = b"",
        sudo: bool = False,
        timeout: float = 60.0,
        silence: float | None = None,
        most: int = OUTPUT_BYTES,
    ) -> CommandResult:
        """Runs a command with the guest's ``/bin/sh``.

        Args:
            command: For the guest's shell; quote any external input.
            stdin: Its standard input; secrets belong here, never in the command.
            sudo: Whether to run it as root.
            timeout: For the whole call, in seconds, whatever the guest does.
            silence: Timeout in seconds without output, if that is to be shorter.
            most: Maximum number of bytes that it may write to each of its outputs.

        Returns:
            The result, whatever its exit status.

        Raises:
            ConnectionBrokenError: The connection broke before the command was sent.
            GuestCommandError: The connection broke, the command timed out, or it wrote too much;
                the exit code is -1.
        """
        line = f"/bin/sh -c {shlex.quote(command)}"
        if sudo:
            line = f"sudo -n {line}"
        timeouts, use = CommandLimits(timeout, silence), _Use()

        def error_of(error: Exception) -> GuestCommandError:
            reason = "the SSH connection broke while a command ran"
            words = str(error) or type(error).__name__
            if isinstance(error, TooMuchOutputError):
                reason = "a command wrote too much"
            elif isinstance(error, TimeoutError) or timeouts.left() <= 0:
                reason, words = "a command timed out", timeouts.told()
            elif not (use.is_sent or isinstance(error, paramiko.ChannelException)):
                return ConnectionBrokenError(error, instance=self._name)
            return GuestCommandError(
                f"{reason}: {words}", instance=self._name, exit_code=-1, stderr=""
            )

        with transport_errors(self._name, error_of):
            return self._run(line, stdin, timeouts, most, use)

    def _run(
        self, line: str, stdin: bytes, timeouts: CommandLimits, most: int, use: _Use
    ) -> CommandResult:
        with self._counted(timeouts, use), contextlib.ExitStack() as opened:
            # paramiko's own timeout comes first, unless it cannot even send.
            with watchdog(timeouts.rest() + _CLOSE_S, self.close):
                channel = self._transport.open_command(timeouts.rest())
            opened.callback(self._close, channel)
            with watchdog(timeouts.rest(), lambda: self._close(channel)):
                channel.settimeout(timeouts.rest())
                use.is_sent = True
                channel.exec_command(line)
                use.is_answered = True
                outputs = [
                    CommandOutput(channel.recv, timeouts, most),
                    CommandOutput(channel.recv_stderr, timeouts, most),
                ]
                self._send(channel, stdin)
            for output in outputs:
                output.wait()
            # A command may close its outputs and keep running.
            if not channel.status_event.wait(timeouts.left()):
                raise TimeoutError
            if not self._is_complete(channel):
                raise self._transport.get_exception() or ConnectionResetError("it was closed")
            return CommandResult(channel.exit_status, *(o.text() for o in outputs))

    def _send(self, channel: paramiko.Channel, stdin: bytes) -> None:
        try:
            channel.sendall(stdin)
            channel.shutdown_write()
        except OSError:
            if channel.exit_status == -1 and not self._transport.is_closed_by_guest(channel):
                raise
            # It has finished without reading everything; its status says why.

    def _is_complete(self, channel: paramiko.Channel) -> bool:
        """Whether a channel has ended because the command did, not because the connection broke."""
        if self._transport.is_closed_by_guest(channel):
            return True  # without a status, a signal has ended it
        return bool(channel.eof_received) and channel.exit_status != -1

    @contextlib.contextmanager
    def _counted(self, timeouts: CommandLimits, use: _Use) -> Iterator[None]:
        """Closes the connection if its guest answered nothing in time, and no other command runs.

        A new connection may be answered; other commands may only wait for a guest that is paused.
        """
        with self._counting:
            self._commands += 1
        try:
            yield
        finally:
            with self._counting:
                self._commands -= 1
                is_last = self._commands == 0
            if is_last and not use.is_answered and timeouts.rest() <= 0:
                self.close()

    def _close(self, channel: paramiko.Channel) -> None:
        """Closes a channel; closes the whole connection if that takes too long."""
        if channel.closed:
            return
        closing = threading.Thread(
            target=_close_quietly, args=[channel], name="ssh-close", daemon=True
        )
        closing.start()
        closing.join(_CLOSE_S)
        if closing.is_alive():
            self.close()

    def check(
        self,
        command: str,
        *,
        stdin: bytes = b"",
        sudo: bool = False,
        timeout: float = 60.0,
        most: int = OUTPUT_BYTES,
    ) -> str:
        """Runs a command that must succeed, and returns its standard output.

        Raises:
            GuestCommandError: It failed.
        """
        result = self.run(command, stdin=stdin, sudo=sudo, timeout=timeout, most=most)
        if result.exit_code != 0:
            stderr = self._mask(ending(result.stderr, _STDERR_CHARS))
            raise GuestCommandError(
                f"`{command}` ended with status {result.exit_code}: {ending(stderr, _TOLD_CHARS)}",
                instance=self._name,
                exit_code=result.exit_code,
                stderr=stderr,
            )
        return result.stdout

    def close(self) -> None:
        """Closes the connection, whatever the guest does."""
        close_transport(self._transport, self._transport.sock)


@dataclass
class _Use:
    """One command's use of a connection.

    Attributes:
        is_sent: Whether the guest may have seen the command.
        is_answered: Whether the guest has taken the command.
    """

    is_sent: bool = False
    is_answered: bool = False


def _close_quietly(channel: paramiko.Channel) -> None:
    """Closes a channel in a thread, where an exception would only be printed."""
    with contextlib.suppress(Exception):
        channel.close()
