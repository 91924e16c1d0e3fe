"""A guest's network as Azure has it: ARP, DHCP, the two servers, and nothing else (O1, R1)."""

from __future__ import annotations

import ctypes
import socket
import struct
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vmss.errors import HostError
from pytest_vmss.guest_platform import dhcp
from pytest_vmss.guest_platform.addresses import GATEWAY_MAC, METADATA, WIRE_SERVER, Lease
from pytest_vmss.guest_platform.frames import (
    BROADCAST,
    Datagram,
    arp_reply,
    arp_target,
    ethernet,
    ipv4_target,
    is_tcp,
    read_datagram,
    target_port,
    udp_frame,
)
from pytest_vmss.guest_platform.network import FrameStream, Network, lease_of
from pytest_vmss.guest_platform.slirp import LIBRARY, NAME_SERVER
from pytest_vmss.guest_platform.virtual_network.cable import GuestCable
from pytest_vmss.guest_platform.virtual_network.config import NetworkFiles, VirtualNetwork

MAC = bytes.fromhex("525400123456")
LEASE = lease_of(3, "52:54:00:12:34:56", outbound=False)
SYN = 2
GUEST = IPv4Address("10.0.0.7")


def has_libslirp() -> bool:
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


def message(kind: int, *, own: str = "0.0.0.0", options: bytes = b"", mac: bytes = MAC) -> bytes:
    """A client's DHCP message."""
    head = struct.pack(
        "!BBBBIHH4s4s4s4s6s10s192s", 1, 1, 6, 0, 0xABCD, 0, 0, IPv4Address(own).packed,
        bytes(4), bytes(4), bytes(4), mac, bytes(10), bytes(192),
    )  # fmt: skip
    return head + bytes.fromhex("63825363") + bytes([53, 1, kind]) + options + b"\xff"


def options_in(payload: bytes) -> dict[int, bytes]:
    """The options of a response, read independently of the code that wrote them."""
    found, at = {}, 240
    while payload[at] != 255:
        code, size = payload[at], payload[at + 1]
        found[code] = payload[at + 2 : at + 2 + size]
        at += 2 + size
    return found


def test_instances_have_addresses_of_their_own() -> None:
    """O3: as in a subnet of Azure, whose first four addresses are its own."""
    assert Lease.of(0, "52:54:00:00:00:01").address == IPv4Address("10.0.0.4")
    assert LEASE.address == GUEST
    addresses = {Lease.of(number, "52:54:00:00:00:01").address for number in range(70_000)}
    assert (
        len(addresses) == 65_275
    )  # 10.0.2.0/24 is that of the network by which the lab reaches guests
    assert IPv4Address("10.0.255.255") not in addresses


def test_a_lease_has_azures_routes_and_wire_server() -> None:
    """O1: without options 121 and 245 cloud-init ends degraded."""
    offer = dhcp.answer(message(1), LEASE)
    assert offer is not None
    assert (offer.broadcast, offer.is_ack) == (True, False)
    assert offer.payload[16:20] == GUEST.packed
    told = options_in(offer.payload)
    assert told[53] == b"\x02"
    assert told[245] == told[54] == WIRE_SERVER.packed
    assert told[3] == IPv4Address("10.0.0.1").packed
    assert told[1] == IPv4Address("255.255.0.0").packed
    gateway = IPv4Address("10.0.0.1").packed
    assert told[121] == (
        b"\x00" + gateway + b"\x20" + WIRE_SERVER.packed + gateway
        + b"\x20" + METADATA.packed + gateway
    )  # fmt: skip


def test_a_lease_is_given_renewed_and_refused() -> None:
    wanted = b"\x32\x04" + GUEST.packed
    server = b"\x36\x04" + WIRE_SERVER.packed
    given_ = dhcp.answer(message(3, options=server + wanted), LEASE)
    assert given_ is not None
    assert given_.is_ack
    renewed = dhcp.answer(message(3, own=str(GUEST)), LEASE)
    assert renewed is not None
    assert (renewed.is_ack, renewed.broadcast) == (True, False)
    other = dhcp.answer(message(3, options=b"\x32\x04" + IPv4Address("10.0.2.15").packed), LEASE)
    assert other is not None
    assert not other.is_ack
    assert options_in(other.payload)[53] == b"\x06"
    assert dhcp.answer(message(3, options=b"\x36\x04\x0a\x00\x00\x01" + wanted), LEASE) is None
    assert dhcp.answer(message(1, mac=b"\2" * 6), LEASE) is None
    assert dhcp.answer(message(7), LEASE) is None  # a release


