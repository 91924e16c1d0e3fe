"""One guest's network: its frames, between QEMU's socket and libslirp (R1, O1).

The guest reaches Azure's two addresses and nothing else, unless the lab gives it a way out. ARP,
DHCP and, in a closed network, questions for names are answered here.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network

from pytest_vmss.guest_platform import dhcp
from pytest_vmss.guest_platform.addresses import GATEWAY_MAC, METADATA, WIRE_SERVER, Lease
from pytest_vmss.guest_platform.frames import (
    BROADCAST,
    Datagram,
    arp_reply,
    arp_target,
    ipv4_target,
    is_tcp,
    read_datagram,
    target_port,
    udp_frame,
)
from pytest_vmss.guest_platform.slirp import NAME_SERVER, Slirp
from pytest_vmss.guest_platform.virtual_network import names
from pytest_vmss.guest_platform.virtual_network.cable import GuestCable

__all__ = ["HTTP_PORT", "FrameStream", "Network", "lease_of"]

HTTP_PORT = 80
#: Where Azure serves the goal state's artifacts, from the wire server's address.
_PLUGIN_PORT = 32526
_ALL = IPv4Address("255.255.255.255")
#: Linux connects 0.0.0.0 to its loopback.
_THIS_HOST = IPv4Network("0.0.0.0/8")

_LENGTH = 4
#: Largest frame that is accepted; QEMU sends no larger ones.
_LARGEST = 68 * 1024
#: Bytes that may wait for a guest that does not receive; later frames are dropped, as by a wire.
_WAITING = 4 * 1024 * 1024
_CHUNK = 256 * 1024
_IDLE_MS = 1000


def lease_of(instance_id: int, mac: str, *, outbound: bool) -> Lease:
    """The lease of an instance, by what it may reach."""
    return Lease.of(instance_id, mac, NAME_SERVER if outbound else WIRE_SERVER)


class FrameStream:
    """QEMU's ``-netdev stream``: frames, each after its length.

    Args:
        link: The connected socket.
    """

    def __init__(self, link: socket.socket) -> None:
        link.setblocking(False)
        self.link = link
        self._in = bytearray()
        self._out = bytearray()

    @property
    def wanted(self) -> int:
        """The events to wait for."""
        return select.POLLIN | (select.POLLOUT if self._out else 0)

    def receive(self) -> list[bytes]:
        """Returns the frames that have arrived.

        Raises:
            EOFError: QEMU is gone.
            OSError: The connection broke, or does not hold frames.
        """
        try:
            part = self.link.recv(_CHUNK)
        except BlockingIOError:
            return []
        if not part:
            raise EOFError
        self._in += part
        frames, at = [], 0
        while len(self._in) - at >= _LENGTH:
            size = int.from_bytes(self._in[at : at + _LENGTH])
            if size > _LARGEST:
                raise OSError(f"a frame of {size} bytes")
            end = at + _LENGTH + size
            if len(self._in) < end:
                break
            frames.append(bytes(self._in[at + _LENGTH : end]))
            at = end
        del self._in[:at]
        return frames

    def send(self, frame: bytes) -> None:
        """Queues a frame."""
        if len(self._out) < _WAITING:
            self._out += len(frame).to_bytes(_LENGTH) + frame

    def flush(self) -> None:
        """Sends what can be sent now.

        Raises:
            OSError: The connection broke.
        """
        if self._out:
            try:
                del self._out[: self.link.send(self._out)]
            except BlockingIOError:
                return


class Network:
    """A guest's network.

    Args:
        stream: The guest's frames.
        lease: What the guest gets by DHCP.
        outbound: Whether it reaches what the host reaches, its loopback excepted.
        saw: Called with ``dhcp`` when the guest asks for a lease, and ``lease`` when it has one.
        cable: Its cable to the switch of its set; None if that has no private network (A9).

    Raises:
        HostError: libslirp is not installed.
    """

    def __init__(
        self,
        stream: FrameStream,
        lease: Lease,
        *,
        outbound: bool,
        saw: Callable[[str], None],
        cable: GuestCable | None = None,
    ) -> None:
        self._cable = cable
        self._stream = stream
        self._lease = lease
        self._outbound = outbound
        self._saw = saw
        self._slirp = Slirp(stream.send, outbound=outbound)
        # The guest's address is known, so libslirp never has to ask for it.
        self._slirp.input(arp_reply(lease.address, lease.mac, lease.gateway, GATEWAY_MAC))

    def serve(self, metadata: str, wire_server: str) -> None:
        """Serves Azure's two addresses from Unix sockets.

        Raises:
            HostError: libslirp refuses.
        """
        self._slirp.serve(METADATA, HTTP_PORT, metadata)
        self._slirp.serve(WIRE_SERVER, HTTP_PORT, wire_server)
        self._slirp.serve(WIRE_SERVER, _PLUGIN_PORT, wire_server)

    def forward(self, listen: str, port: int, guest_port: int) -> None:
        """Forwards a TCP port of the host's loopback to the guest.

        Raises:
            HostError: The port cannot be listened on.
        """
        self._slirp.forward(IPv4Address(listen), port, self._lease.address, guest_port)

    def run(self) -> None:
        """Carries frames until QEMU ends."""
        number = self._stream.link.fileno()
        cable = -1 if self._cable is None else self._cable.link.fileno()
        try:
            while True:
                wanted = {number: self._stream.wanted}
                if self._cable is not None:
                    wanted[cable] = select.POLLIN
                ready = self._slirp.wait(wanted, _IDLE_MS)
                if self._cable is not None and ready.get(cable, 0):
                    for frame in self._cable.receive():
                        self._stream.send(frame)
                if ready.get(number, 0) & ~select.POLLOUT:
                    for frame in self._stream.receive():
                        self.take(frame)
                self._stream.flush()
        except (EOFError, OSError):
            return
        finally:
            self._slirp.close()

    def take(self, frame: bytes) -> None:
        """Takes a frame from the guest."""
        asked = arp_target(frame)
        if asked is not None:
            if asked == self._lease.gateway or self._is_neighbour(asked):
                self._stream.send(
                    arp_reply(asked, GATEWAY_MAC, self._lease.address, self._lease.mac)
                )
            return
        datagram = read_datagram(frame)
        if datagram is not None and datagram.target_port == dhcp.SERVER_PORT:
            self._lend(datagram)
        elif self._cable is not None and self._cable.leads_to(frame):
            self._cable.send(frame)
        elif self._cable is not None and (named := self._cable.answer(frame)) is not None:
            self._send(named, self._lease.mac)
        elif self._leads_out(frame) if self._outbound else is_tcp(frame):
            self._slirp.input(frame)
        elif datagram is not None and datagram.target_port == names.DNS_PORT:
            self._refuse_name(datagram)

    def _is_neighbour(self, asked: IPv4Address) -> bool:
        """Whether an address is one of the subnet that the guest reaches over its cable."""
        return (
            self._cable is not None and asked in self._lease.subnet and asked != self._lease.address
        )

    def _leads_out(self, frame: bytes) -> bool:
        """Whether a frame of a guest that is let out leads elsewhere than to the host's loopback.

        libslirp keeps loopback from a guest at its own addresses only: it would connect to
        127.0.0.1 as such, and to any port of a name server that listens there.
        """
        target = ipv4_target(frame)
        if target is None or target.is_loopback or target in _THIS_HOST:
            return False
        return target != NAME_SERVER or target_port(frame) == names.DNS_PORT

    def _lend(self, asked: Datagram) -> None:
        reply = dhcp.answer(asked.payload, self._lease)
        if reply is None:
            return
        self._saw("lease" if reply.is_ack else "dhcp")
        self._send(
            Datagram(
                WIRE_SERVER,
                dhcp.SERVER_PORT,
                _ALL if reply.broadcast else self._lease.address,
                dhcp.CLIENT_PORT,
                reply.payload,
            ),
            BROADCAST if reply.broadcast else self._lease.mac,
        )

    def _refuse_name(self, asked: Datagram) -> None:
        refused = names.refuse(asked)
        if refused is not None:
            self._send(refused, self._lease.mac)

    def _send(self, datagram: Datagram, mac: bytes) -> None:
        self._stream.send(udp_frame(datagram, source_mac=GATEWAY_MAC, target_mac=mac))
