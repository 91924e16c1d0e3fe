"""A5, A7, M5-M7: what is asked of QEMU and libvirt, without starting anything."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest.mock import Mock

import libvirt
import libvirt_qemu
import pycdlib
import pytest

from pytest_vmss.errors import CapacityError, HostError, HypervisorError
from pytest_vmss.guest.keys import generate, lab_key
from pytest_vmss.guest.seed import build_seed
from pytest_vmss.host.accelerator import Choice, choose_accelerator
from pytest_vmss.host.addresses import (
    addresses_in,
    claim_network,
    host_port,
    release_network,
)
from pytest_vmss.host.capacity import check_capacity
from pytest_vmss.hypervisor import Disk, Forward, Machine, connection, disks, layers, libvirt_driver
from pytest_vmss.hypervisor.connection import Connection
from pytest_vmss.hypervisor.domain import domain_xml, generation_in
from pytest_vmss.hypervisor.firmware import Firmware, create_nvram, find_firmware
from pytest_vmss.hypervisor.libvirt_driver import LibvirtHypervisor
from pytest_vmss.model import load_document
from pytest_vmss.settings import Settings, Timeouts
from tests.models import CUSTOM_DATA, LOAD_BALANCER, web_model


def machine(folder: Path, *, luns: tuple[int, ...] = (0,)) -> Machine:
    return Machine(
        name='vmss-x-a_0"<&',
        uuid="406a9d04-57d7-48fb-9e7b-f19fe24fd39e",
        generation=7,
        vcpus=2,
        memory_mib=512,
        mac="52:54:00:00:00:01",
        forwards=(Forward("127.64.0.1", 10022, 22), Forward("127.64.0.1", 10080, 80)),
        os_disk=folder / "os.qcow2",
        seed=folder / "seed.iso",
        console=folder / "console.log",
        agent=folder / "agent",
        data_disks=tuple(Disk(lun, folder / f"lun{lun}.qcow2") for lun in luns),
    )


@pytest.mark.parametrize("accelerator", ["kvm", "tcg"])
def test_domain_xml(tmp_path: Path, accelerator: Literal["kvm", "tcg"]) -> None:
    xml = domain_xml(machine(tmp_path, luns=(0, 3, 30)), accelerator=accelerator, run_as="+0:+0")
    root = ET.fromstring(xml)
    assert root.findtext("name") == 'vmss-x-a_0"<&'  # M6: escaped, not pasted
    assert root.get("type") == ("kvm" if accelerator == "kvm" else "qemu")
    assert (root.find("features/tcg/tb-cache") is not None) == (accelerator == "tcg")
    serials = [disk.findtext("serial") for disk in root.iter("disk")]
    assert serials == ["os", "seed", "lun0", "lun3", "lun30"]
    assert {d.get("cache") for d in root.iter("driver")} == {"writeback"}
    assert generation_in(xml) == 7
    arguments = [element.get("value", "") for element in root.iter() if element.tag.endswith("arg")]
    (network,) = [value for value in arguments if value.startswith("user,")]
    forwards = [part for part in network.split(",") if part.startswith("hostfwd=")]
    assert len(forwards) == 2
    assert all(part.startswith("hostfwd=tcp:127.") for part in forwards)  # M5
    without = [e.get("capability") for e in root.iter() if e.tag.endswith("}del")]
    assert without == ["cpu-unavailable-features"]  # with it, libvirt asks 400 times at a start


def test_a_machine_with_variables_boots_by_uefi(tmp_path: Path) -> None:
    """O5: generation 2; the firmware is only read, the variables are the OS disk's own."""
    firmware = Firmware(tmp_path / "CODE.fd", tmp_path / "VARS.fd")
    made = replace(machine(tmp_path), nvram=tmp_path / "nvram-7.fd")
    root = ET.fromstring(domain_xml(made, accelerator="tcg", run_as=None, firmware=firmware))
    loader = root.find("os/loader")
    assert loader is not None
    assert loader.text == str(firmware.code)
    assert (loader.get("readonly"), loader.get("type")) == ("yes", "pflash")
    assert root.findtext("os/nvram") == str(made.nvram)
    bios = ET.fromstring(domain_xml(machine(tmp_path), accelerator="tcg", run_as=None))
    assert bios.find("os/loader") is None


