"""Tunnels a guest's connections to the lab's file server, and nowhere else (H5, M6).

An isolated guest has no outbound network. While the lab is logged in to it, its SSH server
listens on the guest's own loopback and forwards connections to the lab, which relays each to
its file server; the guest cannot choose another destination.
"""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import threading
from collections.abc import Callable

import paramiko

from pytest_vmss.clock import Deadline
from pytest_vmss.errors import InstanceError, VmssError
from pytest_vmss.file_server.blobs import GUEST_VIEW
from pytest_vmss.guest.transport import GuestTransport, transport_errors

__all__ = ["Tunnel", "through_tunnel"]

_LOOPBACK = "127.0.0.1"
#: Maximum number of concurrent connections of one guest; others are closed at once.
_MOST = 4
#: Maximum number of reasons that are told of one tunnel.
_REASONS = 5
#: Number of such refusals after which the whole SSH connection is closed.
_REFUSED = 100
_CHUNK = 65536
_SILENCE_S = 60.0
#: Seconds, however busy it is: no download of a few GiB takes longer.
_TOTAL_S = 3600.0
_WAIT_S = 1.0
_CLOSED = "closed a connection without an answer"


def through_tunnel(uri: str, port: int | None) -> str:
    """Rewrites a URI of the lab's file server to lead through the tunnel; others stay.

    Args:
        uri: The URI in the model.
        port: The file server's port; None if it is not running.
    """
    if port is None:
        return uri
    return re.sub(
        rf"\Ahttp://{re.escape(GUEST_VIEW)}:{port}(?=[/?#]|\Z)",
        f"http://{_LOOPBACK}:{port}",
        uri,
        flags=re.IGNORECASE,
    )


class Tunnel:
    """Relays connections that a guest's SSH server forwards to the lab's file server.

    Args:
        transport: The connection to the guest.
        port: Port of the file server, on the loopback of both the host and the guest.
        instance: Name of the guest's instance.
        dial: Connects to the file server, and raises if it is not the lab's own.
        warn: Told why the tunnel or a connection failed, once for each reason; must not raise.
    """

    def __init__(
        self,
        transport: GuestTransport,
        port: int,
        *,
        instance: str,
        dial: Callable[[], socket.socket],
        warn: Callable[[str], None],
    ) -> None:
        self._transport = transport
        self._port = port
        self._instance = instance
        self._dial = dial
        self._warn = warn
        self._warned: set[str] = set()
        self._room = threading.BoundedSemaphore(_MOST)
        self._refused = 0
        self._opening = threading.Lock()
        self._open = False

    def open(self) -> bool:
        """Asks the guest's SSH server to listen, unless it already does.

        Returns:
            Whether it listens; not if it forbids forwarding or the port is in use, e.g. by the
            tunnel of another of the lab's processes.
        """
        with self._opening:  # else it would deny the second of two threads, which is no failure
            if not self._open:
                self._listen()
        return self._open

    def _listen(self) -> None:
        try:
            with transport_errors(self._instance):
                self._transport.listen(_LOOPBACK, self._port, self._take)
            self._open = True
        except InstanceError as error:
            self._tell(f"its SSH server does not listen on {_LOOPBACK}:{self._port}: {error}")

    def _tell(self, reason: str) -> None:
        if reason not in self._warned and len(self._warned) < _REASONS:
            self._warned.add(reason)
            self._warn(f"downloads from the lab's file server may fail: {reason}")

    def _take(
        self, channel: paramiko.Channel, origin: tuple[str, int], server: tuple[str, int]
    ) -> None:
        """Called in paramiko's own thread, which must not block."""
        del origin, server  # chosen by the guest
        if not self._room.acquire(blocking=False):
            self._refused += 1
            if self._refused > _REFUSED:
                self._transport.close()
                return
            # Closing sends a message, which may have to wait for the thread that runs this.
            with contextlib.suppress(RuntimeError):  # no more threads
                threading.Thread(
                    target=self._close, args=[channel], name="vmss-tunnel-full", daemon=True
                ).start()
            return
        try:
            threading.Thread(
                target=self._run, args=(channel,), name="vmss-tunnel", daemon=True
            ).start()
        except RuntimeError:  # no more threads
            self._room.release()

    def _run(self, channel: paramiko.Channel) -> None:
        try:
            # If the server is not the lab's, each new connection is closed at once.
            with self._dial() as link, transport_errors(self._instance):
                if reason := _relay(channel, link):
                    self._tell(f"the file server {reason}")
        except InstanceError:
            pass  # one side ended the connection
        except (VmssError, OSError, MemoryError) as error:
            self._tell(str(error) or type(error).__name__)
        finally:
            self._close(channel)
            self._room.release()

    @staticmethod
    def _close(channel: paramiko.Channel) -> None:
        with contextlib.suppress(Exception):  # the connection is gone, for whatever reason
            channel.close()


def _relay(channel: paramiko.Channel, link: socket.socket) -> str:
    """Copies both ways until one side closes, falls silent for too long, or time is up.

    Returns:
        Why the guest has no answer of the server, if that is the server's fault; else nothing.
    """
    asked = answered = False
    channel.settimeout(_SILENCE_S)
    link.settimeout(_SILENCE_S)
    end, silence = Deadline(_TOTAL_S), Deadline(_SILENCE_S)
    with selectors.DefaultSelector() as sides:
        sides.register(channel, selectors.EVENT_READ, (channel.recv, link.sendall))
        sides.register(link, selectors.EVENT_READ, (link.recv, channel.sendall))
        while not end.passed and not silence.passed:
            for side, _ in sides.select(_WAIT_S):
                receive, send = side.data
                try:
                    part = receive(_CHUNK)
                    asked |= side.fileobj is channel and bool(part)
                    if part:
                        send(part)
                except ConnectionError:  # of the server's socket: paramiko raises others
                    return "" if answered or not asked else _CLOSED
                if part:
                    silence = Deadline(_SILENCE_S)
                    answered |= side.fileobj is link
                elif side.fileobj is link:
                    return "" if answered or not asked else _CLOSED
                else:  # the guest has sent everything; the response is still to come
                    with contextlib.suppress(OSError):  # it was reset, as its next read shows
                        link.shutdown(socket.SHUT_WR)
                    sides.unregister(channel)
    return "" if answered or not asked else f"gave no answer for {_SILENCE_S:g} s"