@given(st.binary(max_size=400))
def test_whatever_a_guest_sends_as_dhcp_is_answered_or_not(data: bytes) -> None:
    """R2."""
    dhcp.answer(data, LEASE)
    dhcp.answer(message(3)[:240] + data, LEASE)


@given(st.binary(max_size=100), st.sampled_from([b"", b"\x08\x00", b"\x08\x06"]))
def test_whatever_a_guest_sends_as_a_frame_is_read_or_not(data: bytes, kind: bytes) -> None:
    """R2."""
    for frame in (data, BROADCAST + MAC + kind + data, BROADCAST + MAC + kind + b"\x45" + data):
        arp_target(frame)
        is_tcp(frame)
        ipv4_target(frame)
        target_port(frame)
        read_datagram(frame)


def test_a_datagram_survives_its_frame() -> None:
    sent = Datagram(GUEST, 68, IPv4Address("255.255.255.255"), 67, b"hello")
    frame = udp_frame(sent, source_mac=MAC, target_mac=BROADCAST)
    assert read_datagram(frame) == sent
    header = struct.unpack("!10H", frame[14:34])
    assert sum(header) % 0xFFFF == 0  # the checksum is right
    assert not is_tcp(frame)


# Against the real libslirp.


class Wire:
    """A guest's end of its network."""

    def __init__(self, link: socket.socket) -> None:
        link.settimeout(5)
        self.link = link
        self._waiting: list[bytes] = []

    def send(self, frame: bytes) -> None:
        self.link.sendall(len(frame).to_bytes(4) + frame)

    def receive(self, *, within: float = 5.0) -> bytes | None:
        """The next frame; None if there is none in time."""
        self.link.settimeout(within)
        try:
            head = self.link.recv(4, socket.MSG_WAITALL)
            return self.link.recv(int.from_bytes(head), socket.MSG_WAITALL)
        except TimeoutError:
            return None


def tcp(
    target: str, port: int, *, own_port: int = 40_000, flags: int = 2, number: int = 1,
    acknowledged: int = 0, data: bytes = b"",
) -> bytes:  # fmt: skip
    """A frame with TCP from the guest."""
    ends = GUEST.packed + IPv4Address(target).packed
    size = 20 + len(data)

    def checksum(content: bytes) -> int:
        total: int = sum(struct.unpack(f"!{len(content) // 2}H", content))
        total = (total >> 16) + (total & 0xFFFF)
        return ~(total + (total >> 16)) & 0xFFFF

    def segment(check: int) -> bytes:
        head = struct.pack(
            "!HHIIBBHHH", own_port, port, number, acknowledged, 0x50, flags, 65535, check, 0
        )
        return head + data

    pseudo = ends + struct.pack("!HH", 6, size)
    body = segment(checksum(pseudo + segment(0) + b"\0" * (len(data) % 2)))
    fields = (0x45, 0, 20 + size, 0, 0, 64, 6)
    packed = struct.pack("!BBHHHBBH", *fields, 0) + ends
    packet = struct.pack("!BBHHHBBH", *fields, checksum(packed)) + ends + body
    return ethernet(GATEWAY_MAC, MAC, 0x0800, packet)


def flags_of(frame: bytes) -> int:
    """The flags of a frame's TCP segment."""
    flags: int = frame[14 + 20 + 13]
    return flags


