"""Answers DHCP as Azure does: with the routes (121) and the wire server (245)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from pytest_vmss.guest_platform.addresses import METADATA, WIRE_SERVER, Lease

__all__ = ["CLIENT_PORT", "SERVER_PORT", "Reply", "answer"]

SERVER_PORT, CLIENT_PORT = 67, 68

#: BOOTP's fields up to the client's hardware address, its padding, and the names of files.
_HEAD = struct.Struct("!BBBBIHH4s4s4s4s6s10s192s")
_COOKIE = bytes.fromhex("63825363")
_REQUEST, _REPLY = 1, 2
_ETHERNET = 1
_BROADCAST_FLAG = 0x8000
_FOREVER = 0xFFFFFFFF
_PAD, _END = 0, 255
_KIND, _SERVER = 53, 54
_DISCOVER, _OFFER, _REQUESTS, _ACK, _NAK, _INFORM = 1, 2, 3, 5, 6, 8
_WANTED = 50
#: Smallest size that old clients accept.
_SMALLEST = 300


@dataclass(frozen=True)
class Reply:
    """A response.

    Attributes:
        payload: The DHCP message.
        broadcast: Whether the client has no address yet at which it could receive it.
        is_ack: Whether it gives the client its lease.
    """

    payload: bytes
    broadcast: bool
    is_ack: bool


def answer(message: bytes, lease: Lease) -> Reply | None:
    """Returns the response to a client's message; None if it gets none.

    Args:
        message: What the guest sent.
        lease: What it is to get.
    """
    if len(message) < _HEAD.size + len(_COOKIE):
        return None
    head = _HEAD.unpack_from(message)
    operation, hardware, length, _, transaction, _, flags, own = head[:8]
    if (operation, hardware, length) != (_REQUEST, _ETHERNET, 6) or head[11] != lease.mac:
        return None
    options = _options(message[_HEAD.size :])
    asked = options.get(_KIND, b"")
    kind = {bytes([_DISCOVER]): _OFFER, bytes([_REQUESTS]): _ACK, bytes([_INFORM]): _ACK}.get(asked)
    if kind is None:
        return None
    wanted = options.get(_WANTED) or (own if any(own) else lease.address.packed)
    if asked == bytes([_REQUESTS]):
        if options.get(_SERVER, WIRE_SERVER.packed) != WIRE_SERVER.packed:
            return None  # it has chosen another server
        if wanted != lease.address.packed:
            kind = _NAK
    given = lease.address.packed if kind != _NAK and asked != bytes([_INFORM]) else bytes(4)
    answered = _HEAD.pack(
        _REPLY, _ETHERNET, 6, 0, transaction, 0, flags, own, given, WIRE_SERVER.packed, bytes(4),
        lease.mac, bytes(10), bytes(192),
    )  # fmt: skip
    payload = answered + _COOKIE + _option(_KIND, bytes([kind]))
    payload += _option(_SERVER, WIRE_SERVER.packed)
    if kind != _NAK:
        payload += _settings(lease)
    payload += bytes([_END])
    return Reply(
        payload.ljust(_SMALLEST, b"\0"),
        broadcast=not any(own) or bool(flags & _BROADCAST_FLAG) or kind == _NAK,
        is_ack=kind == _ACK,
    )


def _options(area: bytes) -> dict[int, bytes]:
    """Reads options, as far as they are well-formed."""
    found: dict[int, bytes] = {}
    if area[: len(_COOKIE)] != _COOKIE:
        return found
    at = len(_COOKIE)
    while at + 1 < len(area) and area[at] != _END:
        if area[at] == _PAD:
            at += 1
            continue
        size = area[at + 1]
        found[area[at]] = area[at + 2 : at + 2 + size]
        at += 2 + size
    return found


def _option(code: int, value: bytes) -> bytes:
    return bytes([code, len(value)]) + value


def _settings(lease: Lease) -> bytes:
    """The options of a lease, as Azure sends them."""
    routes = b"".join(
        _route(network, lease.gateway)
        for network in (
            IPv4Network("0.0.0.0/0"),
            IPv4Network((WIRE_SERVER, 32)),
            IPv4Network((METADATA, 32)),
        )
    )
    return b"".join(
        _option(code, value)
        for code, value in (
            (1, lease.subnet.netmask.packed),
            (3, lease.gateway.packed),
            (6, lease.name_server.packed),
            (15, b"internal.cloudapp.net"),
            (51, _FOREVER.to_bytes(4)),
            (121, routes),
            (245, WIRE_SERVER.packed),
        )
    )


def _route(network: IPv4Network, gateway: IPv4Address) -> bytes:
    """A classless route (RFC 3442): only the significant bytes of the network."""
    significant = (network.prefixlen + 7) // 8
    return (
        bytes([network.prefixlen]) + network.network_address.packed[:significant] + gateway.packed
    )
