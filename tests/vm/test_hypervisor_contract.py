"""The same contract for the simulated hypervisor and the real one.

The real machines run firmware only: they start in half a second.
"""

from __future__ import annotations

import socket
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pytest_vmss.clock import SystemClock, wait_for
from pytest_vmss.errors import HypervisorError, ToolError
from pytest_vmss.guest.console import Console
from pytest_vmss.guest_platform.config import Platform, PlatformFiles
from pytest_vmss.host.paths import process_root
from pytest_vmss.hypervisor import Disk, Forward, Hypervisor, Machine, PowerState, Seed
from pytest_vmss.hypervisor.libvirt_driver import LibvirtHypervisor
from pytest_vmss.hypervisor.saved import copy_for
from pytest_vmss.settings import Settings
from pytest_vmss.simulation.clock import VirtualClock
from pytest_vmss.simulation.hypervisor import SimulatedHypervisor
from tests.processes import wait_until_ended

NAME = "vmss-contract-web_0"
OTHER = "vmss-another1-web_0"


@pytest.fixture(params=["simulated", "libvirt"])
def hypervisor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hypervisor]:
    if request.param == "simulated":
        yield SimulatedHypervisor(VirtualClock(), tmp_path)
        return
    settings = Settings()
    real = LibvirtHypervisor(settings, process_root(settings.state_dir))
    try:
        yield real
    finally:
        real.remove(NAME)
        real.remove(OTHER)
        real.close()


@pytest.fixture
def machine(hypervisor: Hypervisor, tmp_path: Path) -> Machine:
    image = tmp_path / "image.qcow2"
    hypervisor.create_data_disk(image, 1)  # any qcow2 will do as an image that does not boot
    made = Machine(
        name=NAME,
        uuid="406a9d04-57d7-48fb-9e7b-f19fe24fd39e",
        generation=1,
        vcpus=1,
        memory_mib=128,
        mac="52:54:00:00:00:01",
        forwards=(Forward("127.62.0.1", 10022, 22),),
        os_disk=tmp_path / "os-1.qcow2",
        seed=tmp_path / "seed-1.iso",
        console=tmp_path / "console-1.log",
        agent=tmp_path / "ga",
        data_disks=(Disk(0, tmp_path / "lun0.qcow2"),),
    )
    for generation in (1, 2):
        hypervisor.create_os_disk(tmp_path / f"os-{generation}.qcow2", image, None)
        hypervisor.write_seed(tmp_path / f"seed-{generation}.iso", Seed("{}", "", "", b""))
    hypervisor.create_data_disk(tmp_path / "lun0.qcow2", 1)
    return made


def next_generation(machine: Machine) -> Machine:
    folder = machine.os_disk.parent
    return replace(
        machine,
        generation=2,
        os_disk=folder / "os-2.qcow2",
        seed=folder / "seed-2.iso",
        console=folder / "console-2.log",
    )


def test_a_machines_life(hypervisor: Hypervisor, machine: Machine) -> None:
    assert hypervisor.state(NAME) is PowerState.ABSENT
    assert hypervisor.running_generation(NAME) is None
    assert not hypervisor.agent_connected(NAME)
    hypervisor.start(machine)
    assert hypervisor.state(NAME) is PowerState.RUNNING
    assert hypervisor.running_generation(NAME) == 1
    assert hypervisor.machines("vmss-contract-") == [NAME]
    assert hypervisor.machines("vmss-other-") == []
    hypervisor.start(machine)  # runs already
    hypervisor.power_off(NAME)
    assert hypervisor.state(NAME) is PowerState.STOPPED
    assert hypervisor.running_generation(NAME) is None
    hypervisor.power_off(NAME)  # is off already
    hypervisor.start(next_generation(machine))
    assert hypervisor.running_generation(NAME) == 2
    hypervisor.remove(NAME)
    assert hypervisor.state(NAME) is PowerState.ABSENT
    hypervisor.remove(NAME)  # is gone already


def test_a_machine_of_generation_2_keeps_its_variables(
    hypervisor: Hypervisor, machine: Machine
) -> None:
    """O5: each OS disk its own; they stay when the machine is removed, and must be there."""
    folder = machine.os_disk.parent
    first = replace(machine, nvram=folder / "nvram-1.fd")
    second = replace(next_generation(machine), nvram=folder / "nvram-2.fd")
    assert first.nvram is not None
    assert second.nvram is not None
    hypervisor.create_nvram(first.nvram)
    hypervisor.create_nvram(second.nvram)
    fresh = second.nvram.read_bytes()
    hypervisor.start(first)
    assert hypervisor.running_generation(NAME) == 1
    hypervisor.power_off(NAME)
    hypervisor.start(second)
    hypervisor.power_off(NAME)
    hypervisor.start(machine)  # of generation 1 again
    hypervisor.remove(NAME)
    assert first.nvram.exists()
    assert len(second.nvram.read_bytes()) == len(fresh)
    hypervisor.create_nvram(second.nvram)  # a fresh one, for a disk that is prepared again
    assert second.nvram.read_bytes() == fresh