def describe(folder: Path, name: str, **changes: Any) -> None:
    """Writes a description of firmware, with its files beside it."""
    folder.mkdir(exist_ok=True)
    for part in ("code", "vars"):
        (folder / f"{name}.{part}").write_text(f"{name} {part}")
    described = {
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": str(folder / f"{name}.code"), "format": "raw"},
            "nvram-template": {"filename": str(folder / f"{name}.vars"), "format": "raw"},
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
        "features": ["acpi-s3", "verbose-dynamic"],
        **changes,
    }
    (folder / f"{name}.json").write_text(json.dumps(described))


def test_firmware_is_found_by_its_description(tmp_path: Path) -> None:
    """O5: as libvirt finds it; what cannot be read is passed over."""
    own, shipped = tmp_path / "etc", tmp_path / "usr"
    folders = (own, shipped)
    with pytest.raises(HostError, match="apt-get install ovmf") as lacking:
        find_firmware(folders)
    assert lacking.value.mend == "apt-get install ovmf"
    describe(shipped, "10-secure", features=["requires-smm", "secure-boot"])
    describe(shipped, "20-arm", targets=[{"architecture": "aarch64", "machines": ["virt-*"]}])
    describe(shipped, "30-q35", targets=[{"architecture": "x86_64", "machines": ["pc-q35-*"]}])
    describe(shipped, "40-memory", mapping={"device": "memory", "filename": "/x"})
    (shipped / "50-text.json").write_text("{")
    (shipped / "51-list.json").write_text("[]")
    with pytest.raises(HostError):
        find_firmware(folders)
    describe(shipped, "60-good")
    found = find_firmware(folders)
    assert found == Firmware(shipped / "60-good.code", shipped / "60-good.vars")
    describe(own, "60-good")
    assert find_firmware(folders).code == own / "60-good.code"
    create_nvram(tmp_path / "nvram", found)
    assert (tmp_path / "nvram").read_text() == "60-good vars"
    assert (tmp_path / "nvram").stat().st_mode & 0o777 == 0o600
    found.code.unlink()
    with pytest.raises(HostError, match="cannot be written"):
        create_nvram(tmp_path / "missing" / "nvram", found)


@pytest.mark.parametrize(
    ("guest_network", "access"),
    [(None, {"restrict=on", "ipv6=off"}), ("outbound", {"restrict=off"})],
)
def test_guests_are_isolated_unless_they_are_let_out(
    tmp_path: Path, guest_network: Literal["outbound"] | None, access: set[str]
) -> None:
    """M6."""
    given: dict[str, Any] = {} if guest_network is None else {"guest_network": guest_network}
    xml = domain_xml(machine(tmp_path), accelerator="tcg", run_as=None, **given)
    arguments = [
        element.get("value", "") for element in ET.fromstring(xml).iter()
        if element.tag.endswith("arg")
    ]  # fmt: skip
    (network,) = [value for value in arguments if value.startswith("user,")]
    told = {part for part in network.split(",") if part.partition("=")[0] in ("restrict", "ipv6")}
    assert told == access


@pytest.mark.parametrize("outbound", [False, True])
def test_only_guests_that_are_let_out_are_told_of_a_way(tmp_path: Path, outbound: bool) -> None:
    """M6: else they would wait for what never answers."""
    seed = build_seed(
        load_document(web_model(), load_balancer=LOAD_BALANCER).model,
        cloud_instance_id="i", computer_name="c", mac="52:54:00:00:00:01",
        host_key=generate("c"), lab_key=lab_key(tmp_path / "id"), grow=False, outbound=outbound,
    )  # fmt: skip
    told = json.loads(seed.network_config)["ethernets"]["primary"]
    assert {"gateway4", "nameservers"} & set(told) == (
        {"gateway4", "nameservers"} if outbound else set()
    )


