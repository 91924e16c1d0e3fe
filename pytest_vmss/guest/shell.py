"""SSH into a guest whose host key is pinned (M6)."""

from __future__ import annotations

import contextlib
import shlex
import socket
import threading
from dataclasses import dataclass
from pathlib import Path

import paramiko
from paramiko.ssh_exception import IncompatiblePeer

from pytest_vmss.errors import GuestCommandError

__all__ = ["CommandResult", "HostKeyMismatchError", "Shell"]

_CONNECT_S = 2.0
_BANNER_S = 2.0


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


class Shell:
    """One SSH connection; commands may run side by side.

    Use :meth:`connect`.
    """

    def __init__(self, transport: paramiko.Transport, name: str) -> None:
        self._transport = transport
        self._name = name

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
        transport = paramiko.Transport(link)
        transport.banner_timeout = timeout
        transport.auth_timeout = timeout
        try:
            transport.get_security_options().key_types = (kind,)
            transport.start_client(timeout=timeout)
            shown = transport.get_remote_server_key()
            if shown.get_base64() != blob.split()[0]:
                raise HostKeyMismatchError(
                    f"shows the host key {shown.get_name()} {shown.fingerprint}"
                )
            transport.auth_publickey(user, paramiko.Ed25519Key.from_private_key_file(str(key)))
        except IncompatiblePeer as other:
            transport.close()
            raise HostKeyMismatchError(f"has no {kind} host key: {other}") from other
        except (paramiko.SSHException, EOFError, OSError):
            transport.close()
            return None
        except BaseException:
            transport.close()
            raise
        transport.set_keepalive(15)
        return cls(transport, name)

    @property
    def alive(self) -> bool:
        """Whether the connection still stands."""
        return bool(self._transport.is_active())

    def run(
        self,
        command: str,
        *,
        stdin: bytes = b"",
        sudo: bool = False,
        timeout: float = 60.0,
    ) -> CommandResult:
        """Runs a command with the guest's ``/bin/sh``.

        Args:
            command: For the guest's shell; quote what comes from elsewhere.
            stdin: What it reads; secrets belong here, never in the command.
            sudo: As root.
            timeout: Limit in seconds without output.

        Raises:
            GuestCommandError: The connection broke or the limit was reached.
        """
        line = f"/bin/sh -c {shlex.quote(command)}"
        if sudo:
            line = f"sudo -n {line}"
        try:
            channel = self._transport.open_session(timeout=timeout)
            with contextlib.closing(channel):
                channel.settimeout(timeout)
                channel.exec_command(line)
                errors: list[bytes] = []
                reader = threading.Thread(
                    target=_drain, args=(channel, errors), name="ssh-stderr", daemon=True
                )
                reader.start()
                if stdin:
                    channel.sendall(stdin)
                channel.shutdown_write()
                output = _read_all(channel)
                reader.join(timeout)
                code = channel.recv_exit_status()
        except (paramiko.SSHException, EOFError, OSError) as broken:
            raise GuestCommandError(
                f"the SSH connection broke while a command ran: {broken or type(broken).__name__}",
                instance=self._name,
                exit_code=-1,
                stderr="",
            ) from broken
        return CommandResult(
            code, output.decode(errors="replace"), b"".join(errors).decode(errors="replace")
        )

    def check(
        self, command: str, *, stdin: bytes = b"", sudo: bool = False, timeout: float = 60.0
    ) -> str:
        """Runs a command that must succeed, and returns its standard output.

        Raises:
            GuestCommandError: It did not.
        """
        result = self.run(command, stdin=stdin, sudo=sudo, timeout=timeout)
        if result.exit_code != 0:
            raise GuestCommandError(
                f"`{command}` ended with status {result.exit_code}: {result.stderr.strip()[-500:]}",
                instance=self._name,
                exit_code=result.exit_code,
                stderr=result.stderr,
            )
        return result.stdout

    def close(self) -> None:
        """Ends the connection."""
        self._transport.close()


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


def _read_all(channel: paramiko.Channel) -> bytes:
    parts = []
    while part := channel.recv(65536):
        parts.append(part)
    return b"".join(parts)


def _drain(channel: paramiko.Channel, into: list[bytes]) -> None:
    with contextlib.suppress(OSError):
        while part := channel.recv_stderr(65536):
            into.append(part)
