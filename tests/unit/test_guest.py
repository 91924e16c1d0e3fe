"""E5, F2, F5, H2: reading consoles, probing, extensions' rules."""

from __future__ import annotations

import http.server
import os
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_vmss.clock import wait_for
from pytest_vmss.errors import (
    CloudInitError,
    GuestUnreachableError,
    HypervisorError,
    InstanceError,
    NoBootError,
    WaitTimeoutError,
)
from pytest_vmss.guest import SshAccess
from pytest_vmss.guest.agent import guest_time, read_file
from pytest_vmss.guest.boot_watch import BootWatch
from pytest_vmss.guest.cloud_init_wait import save_logs
from pytest_vmss.guest.connection import Connection
from pytest_vmss.guest.console import Console
from pytest_vmss.guest.login import log_in
from pytest_vmss.guest.runner import CommandResult
from pytest_vmss.guest.shell import Shell
from pytest_vmss.health import probe_once
from pytest_vmss.hypervisor import PowerState
from pytest_vmss.model import Probe
from pytest_vmss.settings import Timeouts
from pytest_vmss.simulation.clock import VirtualClock
from tests.linux_guests import linux_guest


@pytest.mark.parametrize(
    ("text", "trouble", "milestone"),
    [
        ("", None, "nothing"),
        ("SeaBIOS (version 1.16)\nNo bootable device.", "no boot", "the firmware"),
        ("GRUB loading\ngrub rescue> ", "no boot", "the boot loader"),
        (
            "GRUB\nerror: file `/vmlinuz' not found.\nerror: you need to load the kernel first.",
            "no boot",
            "the boot loader",
        ),
        ("[    0.1] x\n[    3.2] Kernel panic - not syncing: VFS", "panic", "the kernel"),
        ("[    0.1] x\ncloud-init[123]: Cloud-init v. 22.4.2 running", None, "cloud-init"),
        ("Cloud-init v. 22.4.2 finished at now\nhost login: ", None, "the end of cloud-init"),
    ],
)
def test_the_console_tells_how_far_a_boot_got(
    tmp_path: Path, text: str, trouble: str | None, milestone: str
) -> None:
    """E5."""
    path = tmp_path / "console.log"
    path.write_text(text)
    console = Console(path)
    assert console.trouble() == trouble
    assert milestone in console.milestone()


def test_an_earlier_boots_trouble_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_text("Kernel panic - not syncing: x\n")
    size = path.stat().st_size
    with path.open("a") as file:
        file.write("\x1b[0;32m[  OK  ]\x1b[0m Reached target\r\n\n" + "line\n" * 100)
    console = Console(path, size)
    assert console.trouble() is None
    assert console.milestone() == "reached systemd"
    assert console.tail(3) == "line\nline\nline"
    assert "\x1b" not in console.tail(200)
    assert Console(tmp_path / "missing").tail() == ""


def test_an_error_of_an_instance_shows_the_consoles_tail() -> None:
    error = InstanceError("broke", instance="web_0", console_tail="last words", log=Path("/x/log"))
    assert "web_0: broke" in str(error)
    assert "last words" in str(error)
    assert "/x/log" in str(error)
    assert error.message == "broke"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[int]:
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield httpd.server_port
    httpd.shutdown()
    httpd.server_close()


def test_http_probe_wants_status_200(server: int) -> None:
    """F2."""
    good = Probe(name="p", protocol="Http", port=80, request_path="/healthz")
    assert probe_once(good, "127.0.0.1", server, timeout=5).healthy
    other = Probe(name="p", protocol="Http", port=80, request_path="/other")
    result = probe_once(other, "127.0.0.1", server, timeout=5)
    assert not result.healthy
    assert "204" in result.detail