@pytest.fixture
def saw() -> list[str]:
    return []


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saw: list[str]) -> Iterator[Network]:
    if not has_libslirp():
        pytest.skip("needs libslirp0, which comes with QEMU")
    monkeypatch.chdir(tmp_path)
    own, guest = socket.socketpair()
    made = Network(FrameStream(own), LEASE, outbound=False, saw=saw.append)
    made.guest = Wire(guest)  # type: ignore[attr-defined]
    for name in ("metadata", "wire"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(name)
        listener.listen()
        setattr(made, name, listener)
    made.serve("metadata", "wire")
    yield made
    guest.close()


@pytest.fixture
def guest(network: Network) -> Iterator[Wire]:
    thread = threading.Thread(target=network.run, daemon=True)
    thread.start()
    wire: Wire = network.guest  # type: ignore[attr-defined]
    yield wire
    wire.link.close()
    thread.join(5)
    assert not thread.is_alive()  # it ends with the guest


def test_the_gateway_and_nobody_else_answers_arp(guest: Wire) -> None:
    """A guest that checks whether its address is free must not be told that it is taken."""
    ask = bytearray(arp_reply(GUEST, MAC, IPv4Address("10.0.0.1"), bytes(6)))
    ask[20:22] = b"\x00\x01"
    guest.send(bytes(ask))
    answer = guest.receive()
    assert answer is not None
    assert answer[22:28] == GATEWAY_MAC
    own = bytearray(ask)
    own[38:42] = GUEST.packed
    guest.send(bytes(own))
    assert guest.receive(within=0.3) is None


@pytest.fixture
def networked(tmp_path: Path) -> Iterator[tuple[Wire, socket.socket]]:
    """A guest with a private network, and the switch's end of its cable."""
    if not has_libslirp():
        pytest.skip("needs libslirp0, which comes with QEMU")
    place = VirtualNetwork(NetworkFiles(tmp_path), 3, "web")
    place.files.guest_end(1).touch()  # another instance was started
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far:
        far.bind(str(place.switch_end))
        far.settimeout(5)
        own, other = socket.socketpair()
        cable = GuestCable(place, LEASE)
        network = Network(
            FrameStream(other), LEASE, outbound=False, saw=lambda _what: None, cable=cable
        )
        thread = threading.Thread(target=network.run, daemon=True)
        thread.start()
        yield Wire(own), far
        own.close()
        thread.join(5)
        cable.link.close()


def test_a_guest_reaches_its_neighbours(
    networked: tuple[Wire, socket.socket], tmp_path: Path
) -> None:
    """A9, O1: by its one card; the switch sees the MAC address that it knows."""
    guest, switch = networked
    neighbour, private = IPv4Address("10.0.0.5"), bytes.fromhex("52540a000007")
    ask = bytearray(arp_reply(GUEST, MAC, neighbour, bytes(6)))
    ask[20:22] = b"\x00\x01"
    guest.send(bytes(ask))
    answer = guest.receive()
    assert answer is not None
    assert answer[22:28] == GATEWAY_MAC
    sent = udp_frame(
        Datagram(GUEST, 7, neighbour, 9, b"there"), source_mac=MAC, target_mac=GATEWAY_MAC
    )
    guest.send(sent)
    assert switch.recv(2000) == GATEWAY_MAC + private + sent[12:]
    back = udp_frame(
        Datagram(neighbour, 9, GUEST, 7, b"back"), source_mac=GATEWAY_MAC, target_mac=private
    )
    switch.sendto(back, str(tmp_path / "3.q"))
    assert guest.receive() == MAC + GATEWAY_MAC + back[12:]


@pytest.mark.parametrize(("name", "code", "count"), [("web000001", 0, 1), ("web000009", 3, 0)])
def test_a_guest_asks_for_its_neighbours_by_name(
    networked: tuple[Wire, socket.socket], name: str, code: int, count: int
) -> None:
    """A9, O1: at Azure's name server."""
    guest, _ = networked
    question = b"\x12\x34\x01\x00\x00\x01" + bytes(6) + b"\x09" + name.encode() + b"\0\0\1\0\1"
    asked = Datagram(GUEST, 5353, WIRE_SERVER, 53, question)
    guest.send(udp_frame(asked, source_mac=MAC, target_mac=GATEWAY_MAC))
    answer = guest.receive()
    assert answer is not None
    datagram = read_datagram(answer)
    assert datagram is not None
    assert (datagram.payload[3] & 15, datagram.payload[7]) == (code, count)


def test_a_guest_gets_its_lease_over_the_wire(guest: Wire, saw: list[str]) -> None:
    asked = Datagram(IPv4Address("0.0.0.0"), 68, IPv4Address("255.255.255.255"), 67, message(1))
    guest.send(udp_frame(asked, source_mac=MAC, target_mac=BROADCAST))
    answer = guest.receive()
    assert answer is not None
    datagram = read_datagram(answer)
    assert datagram is not None
    assert (datagram.source, datagram.target_port) == (WIRE_SERVER, 68)
    guest.send(
        udp_frame(
            Datagram(asked.source, 68, asked.target, 67, message(3)),
            source_mac=MAC, target_mac=BROADCAST,
        )
    )  # fmt: skip
    assert guest.receive() is not None
    assert saw == ["dhcp", "lease"]


def test_questions_for_names_are_refused_at_once(guest: Wire) -> None:
    """R1: otherwise every lookup in a closed network costs a guest 20 s."""
    question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03abc\x00\x00\x01\x00\x01"
    guest.send(
        udp_frame(
            Datagram(GUEST, 5353, WIRE_SERVER, 53, question), source_mac=MAC, target_mac=GATEWAY_MAC
        )
    )
    answer = guest.receive()
    assert answer is not None
    datagram = read_datagram(answer)
    assert datagram is not None
    assert datagram.payload[:2] == b"\x12\x34"
    assert datagram.payload[2] & 0x80
    assert datagram.payload[3] & 15 == 5
    assert (datagram.target, datagram.target_port) == (GUEST, 5353)


@pytest.mark.parametrize(
    ("address", "port", "name"),
    [("169.254.169.254", 80, "metadata"), ("168.63.129.16", 80, "wire"),
     ("168.63.129.16", 32526, "wire")],
)  # fmt: skip
def test_each_connection_has_a_connection_of_its_own(
    guest: Wire, network: Network, address: str, port: int, name: str
) -> None:
    """O1."""
    listener: socket.socket = getattr(network, name)
    listener.settimeout(5)
    for own_port in (40_000, 40_001):
        guest.send(tcp(address, port, own_port=own_port))
        answer = guest.receive()
        while answer is not None and flags_of(answer) & SYN == 0:
            answer = guest.receive()  # acknowledges what the last connection sent
        assert answer is not None
        number = int.from_bytes(answer[38:42])
        guest.send(
            tcp(address, port, own_port=own_port, flags=0x18, number=2, acknowledged=number + 1,
                data=b"ping")
        )  # fmt: skip
        served, _ = listener.accept()
        served.settimeout(5)
        assert served.recv(10) == b"ping"


@pytest.mark.parametrize(
    ("address", "port"),
    [("169.254.169.254", 443), ("168.63.129.14", 80), ("168.63.129.15", 53), ("10.0.0.1", 80),
     ("127.0.0.1", 80), ("1.1.1.1", 80), ("10.0.2.2", 22)],
)  # fmt: skip
def test_nothing_else_is_reached(guest: Wire, address: str, port: int) -> None:
    """R1: neither the host's loopback nor anything outside."""
    guest.send(tcp(address, port))
    answer = guest.receive(within=0.3)
    assert answer is None or flags_of(answer) & SYN == 0


@pytest.mark.parametrize("address", ["127.0.0.1", "127.64.0.9", "0.0.0.0", "168.63.129.15"])
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_guest_that_is_let_out_does_not_reach_loopback(
    address: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R1: whatever its frames say; neither by the name server, if that is at loopback."""
    if not has_libslirp():
        pytest.skip("needs libslirp0, which comes with QEMU")
    own, end = socket.socketpair()
    let_out = Network(FrameStream(own), LEASE, outbound=True, saw=lambda _: None)
    given_: list[bytes] = []
    monkeypatch.setattr(let_out._slirp, "input", given_.append)
    target = IPv4Address(address)
    for port in (80, 53):
        frame = (
            tcp(address, port)
            if kind == "tcp"
            else udp_frame(
                Datagram(GUEST, 4000, target, port, b"x"), source_mac=MAC, target_mac=GATEWAY_MAC
            )
        )
        let_out.take(frame)
        let_out.take(frame[:20] + b"\x20\x00" + frame[22:])  # a fragment
        let_out.take(frame[:23] + b"\x01" + frame[24:])  # ICMP
    assert len(given_) == (1 if target == NAME_SERVER else 0)
    let_out.take(tcp("1.1.1.1", 80))
    assert given_[-1] == tcp("1.1.1.1", 80)
    end.close()
    let_out.run()


def test_a_forward_leads_to_the_guest(network: Network) -> None:
    """M5: from the host's loopback; without the guest being asked for its address first."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    network.forward("127.0.0.1", port, 22)
    with pytest.raises(HostError, match="another program has it"):
        network.forward("127.0.0.1", port, 23)
    thread = threading.Thread(target=network.run, daemon=True)
    thread.start()
    guest: Wire = network.guest  # type: ignore[attr-defined]
    with socket.create_connection(("127.0.0.1", port), 5):
        frame = guest.receive()
    assert frame is not None
    assert frame[:6] == MAC
    assert (frame[30:34], int.from_bytes(frame[36:38])) == (GUEST.packed, 22)
    guest.link.close()
    thread.join(5)


def test_a_stream_that_is_no_stream_of_frames_ends(network: Network) -> None:
    """R2."""
    guest: Wire = network.guest  # type: ignore[attr-defined]
    guest.link.sendall(b"\xff" * 8)
    start = time.monotonic()
    network.run()
    assert time.monotonic() - start < 5


def test_a_guest_that_is_let_out_gets_a_name_server_that_works() -> None:
    assert lease_of(0, "52:54:00:00:00:01", outbound=True).name_server == NAME_SERVER
    assert LEASE.name_server == WIRE_SERVER
