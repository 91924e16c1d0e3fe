"""SSH into a guest whose host key is pinned (M6)."""

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
from pytest_vmss.guest.transport import ConnectionBrokenError, open_transport, transport_errors
from pytest_vmss.guest.tunnel import Tunnel

__all__ = ["CommandResult", "HostKeyMismatchError", "Lasting", "Runner", "Shell"]

_CONNECT_S = 2.0
_BANNER_S = 2.0
#: What a command may write to each of its outputs.
_OUTPUT_BYTES = 64 * 1024 * 1024
_CHUNK = 65536
#: For a guest's answer to whether it listens for a tunnel.
_FORWARD_S = 60.0
#: Seconds for telling the other side that a channel is closed.
_CLOSE_S = 1.0


class HostKeyMismatchError(Exception):
    """The guest showed another host key than the one its seed gave it."""


@dataclass(frozen=True)
class CommandResult:
    """What came of a command.

    Attributes:
        exit_code: Its status; -1 where the connection broke.
        stdout: What it wrote to standard output.
        stderr: What it wrote to standard error.
    """

    exit_code: int
    stdout: str
    stderr: str


class Runner(Protocol):
    """Runs commands in a guest, over one connection or over one after another."""

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
    """One SSH connection; commands may run side by side.

    Use :meth:`connect`.
    """

    def __init__(self, transport: paramiko.Transport, name: str) -> None:
        self._transport = transport
        self._name = name
        self._tunnels: dict[int, Tunnel] = {}

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
    ) -> Shell | None:
        """Tries once to log in.

        Args:
            address: Loopback address that leads to the guest.
            port: Port on it.
            user: Login name.
            key: Private key.
            host_key: The only host key that is accepted, in OpenSSH's format.
            name: The instance's, for messages.
            timeout: Limit of the login in seconds, once the server answers.

        Returns:
            None where no server answers yet, or it lets nobody in yet.

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
                    transport.get_security_options().key_types = (kind,)
                    transport.start_client(timeout=timeout)
                    shown = transport.get_remote_server_key()
                    is_pinned = shown.get_base64() == blob.split()[0]
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
        return cls(transport, name)

    @property
    def alive(self) -> bool:
        """Whether the connection still stands."""
        return bool(self._transport.is_active())

    def lead_to(self, port: int, dial: Callable[[], socket.socket] | None = None) -> bool:
        """Leads the guest to the lab's file server while this connection stands.

        Args:
            port: The server's on the host's loopback, at which the guest finds it on its own.
            dial: Connects to the server; the default asks it for no proof that it is the lab's.

        Returns:
            Whether the guest's SSH server listens there for this connection.
        """
        timeouts = _Limits(_FORWARD_S, None)
        with self._watchdog(timeouts):
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
            command: For the guest's shell; quote what comes from elsewhere.
            stdin: What it reads; secrets belong here, never in the command.
            sudo: As root.
            timeout: Limit in seconds of all of it, whatever the guest does.
            silence: Limit in seconds without output, where that is to be shorter.
            most: Bytes that it may write to each of its outputs.

        Raises:
            GuestCommandError: The connection broke, or a limit was reached; its exit code
                is -1.
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
        with self._watchdog(timeouts):
            channel = self._transport.open_session(timeout=timeouts.rest())
        try:
            with self._watchdog(timeouts):
                channel.settimeout(timeouts.rest())
                channel.exec_command(line)
                outputs = [
                    _Output(channel, channel.recv, timeouts, most),
                    _Output(channel, channel.recv_stderr, timeouts, most),
                ]
                self._send(channel, stdin)
            for output in outputs:
                output.wait()
            # A command may close its outputs and go on.
            if not channel.status_event.wait(timeouts.left()):
                raise TimeoutError
            return CommandResult(channel.recv_exit_status(), *(o.text() for o in outputs))
        finally:
            self._close(channel)

    @staticmethod
    def _send(channel: paramiko.Channel, stdin: bytes) -> None:
        try:
            channel.sendall(stdin)
            channel.shutdown_write()
        except OSError:
            if not channel.exit_status_ready():
                raise
            # It has ended without reading everything; its status says why.

    @contextlib.contextmanager
    def _watchdog(self, timeouts: _Limits) -> Iterator[None]:
        """Ends the connection where the guest does not take part in time: paramiko would wait."""
        watchdog = threading.Timer(timeouts.rest(), self.close)
        watchdog.daemon = True
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()

    def _close(self, channel: paramiko.Channel) -> None:
        """Closes a channel; ends the connection where not even that can be sent."""
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
            GuestCommandError: It did not.
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
        """Ends the connection, whatever the guest does."""
        _end(self._transport, self._transport.sock)


class Lasting:
    """Runs each command over a connection that is made anew where the last one broke.

    Args:
        connect: Gives the connection that stands now.
        most: Bytes that a command may write to each of its outputs.
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
    """A command wrote more than anyone will read."""


class _Limits:
    """How long a command may take."""

    def __init__(self, total: float, silence: float | None) -> None:
        self._total = total
        self._silence = silence
        self._end = time.monotonic() + total
        self._heard = time.monotonic()

    def hear(self) -> None:
        """It has written something."""
        self._heard = time.monotonic()

    def rest(self) -> float:
        """Seconds until all must have ended; never less than 0."""
        return max(self._end - time.monotonic(), 0.0)

    def left(self) -> float:
        """The same, or until the silence has been too long."""
        if self._silence is None:
            return self.rest()
        return max(min(self._end, self._heard + self._silence) - time.monotonic(), 0.0)

    def told(self) -> str:
        """The limit that was reached, in words."""
        if self._silence is not None and time.monotonic() < self._end:
            return f"it wrote nothing for {self._silence:g} s"
        return f"the limit is {self._total:g} s"


class _Output:
    """Reads one of a command's outputs in a thread, so that the other cannot block it."""

    def __init__(
        self,
        channel: paramiko.Channel,
        receive: Callable[[int], bytes],
        timeouts: _Limits,
        most: int,
    ) -> None:
        self._channel = channel
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
        except Exception as error:  # noqa: BLE001 - raised by the thread that waits
            self._failure = error

    def wait(self) -> None:
        """Waits for its end.

        Raises:
            OSError: It was too much, or a limit was reached.
            Exception: Whatever else paramiko raised while it was read.
        """
        while self._thread.is_alive():
            left = self._timeouts.left()
            if left <= 0:
                raise TimeoutError
            self._thread.join(left)
        if self._failure is not None:
            raise self._failure

    def text(self) -> str:
        """What was written."""
        return b"".join(self._parts).decode(errors="replace")


def _end(transport: paramiko.Transport, link: socket.socket | paramiko.Channel) -> None:
    """Ends a connection for good: a server that drips bytes keeps paramiko's thread reading."""
    with contextlib.suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)
    # Also where the guest's bytes made its parts unusable: there is nobody left to tell.
    with contextlib.suppress(Exception):
        transport.close()
    with contextlib.suppress(Exception):
        link.close()


def _close_quietly(channel: paramiko.Channel) -> None:
    """Closes a channel in a thread whose errors nobody would see but on standard error."""
    with contextlib.suppress(Exception):
        channel.close()


def _dial(address: str, port: int) -> socket.socket | None:
    """Connects, and waits for an SSH server's greeting without reading it.

    QEMU's user network takes connections before the guest does, so that only
    the greeting proves a server.
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
