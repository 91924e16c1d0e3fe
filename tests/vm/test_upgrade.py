"""The main job on real VMs: one set, through a good version and three bad ones.

The set is restored from a checkpoint, and passes what one that was booted passes (L1).

The tests of this module share one set and run in the order of the file; each
checks its own preconditions, so that one that failed shows itself only.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pytest_vmss.api.lab import Lab
from pytest_vmss.api.operation import Upgrade
from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.environment.environment import InstanceContext
from pytest_vmss.gallery import Gallery
from pytest_vmss.guest import LinuxGuest
from pytest_vmss.host.qemu_account import QemuAccount
from pytest_vmss.labs.place import LabPlace
from pytest_vmss.report.artifacts import collect
from pytest_vmss.store import ErrorRecord, Outcome
from tests.guest_contract import check_guest
from tests.vm.conftest import qemu_processes
from tests.vm.permissions import permissions
from tests.vm.start import SECRET, answers_to, start

BREACH = "MaxUnhealthyUpgradedInstancePercentExceededInRollingUpgrade"
GALLERY = "main-job"


@pytest.fixture(scope="module")
def drawn() -> list[str]:
    """Random numbers of instances: of two that were saved, and of the same two restored."""
    return []


@pytest.fixture(scope="module")
def web(vmss: Lab, built: Callable[[str], Path], drawn: list[str]) -> Iterator[ScaleSet]:
    saved = start(vmss, built("1.0.0"), gallery=GALLERY)
    drawn.extend(random_numbers(saved))
    saved.delete()
    created = start(vmss, built("1.0.0"), gallery=GALLERY)
    drawn.extend(random_numbers(created))
    yield created
    created.delete()


def random_numbers(web: ScaleSet) -> list[str]:
    """What each instance's kernel draws first after a restore."""
    return [i.host.check_output("head -c 16 /dev/urandom | od -An -tx1") for i in web]


def test_a_restored_set_is_current(web: ScaleSet, vmss: Lab, drawn: list[str]) -> None:
    """L1: the same boot as was saved; clock, random numbers and connections of its own."""
    operations = [record.action for record in web._engine.journal.operations()]
    steps = {
        step.phase
        for record in web._engine.journal.operations()
        for step in vmss.store.steps(record.id)
    }
    assert (operations, steps) == (["create"], {"restore"})
    assert len(set(drawn)) == 4
    for instance in web:
        host = instance.host
        assert host.check_output("cat /proc/sys/kernel/random/boot_id") == instance.boot_id
        earliest = time.time() - 5
        assert earliest < int(host.check_output("date +%s")) < time.time() + 5
        assert host.check_output("systemctl is-system-running || true") in ("running", "degraded")
        established = host.check_output("ss -Htn state established '( sport = :22 )'")
        assert len(established.splitlines()) == 1  # none is left from before it was saved


@pytest.fixture
def main_gallery(vmss: Lab) -> Gallery:
    return vmss.gallery(GALLERY)


def answers(url: str) -> bool:
    """Whether the frontend serves a request, on a connection of its own."""
    link = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    try:
        link.request("GET", "/version", headers={"Connection": "close"})
        return link.getresponse().status == 200
    finally:
        link.close()


def test_instances_come_up_as_the_model_says(web: ScaleSet) -> None:
    """A1, A4, A5, E2, E4, H2, L6."""
    assert [instance.name for instance in web] == ["web_0", "web_1"]
    assert web.is_healthy()
    for instance in web:
        host = instance.host
        assert host.check_output("hostname") == f"web{int(instance.instance_id):06d}"
        assert instance.image_version == "1.0.0"
        assert host.file("/dev/disk/azure/data/by-lun/0").exists
        assert host.mount_point("/data").exists
        assert host.service("nginx").is_running
        assert host.file("/root/secret").content_string == f"{SECRET}\n"
        runs = host.check_output("cat /data/custom-data-runs /data/extension-runs").split()
        assert runs == [instance.generation.cloud_instance_id] * 2
        assert "cloud-init" in instance.console.tail(200)
        assert host.check_output("redis-cli set order %s", instance.name) == "OK"
        # Idle disks have the same bytes afterwards; the guest's own writes are in them now.
        host.check_output("sync")


