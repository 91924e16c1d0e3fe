"""Contains the exceptions and logs of paramiko, which a guest can influence (R2).

An SSH server can make paramiko raise nearly any exception, and write anything into its log.
So every call to paramiko is made within :func:`transport_errors`, and every transport is
created by :func:`open_transport`. paramiko also keeps whatever a server sends, of any size and
against the protocol; :class:`GuestTransport` does not.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import ClassVar

import paramiko
from paramiko.common import MSG_CHANNEL_CLOSE, MSG_CHANNEL_DATA, MSG_CHANNEL_EXTENDED_DATA

from pytest_vmss.errors import GuestCommandError, InstanceError, is_out_of_threads

__all__ = [
    "ConnectionBrokenError",
    "ForwardTaker",
    "GuestTransport",
    "close_transport",
    "open_transport",
    "transport_errors",
]

_LOG_CHANNEL = "pytest_vmss.ssh"
#: Maximum size in bytes of a packet; honest ones have at most 32 KiB of data.
_PACKET_BYTES = 256 * 1024
#: Maximum number of bytes before the key exchange, which are lines of text.
_BANNER_BYTES = 64 * 1024
#: Number of closed channels of which late messages are still ignored.
_SEEN = 4096
#: Maximum number of answers that wait for the end of a key exchange.
_ANSWERS = 1024
#: Number of bytes that a guest may send on a channel it opens before they are read: a request.
_WINDOW_BYTES = 64 * 1024
#: Timeout in seconds for the end of paramiko's thread.
_CLOSE_S = 1.0


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


class _Packetizer(paramiko.packet.Packetizer):
    """Reads packets; refuses ones that are too long before reading them."""

    def __init__(self, link: socket.socket) -> None:
        super().__init__(link)
        self._left = _BANNER_BYTES

    def read_all(self, n: int, check_rekey: bool = False) -> bytes:
        if n > _PACKET_BYTES:
            raise paramiko.SSHException(f"a packet of {n} bytes is too long")
        return super().read_all(n, check_rekey)

    def _read_timeout(self, timeout: float) -> bytes:
        """Used only for the lines before the key exchange."""
        part: bytes = super()._read_timeout(timeout)  # type: ignore[misc]  # has no stub
        self._left -= len(part)
        if self._left < 0:
            raise paramiko.SSHException("its banner is too long")
        return part


class _Recent(dict[int, bool]):
    """The numbers of a connection's latest channels."""

    def __setitem__(self, number: int, seen: bool) -> None:
        super().__setitem__(number, seen)
        while len(self) > _SEEN:
            del self[next(iter(self))]


#: Takes a connection that came to the guest: the channel, its origin, and where it came to.
ForwardTaker = Callable[[paramiko.Channel, tuple[str, int], tuple[str, int]], None]
_Handler = Callable[[paramiko.Channel, paramiko.Message], None]
_HANDLERS: dict[int, _Handler] = paramiko.Transport._channel_handler_table  # type: ignore[attr-defined]


def _bounded(feed: _Handler) -> _Handler:
    """Wraps a handler of data, to end the connection if a guest ignores the channel's window."""

    def take(channel: paramiko.Channel, message: paramiko.Message) -> None:
        if channel.closed:
            return  # it was still on its way, and nobody reads it any more
        if channel.eof_received:
            raise paramiko.SSHException("data came after its end")
        feed(channel, message)
        # What is read leaves the buffers before the window is widened by as much.
        unread = len(channel.in_buffer) + len(channel.in_stderr_buffer)
        if unread > channel.in_window_size:
            raise paramiko.SSHException("more data came than the window allows")

    return take


def _closed_by_guest(channel: paramiko.Channel, message: paramiko.Message) -> None:
    if isinstance(channel.transport, GuestTransport):
        channel.transport.note_close(channel)
    _HANDLERS[MSG_CHANNEL_CLOSE](channel, message)


