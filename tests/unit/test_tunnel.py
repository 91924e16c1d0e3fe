"""H5, M6: the way from a guest to the lab's files leads to them alone, whatever the guest does."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest

from pytest_vmss.errors import HostError
from pytest_vmss.guest import tunnel as tunnel_module
from pytest_vmss.guest.tunnel import through_tunnel
from tests.unit.test_shell import FLOOD, Guest, force, has_ended


class Forwarding(Guest):
    """Listens for whoever asks, unless it is told not to."""

    allows = True

    def check_port_forward_request(self, address: str, port: int) -> int | bool:
        return port if self.allows and address == "127.0.0.1" else False

    def ask(self, port: int) -> paramiko.Channel:
        """A connection, as its SSH server hands it over, with an aim of the guest's own choice."""
        return self.transports[-1].open_forwarded_tcpip_channel(
            ("203.0.113.7", 1), ("127.0.0.1", port)
        )


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Forwarding]:
    made = Forwarding(tmp_path)
    yield made
    made.close()


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that sends back what it got, once that has ended."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(link: socket.socket) -> None:
        with link, contextlib.suppress(OSError):
            got = b""
            while part := link.recv(65536):
                got += part
            link.sendall(got)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = listener.accept()
                threading.Thread(target=answer, args=(link,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def read(channel: paramiko.Channel) -> bytes:
    channel.settimeout(5)
    got = b""
    while part := channel.recv(65536):
        got += part
    return got


def test_bytes_go_both_ways_to_the_labs_port_wherever_the_guest_points(
    guest: Forwarding, echo: int
) -> None:
    """What the guest names as its aim, as the port of another server, is not listened to."""
    shell = guest.connect()
    assert shell.lead_to(echo)
    assert shell.lead_to(echo), "and asking again does no harm"
    sent = b"x" * 300_000
    for aim in (echo, 22):
        channel = guest.ask(aim)
        channel.sendall(sent)
        channel.shutdown_write()
        assert read(channel) == sent
    shell.close()


def test_a_guest_is_not_led_to_a_server_that_is_not_the_labs(guest: Forwarding, echo: int) -> None:
    """H5, M5: another program has its port; what the guest sends does not reach it."""

    def dial() -> socket.socket:
        raise HostError("another program has the port")

    told: list[str] = []
    shell = guest.connect()
    assert shell.lead_to(echo, dial, told.append)
    for _ in range(2):
        with contextlib.suppress(paramiko.SSHException):  # closed before it was known to be open
            channel = guest.ask(echo)
            with contextlib.suppress(OSError):
                channel.sendall(b"?sig=secret")
                channel.shutdown_write()
            assert read(channel) == b""
    assert shell.alive
    assert told == [
        "downloads from the lab's file server may fail: another program has the port"
    ], "once, in words"
    shell.close()


def test_a_server_that_ends_unanswered_is_told(guest: Forwarding) -> None:
    """H5: and not that a guest has left."""
    told: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        shell = guest.connect()
        assert shell.lead_to(server.getsockname()[1], None, told.append)
        guest.ask(server.getsockname()[1]).close()
        channel = guest.ask(server.getsockname()[1])
        channel.sendall(b"GET")
        for _ in range(2):
            link, _ = server.accept()
            with link:
                link.recv(3)
        assert read(channel) == b""
    shell.close()
    assert [line.rpartition(": ")[2] for line in told] == [
        "the file server closed a connection without an answer"
    ]


def test_a_server_that_resets_a_connection_is_told(guest: Forwarding) -> None:
    """H5: its process was killed before it had read the question."""
    told: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        shell = guest.connect()
        assert shell.lead_to(server.getsockname()[1], None, told.append)
        channel = guest.ask(server.getsockname()[1])
        channel.sendall(b"GET")
        link, _ = server.accept()
        assert link.recv(3, socket.MSG_PEEK)
        link.close()  # with what was not read, it is reset
        assert read(channel) == b""
    shell.close()
    assert [line.rpartition(": ")[2] for line in told] == [
        "the file server closed a connection without an answer"
    ]


def test_a_silent_server_is_told(guest: Forwarding, monkeypatch: pytest.MonkeyPatch) -> None:
    """H5: the guest is not left to wonder."""
    monkeypatch.setattr(tunnel_module, "_SILENCE_S", 0.3)
    told: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        shell = guest.connect()
        assert shell.lead_to(server.getsockname()[1], None, told.append)
        channel = guest.ask(server.getsockname()[1])
        channel.sendall(b"GET")
        assert read(channel) == b""
    shell.close()
    assert [line.rpartition(": ")[2] for line in told] == [
        "the file server gave no answer for 0.3 s"
    ]


def test_who_asks_at_once_is_led_all_the_same(
    guest: Forwarding, echo: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H5: the server denies the second request, and paramiko could take that for the first's."""
    asked: list[int] = []

    def check(address: str, port: int) -> int | bool:
        del address
        asked.append(port)
        time.sleep(0.2)
        return port if len(asked) == 1 else False

    monkeypatch.setattr(guest, "check_port_forward_request", check)
    told: list[str] = []
    shell = guest.connect()
    ask = (echo, None, told.append)
    threads = [threading.Thread(target=shell.lead_to, args=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    channel = guest.ask(echo)
    channel.sendall(b"both")
    channel.shutdown_write()
    assert read(channel) == b"both"
    shell.close()
    assert told == [], "no download fails for it"


def test_a_guest_that_forbids_forwarding_is_not_led(guest: Forwarding, echo: int) -> None:
    guest.allows = False
    told: list[str] = []
    shell = guest.connect()
    assert not shell.lead_to(echo, None, told.append)
    assert not shell.lead_to(echo, None, told.append)
    assert shell.alive
    assert len(told) == 1
    assert f"does not listen on 127.0.0.1:{echo}" in told[0]
    shell.close()


def test_connections_of_a_guest_are_few(
    guest: Forwarding, echo: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are closed at once; one that does not stop loses its SSH connection."""
    monkeypatch.setattr(tunnel_module, "_REFUSED", 5)
    shell = guest.connect()
    assert shell.lead_to(echo)
    kept = [guest.ask(echo) for _ in range(tunnel_module._MOST)]
    with contextlib.suppress(paramiko.SSHException):  # closed even before it was known to be open
        assert read(guest.ask(echo)) == b""
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("vmss-tunnel") == tunnel_module._MOST
    kept[0].sendall(b"still")
    kept[0].shutdown_write()
    assert read(kept[0]) == b"still"
    for _ in range(20):
        with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
            kept += [guest.ask(echo)]
    end = time.monotonic() + 5
    while shell.alive and time.monotonic() < end:
        time.sleep(0.02)
    assert not shell.alive


def test_a_silent_guest_is_not_waited_for(
    guest: Forwarding, echo: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel_module, "_SILENCE_S", 0.3)
    shell = guest.connect()
    assert shell.lead_to(echo)
    assert read(guest.ask(echo)) == b""
    shell.close()


def test_a_guest_honours_a_tunnels_window(guest: Forwarding) -> None:
    """R2: also while the server takes nothing."""
    sent: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        shell = guest.connect()
        assert shell.lead_to(server.getsockname()[1])
        channel = guest.ask(server.getsockname()[1])
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            force(channel, sent)
        assert has_ended(shell)
    assert sum(sent) < FLOOD // 4


def test_which_uris_lead_through_the_tunnel() -> None:
    """Those of the lab's server; no other port, host, or scheme."""
    lab = "http://10.0.2.2:4711/blobs/a?sig=x"
    assert through_tunnel(lab, 4711) == "http://127.0.0.1:4711/blobs/a?sig=x"
    for other in (
        "http://10.0.2.2:47110/a", "http://10.0.2.2/a", "https://10.0.2.2:4711/a",
        "http://10.0.2.20:4711/a", "http://x/?u=http://10.0.2.2:4711/a", "http://10.0.2.2:4711@x/a",
    ):  # fmt: skip
        assert through_tunnel(other, 4711) == other
    assert through_tunnel(lab, None) == lab
