"""Q1, R2: every wait on SSH ends, whatever the guest at the other end does."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest

from pytest_vmss.clock import SystemClock
from pytest_vmss.errors import GuestCommandError
from pytest_vmss.guest import testinfra_host as testinfra_module
from pytest_vmss.guest.cloud_init_wait import save_logs
from pytest_vmss.guest.connection import Connection, ReconnectingRunner
from pytest_vmss.guest.guest import LinuxGuest
from pytest_vmss.guest.keys import generate
from pytest_vmss.guest.login import HostKeyMismatchError, log_in
from pytest_vmss.guest.shell import Shell
from pytest_vmss.guest.transport import (
    ConnectionBrokenError,
    GuestTransport,
    open_transport,
    transport_errors,
)
from tests.linux_guests import linux_guest

#: What a guest does with a command once it has taken it; False: it never answers.
Act = Callable[[paramiko.Channel, bytes], None]


class Guest(paramiko.ServerInterface):
    """An SSH server on loopback that does what a test wants of it."""

    def __init__(self, folder: Path) -> None:
        self.act: Act = ends(0)
        self.opens = self.answers = True
        self._host_key, self._key = generate("host"), generate("client")
        (folder / "host").write_text(self._host_key.private)
        (folder / "key").write_text(self._key.private)
        self._folder = folder
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.transports: list[paramiko.Transport] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = self._listener.accept()
                transport = paramiko.Transport(link)
                key = str(self._folder / "host")
                transport.add_server_key(paramiko.Ed25519Key.from_private_key_file(key))
                self.transports.append(transport)
                transport.start_server(event=threading.Event(), server=self)

    def connect(self, *, pinned: bool = True, server: Callable[[], int] | None = None) -> Shell:
        made = log_in(
            "127.0.0.1", self._listener.getsockname()[1], user="u", key=self._folder / "key",
            host_key=self._host_key.public if pinned else "", server=server,
            name="web_0", timeout=10,
        )  # fmt: skip
        assert made is not None
        return made

    def close(self) -> None:
        self._listener.close()
        for transport in self.transports:
            transport.close()

    @staticmethod
    def _pause(goes_on: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not goes_on() and time.monotonic() < end:
            time.sleep(0.05)

    # What paramiko asks.

    def get_allowed_auths(self, username: str) -> str:  # noqa: ARG002
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:  # noqa: ARG002
        return paramiko.common.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:  # noqa: ARG002
        self._pause(lambda: self.opens)
        return paramiko.common.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        self._pause(lambda: self.answers)
        threading.Thread(target=self.act, args=(channel, command), daemon=True).start()
        return True


def ends(code: int, output: bytes = b"") -> Act:
    def act(channel: paramiko.Channel, _: bytes) -> None:
        time.sleep(0.05)
        channel.sendall(output)
        channel.send_exit_status(code)
        channel.close()

    return act


def closes_its_output_and_goes_on(channel: paramiko.Channel, _: bytes) -> None:
    channel.shutdown_write()
    time.sleep(20)


def drips(channel: paramiko.Channel, _: bytes) -> None:
    with contextlib.suppress(OSError):
        for _number in range(200):
            channel.sendall(b".")
            time.sleep(0.1)


def floods(channel: paramiko.Channel, _: bytes) -> None:
    with contextlib.suppress(OSError, EOFError):
        while True:
            channel.sendall(b"x" * 65536)


def is_silent(channel: paramiko.Channel, _: bytes) -> None:  # noqa: ARG001
    time.sleep(20)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    made = Guest(tmp_path)
    yield made
    made.close()


def test_without_a_host_key_only_the_guests_own_server_is_logged_in_to(guest: Guest) -> None:
    """M6, O1: it shows its key then; whoever else has taken the port is not asked anything."""
    shell = guest.connect(pinned=False, server=os.geteuid)
    assert shell.host_key.split() == guest._host_key.public.split()[:2]
    shell.close()
    for server in (None, lambda: os.geteuid() + 1):
        with pytest.raises(HostKeyMismatchError, match="shows the host key"):
            guest.connect(pinned=False, server=server)


def test_a_command_is_run(guest: Guest) -> None:
    shell = guest.connect()
    guest.act = ends(3, b"said")
    done = shell.run("true", stdin=b"x")
    assert (done.exit_code, done.stdout, done.stderr) == (3, "said", "")
    shell.close()


@pytest.mark.parametrize("act", [closes_its_output_and_goes_on, drips, is_silent])
def test_a_command_that_does_not_end_is_given_up(guest: Guest, act: Act) -> None:
    """The connection stays: other commands run over it too."""
    shell = guest.connect()
    guest.act = act
    begun = time.monotonic()
    with pytest.raises(
        GuestCommandError, match=r"timed out: it did not end within 0\.5 s"
    ) as failed:
        shell.run("sleep 3600", timeout=0.5)
    assert time.monotonic() - begun < 3
    assert failed.value.exit_code == -1
    guest.act = ends(0, b"still here")
    assert shell.run("true").stdout == "still here"
    shell.close()


def test_silence_can_have_a_limit_of_its_own(guest: Guest) -> None:
    shell = guest.connect()
    guest.act = is_silent
    with pytest.raises(GuestCommandError, match=r"it wrote nothing for 0\.3 s"):
        shell.run("sleep 3600", timeout=10, silence=0.3)
    guest.act = drips
    with pytest.raises(GuestCommandError, match="it did not end within 1 s"):
        shell.run("while true", timeout=1, silence=0.5)
    shell.close()


def test_a_guest_that_does_not_take_a_command_is_given_up(guest: Guest) -> None:
    """As one that is paused: not even paramiko's own waits are without a limit."""
    for attribute in ("opens", "answers"):
        shell = guest.connect()
        setattr(guest, attribute, False)
        begun = time.monotonic()
        with pytest.raises(GuestCommandError, match=r"timed out: it did not end within 0\.5 s"):
            shell.run("true", timeout=0.5)
        assert time.monotonic() - begun < 3
        setattr(guest, attribute, True)
        shell.close()


