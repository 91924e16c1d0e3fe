"""libslirp, the user-mode TCP/IP stack that QEMU's own user network is made of.

Bound with ctypes to the part of its C interface that is stable since version 4.2.
"""

from __future__ import annotations

import ctypes
import select
import sys
import time
from collections.abc import Callable
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_bool,
    c_char_p,
    c_int,
    c_int64,
    c_size_t,
    c_ssize_t,
    c_uint8,
    c_uint32,
    c_void_p,
)
from ipaddress import IPv4Address
from typing import ClassVar

from pytest_vmss.errors import HostError

__all__ = ["LIBRARY", "NAME_SERVER", "Slirp", "load"]

LIBRARY = "libslirp.so.0"

#: libslirp forwards only addresses of its own network, which must thus hold both of Azure's.
_NETWORK, _MASK = IPv4Address("168.0.0.0"), IPv4Address("254.0.0.0")
#: Whom a guest sees as its client; no forwarded address can be libslirp's own.
_HOST = IPv4Address("168.63.129.14")
#: Where guests with a way out ask for names; the host's own name server answers.
NAME_SERVER = IPv4Address("168.63.129.15")

_IN, _OUT, _PRI, _ERR, _HUP = 1, 2, 4, 8, 16
_TO_POLL = {
    _IN: select.POLLIN, _OUT: select.POLLOUT, _PRI: select.POLLPRI, _ERR: select.POLLERR,
    _HUP: select.POLLHUP,
}  # fmt: skip
_CONFIG_VERSION = 1


class _Address(Structure):
    _fields_: ClassVar = [("in_network_order", c_uint32)]

    @classmethod
    def of(cls, address: IPv4Address) -> _Address:
        return cls(int.from_bytes(address.packed, sys.byteorder))


class _Address6(Structure):
    _fields_: ClassVar = [("words", c_uint32 * 4)]


class _Config(Structure):
    _fields_: ClassVar = [
        ("version", c_uint32),
        ("restricted", c_int),
        ("in_enabled", c_bool),
        ("vnetwork", _Address),
        ("vnetmask", _Address),
        ("vhost", _Address),
        ("in6_enabled", c_bool),
        ("vprefix_addr6", _Address6),
        ("vprefix_len", c_uint8),
        ("vhost6", _Address6),
        ("vhostname", c_char_p),
        ("tftp_server_name", c_char_p),
        ("tftp_path", c_char_p),
        ("bootfile", c_char_p),
        ("vdhcp_start", _Address),
        ("vnameserver", _Address),
        ("vnameserver6", _Address6),
        ("vdnssearch", c_void_p),
        ("vdomainname", c_char_p),
        ("if_mtu", c_size_t),
        ("if_mru", c_size_t),
        ("disable_host_loopback", c_bool),
        ("enable_emu", c_bool),
    ]


_SendPacket = CFUNCTYPE(c_ssize_t, c_void_p, c_size_t, c_void_p)
_GuestError = CFUNCTYPE(None, c_char_p, c_void_p)
_Clock = CFUNCTYPE(c_int64, c_void_p)
_TimerNew = CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_void_p)
_TimerFree = CFUNCTYPE(None, c_void_p, c_void_p)
_TimerMod = CFUNCTYPE(None, c_void_p, c_int64, c_void_p)
_Descriptor = CFUNCTYPE(None, c_int, c_void_p)
_Notify = CFUNCTYPE(None, c_void_p)
_AddPoll = CFUNCTYPE(c_int, c_int, c_int, c_void_p)
_GetEvents = CFUNCTYPE(c_int, c_int, c_void_p)


class _Callbacks(Structure):
    _fields_: ClassVar = [
        ("send_packet", _SendPacket),
        ("guest_error", _GuestError),
        ("clock_get_ns", _Clock),
        ("timer_new", _TimerNew),
        ("timer_free", _TimerFree),
        ("timer_mod", _TimerMod),
        ("register_poll_fd", _Descriptor),
        ("unregister_poll_fd", _Descriptor),
        ("notify", _Notify),
    ]


def load() -> ctypes.CDLL:
    """Loads the library.

    Raises:
        HostError: It is not installed.
    """
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        mend = "apt-get install libslirp0"
        raise HostError(
            f"{LIBRARY}, which carries the network of guests that look for Azure, cannot be "
            f"loaded ({error}); install it with: {mend}",
            mend=mend,
        ) from error
    library.slirp_new.restype = c_void_p
    library.slirp_new.argtypes = [POINTER(_Config), POINTER(_Callbacks), c_void_p]
    library.slirp_cleanup.argtypes = [c_void_p]
    library.slirp_input.argtypes = [c_void_p, c_char_p, c_int]
    library.slirp_add_unix.argtypes = [c_void_p, c_char_p, POINTER(_Address), c_int]
    library.slirp_add_hostfwd.argtypes = [c_void_p, c_int, _Address, c_int, _Address, c_int]
    library.slirp_pollfds_fill.argtypes = [c_void_p, POINTER(c_uint32), _AddPoll, c_void_p]
    library.slirp_pollfds_poll.argtypes = [c_void_p, c_int, _GetEvents, c_void_p]
    return library