def test_a_good_version_rolls_through(
    web: ScaleSet, main_gallery: Gallery, built: Callable[[str], Path]
) -> None:
    """C1, D2, E1-E4, F2: users notice nothing; new boot, version and kernel; data there; everything run once.

    A4, A9: each has the name and the private address that it had.
    """
    before = {i.name: (i.boot_id, i.kernel, i.data_disks[0].stat().st_ino) for i in web}
    names = [(one.computer_name, one.private_ip_address) for one in web]
    assert names == [("web000000", "10.0.0.4"), ("web000001", "10.0.0.5")]
    with web.always(lambda: answers(web.url), every=0.2) as watched:
        main_gallery.publish("web", "1.1.0", built("1.1.0"))
        upgrade = web.wait_for_upgrade()
    assert upgrade.completed, upgrade.explain()
    assert watched.checks > 100
    assert upgrade.batches == [(0,), (1,)]
    for instance in web:
        boot_id, kernel, inode = before[instance.name]
        host = instance.host
        assert instance.image_version == "1.1.0"
        assert host.check_output("cat /proc/sys/kernel/random/boot_id") != boot_id
        assert host.check_output("uname -r") != kernel
        assert '"1.1.0"' in host.check_output("curl -sf http://localhost/version")
        assert host.check_output("redis-cli get order") == instance.name
        assert instance.data_disks[0].stat().st_ino == inode
        identity = instance.generation.cloud_instance_id
        for path in ("/data/custom-data-runs", "/data/extension-runs"):
            runs = host.check_output("cat %s", path).split()
            assert len(runs) == 2
            assert runs.count(identity) == 1
        assert [entry.status for entry in instance.extensions] == ["success", "success"]
    assert [(one.computer_name, one.private_ip_address) for one in web] == names
    for one, other in (tuple(web), tuple(web)[::-1]):
        assert answers_to(one, other.computer_name)
    # The old OS disks are gone once the new ones are committed.
    folder = web[0].os_disk.parent
    assert sorted(path.name for path in folder.glob("os-*.qcow2")) == ["os-2.qcow2"]


