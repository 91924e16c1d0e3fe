"""E5, F2, F5, H2: reading consoles, probing, extensions' rules."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_vmss.clock import VirtualClock, wait_for
from pytest_vmss.errors import InstanceError, NoBootError, WaitTimeoutError
from pytest_vmss.guest import LinuxGuest, SshAccess
from pytest_vmss.guest.console import Console
from pytest_vmss.guest.shell import Shell
from pytest_vmss.health import probe_once
from pytest_vmss.hypervisor import PowerState
from pytest_vmss.model import Probe
from pytest_vmss.settings import Limits


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
    with pytest.raises(WaitTimeoutError, match=r"waited 10 s for the moon.*last seen: clouds"):
        wait_for("the moon", lambda: None, limit=10, clock=clock, describe=lambda: "clouds")
    assert 10 <= clock.monotonic() < 11
    answers = iter([None, None, "up"])
    assert wait_for("it", lambda: next(answers), limit=10, clock=clock) == "up"


def test_nobody_answers_ssh(tmp_path: Path) -> None:
    """A listener without a greeting is a forwarder without a guest behind it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        shell = Shell.connect(
            "127.0.0.1", port, user="u", key=tmp_path / "k", host_key="ssh-ed25519 A",
            name="web_0", timeout=1,
        )  # fmt: skip
        assert shell is None


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (PowerState.STOPPED, "the machine ended while it booted"),
        (PowerState.ABSENT, "libvirt has forgotten it"),
        (PowerState.PAUSED, "QEMU paused the machine, for it cannot write to its disks"),
    ],
)
def test_a_wait_ends_early_where_no_boot_can_succeed(
    tmp_path: Path, state: PowerState, words: str
) -> None:
    """E5: with the console's tail, long before the limit."""
    log = tmp_path / "console.log"
    log.write_text("[    1.0] Linux version 6.1\n")
    clock = VirtualClock()
    guest = LinuxGuest(
        "web_0",
        access=SshAccess("127.0.0.1", 1, "azureuser", tmp_path / "key", "ssh-ed25519 AAAA"),
        console=Console(log),
        limits=Limits,
        clock=clock,
        power_state=lambda: state,
        agent_connected=lambda: False,
    )
    with pytest.raises(NoBootError, match=words) as ended:
        guest.wait_boot(None)
    assert "Linux version" in ended.value.console_tail
    assert clock.monotonic() == 0.0
