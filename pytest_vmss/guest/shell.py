"""Runs commands in a guest over SSH, with a pinned host key (M6)."""

from __future__ import annotations

import contextlib
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import paramiko
from paramiko.ssh_exception import IncompatiblePeer

from pytest_vmss.errors import GuestCommandError
from pytest_vmss.guest.transport import (
    ConnectionBrokenError,
    GuestTransport,
    open_transport,
    transport_errors,
)
from pytest_vmss.guest.tunnel import Tunnel
from pytest_vmss.host.peers import owner_of_peer

__all__ = ["CommandResult", "HostKeyMismatchError", "Lasting", "Runner", "Shell"]

_CONNECT_S = 2.0
_BANNER_S = 2.0
#: Maximum number of bytes that a command may write to each of its outputs.
_OUTPUT_BYTES = 64 * 1024 * 1024
_CHUNK = 65536
#: Timeout in seconds for the guest's answer to a forwarding request.
_FORWARD_S = 60.0
#: Timeout in seconds for telling the other side that a channel is closed.
_CLOSE_S = 1.0


class HostKeyMismatchError(Exception):
    """The guest presented a host key other than the one in its seed."""


@dataclass(frozen=True)
class CommandResult:
    """The result of a command.

    Attributes:
        exit_code: Its exit status; -1 if a signal ended it.
        stdout: Its standard output.
        stderr: Its standard error.
    """

    exit_code: int
    stdout: str
    stderr: str


class Runner(Protocol):
    """Runs commands in a guest, over one connection or several in succession."""

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

    def check(
        self, command: str, *, stdin: bytes = b"", sudo: bool = False, timeout: float = 60.0
    ) -> str:
        """See :meth:`Shell.check`."""