def test_more_disks_than_letters(tmp_path: Path) -> None:
    xml = domain_xml(machine(tmp_path, luns=tuple(range(30))), accelerator="tcg", run_as=None)
    names = [target.get("dev") for target in ET.fromstring(xml).iterfind("devices/disk/target")]
    assert names[:3] == ["vda", "vdb", "vdc"]
    assert names[25:28] == ["vdz", "vdaa", "vdab"]


@pytest.mark.parametrize(
    ("flags", "device", "expected", "reason"),
    [
        ("fpu vmx", True, "kvm", "can be written"),
        ("fpu svm", True, "kvm", "can be written"),
        ("fpu hypervisor", True, "tcg", "no vmx or svm"),
        ("fpu vmx", False, "tcg", "there is no"),
    ],
)
def test_kvm_only_where_it_really_works(
    tmp_path: Path, flags: str, device: bool, expected: str, reason: str
) -> None:
    """A7: that the device can be opened proves nothing."""
    cpuinfo, kvm = tmp_path / "cpuinfo", tmp_path / "kvm"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    if device:
        kvm.touch()
    choice = choose_accelerator(cpuinfo=cpuinfo, device=kvm)
    assert choice.accelerator == expected
    assert reason in choice.reason
    assert choose_accelerator("tcg", cpuinfo=cpuinfo, device=kvm).accelerator == "tcg"
    if not device:
        with pytest.raises(HostError, match="group kvm"):
            choose_accelerator("kvm", cpuinfo=cpuinfo, device=kvm)


def test_limits_are_multiplied_without_kvm() -> None:
    timeouts = Timeouts().scaled(10.0)
    assert timeouts.boot == Timeouts().boot * 10
    assert timeouts.cloud_init == Timeouts().cloud_init * 10
    assert timeouts.health == Timeouts().health  # Azure's own five minutes


def test_an_os_disk_stands_on_its_image_and_a_data_disk_is_never_made_twice(
    tmp_path: Path,
) -> None:
    """A5, M3."""
    image = tmp_path / "image.qcow2"
    disks.create_data_disk(image, 1)
    image.chmod(0o444)
    before = image.read_bytes()
    disks.create_os_disk(tmp_path / "os.qcow2", image, 2)
    assert image.read_bytes() == before
    assert (tmp_path / "os.qcow2").stat().st_mode & 0o777 == 0o600
    data = tmp_path / "lun0.qcow2"
    disks.create_data_disk(data, 1)
    data.write_bytes(b"the guest's")
    disks.create_data_disk(data, 1)
    assert data.read_bytes() == b"the guest's"


def test_a_layer_knows_whether_it_was_written(tmp_path: Path) -> None:
    """A5: by what is in the file, whoever crashed since."""
    frozen, layer = tmp_path / "frozen.qcow2", tmp_path / "lun0.qcow2"
    disks.create_data_disk(frozen, 1)
    frozen.chmod(0o400)
    disks.create_layer(layer, frozen)
    write = ["qemu-io", "-f", "qcow2", "-c"]
    subprocess.run([*write, "read 0 1M", layer], check=True, stdout=subprocess.DEVNULL)
    assert layers.is_unwritten(layer, frozen)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    assert layers.is_unwritten(link / layer.name, link / frozen.name)
    assert not layers.is_unwritten(layer, tmp_path / "another.qcow2")
    assert not layers.is_unwritten(frozen, frozen)
    assert (layers.backing_file(layer), layers.backing_file(frozen)) == (frozen, None)
    for command in ("write 512M 512", "write -z 0 64k", "discard 0 1M"):
        disks.create_layer(layer, frozen)
        assert layers.is_unwritten(layer, frozen)
        subprocess.run([*write, command, layer], check=True, stdout=subprocess.DEVNULL)
        assert not layers.is_unwritten(layer, frozen), command
    disks.create_layer(layer, frozen)
    created = layer.read_bytes()
    for at, damage in ((36, b"\0" * 4), (40, b"\xff" * 8)):  # entries and place of its L1 table
        layer.write_bytes(created[:at] + damage + created[at + len(damage) :])
        assert not layers.is_unwritten(layer, frozen)
    layer.write_bytes(b"")
    assert not layers.is_unwritten(layer, frozen)
    layer.unlink()
    with pytest.raises(HostError, match="bring the file back"):
        layers.is_unwritten(layer, frozen)