def test_what_a_guest_answers_is_shown_without_control_characters() -> None:
    """R2: and no more of it than anyone reads."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            link, _ = listener.accept()
            link.recv(1)
            link.sendall(b"\x1b[2J\x07HTTP" + b"x" * 50_000 + b"\r\n\r\n")
            link.close()

        threading.Thread(target=serve, daemon=True).start()
        probe = Probe(name="p", protocol="Http", port=80, request_path="/")
        seen = probe_once(probe, "127.0.0.1", listener.getsockname()[1], timeout=5)
    assert not seen.healthy
    assert ": HTTPxxx" in seen.detail
    assert seen.detail.isprintable()
    assert len(seen.detail) <= 2000


def test_tcp_probe(server: int) -> None:
    """F2: also where a forwarder takes the connection and drops it at once."""
    probe = Probe(name="p", protocol="Tcp", port=80)
    assert probe_once(probe, "127.0.0.1", server, timeout=5).healthy
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def drop() -> None:
            link, _ = listener.accept()
            link.close()

        thread = threading.Thread(target=drop)
        thread.start()
        assert not probe_once(probe, "127.0.0.1", port, timeout=5).healthy
        thread.join()
    assert not probe_once(probe, "127.0.0.1", port, timeout=5).healthy


def test_a_wait_says_what_it_waited_for() -> None:
    clock = VirtualClock()
    with pytest.raises(
        WaitTimeoutError, match=r"timed out after 10 s waiting for the moon.*last seen: clouds"
    ):
        wait_for("the moon", lambda: None, timeout=10, clock=clock, describe=lambda: "clouds")
    assert 10 <= clock.monotonic() < 11
    answers = iter([None, None, "up"])
    assert wait_for("it", lambda: next(answers), timeout=10, clock=clock) == "up"


def test_nobody_answers_ssh(tmp_path: Path) -> None:
    """A listener without a greeting is a forwarder without a guest behind it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        shell = log_in(
            "127.0.0.1", port, user="u", key=tmp_path / "k", host_key="ssh-ed25519 A",
            name="web_0", timeout=1,
        )  # fmt: skip
        assert shell is None


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (PowerState.STOPPED, "the machine ended while it booted"),
        (PowerState.ABSENT, "libvirt has forgotten it"),
        (PowerState.PAUSED, "QEMU paused the machine, because it cannot write to its disks"),
    ],
)
def test_a_wait_ends_early_where_no_boot_can_succeed(
    tmp_path: Path, state: PowerState, words: str
) -> None:
    """E5: with the console's tail, long before the limit."""
    log = tmp_path / "console.log"
    log.write_text("[    1.0] Linux version 6.1\n")
    clock = VirtualClock()
    guest = linux_guest(tmp_path, clock, power_state=lambda: state)
    with pytest.raises(NoBootError, match=words) as ended:
        guest.wait_boot(None)
    assert "Linux version" in ended.value.console_tail
    assert clock.monotonic() == 0.0


def test_a_long_console_is_not_read_again_and_again(tmp_path: Path) -> None:
    """R2: of 200 MB, most of them of earlier boots, a look reads a little."""
    path = tmp_path / "console.log"
    with path.open("wb") as file:
        file.write(b"Kernel panic - not syncing: an earlier boot\n")
        file.truncate(100 * 1024 * 1024)
        file.seek(0, os.SEEK_END)
        start = file.tell()
        file.write(b"SeaBIOS\n[    1.0] Linux version 6.1\n")
        file.seek(100 * 1024 * 1024, os.SEEK_CUR)
        file.write(b"\nlast words\n")
    console = Console(path, start)
    tracemalloc.start()
    assert (console.trouble(), console.milestone()) == (None, "reached the kernel")
    assert console.tail(1) == "last words"
    assert tracemalloc.get_traced_memory()[1] < 16 * 1024 * 1024
    tracemalloc.stop()
    with path.open("ab") as file:
        file.write(b"Kernel panic - not syncing: VFS\n")
    assert console.trouble() == "panic"
    assert Console(path, path.stat().st_size).tail() == ""


@pytest.mark.parametrize(
    "answer", ["", "{", "[]", "{}", '{"return": 1}', '{"return": {"buf-b64": 3}}', "[" * 10**6]
)
def test_an_agent_may_answer_what_it_likes(answer: str) -> None:
    """R2: it is a failure of the guest, whatever it is."""
    with pytest.raises(HypervisorError, match="the guest agent"):
        read_file(lambda _: answer, "/x")
    if answer != '{"return": 1}':
        with pytest.raises(HypervisorError, match="the guest agent"):
            guest_time(lambda _: answer)


@pytest.mark.parametrize("error", [None, b"no"])
def test_a_guest_that_goes_away_while_cloud_init_runs_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: bytes | None
) -> None:
    """E5, Q1: to cloud-init's own limit; then it is told which of the two it was."""
    clock = VirtualClock()
    guest = linux_guest(tmp_path, clock, timeouts=lambda: Timeouts(cloud_init=500.0))
    shell = Shell.__new__(Shell)
    monkeypatch.setattr(Shell, "run", lambda *_, **__: CommandResult(75, "", ""))
    monkeypatch.setattr(Connection, "connect", lambda _: None if error is None else shell)
    kind = GuestUnreachableError if error is None else CloudInitError
    with pytest.raises(kind, match="cloud-init did not end within 500 s"):
        guest.wait_cloud_init()
    assert clock.monotonic() >= 500


def test_cloud_inits_logs_are_kept_without_what_a_terminal_obeys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E5, R2; and that they cannot be kept does not hide what cloud-init failed by."""
    watch = BootWatch("web_0", Console(tmp_path / "console-1.log"), lambda: PowerState.RUNNING)
    access = SshAccess("127.0.0.1", 1, "azureuser", tmp_path / "key", "ssh-ed25519 AAAA")
    connection = Connection(access, watch, clock=VirtualClock())
    shell = Shell.__new__(Shell)
    said = CommandResult(0, "failed \x1b]0;pwned\x07\x1b[31mhere", "")
    monkeypatch.setattr(Shell, "run", lambda *_, **__: said)
    monkeypatch.setattr(Connection, "connect", lambda _: shell)
    kept = tmp_path / "console-1-cloud-init.log"
    assert save_logs(connection) == kept
    assert kept.read_text() == "failed here"
    kept.unlink()
    kept.mkdir()
    assert save_logs(connection) == tmp_path / "console-1.log"