def test_a_guest_that_reads_nothing_is_given_up(guest: Guest) -> None:
    shell = guest.connect()
    guest.act = is_silent
    begun = time.monotonic()
    with pytest.raises(GuestCommandError, match="did not end"):
        shell.run("cat", stdin=bytes(32 * 1024 * 1024), timeout=1)
    assert time.monotonic() - begun < 5
    shell.close()


def by_command(**acts: Act) -> Act:
    """Does for each command what its last word names."""

    def act(channel: paramiko.Channel, command: bytes) -> None:
        acts[command.decode().rsplit(" ", 1)[-1].strip("'")](channel, command)

    return act


def stays(channel: paramiko.Channel, command: bytes) -> None:
    time.sleep(2)
    ends(0, b"stayed")(channel, command)


@pytest.mark.parametrize("lacks", ["reader", "answers", "opens"])
def test_a_command_that_is_given_up_leaves_its_neighbours_alone(guest: Guest, lacks: str) -> None:
    """R4: they share the connection."""
    shell = guest.connect()
    guest.act = by_command(stays=stays, stalls=is_silent)
    said: list[str] = []
    neighbour = threading.Thread(target=lambda: said.append(shell.run("stays", timeout=20).stdout))
    neighbour.start()
    time.sleep(0.3)
    if lacks != "reader":
        setattr(guest, lacks, False)
        threading.Timer(1.2, setattr, [guest, lacks, True]).start()
    begun = time.monotonic()
    with pytest.raises(GuestCommandError, match=r"timed out: it did not end within 0\.5 s"):
        shell.run("stalls", stdin=bytes(32 * 1024 * 1024), timeout=0.5)
    assert time.monotonic() - begun < 10
    neighbour.join()
    assert said == ["stayed"]
    assert shell.alive
    shell.close()