class Slirp:
    """A network with one guest; all methods belong to one thread.

    Args:
        send: Called with each frame for the guest; must not raise.
        outbound: Whether the guest reaches what the host reaches, its loopback excepted.

    Raises:
        HostError: The library is not installed.
    """

    def __init__(self, send: Callable[[bytes], None], *, outbound: bool) -> None:
        self._library = load()
        # The library keeps these pointers.
        self._callbacks = _Callbacks(
            _SendPacket(lambda data, size, _: _sent(send, data, size)),
            _GuestError(lambda _message, _: None),
            _Clock(lambda _: time.monotonic_ns()),
            # Timers serve IPv6 alone, which is off.
            _TimerNew(lambda *_: 1),
            _TimerFree(lambda *_: None),
            _TimerMod(lambda *_: None),
            _Descriptor(lambda *_: None),
            _Descriptor(lambda *_: None),
            _Notify(lambda _: None),
        )
        self._config = _Config(
            version=_CONFIG_VERSION,
            restricted=not outbound,
            in_enabled=True,
            vnetwork=_Address.of(_NETWORK),
            vnetmask=_Address.of(_MASK),
            vhost=_Address.of(_HOST),
            vdhcp_start=_Address.of(_HOST + 2),
            vnameserver=_Address.of(NAME_SERVER),
            disable_host_loopback=True,
        )
        self._polled: list[tuple[int, int]] = []
        self._ready: dict[int, int] = {}
        self._add = _AddPoll(self._add_poll)
        self._get = _GetEvents(self._events)
        self._slirp = self._library.slirp_new(self._config, self._callbacks, None)

    def input(self, frame: bytes) -> None:
        """Takes a frame from the guest."""
        self._library.slirp_input(self._slirp, frame, len(frame))

    def serve(self, address: IPv4Address, port: int, path: str) -> None:
        """Connects each connection of the guest to an address with a Unix socket.

        Raises:
            HostError: The library refuses.
        """
        to = _Address.of(address)
        if self._library.slirp_add_unix(self._slirp, path.encode(), to, port):
            raise HostError(f"libslirp refuses to serve {address}:{port} from {path}")

    def forward(self, listen: IPv4Address, port: int, guest: IPv4Address, guest_port: int) -> None:
        """Forwards a TCP port of the host to the guest.

        Raises:
            HostError: The port cannot be listened on.
        """
        if self._library.slirp_add_hostfwd(
            self._slirp, 0, _Address.of(listen), port, _Address.of(guest), guest_port
        ):
            raise HostError(
                f"{listen}:{port}, which is to lead to the guest's port {guest_port}, cannot be "
                "listened on: another program has it"
            )

    def wait(self, others: dict[int, int], limit_ms: int) -> dict[int, int]:
        """Waits until something can be done, and does what concerns the library.

        Args:
            others: More descriptors, with the events to wait for, as ``select.poll`` has them.
            limit_ms: Maximum time in milliseconds.

        Returns:
            The events of ``others``.
        """
        self._polled.clear()
        timeout = c_uint32(limit_ms)
        self._library.slirp_pollfds_fill(self._slirp, timeout, self._add, None)
        poll = select.poll()
        for descriptor, events in self._polled:
            poll.register(descriptor, events)
        for descriptor, events in others.items():
            poll.register(descriptor, events)
        self._ready = dict(poll.poll(min(timeout.value, limit_ms)))
        self._library.slirp_pollfds_poll(self._slirp, 0, self._get, None)
        return {fd: self._ready[fd] for fd in others if fd in self._ready}

    def close(self) -> None:
        """Ends the network."""
        self._library.slirp_cleanup(self._slirp)

    def _add_poll(self, descriptor: int, events: int, _: object) -> int:
        wanted = sum(flag for own, flag in _TO_POLL.items() if events & own)
        self._polled.append((descriptor, wanted))
        return len(self._polled) - 1

    def _events(self, index: int, _: object) -> int:
        found = self._ready.get(self._polled[index][0], 0)
        return sum(own for own, flag in _TO_POLL.items() if found & flag)


def _sent(send: Callable[[bytes], None], data: int, size: int) -> int:
    send(ctypes.string_at(data, size))
    return size
