"""The process that serves one guest, its VM's domain, and the guest's own verdict (O1, O2)."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import socket
import stat
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pytest_vmss.clock import SystemClock, wait_for
from pytest_vmss.errors import (
    CloudInitError,
    GuestUnreachableError,
    HostError,
    NotProvisionedError,
)
from pytest_vmss.guest import LinuxGuest
from pytest_vmss.guest.connection import Connection
from pytest_vmss.guest.in_guest import application_health
from pytest_vmss.guest.runner import CommandResult
from pytest_vmss.guest.shell import Shell
from pytest_vmss.guest_platform import launcher
from pytest_vmss.guest_platform.config import Platform, PlatformFiles
from pytest_vmss.guest_platform.health_port import (
    HEALTH_PORT,
    HealthMessage,
    connect,
    keep_in_thread,
    read_message,
)
from pytest_vmss.guest_platform.sightings import Sightings, read_sightings
from pytest_vmss.guest_platform.slirp import LIBRARY
from pytest_vmss.guest_platform.wire_server import HealthReport
from pytest_vmss.health import read_report
from pytest_vmss.host.qemu_account import QemuAccount
from pytest_vmss.hypervisor import Machine
from pytest_vmss.hypervisor.access import Access
from pytest_vmss.hypervisor.domain import domain_xml
from pytest_vmss.model import ApplicationHealthSettings, Health
from pytest_vmss.simulation.clock import VirtualClock
from tests.linux_guests import linux_guest
from tests.processes import wait_until_ended

UUID = "406a9d04-57d7-48fb-9e7b-f19fe24fd39e"
DOCUMENT = json.dumps({"compute": {"vmId": UUID, "userData": "c2VjcmV0"}, "network": {}})


def has_libslirp() -> bool:
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


def platform(folder: Path, *, port: int = 0) -> Platform:
    return Platform(
        files=PlatformFiles(folder / "406a9d04.az"),
        generation=1,
        instance_id=0,
        mac="52:54:00:00:00:01",
        forwards=(("127.0.0.1", port, 22),) if port else (),
        outbound=False,
        names={"container": UUID, "instance": "web_0", "service": "web"},
        document=DOCUMENT,
    )


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


class Qemu:
    """QEMU's end of a guest's network: it listens again when a connection has ended."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._links: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._links.append(self._listener.accept()[0])

    def end(self) -> None:
        """Ends, as when the VM is powered off."""
        self._listener.close()
        for link in self._links:
            link.close()