@pytest.mark.parametrize(
    ("version", "code", "message", "on_console"),
    [
        ("1.2.0", "InstanceUnhealthy", "did not become healthy", "nginx"),
        ("1.3.0", "OSProvisioningKernelPanic", "the kernel panicked", "Kernel panic"),
        pytest.param(  # three minutes
            "1.4.0",
            "OSProvisioningClientError",
            "cloud-init ended in error",
            "cloud-init",
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_a_bad_version_is_stopped_undone_and_told_apart(
    web: ScaleSet,
    main_gallery: Gallery,
    built: Callable[[str], Path],
    version: str,
    code: str,
    message: str,
    on_console: str,
) -> None:
    """D7, E5, G1-G3: users notice nothing; previous disk file back and healthy, the other never touched."""
    (current,) = {instance.image_version for instance in web}
    for instance in web:  # alone, nightly, it comes without the tests above
        instance.host.check_output("redis-cli set order %s", instance.name)
    disk = web[0].os_disk
    inode = disk.stat().st_ino
    boots = [instance.boot_id for instance in web]
    runs = web[0].host.check_output("cat /data/custom-data-runs")
    with web.always(lambda: answers(web.url), every=0.2):
        main_gallery.publish("web", version, built(version))
        upgrade = web.wait_for_upgrade()
    check_rolled_back(upgrade)
    error = upgrade.errors["web_0"]
    assert error.code == code
    assert message in error.message
    assert on_console in error.console_tail
    assert on_console in upgrade.explain()
    assert Path(error.log).is_file()
    check_guest_logs(error, version)
    assert web[0].os_disk == disk
    assert disk.stat().st_ino == inode
    assert web.is_healthy()
    assert web[0].boot_id != boots[0]
    assert web[0].host.check_output("cat /proc/sys/kernel/random/boot_id") == web[0].boot_id
    assert web[1].host.check_output("cat /proc/sys/kernel/random/boot_id") == boots[1]
    for instance in web:
        assert instance.image_version == current
        assert instance.host.check_output("redis-cli get order") == instance.name
    # On the old disk nothing is run again (E4).
    identity = web[0].generation.cloud_instance_id
    after = web[0].host.check_output("cat /data/custom-data-runs").split()
    assert after.count(identity) == 1
    assert after[: len(runs.split())] == runs.split()


def check_guest_logs(error: ErrorRecord, version: str) -> None:
    """E5: the journal of the failed disk is there, unless its kernel panicked."""
    if error.code == "OSProvisioningKernelPanic":
        assert error.guest_logs == ""
        assert "the kernel panicked" in error.missing_guest_logs
        return
    assert error.missing_guest_logs == ""
    folder = Path(error.guest_logs)
    journal = (folder / "journal.log").read_text()
    assert "cloud-init" in journal
    assert "systemd[1]" in journal
    if version == "1.2.0":
        assert "nginx" in journal
    status = json.loads((folder / "cloud-init-status.json").read_text())["v1"]
    assert status["datasource"].startswith("DataSourceNoCloud")
    assert (folder / "cloud-init.log").stat().st_size
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
        assert SECRET not in path.read_text()


def check_rolled_back(upgrade: Upgrade) -> None:
    assert upgrade.faulted, upgrade.explain()
    assert upgrade.error is not None
    assert upgrade.error.code == BREACH
    assert upgrade.outcomes == {"web_0": Outcome.ROLLED_BACK, "web_1": Outcome.NOT_STARTED}


def test_others_see_the_same(web: ScaleSet, vmss: Lab) -> None:
    """J3: the view of a set is in the store, for whoever opens it."""
    other = Lab(LabPlace(vmss.settings, vmss.paths, vmss.identity))
    try:
        seen = other.scale_set(web.name).virtual_machines()
        assert [view["lab"]["imageVersionFound"] for view in seen] == ["1.1.0", "1.1.0"]
    finally:
        other.close()


def test_files_are_the_owners_alone_and_hold_no_secret(web: ScaleSet, vmss: Lab) -> None:
    """M5, R4: 0600 in a 0700 folder, but for QEMU's group; nothing in events, steps, arguments."""
    account = QemuAccount.parse(vmss.identity.account)
    given = account is not None
    assert permissions(vmss, vmss.paths.folder) == ((0o710, True) if given else (0o700, False))
    for path in (vmss.paths.database, vmss.paths.key):
        assert permissions(vmss, path) == (0o600, False)
    for path in (web[0].os_disk, *web[0].data_disks.values()):
        assert permissions(vmss, path) == ((0o660, True) if given else (0o600, False))
    for instance in web:
        seed = vmss.paths.seed("web", int(instance.instance_id), instance.generation.number)
        assert permissions(vmss, seed) == ((0o640, True) if given else (0o600, False))
    told = " ".join(event.message for event in vmss.store.events())
    told += " ".join(upgrade.explain() for upgrade in web.history())
    assert SECRET not in told
    for pid in qemu_processes(vmss.identity.id):
        line = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
        assert SECRET not in line
        owner = Path(f"/proc/{pid}").stat().st_uid
        assert owner == (os.geteuid() if account is None else account.uid)
        assert "hostfwd=tcp:127." in line


def test_artifacts_of_a_failure_hold_what_the_guests_say(
    web: ScaleSet, vmss: Lab, tmp_path: Path
) -> None:
    """L3, M5: also the log of an OS disk that was rolled back, and no secret."""
    found = collect(vmss, tmp_path / "artifacts" / "it", test="it", names=[web.name])
    folder = found.folder / "web"
    for instance in web:
        mine = folder / instance.name
        assert "Booting from Hard Disk" in (mine / "console-1.log").read_text()
        assert f"<name>{instance._context.domain}</name>" in (mine / "domain.xml").read_text()
        assert "cloud-init" in (mine / "guest" / "journal.log").read_text()
        assert (mine / "guest" / "cloud-init.log").stat().st_size
        assert "init-local" in (mine / "guest" / "cloud-init-analyze.txt").read_text()
        status = json.loads((mine / "guest" / "cloud-init-status.json").read_text())["v1"]
        assert status["datasource"].startswith("DataSourceNoCloud")
        assert status["modules-final"]["errors"] == []
    assert len(list((folder / "web_0").glob("console-*.log"))) > 1
    assert list((folder / "web_0").glob("guest-*/journal.log"))
    assert "web_0" in (folder / "haproxy-stat.csv").read_text()
    for path in found.folder.rglob("*"):
        assert path.is_dir() or SECRET not in path.read_text(), path


def test_the_guests_contract(web: ScaleSet, vmss: Lab) -> None:
    """The simulated guest does the same (tests/simulation/test_guest_contract.py)."""
    context = InstanceContext(vmss.environment, web.name, 1)
    impatient = replace(vmss.environment.timeouts, boot=5.0)

    def make() -> LinuxGuest:
        guest = vmss.environment.make_guest(context, web[1].generation)
        assert isinstance(guest, LinuxGuest)
        guest._timeouts = lambda: impatient
        return guest

    def count() -> int:
        return int(web[1].host.check_output("wc -l < /root/contract || echo 0"))

    web[1].host.check_output("touch /root/contract")
    check_guest(
        make,
        command="echo once >> /root/contract",
        hang="sleep 1000",
        count=count,
        power_off=lambda: vmss.hypervisor.power_off(context.domain),
    )


def test_the_data_disk_keeps_its_bytes(web: ScaleSet, vmss: Lab) -> None:
    """E3, A5: with the guests off, the file is the same before and after the host's own work."""
    name = f"vmss-{vmss.identity.id}-web_1"
    vmss.hypervisor.power_off(name)
    path = web[1].data_disks[0]
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    vmss.hypervisor.create_data_disk(path, 1)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