class GuestTransport(paramiko.Transport):
    """A connection on which a guest uses no more memory than the protocol grants it.

    Args:
        link: The socket.
    """

    #: What handles the messages for a channel; an SSHException ends the connection.
    _channel_handler_table: ClassVar[dict[int, _Handler]] = {
        **_HANDLERS,
        MSG_CHANNEL_DATA: _bounded(_HANDLERS[MSG_CHANNEL_DATA]),
        MSG_CHANNEL_EXTENDED_DATA: _bounded(_HANDLERS[MSG_CHANNEL_EXTENDED_DATA]),
        MSG_CHANNEL_CLOSE: _closed_by_guest,
    }

    def __init__(self, link: socket.socket) -> None:
        super().__init__(link, packetizer_class=_Packetizer)
        self.command_window = self.default_window_size
        self.default_window_size = _WINDOW_BYTES  # of channels that the guest opens
        self.channels_seen = _Recent()
        self._closed_by_guest: weakref.WeakSet[paramiko.Channel] = weakref.WeakSet()
        self._answers: list[paramiko.Message] = []
        self._forwarding = threading.Lock()

    def _send_user_message(self, message: paramiko.Message) -> None:
        """Sends a message after any key exchange, for which paramiko's own thread cannot wait.

        It would wait for itself, e.g. to answer a close that crossed with its key exchange.
        """
        if threading.current_thread() is not self or self.clear_to_send.is_set():
            super()._send_user_message(message)  # type: ignore[misc]  # has no stub
        elif len(self._answers) < _ANSWERS:
            self._answers.append(message)
        else:
            raise paramiko.SSHException("too many messages came during a key exchange")

    def _parse_newkeys(self, message: paramiko.Message) -> None:
        """Ends a key exchange."""
        super()._parse_newkeys(message)  # type: ignore[misc]  # has no stub
        answers, self._answers = self._answers, []
        for answer in answers:
            self._send_user_message(answer)

    def note_close(self, channel: paramiko.Channel) -> None:
        """Records that the guest has closed a channel."""
        self._closed_by_guest.add(channel)

    def is_closed_by_guest(self, channel: paramiko.Channel) -> bool:
        """Whether the guest has closed a channel, rather than its connection having ended."""
        return channel in self._closed_by_guest

    def listen(self, address: str, port: int, take: ForwardTaker) -> None:
        """Asks the guest's SSH server to listen and to hand over the connections that come.

        paramiko would refuse them all if it took the answer for a denial, as it may if two threads
        ask at once. One asks at a time, and what the server hands over is taken whatever it said.

        Args:
            address: Where, in the guest.
            port: Where.
            take: Called in paramiko's own thread, which must not block, with the channel and the
                addresses that the guest names.

        Raises:
            Exception: Whatever paramiko raises; an SSHException if the server does not listen.
        """
        with self._forwarding:
            self._tcp_handler = take
            self.request_port_forward(address, port, take)

    def open_command(self, timeout: float) -> paramiko.Channel:
        """Opens a channel for a command.

        Raises:
            Exception: Whatever paramiko raises.
        """
        return self.open_session(window_size=self.command_window, timeout=timeout)


def open_transport(link: socket.socket) -> GuestTransport:
    """Creates a transport whose log is discarded, since a guest can write to it.

    Raises:
        Exception: Whatever paramiko raises.
    """
    log = logging.getLogger(_LOG_CHANNEL)
    if not log.handlers:
        log.addHandler(logging.NullHandler())
    log.propagate = False
    log.setLevel(logging.CRITICAL + 1)
    transport = GuestTransport(link)
    transport.set_log_channel(_LOG_CHANNEL)
    return transport


def close_transport(transport: paramiko.Transport, link: socket.socket | paramiko.Channel) -> None:
    """Closes a connection, whatever the guest does.

    Its socket too: a server that drips bytes would keep paramiko's thread running.
    """
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