def serving(folder: Path) -> list[psutil.Process]:
    """The processes that serve a guest whose files are in a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            named = any(Path(word).is_relative_to(folder) for word in process.cmdline())
            if named and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a short path, as sockets need, that other accounts can reach.

    Each start of pytest shuts pytest's own to them.
    """
    if not has_libslirp():
        pytest.skip("needs libslirp0, which comes with QEMU")
    with tempfile.TemporaryDirectory(prefix="vmss-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        for process in serving(folder):
            process.kill()
            wait_until_ended(process.pid)


def get(files: PlatformFiles) -> tuple[int, bytes]:
    """What the metadata service answers at its socket."""
    link = socket.socket(socket.AF_UNIX)
    folder = os.open(files.folder, os.O_PATH)
    link.connect(f"/proc/self/fd/{folder}/metadata")
    os.close(folder)
    connection = http.client.HTTPConnection("169.254.169.254")
    connection.sock = link
    connection.request(
        "GET", "/metadata/instance/compute/vmId?api-version=2021-08-01&format=text",
        headers={"Metadata": "true"},
    )  # fmt: skip
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_a_guest_is_served_until_its_vm_ends(place: Path, free_port: int) -> None:
    """O1: also when the process was killed, and once only."""
    served = platform(place, port=free_port)
    launcher.prepare(served)
    qemu = Qemu(served.files.nic)
    launcher.ensure(served)
    launcher.ensure(served)
    (process,) = serving(served.files.folder)
    assert get(served.files) == (200, UUID.encode())
    socket.create_connection(("127.0.0.1", free_port), 5).close()
    listening = [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert [(c.laddr.ip, c.laddr.port) for c in listening] == [("127.0.0.1", free_port)]  # R1
    for path in (served.files.config, served.files.folder / "metadata", served.files.sightings):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600  # M5
    process.kill()
    wait_until_ended(process.pid)
    assert not launcher.is_served(served.files)
    launcher.ensure(served)
    assert get(served.files) == (200, UUID.encode())
    qemu.end()
    wait_for(
        "the process to end", lambda: not serving(served.files.folder) or None, timeout=10,
        clock=SystemClock(),
    )  # fmt: skip
    launcher.prepare(served)  # for the next start
    served.files.remove()
    assert not list(place.iterdir())


def test_the_next_run_waits_for_the_last_one_to_end(place: Path) -> None:
    served = platform(place)
    launcher.prepare(served)
    qemu = Qemu(served.files.nic)
    launcher.ensure(served)
    threading.Timer(0.3, qemu.end).start()
    launcher.prepare(replace(served, generation=2))
    assert json.loads(served.files.config.read_bytes())["generation"] == 2
    assert not launcher.is_served(served.files)


def test_a_port_that_is_taken_is_told(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        served = platform(place, port=taken.getsockname()[1])
        launcher.prepare(served)
        qemu = Qemu(served.files.nic)
        with pytest.raises(HostError, match="another program has it"):
            launcher.ensure(served)
    qemu.end()
    assert not launcher.is_served(served.files)


def test_what_the_model_says_later_is_served(place: Path) -> None:
    """O3: without a new process."""
    served = platform(place)
    launcher.prepare(served)
    qemu = Qemu(served.files.nic)
    launcher.ensure(served)
    replace(served, document=DOCUMENT.replace(UUID, "another")).write()
    assert get(served.files) == (200, b"another")
    qemu.end()


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    """M5."""
    assert "c2VjcmV0" not in repr(platform(tmp_path))


# The domain.


def machine(folder: Path) -> Machine:
    return Machine(
        name="vmss-x-web_0", uuid=UUID, generation=1, vcpus=1, memory_mib=512,
        mac="52:54:00:00:00:01", forwards=(), os_disk=folder / "os.qcow2",
        seed=folder / "dvd.iso", console=folder / "console.log", agent=folder / "agent",
        data_disks=(), platform=platform(folder / "a,b"),
    )  # fmt: skip


def test_a_vm_with_a_platform_looks_like_azures(tmp_path: Path) -> None:
    """O1, R1: asset tag, id, a SCSI CD, and a network that leads to the platform alone."""
    root = ET.fromstring(domain_xml(machine(tmp_path), accelerator="tcg", run_as=None))
    entries = {entry.get("name"): entry.text for entry in root.iterfind("sysinfo//entry")}
    assert entries["asset"] == "7783-7084-3265-9085-8269-3286-77"
    assert entries["uuid"] == root.findtext("uuid") == UUID
    smbios = root.find("os/smbios")
    assert smbios is not None
    assert smbios.get("mode") == "sysinfo"
    disks = {disk.get("device"): disk for disk in root.iter("disk")}
    target = disks["cdrom"].find("target")
    assert target is not None
    assert target.get("bus") == "scsi"
    arguments = [element.get("value", "") for element in root.iter() if element.tag.endswith("arg")]
    (network,) = [value for value in arguments if value.startswith("stream,")]
    assert "server=on" in network
    assert "/a,,b/" in network  # QEMU's own way to write a comma
    assert not any(value.startswith("user,") for value in arguments)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another group")
def test_qemus_account_may_make_its_socket_and_read_nothing_else(tmp_path: Path) -> None:
    """R4, M5."""
    lab = tmp_path / "lab"
    made = replace(machine(lab), platform=platform(lab / "run"))
    (lab / "run").mkdir(parents=True, mode=0o700)
    assert made.platform is not None
    launcher.prepare(made.platform)
    Access(QemuAccount(4321, 4321), lab).grant(made)
    given = {
        str(path.relative_to(lab)): (path.stat().st_uid, oct(path.stat().st_mode & 0o777))
        for path in lab.rglob("*")
        if path.stat().st_gid == 4321
    }
    assert given == {
        "run": (0, "0o710"), "run/406a9d04.q": (0, "0o770"), "run/406a9d04.az": (4321, "0o700"),
        "run/406a9d04.json": (0, "0o640"),
    }  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="runs a process as another account")
def test_what_reads_a_guests_frames_is_not_root(place: Path) -> None:
    """R4: where QEMU is not, either; it still keeps what it saw, and reads what it is told."""
    served = platform(place / "lab/run")
    (place / "lab/run").mkdir(parents=True)
    launcher.prepare(served)
    Access(QemuAccount(65534, 65534), place / "lab").grant(
        replace(machine(place / "lab"), platform=served)
    )
    qemu = Qemu(served.files.nic)
    os.chown(served.files.nic, 65534, 65534)
    launcher.ensure(served)
    (process,) = serving(served.files.folder)
    assert set(process.uids()) == set(process.gids()) == {65534}
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert "Groups:\t \n" in status
    assert get(served.files) == (200, UUID.encode())
    assert read_sightings(served.files.sightings, 1).seen == {"metadata"}
    qemu.end()


# The guest's verdict.


def guest(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    seen: Sightings,
    clock: VirtualClock,
    console: str = "",
) -> LinuxGuest:
    """A guest that answers over SSH, of which the platform has seen something."""
    (folder / "console.log").write_text(console)
    shell = Shell.__new__(Shell)
    shell.host_key = "ssh-ed25519 SHOWN"
    facts = CommandResult(0, "12345678-abcd\n6.1\n1.0.0\n", "")
    monkeypatch.setattr(Shell, "run", lambda *_, **__: facts)
    monkeypatch.setattr(Connection, "connect", lambda _: shell)
    return linux_guest(folder, clock, host_key="", sightings=lambda: seen)


def test_a_guest_that_reported_ready_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """O2: and its first login shows the host key that it made."""
    clock = VirtualClock()
    ready = guest(tmp_path, monkeypatch, Sightings(health=HealthReport("Ready")), clock)
    facts = ready.wait_boot(None)
    assert (facts.image_version, facts.host_key) == ("1.0.0", "ssh-ed25519 SHOWN")
    assert clock.monotonic() < 2  # without waiting for the next try


def test_a_guest_that_reported_not_ready_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O2: at once, with its own words and Azure's code."""
    clock = VirtualClock()
    health = HealthReport("NotReady", "ProvisioningFailed", "result=error|reason=no ovf")
    with pytest.raises(NotProvisionedError, match="ProvisioningFailed result=error") as failed:
        guest(tmp_path, monkeypatch, Sightings(health=health), clock).wait_boot(None)
    assert failed.value.code == "OSProvisioningClientError"
    assert clock.monotonic() == 0


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (set(), "never asked for an address by DHCP"),
        ({"dhcp", "lease"}, "Azure as its data source"),
        ({"dhcp", "lease", "another cloud"}, "is Azure in cloud-init's datasource_list"),
        ({"dhcp", "lease", "another cloud", "metadata"}, "never the wire server"),
    ],
)
def test_a_silent_guest_timed_out_with_what_was_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: set[str], words: str
) -> None:
    """O2: although it answers over SSH."""
    silent = guest(tmp_path, monkeypatch, Sightings(frozenset(seen)), VirtualClock())
    with pytest.raises(GuestUnreachableError, match=words) as failed:
        silent.wait_boot(None)
    assert failed.value.code == "OSProvisioningTimedOut"
    assert not isinstance(failed.value, CloudInitError)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "DataSourceAzure [seed=/dev/sr0]",
            r"found Azure .*sr0\]\), .* a DHCP client for cloud-init",
        ),
        ("DataSourceNone", r"Azure as its data source, .* It found DataSourceNone\."),
    ],
)
def test_a_silent_guest_is_told_what_its_cloud_init_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, words: str
) -> None:
    """O2: by the guest's own words at its console."""
    silent = guest(
        tmp_path, monkeypatch, Sightings(frozenset({"dhcp", "lease"})), VirtualClock(),
        console="cloud-init[241]: Cloud-init v. 25.1.4 finished at Sun, 29 Nov 2026 20:58:19 +0000."
        f" Datasource {said}.  Up 153.76 seconds\n",
    )  # fmt: skip
    with pytest.raises(GuestUnreachableError, match=words):
        silent.wait_boot(None)