def test_the_seed_carries_custom_data_unchanged_and_is_the_owners_alone(tmp_path: Path) -> None:
    """H1, M5, M6."""
    model = load_document(web_model(), load_balancer=LOAD_BALANCER).model
    host = generate("web000000")
    seed = build_seed(
        model,
        cloud_instance_id="lab-web_0-2",
        computer_name="web000000",
        mac="52:54:00:00:00:01",
        host_key=host,
        lab_key=lab_key(tmp_path / "id"),
        grow=False,
    )
    assert (tmp_path / "id").stat().st_mode & 0o777 == 0o600
    path = tmp_path / "seed.iso"
    disks.write_seed(path, seed)
    assert path.stat().st_mode & 0o777 == 0o600
    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    content = {}
    for name in ("meta-data", "user-data", "vendor-data", "network-config"):
        out = io.BytesIO()
        iso.get_file_from_iso_fp(out, joliet_path=f"/{name}")
        content[name] = out.getvalue().decode()
    iso.close()
    assert content["user-data"] == CUSTOM_DATA
    assert json.loads(content["meta-data"])["instance-id"] == "lab-web_0-2"
    assert host.public in content["vendor-data"]
    assert "PRIVATE KEY" not in repr(host)
    assert b"cidata" in path.read_bytes()


def test_addresses_of_labs_never_collide(tmp_path: Path) -> None:
    """L4."""
    networks = [claim_network(tmp_path, "same", "lab") for _ in range(20)]
    assert len(set(networks)) == 20
    assert all(network.startswith("127.") for network in networks)
    release_network(tmp_path, networks[0])
    assert claim_network(tmp_path, "same", "lab") == networks[0]
    addresses = addresses_in("127.64.0")
    assert (addresses[0], addresses[-1], len(addresses)) == ("127.64.0.1", "127.64.0.254", 254)
    assert host_port(22) == 10022
    assert host_port(8080) == 8080


def test_what_does_not_fit_is_refused_with_the_numbers(tmp_path: Path) -> None:
    """M7."""
    check_capacity(1, 1, accelerator="kvm", folder=tmp_path, what="the set")
    with pytest.raises(CapacityError, match=r"1000 x \(8192 \+ 384\)"):
        check_capacity(1000, 8192, accelerator="tcg", folder=tmp_path, what="the set")


def test_no_libvirt_is_a_clear_error(tmp_path: Path) -> None:
    settings = Settings(connect="qemu+unix:///system?socket=/nonexistent/libvirt-sock")
    with pytest.raises(HostError, match="libvirt-daemon-system"):
        LibvirtHypervisor(settings, tmp_path / "libvirt")


_LONG_PATH = """
import sys
from pathlib import Path
from pytest_vmss.errors import ConflictError
from pytest_vmss.hypervisor.connection import open_connection

root = Path(sys.argv[1])
uri = f"qemu:///embed?root={root}"
connection = open_connection(uri, folder=root, cache=root.parent)
used = Path(connection.uri.partition("root=")[2])
assert len(str(used)) < 60, used
assert used.readlink() == root
try:
    open_connection("qemu:///embed?root=/other", folder=root, cache=root.parent)
except ConflictError as refused:
    assert "one folder in each process" in str(refused)
print(used)
"""


