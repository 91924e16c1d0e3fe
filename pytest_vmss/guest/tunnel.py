"""Leads a guest to the lab's file server, and to nothing else of the host (H5, M6).

An isolated guest has no way out. While the lab is logged in to it, its SSH server listens
on the guest's own loopback and hands connections to the lab, which joins each to its
file server; where else they might lead is not the guest's to say.
"""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable

import paramiko

from pytest_vmss.errors import InstanceError, VmssError
from pytest_vmss.file_server.blobs import GUEST_VIEW
from pytest_vmss.guest.transport import transport_errors

__all__ = ["Tunnel", "through_tunnel"]

_LOOPBACK = "127.0.0.1"
#: Connections of one guest at a time; others are closed at once.
_MOST = 4
#: How many are closed so; a guest that goes on loses the whole connection.
_REFUSED = 100
_CHUNK = 65536
_SILENCE_S = 60.0
#: However busy it is: no download of a few GiB takes longer.
_TOTAL_S = 3600.0
_WAIT_S = 1.0


def through_tunnel(uri: str, port: int | None) -> str:
    """A URI as a guest asks for it: one of the lab's file server leads through the tunnel.

    Args:
        uri: As the model has it.
        port: The file server's; None where there is none.
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
    """Joins connections that a guest's SSH server hands over to the lab's file server.

    Args:
        transport: The connection to the guest.
        port: Of the file server, on the host's loopback and on the guest's alike.
        instance: Name of the guest's instance.
        dial: Connects to the file server, and raises where it is not the lab's own that answers.
    """

    def __init__(
        self,
        transport: paramiko.Transport,
        port: int,
        *,
        instance: str,
        dial: Callable[[], socket.socket],
    ) -> None:
        self._transport = transport
        self._port = port
        self._instance = instance
        self._dial = dial
        self._room = threading.BoundedSemaphore(_MOST)
        self._refused = 0
        self._open = False

    def open(self) -> bool:
        """Asks the guest's SSH server to listen, unless it does already.

        Returns:
            Whether it listens; not where it forbids forwarding, or something in the guest,
            such as the tunnel of another process of the lab, has the port.
        """
        if not self._open:
            with contextlib.suppress(InstanceError), transport_errors(self._instance):
                self._transport.request_port_forward(_LOOPBACK, self._port, self._take)
                self._open = True
        return self._open

    def _take(
        self, channel: paramiko.Channel, origin: tuple[str, int], server: tuple[str, int]
    ) -> None:
        """Called by paramiko's own thread, which must not wait."""
        del origin, server  # a guest says what it likes
        if not self._room.acquire(blocking=False):
            self._refused += 1
            if self._refused > _REFUSED:
                self._transport.close()
                return
            # Closing sends, and sending may wait for the thread that runs this.
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
            with (
                # Where the server is not the lab's, each new connection ends at once.
                contextlib.suppress(VmssError, OSError, MemoryError),
                self._dial() as link,
                transport_errors(self._instance),
            ):
                _relay(channel, link)
        finally:
            self._close(channel)
            self._room.release()

    @staticmethod
    def _close(channel: paramiko.Channel) -> None:
        with contextlib.suppress(Exception):  # the connection has gone, in whatever way
            channel.close()


def _relay(channel: paramiko.Channel, link: socket.socket) -> None:
    """Copies both ways until either side ends, is silent too long, or all takes too long."""
    channel.settimeout(_SILENCE_S)
    link.settimeout(_SILENCE_S)
    end = time.monotonic() + _TOTAL_S
    heard = time.monotonic()
    with selectors.DefaultSelector() as sides:
        sides.register(channel, selectors.EVENT_READ, (channel.recv, link.sendall))
        sides.register(link, selectors.EVENT_READ, (link.recv, channel.sendall))
        while time.monotonic() < min(end, heard + _SILENCE_S):
            for side, _ in sides.select(_WAIT_S):
                receive, send = side.data
                part = receive(_CHUNK)
                if part:
                    send(part)
                    heard = time.monotonic()
                elif side.fileobj is link:
                    return
                else:  # the guest has said all; the answer is still to come
                    link.shutdown(socket.SHUT_WR)
                    sides.unregister(channel)
