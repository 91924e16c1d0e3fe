"""Logs in to a guest over SSH, with a pinned host key (M6)."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

import paramiko
from paramiko.ssh_exception import IncompatiblePeer

from pytest_vmss.guest.shell import Shell
from pytest_vmss.guest.transport import (
    ConnectionBrokenError,
    close_transport,
    open_transport,
    transport_errors,
)
from pytest_vmss.host.peers import owner_of_peer

__all__ = ["HostKeyMismatchError", "log_in"]

_CONNECT_S = 2.0
_BANNER_S = 2.0


class HostKeyMismatchError(Exception):
    """The guest presented a host key other than the one in its seed."""


def log_in(
    address: str,
    port: int,
    *,
    user: str,
    key: Path,
    host_key: str,
    name: str,
    timeout: float,
    server: Callable[[], int] | None = None,
    mask: Callable[[str], str] = str,
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
        mask: Masks the secrets in a text of the guest's that becomes part of an error.

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
                failed.callback(close_transport, transport, link)
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
    return Shell(transport, name, f"{shown.get_name()} {shown.get_base64()}", mask)


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