def test_a_saved_machine_is_restored_under_another_name(
    hypervisor: Hypervisor, machine: Machine, tmp_path: Path
) -> None:
    """L1: as often as asked, on disks of its own, and not under a name of another length."""
    memory = tmp_path / "memory"
    with pytest.raises(HypervisorError):  # it does not run
        hypervisor.save(NAME, memory)
    hypervisor.start(machine)
    hypervisor.save(NAME, memory)
    assert hypervisor.state(NAME) is PowerState.STOPPED
    hypervisor.save(NAME, memory)  # is saved already
    frozen = {}
    for disk, image in ((machine.os_disk, "image.qcow2"), (machine.data_disks[0].path, None)):
        frozen[disk.name] = tmp_path / f"frozen-{disk.name}"
        for _ in range(2):
            hypervisor.freeze_disk(disk, frozen[disk.name], image)
    before = {path: path.read_bytes() for path in frozen.values()}
    for number, other in enumerate((OTHER, NAME)):
        folder = tmp_path / f"restored-{number}"
        folder.mkdir()
        restored = replace(
            machine,
            name=other,
            uuid=f"{number}06a9d04-57d7-48fb-9e7b-f19fe24fd39e",
            forwards=(Forward("127.62.0.2", 10022, 22),),
            os_disk=folder / "os-1.qcow2",
            agent=folder / "ga",
            console=folder / "console.log",
            data_disks=(Disk(0, folder / "lun0.qcow2"),),
        )
        with pytest.raises((HypervisorError, ToolError)):
            hypervisor.restore(restored, memory)  # its disks are not there
        for disk in (restored.os_disk, restored.data_disks[0].path):
            hypervisor.create_layer(disk, frozen[disk.name])
        if other == NAME:
            hypervisor.remove(NAME)
        hypervisor.restore(restored, memory)
        hypervisor.restore(restored, memory)  # runs already
        assert hypervisor.running_generation(other) == 1
        assert list(folder.glob("*.part")) == []
        hypervisor.remove(OTHER)
    assert {path: path.read_bytes() for path in frozen.values()} == before


def test_memory_is_not_restored_under_a_name_of_another_length(tmp_path: Path) -> None:
    memory, copy = tmp_path / "memory", tmp_path / "copy"
    memory.write_bytes(b"LibvirtQemudSave<name>vmss-a-web_0</name><uuid>1</uuid>rest")
    copy_for("vmss-b-web_0", "2", memory, copy)
    assert copy.read_bytes() == b"LibvirtQemudSave<name>vmss-b-web_0</name><uuid>2</uuid>rest"
    assert copy.stat().st_mode & 0o777 == 0o600
    with pytest.raises(HypervisorError, match=r"vmss-b-web_10: it was saved from vmss-a-web_0"):
        copy_for("vmss-b-web_10", "2", memory, copy)
    memory.write_bytes(b"something else")
    with pytest.raises(HypervisorError, match="was not saved by libvirt"):
        copy_for("vmss-b-web_0", "2", memory, copy)


def test_another_generation_takes_the_place_of_a_running_one(
    hypervisor: Hypervisor, machine: Machine
) -> None:
    hypervisor.start(machine)
    hypervisor.start(next_generation(machine))
    assert hypervisor.running_generation(NAME) == 2


def test_a_guest_that_looks_for_azure_is_served(
    hypervisor: Hypervisor, machine: Machine, tmp_path: Path
) -> None:
    """O1: from each start on, also on another generation, and again after a kill."""
    files = PlatformFiles(tmp_path / "406a9d04.az")
    served = replace(
        machine,
        forwards=(),
        platform=Platform(
            files=files, generation=1, instance_id=0, mac=machine.mac,
            forwards=(("127.62.0.1", 10022, 22),), outbound=False,
            names={"container": machine.uuid, "instance": "web_0", "service": "web"},
            document='{"compute": {}, "network": {}}',
        ),
    )  # fmt: skip
    for generation in (1, 2):
        hypervisor.write_provisioning_dvd(tmp_path / f"seed-{generation}.iso", b"<Environment/>")
    hypervisor.start(served)
    hypervisor.start(served)  # runs already
    hypervisor.start(next_generation(served))
    assert hypervisor.running_generation(NAME) == 2
    if isinstance(hypervisor, LibvirtHypervisor):
        (process,) = processes_of(files)
        process.kill()
        wait_until_ended(process.pid)
        hypervisor.start(next_generation(served))
        socket.create_connection(("127.62.0.1", 10022), 5).close()
    hypervisor.power_off(NAME)
    wait_for(
        "its process to end",
        lambda: not processes_of(files) or None,
        timeout=10,
        clock=SystemClock(),
    )