def test_a_folder_with_too_long_a_path_gets_a_short_name(tmp_path: Path) -> None:
    """Sockets' paths are limited to 107 characters; nothing is left of the short name."""
    root = tmp_path / ("x" * 80) / "libvirt"
    done = subprocess.run(
        [sys.executable, "-c", _LONG_PATH, root],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not Path(done.stdout.strip()).is_symlink()


def test_a_short_name_that_a_dying_driver_made_a_folder_is_mended(tmp_path: Path) -> None:
    """It writes a machine's state after its process has removed the name."""
    root = tmp_path / ("x" * 80) / "libvirt"
    root.mkdir(parents=True)
    link = connection._short_link(root)
    assert link is not None
    assert link.readlink() == root
    link.unlink()
    (link / "run/qemu").mkdir(parents=True)
    try:
        assert connection._short_link(root) == link
        assert link.readlink() == root
        assert list(root.iterdir()) == []
    finally:
        link.unlink()


class RestartedDaemon:
    """Stands for a connection of libvirt whose daemon ends after some calls."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def isAlive(self) -> int:  # noqa: N802 - libvirt's name
        return int(self.left > 0)

    def listAllDomains(self) -> list[object]:  # noqa: N802 - libvirt's name
        self.left -= 1
        if self.left < 0:
            raise libvirt.libvirtError("Cannot recv data: Connection reset by peer")
        return []

    def close(self) -> int:
        raise libvirt.libvirtError("client socket is closed")


def test_a_daemon_that_was_restarted_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """M1: on a new connection, as soon as it answers."""
    answers: list[RestartedDaemon | HostError] = [
        RestartedDaemon(1),
        HostError("not yet"),
        RestartedDaemon(1),
    ]

    def opening(*_: object, **__: object) -> Connection:
        answer = answers.pop(0)
        if isinstance(answer, HostError):
            raise answer
        return Connection(answer, "qemu:///session", None)

    monkeypatch.setattr(libvirt_driver, "open_connection", opening)
    hypervisor = LibvirtHypervisor(Settings(accelerator="tcg"), Path("/nonexistent"))
    assert hypervisor.machines("vmss-") == []
    assert hypervisor.machines("vmss-") == []
    assert answers == []


def test_a_daemon_that_stays_away_is_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = [Connection(RestartedDaemon(0), "qemu:///session", None)]

    def opening(*_: object, **__: object) -> Connection:
        if not opened:
            raise HostError("gone")
        return opened.pop()

    monkeypatch.setattr(libvirt_driver, "open_connection", opening)
    monkeypatch.setattr(libvirt_driver, "_RECONNECT_S", 0.5)
    hypervisor = LibvirtHypervisor(Settings(accelerator="tcg"), Path("/nonexistent"))
    with pytest.raises(HostError, match=r"did not come back within 0 s.*start it"):
        hypervisor.machines("vmss-")


@pytest.mark.parametrize(
    ("accelerator", "version", "most"),
    [
        ("tcg", 7_002_022, 1),
        ("tcg", 8_000_005, 1),
        ("tcg", 8_001_000, None),
        ("kvm", 7_002_022, None),
    ],
)
def test_where_qemu_cannot_emulate_several_cpus_guests_have_one(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    accelerator: Literal["kvm", "tcg"],
    version: int,
    most: int | None,
) -> None:
    """A3, A7: else their kernels crash now and then as they boot, and the image would be blamed."""
    libvirtd = Mock(getVersion=Mock(return_value=version))
    opened = Connection(libvirtd, "qemu:///session", None)
    monkeypatch.setattr(libvirt_driver, "open_connection", lambda *_, **__: opened)
    monkeypatch.setattr(
        libvirt_driver, "choose_accelerator", lambda *_: Choice(accelerator, "for the test")
    )
    hypervisor = LibvirtHypervisor(Settings(), tmp_path)
    assert hypervisor.most_vcpus == most
    assert f"<vcpu>{most or 2}</vcpu>" in hypervisor._xml(machine(tmp_path))


def test_memory_that_was_saved_after_a_kill_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """M1: libvirt's daemon saves to the end, whether or not its caller lives."""
    domain = Mock(isActive=Mock(return_value=0))
    opened = Connection(Mock(lookupByName=lambda _: domain), "qemu:///session", None)
    monkeypatch.setattr(libvirt_driver, "open_connection", lambda *_, **__: opened)
    hypervisor = LibvirtHypervisor(Settings(accelerator="tcg"), tmp_path)
    memory, part = tmp_path / "0-memory", tmp_path / "0-memory.part"
    for begun in (b"", b"LibvirtQemudPart and more"):
        part.write_bytes(begun)
        with pytest.raises(HypervisorError, match="cannot be saved: it does not run"):
            hypervisor.save("vmss-a-web_0", memory)
    part.write_bytes(b"LibvirtQemudSave and more")
    for _ in range(2):
        hypervisor.save("vmss-a-web_0", memory)
        assert memory.read_bytes() == b"LibvirtQemudSave and more"
    assert not part.exists()


def test_the_copy_of_saved_memory_goes_also_if_a_kill_left_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """M1, M5: of a VM that libvirt's daemon has restored meanwhile."""
    restored = machine(tmp_path)
    opened = Connection(Mock(), "qemu:///session", None)
    monkeypatch.setattr(libvirt_driver, "open_connection", lambda *_, **__: opened)
    monkeypatch.setattr(LibvirtHypervisor, "running_generation", lambda *_: restored.generation)
    copy = restored.os_disk.with_name("memory.part")
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.touch()
    hypervisor = LibvirtHypervisor(Settings(accelerator="tcg"), tmp_path)
    hypervisor.restore(restored, tmp_path / "memory")
    assert not copy.exists()


def test_an_agent_that_answers_in_no_utf_8_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """R2: libvirt's binding decodes the guest's answer itself."""

    def answer(*_: object) -> str:
        return b"\xff".decode()

    domain = SimpleNamespace(agentSetResponseTimeout=lambda _seconds: None)
    driver = LibvirtHypervisor.__new__(LibvirtHypervisor)
    monkeypatch.setattr(LibvirtHypervisor, "_existing", lambda *_: domain)
    monkeypatch.setattr(driver, "connection", SimpleNamespace(alive=True), raising=False)
    monkeypatch.setattr(libvirt_qemu, "qemuAgentCommand", answer)
    with pytest.raises(HypervisorError, match="another encoding than UTF-8"):
        driver.agent("web_0", "{}")


#: A process that nobody waits for hides one that daemonized; that is reaped all the same, and the
#: first is left to the code that started it; also once the process had no descriptor left. It
#: prints how often /proc was listed meanwhile.
REAPING = """
import errno, os, subprocess, sys, time
from pathlib import Path
from pytest_vmss.hypervisor import connection

listed = []
iterdir = Path.iterdir
Path.iterdir = lambda path: listed.append(path) or iterdir(path)
looked = []

def peek():
    looked.append(True)
    if len(looked) < 3:
        raise OSError(errno.EMFILE, "Too many open files")
    return real()

real, connection._Reaper._peek = connection._Reaper._peek, staticmethod(peek)
reaper = connection._Reaper()
hiding = subprocess.Popen(["true"])
os.waitid(os.P_PID, hiding.pid, os.WEXITED | os.WNOWAIT)
subprocess.run(["setsid", "sh", "-c", f"{sys.argv[1]} 0.2 & echo $! > {sys.argv[2]}"], check=True)
daemon = int(Path(sys.argv[2]).read_text())
assert daemon in connection._children()
deadline = time.monotonic() + 30
while Path(f"/proc/{daemon}").exists():
    assert time.monotonic() < deadline, Path(f"/proc/{daemon}/stat").read_text()
    time.sleep(0.01)
assert hiding.pid in connection._children()
reaper.stop()
assert hiding.wait() == 0
print(len(listed))
"""


def test_what_daemonized_is_reaped_behind_what_nobody_waits_for(tmp_path: Path) -> None:
    """R4: without a look at each process of the host, twenty times a second."""
    program = tmp_path / "qemu-system-test"
    shutil.copyfile("/bin/sleep", program)
    program.chmod(0o755)
    argv: list[str | Path] = [sys.executable, "-c", REAPING, program, tmp_path / "pid"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0"