def test_that_provisioning_has_begun_decides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O2: Azure's agent and azure-init report NotReady first, and Ready when they are done."""
    clock = VirtualClock()
    begun = Sightings(health=HealthReport("NotReady", "Provisioning", "Starting"))
    silent = guest(tmp_path, monkeypatch, begun, clock)
    with pytest.raises(GuestUnreachableError, match=r"has begun \(Starting\), and never") as failed:
        silent.wait_boot(None)
    assert failed.value.code == "OSProvisioningTimedOut"
    assert not isinstance(failed.value, NotProvisionedError)
    assert clock.monotonic() == 60


def test_only_the_first_boot_of_a_disk_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O2: cloud-init does not provision a disk twice."""
    again = guest(tmp_path, monkeypatch, Sightings(), VirtualClock())
    assert again.wait_boot("another-boot").boot_id == "12345678-abcd"


# The health port.


def test_the_programs_port_is_the_one_that_the_vm_has() -> None:
    assert f"/dev/virtio-ports/{HEALTH_PORT}" == application_health.PORT


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ([b"\n[1]\n"], "[1]"),
        ([b"\n[1]\n\n[2", b"3]\n"], "[23]"),
        ([b"cut off", b"\n[1]\n"], "[1]"),
        ([b"x" * 300_000, b"x\n[1]\n"], "[1]"),
        ([b"\xff\n"], "\ufffd"),
    ],
)
def test_the_last_message_at_the_health_port_is_kept(
    tmp_path: Path, written: list[bytes], kept: str
) -> None:
    """F3, R2: whatever is written there."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "h"))
    listener.listen()
    own = connect(str(tmp_path / "h"))
    assert own is not None
    keep_in_thread(own, tmp_path / "health.json")
    link, _ = listener.accept()
    for part in written:
        link.sendall(part)

    def arrived() -> HealthMessage | None:
        found = read_message(tmp_path / "health.json")
        return found if found is not None and found.text == kept else None

    message = wait_for("the message", arrived, timeout=10, clock=SystemClock())
    assert abs(message.received - time.time_ns()) < 60e9
    link.close()
    assert connect(str(tmp_path / "none")) is None