def processes_of(files: PlatformFiles) -> list[psutil.Process]:
    """The processes that serve a guest."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if str(files.folder) in (process.info["cmdline"] or ())
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def test_the_hosts_boot_stays_the_same_while_it_runs(hypervisor: Hypervisor) -> None:
    told = hypervisor.host_boot
    assert told
    assert hypervisor.host_boot == told


def test_what_does_not_exist_can_be_asked_for(hypervisor: Hypervisor) -> None:
    hypervisor.request_stop("vmss-contract-nobody")
    hypervisor.power_off("vmss-contract-nobody")
    hypervisor.remove("vmss-contract-nobody")
    assert hypervisor.state("vmss-contract-nobody") is PowerState.ABSENT


def test_faults_of_a_machine(hypervisor: Hypervisor, machine: Machine) -> None:
    """A machine that is halted or cut off still runs; one that does not run has no faults."""
    faults: list[Callable[[], object]] = [
        lambda: hypervisor.pause(NAME),
        lambda: hypervisor.unpause(NAME),
        lambda: hypervisor.set_link(NAME, up=False),
        lambda: hypervisor.agent(NAME, '{"execute": "guest-get-time"}'),
    ]

    def refuse() -> None:
        for fault in faults:
            with pytest.raises(HypervisorError):
                fault()

    refuse()
    hypervisor.start(machine)
    hypervisor.pause(NAME)
    assert hypervisor.state(NAME) is PowerState.RUNNING
    assert hypervisor.running_generation(NAME) == 1
    hypervisor.unpause(NAME)
    hypervisor.unpause(NAME)  # goes on already
    for up in (False, False, True, True):
        hypervisor.set_link(NAME, up=up)
    assert hypervisor.state(NAME) is PowerState.RUNNING
    hypervisor.power_off(NAME)
    refuse()


def test_a_missing_disk_is_a_clear_error(hypervisor: Hypervisor, machine: Machine) -> None:
    machine.os_disk.unlink()
    with pytest.raises(HypervisorError, match=r"cannot be started: .*os-1\.qcow2"):
        hypervisor.start(machine)
    assert hypervisor.running_generation(NAME) is None


def test_a_data_disk_is_made_once_and_seeds_are_the_owners(
    hypervisor: Hypervisor, machine: Machine
) -> None:
    """A5, M5."""
    disk = machine.data_disks[0].path
    before = (disk.read_bytes(), disk.stat().st_ino)
    hypervisor.create_data_disk(disk, 2)
    assert (disk.read_bytes(), disk.stat().st_ino) == before
    assert machine.seed.stat().st_mode & 0o777 == 0o600


def test_the_console_is_logged_from_the_first_byte(tmp_path: Path) -> None:
    """E5: also the firmware's own words, where there is nothing to boot."""
    settings = Settings()
    hypervisor = LibvirtHypervisor(settings, process_root(settings.state_dir))
    disk = tmp_path / "os-1.qcow2"
    hypervisor.create_data_disk(disk, 1)
    hypervisor.write_seed(tmp_path / "seed.iso", Seed("{}", "", "", b""))
    console = Console(tmp_path / "console.log")
    made = Machine(
        name=NAME, uuid="406a9d04-57d7-48fb-9e7b-f19fe24fd39e", generation=1, vcpus=1,
        memory_mib=128, mac="52:54:00:00:00:01", forwards=(), os_disk=disk,
        seed=tmp_path / "seed.iso", console=console.path, agent=tmp_path / "ga", data_disks=(),
    )  # fmt: skip
    try:
        hypervisor.start(made)
        wait_for(
            "the firmware to find nothing to boot",
            console.trouble,
            timeout=60,
            clock=SystemClock(),
            describe=console.tail,
        )
        assert console.trouble() == "no boot"
        assert "SeaBIOS" in console.path.read_text(errors="replace")
    finally:
        hypervisor.remove(NAME)
        hypervisor.close()


def test_a_machine_is_described(hypervisor: Hypervisor, machine: Machine) -> None:
    """L3: for reports of failures."""
    assert hypervisor.describe(NAME) == ""
    hypervisor.start(machine)
    described = hypervisor.describe(NAME)
    assert f"<name>{NAME}</name>" in described
    if isinstance(hypervisor, LibvirtHypervisor):
        cpu = ET.fromstring(described).find("cpu")
        assert cpu is not None
        assert cpu.get("check") == "full"  # libvirt knows what QEMU gave it
    log = hypervisor.log(NAME)
    assert log is None or log.name == f"{NAME}.log"
    hypervisor.remove(NAME)
    assert hypervisor.describe(NAME) == ""
