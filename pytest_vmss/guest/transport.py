"""paramiko's side of a connection to a guest: what it raises and logs is a guest's choice (R2).

An SSH server can make paramiko raise nearly any exception, and writes what it likes into
paramiko's log. Every call of paramiko is made within :func:`transport_errors`, and every
transport comes from :func:`open_transport`.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Iterator

import paramiko

from pytest_vmss.errors import GuestCommandError, InstanceError

__all__ = ["ConnectionBrokenError", "open_transport", "transport_errors"]

_LOG_CHANNEL = "pytest_vmss.ssh"
#: How CPython words it that the host gives no more threads.
_NO_THREAD = "can't start new thread"


class ConnectionBrokenError(GuestCommandError):
    """The SSH connection to a guest broke, or its server does not keep to the protocol."""

    def __init__(self, error: Exception, *, instance: str) -> None:
        super().__init__(
            f"the SSH connection broke: {str(error) or type(error).__name__}",
            instance=instance,
            exit_code=-1,
            stderr="",
        )


@contextlib.contextmanager
def transport_errors(
    instance: str, error_of: Callable[[Exception], InstanceError] | None = None
) -> Iterator[None]:
    """Turns whatever paramiko raises into an error of the instance.

    Memory and threads that the host does not have are its own trouble and stay as they are.

    Args:
        instance: Name of the instance.
        error_of: Makes the error from paramiko's; the default is a
            :class:`ConnectionBrokenError`.

    Raises:
        InstanceError: paramiko raised something.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or _is_out_of_threads(error):
            raise
        if error_of is not None:
            raise error_of(error) from error
        raise ConnectionBrokenError(error, instance=instance) from error


def _is_out_of_threads(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and _NO_THREAD in str(error)


def open_transport(link: socket.socket) -> paramiko.Transport:
    """A transport over a connection, whose log goes nowhere: a guest writes into it.

    Raises:
        Exception: Whatever paramiko raises.
    """
    log = logging.getLogger(_LOG_CHANNEL)
    if not log.handlers:
        log.addHandler(logging.NullHandler())
    log.propagate = False
    log.setLevel(logging.CRITICAL + 1)
    transport = paramiko.Transport(link)
    transport.set_log_channel(_LOG_CHANNEL)
    return transport