def test_a_guest_that_answers_nothing_is_connected_to_anew(guest: Guest) -> None:
    """If no other command waits for it too."""
    for attribute in ("opens", "answers"):
        shell = guest.connect()
        setattr(guest, attribute, False)
        with pytest.raises(GuestCommandError):
            shell.run("true", timeout=0.5)
        setattr(guest, attribute, True)
        assert has_ended(shell)


@pytest.mark.parametrize("code", [None, 0])
def test_a_command_whose_connection_breaks_has_no_result(guest: Guest, code: int | None) -> None:
    """Q1: not even if it told its status, for some of its output may be lost."""

    def act(channel: paramiko.Channel, _: bytes) -> None:
        channel.sendall(b"half of i")
        if code is not None:
            channel.send_exit_status(code)
        time.sleep(0.1)
        guest.transports[-1].close()

    shell = guest.connect()
    guest.act = act
    with pytest.raises(GuestCommandError, match="connection broke while a command ran") as failed:
        shell.run("cat", timeout=10)
    assert failed.value.exit_code == -1


def test_a_command_that_a_signal_ended_has_a_result(guest: Guest) -> None:
    """sshd then tells no status."""
    shell = guest.connect()

    def act(channel: paramiko.Channel, _: bytes) -> None:
        time.sleep(0.1)
        channel.close()

    guest.act = act
    assert shell.run("true", stdin=bytes(32 * 1024 * 1024), timeout=10).exit_code == -1
    assert shell.alive
    shell.close()


