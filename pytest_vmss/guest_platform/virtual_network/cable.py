"""A guest's end of its cable to the switch, for a guest whose frames another process takes (A9).

The guest has one network card, with its private address. Frames for its subnet go to the switch,
under the MAC addresses that are known there.
"""

from __future__ import annotations

import contextlib
import os
import socket

from pytest_vmss.guest_platform.addresses import GATEWAY_MAC, Lease
from pytest_vmss.guest_platform.frames import Datagram, ipv4_target, read_datagram, redirected
from pytest_vmss.guest_platform.virtual_network import names
from pytest_vmss.guest_platform.virtual_network.config import VirtualNetwork
from pytest_vmss.guest_platform.virtual_network.switch import LARGEST

__all__ = ["GuestCable"]

#: Frames that are taken before others have their turn.
_TURN = 64


class GuestCable:
    """A guest's end of its cable.

    Args:
        network: The instance's place in the network.
        lease: What the guest has by DHCP.

    Raises:
        OSError: The socket cannot be made.
    """

    def __init__(self, network: VirtualNetwork, lease: Lease) -> None:
        self._network = network
        self._lease = lease
        self._mac = bytes.fromhex(network.mac.replace(":", ""))
        near = network.guest_end
        near.unlink(missing_ok=True)
        self.link = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.link.setblocking(False)
        # Paths are relative, since the length of socket paths is limited.
        self.link.bind(os.path.relpath(near))
        self._far = os.path.relpath(network.switch_end)

    def leads_to(self, frame: bytes) -> bool:
        """Whether a frame is for another address of the subnet than the gateway's."""
        target = ipv4_target(frame)
        return target is not None and target in self._lease.subnet and target != self._lease.gateway

    def send(self, frame: bytes) -> None:
        """Sends a frame to the switch; drops it if that is away or too busy, as a wire does."""
        with contextlib.suppress(OSError):
            self.link.sendto(redirected(frame, GATEWAY_MAC, self._mac), self._far)

    def receive(self) -> list[bytes]:
        """The frames that have arrived for the guest."""
        frames = list[bytes]()
        with contextlib.suppress(OSError):
            while len(frames) < _TURN:
                frame = self.link.recv(LARGEST)
                frames.append(redirected(frame, self._lease.mac, GATEWAY_MAC))
        return frames

    def answer(self, frame: bytes) -> Datagram | None:
        """Answers a question for the name of an instance of the set; None if it is none."""
        asked = read_datagram(frame)
        if asked is None or asked.target_port != names.DNS_PORT:
            return None
        return names.answer(asked, self._network.prefix, self._exists)

    def _exists(self, number: int) -> bool:
        return self._network.files.guest_end(number).exists()
