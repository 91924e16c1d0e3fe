"""Contains the exceptions and logs of paramiko, which a guest can influence (R2).

An SSH server can make paramiko raise nearly any exception, and write anything into its log.
So every call to paramiko is made within :func:`transport_errors`, and every transport is
created by :func:`open_transport`.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Iterator

import paramiko

from pytest_vmss.errors import GuestCommandError, InstanceError, is_out_of_threads

__all__ = ["ConnectionBrokenError", "open_transport", "transport_errors"]

_LOG_CHANNEL = "pytest_vmss.ssh"


class ConnectionBrokenError(GuestCommandError):
    """The SSH connection to a guest broke, or its server violated the protocol."""

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
    """Converts whatever paramiko raises to an error of the instance.

    Errors that mean the host is out of memory or threads propagate unchanged.

    Args:
        instance: Name of the instance.
        error_of: Converts paramiko's exception; the default creates a
            :class:`ConnectionBrokenError`.

    Raises:
        InstanceError: paramiko raised something.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or is_out_of_threads(error):
            raise
        if error_of is not None:
            raise error_of(error) from error
        raise ConnectionBrokenError(error, instance=instance) from error


def open_transport(link: socket.socket) -> paramiko.Transport:
    """Creates a transport whose log is discarded, since a guest can write to it.

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