def test_a_link_that_is_stuck_is_given_up(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's own buffers are full: sending itself would wait for ever."""
    shell = guest.connect()
    stuck = threading.Event()

    def write(packetizer: paramiko.packet.Packetizer, _: bytes) -> None:
        stuck.set()
        while not packetizer.closed:
            time.sleep(0.01)
        raise EOFError

    monkeypatch.setattr(paramiko.packet.Packetizer, "write_all", write)
    begun = time.monotonic()
    with pytest.raises(GuestCommandError):
        shell.run("true", timeout=0.5)
    assert stuck.is_set()
    assert time.monotonic() - begun < 5


def test_what_a_command_writes_is_bounded(guest: Guest) -> None:
    """R2."""
    shell = guest.connect()
    guest.act = floods
    with pytest.raises(GuestCommandError, match="wrote too much: more than 1 MiB"):
        shell.run("cat /dev/zero", timeout=30, most=1024 * 1024)
    shell.close()


def test_a_command_that_ends_without_reading_says_why(guest: Guest) -> None:
    shell = guest.connect()
    guest.act = ends(1, b"sudo: a password is required")
    done = shell.run("cat", stdin=bytes(32 * 1024 * 1024), timeout=20)
    assert (done.exit_code, done.stdout) == (1, "sudo: a password is required")
    shell.close()


@pytest.mark.parametrize("greeting", [b"SSH-", b"SSH-2.0-x\r\n", b"SSH-2.0-x\r\n\0\0\1\0"])
def test_a_server_that_drips_lets_nobody_wait(tmp_path: Path, greeting: bytes) -> None:
    """Byte after byte, in its greeting and in its key exchange."""
    key = generate("client")
    (tmp_path / "key").write_text(key.private)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                link, _ = listener.accept()
                link.sendall(greeting)
                for _ in range(200):
                    link.sendall(b"x")
                    time.sleep(0.05)

        threading.Thread(target=serve, daemon=True).start()
        begun = time.monotonic()
        made = log_in(
            "127.0.0.1", listener.getsockname()[1], user="u", key=tmp_path / "key",
            host_key=key.public, name="web_0", timeout=0.5,
        )  # fmt: skip
        assert made is None
        assert time.monotonic() - begun < 5


def test_a_connection_that_broke_is_made_anew(guest: Guest) -> None:
    made: list[Shell] = []

    def connect() -> Shell:
        if not made or not made[-1].alive:
            made.append(guest.connect())
        return made[-1]

    lasting = ReconnectingRunner(connect)
    assert lasting.check("true") == ""
    guest.transports[-1].close()
    deadline = time.monotonic() + 5
    while made[-1].alive and time.monotonic() < deadline:
        time.sleep(0.01)
    guest.act = ends(0, b"again")
    assert lasting.run("true").stdout == "again"
    assert len(made) == 2
    made[-1].close()


def _by_runner(connect: Callable[[], Shell]) -> str:
    return ReconnectingRunner(connect).run("x").stdout


def _by_testinfra(connect: Callable[[], Shell]) -> str:
    return str(testinfra_module.testinfra_host("web_0", connect).run("x").stdout)


@pytest.mark.parametrize("run", [_by_runner, _by_testinfra])
def test_a_command_that_was_not_sent_is_run_over_another_connection(
    guest: Guest, run: Callable[[Callable[[], Shell]], str]
) -> None:
    """Q1: the one that looked open had broken; the guest sees the command once."""
    ran: list[bytes] = []

    def act(channel: paramiko.Channel, command: bytes) -> None:
        ran.append(command)
        ends(0, b"done")(channel, command)

    guest.act = act
    broken, good = guest.connect(), guest.connect()
    broken.close()
    left = [good, broken]
    assert run(left.pop) == "done"
    assert (len(ran), left) == (1, [])
    good.close()


@pytest.mark.parametrize(
    "use",
    [
        LinuxGuest.sync, LinuxGuest.listening, LinuxGuest.wake,
        lambda linux: linux.check("true"),
        lambda linux: save_logs(linux._connection),
        lambda linux: list(linux.logs(["journal.log"], timeout=60.0, each=30.0)),
    ],
)  # fmt: skip
def test_the_labs_own_commands_are_run_over_another_connection(
    guest: Guest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    use: Callable[[LinuxGuest], object],
) -> None:
    """Q1: no step fails because a connection broke before its command was sent."""
    ran: list[bytes] = []

    def act(channel: paramiko.Channel, command: bytes) -> None:
        ran.append(command)
        ends(0, b"")(channel, command)

    guest.act = act
    broken, good = guest.connect(), guest.connect()
    broken.close()
    left = [good, broken]
    monkeypatch.setattr(Connection, "connect", lambda _: left.pop() if len(left) > 1 else good)
    use(linux_guest(tmp_path, SystemClock()))
    assert len(ran) == 1
    good.close()


def test_a_command_that_was_sent_is_not_run_again(guest: Guest) -> None:
    """Q1: the guest may have run it."""
    ran: list[bytes] = []

    def act(_: paramiko.Channel, command: bytes) -> None:
        ran.append(command)
        guest.transports[-1].close()

    guest.act = act
    with pytest.raises(GuestCommandError, match="broke while a command ran"):
        ReconnectingRunner(guest.connect).run("x")
    assert len(ran) == 1


FLOOD = 128 * 1024 * 1024


def force(channel: paramiko.Channel, sent: list[int], most: int = FLOOD) -> None:
    """Sends data on a channel, whatever its window; notes how much."""
    transport: Any = channel.transport
    while sum(sent) < most and transport.is_active():
        message = paramiko.Message()
        message.add_byte(paramiko.common.cMSG_CHANNEL_DATA)
        message.add_int(channel.remote_chanid)
        message.add_string(bytes(30_000))
        transport._send_user_message(message)
        sent.append(30_000)


def has_ended(shell: Shell) -> bool:
    deadline = time.monotonic() + 10
    while shell.alive and time.monotonic() < deadline:
        time.sleep(0.01)
    return not shell.alive


def test_data_after_its_end_is_not_kept(guest: Guest) -> None:
    """R2: nobody reads it, so paramiko would keep all of it."""
    sent: list[int] = []

    def act(channel: paramiko.Channel, _: bytes) -> None:
        time.sleep(0.1)
        channel.shutdown_write()
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            force(channel, sent)

    guest.act = act
    shell = guest.connect()
    with contextlib.suppress(GuestCommandError):
        shell.run("true", timeout=20)
    assert has_ended(shell)
    assert sum(sent) < FLOOD // 4


def test_a_guest_honours_a_commands_window(guest: Guest) -> None:
    """R2: of a command of which nobody reads the output."""
    sent: list[int] = []
    guest.act = is_silent
    shell = guest.connect()
    channel = shell._transport.open_command(5)
    channel.exec_command("true")
    server: Any = guest.transports[-1]
    (served,) = server._channels.values()
    force(served, sent, channel.in_window_size // 2)
    assert not sum(sent) > channel.in_window_size
    assert shell.alive
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        force(served, sent)
    assert has_ended(shell)
    assert sum(sent) < FLOOD // 4
    assert len(channel.in_buffer) <= channel.in_window_size + 30_000


def test_what_comes_after_a_command_was_given_up_is_not_kept(guest: Guest) -> None:
    """R2: it may be on its way rightly, so the connection stays."""
    guest.act = is_silent
    shell = guest.connect()
    channel = shell._transport.open_command(5)
    channel.exec_command("true")
    server: Any = guest.transports[-1]
    (served,) = server._channels.values()
    deaf = {paramiko.common.MSG_CHANNEL_CLOSE: lambda *_: None}
    server._channel_handler_table = server._channel_handler_table | deaf
    channel.close()
    force(served, [], 8 * 1024 * 1024)
    guest.act = ends(0)
    assert shell.run("true").exit_code == 0
    assert len(channel.in_buffer) == 0
    shell.close()


def test_connections_are_rekeyed_with_much_output(guest: Guest) -> None:
    """No limit is one for honest servers; and paramiko had waited for itself now and then."""
    shell = guest.connect()
    shell._transport.packetizer.REKEY_BYTES = 512 * 1024
    key = shell._transport.session_id, shell._transport.H
    size = 4 * 1024 * 1024
    guest.act = ends(0, bytes(size))
    for _ in range(10):
        assert len(shell.run("cat", stdin=bytes(100_000), timeout=20).stdout) == size
    assert key != (shell._transport.session_id, shell._transport.H)
    shell.close()


def test_a_packet_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    """R2: before it is known who sends it; nor does a thread of the attempt remain."""
    key = generate("client")
    (tmp_path / "key").write_text(key.private)
    sent: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                link, _ = listener.accept()
                with link:
                    link.sendall(b"SSH-2.0-x\r\n" + b"\x1f\xff\xff\xfc")
                    while sum(sent) < FLOOD:
                        sent.append(link.send(bytes(1024 * 1024)))

        threading.Thread(target=serve, daemon=True).start()
        assert log_in(
            "127.0.0.1", listener.getsockname()[1], user="u", key=tmp_path / "key",
            host_key=key.public, name="web_0", timeout=2,
        ) is None  # fmt: skip
    assert not [one for one in threading.enumerate() if isinstance(one, GuestTransport)]
    deadline = time.monotonic() + 5
    while any(isinstance(one, threading.Timer) for one in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert sum(sent) < FLOOD // 4


def test_a_banner_without_end_is_not_read() -> None:
    """R2."""
    ours, theirs = socket.socketpair()
    with ours, theirs, contextlib.closing(open_transport(ours)) as transport:
        threading.Thread(target=theirs.sendall, args=[b"SSH-" * 20_000], daemon=True).start()
        with pytest.raises(paramiko.SSHException, match="too long"):
            transport.packetizer.readline(5)


def packet(payload: bytes) -> bytes:
    """A packet of SSH before its keys are exchanged."""
    padding = 8 - (len(payload) + 5) % 8
    padding += 8 if padding < 4 else 0
    return struct.pack(">IB", len(payload) + padding + 1, padding) + payload + bytes(padding)


def text(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


KEXINIT = b"\x14" + bytes(16)
HOSTILE = {
    "names that are not UTF-8": packet(KEXINIT + text(b"\xff\xfe\xff") * 10 + bytes(5)),
    "an end in the middle": packet(KEXINIT + text(b"a")[:3]),
    "a length beyond the packet": packet(KEXINIT + b"\xff\xff\xff\xff"),
    "an empty payload": struct.pack(">IB", 12, 11) + bytes(11),
    "more padding than packet": struct.pack(">IB", 12, 255) + bytes(11),
    "a reason that is not UTF-8": packet(b"\x01\0\0\0\2" + text(b"\xff\xfe") + text(b"en")),
    "unknown messages": packet(b"\xc8") + packet(b"\x63"),
}


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE)
def test_whatever_a_server_says_it_lets_nobody_in(tmp_path: Path, said: bytes) -> None:
    """R2: paramiko raises UnicodeDecodeError, IndexError and others for it."""
    key = generate("client")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                link, _ = listener.accept()
                with link:
                    link.sendall(b"SSH-2.0-x\r\n" + said)
                    link.settimeout(5)
                    while link.recv(4096):
                        pass

        threading.Thread(target=serve, daemon=True).start()
        with contextlib.suppress(HostKeyMismatchError):
            assert log_in(
                "127.0.0.1", listener.getsockname()[1], user="u", key=tmp_path / "key",
                host_key=key.public, name="web_0", timeout=0.5,
            ) is None  # fmt: skip


def refuses_with(guest: Guest, words: bytes) -> None:
    """Lets the guest's server answer each request for a channel with a refusal in such words."""
    transport: Any = guest.transports[-1]

    def refuse(message: paramiko.Message) -> None:
        message.get_text()
        answer = paramiko.Message()
        answer.add_byte(paramiko.common.cMSG_CHANNEL_OPEN_FAILURE)
        answer.add_int(message.get_int())
        answer.add_int(1)
        answer.add_string(words)
        answer.add_string(b"en")
        transport._send_message(answer)

    transport._handler_table[paramiko.common.MSG_CHANNEL_OPEN] = refuse


def test_a_refusal_that_cannot_be_read_is_the_guests_failure(guest: Guest) -> None:
    """R2: paramiko's thread ends with a UnicodeDecodeError, and raises it at the caller's."""
    shell = guest.connect()
    refuses_with(guest, b"\xff\xfe")
    with pytest.raises(GuestCommandError, match="the SSH connection broke") as failed:
        shell.run("true", timeout=5)
    assert failed.value.instance == "web_0"
    with pytest.raises(GuestCommandError):
        testinfra_module.testinfra_host("web_0", lambda: shell).run("true")


def test_a_guests_words_reach_neither_logs_nor_standard_error(
    guest: Guest, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """R2: paramiko logs them raw, with a traceback, and logging writes to standard error."""
    caplog.set_level(logging.DEBUG)
    shell = guest.connect()
    # The server's own transport is this test's.
    guest.transports[-1].set_log_channel("pytest_vmss.ssh")
    caplog.clear()
    refuses_with(guest, b"\x1b]0;pwned\x07\x1b[31mEVIL")
    with pytest.raises(GuestCommandError) as failed:
        shell.run("true", timeout=5)
    shell.close()
    told = caplog.text + "".join(capfd.readouterr()) + str(failed.value)
    assert "EVIL" not in told
    assert "\x1b" not in told


@pytest.mark.parametrize("trouble", [MemoryError(), RuntimeError("can't start new thread")])
def test_what_the_host_lacks_is_not_the_guests_failure(trouble: Exception) -> None:
    """Q1."""
    with pytest.raises(type(trouble)), transport_errors("web_0"):
        raise trouble
    with pytest.raises(ConnectionBrokenError), transport_errors("web_0"):
        raise IndexError


def test_a_guest_does_not_choose_how_its_output_is_decoded(guest: Guest) -> None:
    """R2: testinfra asks it for its encoding, which may be none that there is."""
    shell = guest.connect()
    guest.act = ends(0, b"rot13\n\xff")
    done = testinfra_module.testinfra_host("web_0", lambda: shell).run("true")
    assert done.stdout == "rot13\n\ufffd"
    shell.close()