def test_a_message_that_cannot_be_kept_costs_no_later_one(tmp_path: Path) -> None:
    """F3, Q1, R2: neither a full disk nor a message that grows ends the health port."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "h"))
    listener.listen()
    own = connect(str(tmp_path / "h"))
    assert own is not None
    keep = tmp_path / "run/health.json"
    keep_in_thread(own, keep)
    link, _ = listener.accept()
    link.sendall(b"[1]\n")
    time.sleep(0.3)
    keep.parent.mkdir()
    letters = "\u00e9" * 120_000
    for line in (b"\x01" * 250_000, f'["{letters}"]'.encode()):
        link.sendall(line + b"\n")
        time.sleep(0.2)

    def arrived() -> bool | None:
        found = read_message(keep)
        return (found is not None and found.text == f'["{letters}"]') or None

    wait_for("the message", arrived, timeout=10, clock=SystemClock())
    link.close()


def test_a_broken_file_of_messages_has_none(tmp_path: Path) -> None:
    path = tmp_path / "health.json"
    assert read_message(path) is None
    for content in ("", "[]", '{"text": 1}', '{"text": "a", "received": "x"}'):
        path.write_text(content)
        assert read_message(path) is None


def test_a_report_from_the_port_is_as_old_as_its_arrival() -> None:
    """F3: however the guest's clock stands."""
    text = application_health.document("Healthy", "HTTP 200", None, "boot", 1)
    settings = ApplicationHealthSettings(protocol="http", port=80, request_path="/healthz")
    now = 10**18
    fresh = read_report(text, now=now, settings=settings, received=now - 10**9)
    assert fresh.health is Health.HEALTHY
    old = read_report(text, now=now, settings=settings, received=now - 600 * 10**9)
    assert (old.health, "600 s old" in old.detail) == (Health.UNKNOWN, True)


def test_the_program_writes_to_the_port_and_needs_none(tmp_path: Path) -> None:
    """F3."""
    port = tmp_path / "port"
    application_health._send(str(port), "[1]")
    os.mkfifo(port)
    application_health._send(str(port), "[1]")  # nobody reads
    reader = os.open(port, os.O_RDONLY | os.O_NONBLOCK)
    application_health._send(str(port), "[2]")
    assert os.read(reader, 100) == b"\n[2]\n"
    os.close(reader)