class Shell:
    """An SSH connection; several commands may run over it concurrently.

    Create it with :meth:`connect`.

    Attributes:
        host_key: The key that the guest's server showed, in OpenSSH's format.
    """

    def __init__(self, transport: GuestTransport, name: str, host_key: str) -> None:
        self.host_key = host_key
        self._transport = transport
        self._name = name
        self._tunnels: dict[int, Tunnel] = {}
        self._commands = 0
        self._counting = threading.Lock()

    @classmethod
    def connect(
        cls,
        address: str,
        port: int,
        *,
        user: str,
        key: Path,
        host_key: str,
        name: str,
        timeout: float,
        server: Callable[[], int] | None = None,
    ) -> Shell | None:
        """Tries once to log in.

        Args:
            address: Loopback address that leads to the guest.
            port: Port on it.
            user: Login name.
            key: Path of the private key.
            host_key: The only host key to accept, in OpenSSH's format; empty at the first login
                to a guest that made its own, which then needs ``server``.
            name: The instance's name, for messages.
            timeout: For the login, in seconds, once the server answers.
            server: Returns the user id whose process must be at the other end if there is no host
                key to tell the guest by.

        Returns:
            The connection; None if no server answers yet, or it does not let the user in yet.

        Raises:
            HostKeyMismatchError: Another machine answers, or the host key was replaced.
        """
        link = _dial(address, port)
        if link is None:
            return None
        kind, _, blob = host_key.partition(" ")
        with contextlib.ExitStack() as failed:
            failed.callback(link.close)
            try:
                with transport_errors(name):
                    transport = open_transport(link)
                    failed.callback(_end, transport, link)
                    transport.banner_timeout = timeout
                    transport.auth_timeout = timeout
                    if host_key:
                        transport.get_security_options().key_types = (kind,)
                    transport.start_client(timeout=timeout)
                    shown = transport.get_remote_server_key()
                    if host_key:
                        is_pinned = shown.get_base64() == blob.split()[0]
                    else:
                        is_pinned = server is not None and owner_of_peer(link) == server()
                    seen = f"shows the host key {shown.get_name()} {shown.fingerprint}"
                if not is_pinned:
                    raise HostKeyMismatchError(seen)
                with transport_errors(name):
                    client_key = paramiko.Ed25519Key.from_private_key_file(str(key))
                    transport.auth_publickey(user, client_key)
                    transport.set_keepalive(15)
            except ConnectionBrokenError as error:
                if isinstance(error.__cause__, IncompatiblePeer):
                    raise HostKeyMismatchError(
                        f"has no {kind} host key to offer: {error.__cause__}"
                    ) from error
                return None
            failed.pop_all()
        return cls(transport, name, f"{shown.get_name()} {shown.get_base64()}")

    @property
    def alive(self) -> bool:
        """Whether the connection is still open."""
        return bool(self._transport.is_active())

    def lead_to(self, port: int, dial: Callable[[], socket.socket] | None = None) -> bool:
        """Opens a tunnel from the guest to the lab's file server, for the life of this connection.

        Args:
            port: Port of the server on the host's loopback, used on the guest's loopback too.
            dial: Connects to the server; the default does not verify that it is the lab's.

        Returns:
            Whether the guest's SSH server listens there for this connection.
        """
        timeouts = _Limits(_FORWARD_S, None)
        with _watchdog(timeouts.rest(), self.close):
            dial = dial or (lambda: socket.create_connection(("127.0.0.1", port), _CONNECT_S))
            tunnel = Tunnel(self._transport, port, instance=self._name, dial=dial)
            return self._tunnels.setdefault(port, tunnel).open()

    def run(
        self,
        command: str,
        *,
        stdin: bytes = b"",
        sudo: bool = False,
        timeout: float = 60.0,
        silence: float | None = None,
        most: int = _OUTPUT_BYTES,
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
            GuestCommandError: The connection broke, the command timed out, or it wrote too much;
                the exit code is -1.
        """
        line = f"/bin/sh -c {shlex.quote(command)}"
        if sudo:
            line = f"sudo -n {line}"
        timeouts = _Limits(timeout, silence)

        def error_of(error: Exception) -> GuestCommandError:
            reason = "the SSH connection broke while a command ran"
            words = str(error) or type(error).__name__
            if isinstance(error, _TooMuchError):
                reason = "a command wrote too much"
            elif isinstance(error, TimeoutError) or timeouts.left() <= 0:
                reason, words = "a command did not end", timeouts.told()
            return GuestCommandError(
                f"{reason}: {words}", instance=self._name, exit_code=-1, stderr=""
            )

        with transport_errors(self._name, error_of):
            return self._run(line, stdin, timeouts, most)

    def _run(self, line: str, stdin: bytes, timeouts: _Limits, most: int) -> CommandResult:
        with self._using(timeouts) as use, contextlib.ExitStack() as opened:
            # paramiko's own timeout comes first, unless it cannot even send.
            with _watchdog(timeouts.rest() + _CLOSE_S, self.close):
                channel = self._transport.open_command(timeouts.rest())
            opened.callback(self._close, channel)
            with _watchdog(timeouts.rest(), lambda: self._close(channel)):
                channel.settimeout(timeouts.rest())
                channel.exec_command(line)
                use.is_answered = True
                outputs = [
                    _Output(channel.recv, timeouts, most),
                    _Output(channel.recv_stderr, timeouts, most),
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
    def _using(self, timeouts: _Limits) -> Iterator[_Use]:
        """Closes the connection if its guest answered nothing in time, and no other command runs.

        A new connection may be answered; other commands may only wait for a guest that is paused.
        """
        use = _Use()
        with self._counting:
            self._commands += 1
        try:
            yield use
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
        most: int = _OUTPUT_BYTES,
    ) -> str:
        """Runs a command that must succeed, and returns its standard output.

        Raises:
            GuestCommandError: It failed.
        """
        result = self.run(command, stdin=stdin, sudo=sudo, timeout=timeout, most=most)
        if result.exit_code != 0:
            raise GuestCommandError(
                f"`{command}` ended with status {result.exit_code}: {result.stderr.strip()[-500:]}",
                instance=self._name,
                exit_code=result.exit_code,
                stderr=result.stderr,
            )
        return result.stdout

    def close(self) -> None:
        """Closes the connection, whatever the guest does."""
        _end(self._transport, self._transport.sock)


class Lasting:
    """Runs each command over the current connection, reconnecting if that broke.

    Args:
        connect: Returns an open connection.
        most: Maximum number of bytes that a command may write to each of its outputs.
    """

    def __init__(self, connect: Callable[[], Shell], *, most: int = _OUTPUT_BYTES) -> None:
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
        return self._connect().run(
            command, stdin=stdin, sudo=sudo, timeout=timeout, silence=silence, most=self._most
        )

    def check(
        self, command: str, *, stdin: bytes = b"", sudo: bool = False, timeout: float = 60.0
    ) -> str:
        """See :meth:`Shell.check`."""
        return self._connect().check(
            command, stdin=stdin, sudo=sudo, timeout=timeout, most=self._most
        )


class _TooMuchError(OSError):
    """A command wrote more output than allowed."""


@dataclass
class _Use:
    """One command's use of a connection.

    Attributes:
        is_answered: Whether the guest has taken the command.
    """

    is_answered: bool = False


class _Limits:
    """The timeouts of one command."""

    def __init__(self, total: float, silence: float | None) -> None:
        self._total = total
        self._silence = silence
        self._end = time.monotonic() + total
        self._heard = time.monotonic()

    def hear(self) -> None:
        """Records that it has just written something."""
        self._heard = time.monotonic()

    def rest(self) -> float:
        """Returns the seconds until the timeout; never less than 0."""
        return max(self._end - time.monotonic(), 0.0)

    def left(self) -> float:
        """Returns the seconds until the timeout or the silence timeout, whichever is first."""
        if self._silence is None:
            return self.rest()
        return max(min(self._end, self._heard + self._silence) - time.monotonic(), 0.0)

    def told(self) -> str:
        """Describes the timeout that was reached."""
        if self._silence is not None and time.monotonic() < self._end:
            return f"it wrote nothing for {self._silence:g} s"
        return f"the limit is {self._total:g} s"


class _Output:
    """Reads one of a command's outputs in a thread, so that the other cannot block it."""

    def __init__(
        self,
        receive: Callable[[int], bytes],
        timeouts: _Limits,
        most: int,
    ) -> None:
        self._receive = receive
        self._timeouts = timeouts
        self._most = most
        self._parts: list[bytes] = []
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._read, name="ssh-output", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        size = 0
        try:
            while part := self._receive(_CHUNK):
                self._timeouts.hear()
                self._parts.append(part)
                size += len(part)
                if size > self._most:
                    self._parts.clear()
                    raise _TooMuchError(f"more than {self._most >> 20} MiB")
        except Exception as error:  # noqa: BLE001 - raised in the waiting thread
            self._failure = error

    def wait(self) -> None:
        """Waits until the output is closed.

        Raises:
            OSError: There was too much output, or a timeout was reached.
            Exception: Anything else that paramiko raised while reading.
        """
        while self._thread.is_alive():
            left = self._timeouts.left()
            if left <= 0:
                raise TimeoutError
            self._thread.join(left)
        if self._failure is not None:
            raise self._failure

    def text(self) -> str:
        """Returns the output."""
        return b"".join(self._parts).decode(errors="replace")


@contextlib.contextmanager
def _watchdog(seconds: float, give_up: Callable[[], None]) -> Iterator[None]:
    """Gives up on timeout, since paramiko would wait for the guest forever."""
    watchdog = threading.Timer(seconds, give_up)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


def _end(transport: paramiko.Transport, link: socket.socket | paramiko.Channel) -> None:
    """Closes the socket too: a server that drips bytes would keep paramiko's thread running."""
    with contextlib.suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)
    # The guest's bytes may have left paramiko's objects unusable; nothing can be done then.
    with contextlib.suppress(Exception):
        transport.close()
    with contextlib.suppress(Exception):
        link.close()
    # What its thread has read is freed before another connection is made.
    with contextlib.suppress(RuntimeError):  # it is this thread, or was never started
        transport.join(_CLOSE_S)
    transport.packetizer.complete_handshake()  # ends another thread, which would time it


def _close_quietly(channel: paramiko.Channel) -> None:
    """Closes a channel in a thread, where an exception would only be printed."""
    with contextlib.suppress(Exception):
        channel.close()


def _dial(address: str, port: int) -> socket.socket | None:
    """Connects, and waits for an SSH server's banner without consuming it.

    QEMU's user network accepts connections before the guest does, so only the banner proves
    that a server is running.
    """
    try:
        link = socket.create_connection((address, port), timeout=_CONNECT_S)
    except OSError:
        return None
    try:
        link.settimeout(_BANNER_S)
        if link.recv(4, socket.MSG_PEEK) == b"SSH-":
            return link
    except OSError:
        pass
    link.close()
    return None
