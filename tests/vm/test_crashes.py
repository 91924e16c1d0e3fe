"""M1, M3 on real VMs: whatever is killed or runs full, the set ends where it should.

The tests that share the set ``shop`` run in the order of the file; each checks
its own preconditions. Of its two data disks one is used by the guest and one is
idle, whose bytes must never change.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from tests.models import LOAD_BALANCER, web_model
from tests.vm.command import Command
from tests.vm.conftest import NOBODY, qemu_processes

BREACH = "MaxUnhealthyUpgradedInstancePercentExceededInRollingUpgrade"
BOOT = ("cat", "/proc/sys/kernel/random/boot_id")


def write_model(folder: Path, **options: object) -> tuple[Path, Path]:
    """A set with a used and an idle data disk; its files."""
    body = web_model("shop", **options)  # type: ignore[arg-type]
    storage = body["properties"]["virtualMachineProfile"]["storageProfile"]
    storage["dataDisks"].append({"lun": 1, "createOption": "Empty", "diskSizeGB": 1})
    model, balancer = folder / "shop.yaml", folder / "lb.json"
    model.write_text(yaml.safe_dump(body))
    balancer.write_text(json.dumps(LOAD_BALANCER))
    return model, balancer


def create(command: Command, folder: Path, image: Path, **options: object) -> None:
    model, balancer = write_model(folder, **options)
    command("image", "publish", "web", "1.0.0", image)
    command("create", model, "--load-balancer", balancer, "--health-timeout", "15")


class Shop:
    """The set, its guests' facts and its files."""

    def __init__(self, command: Command, count: int) -> None:
        self.command = command
        self.numbers = range(count)
        self.folder = command.state / "labs/default/sets/shop"
        self.idle = self.digests()
        for number in self.numbers:
            self.ssh(number, "redis-cli", "set", "order", str(number))

    def ssh(self, number: int, *words: str) -> str:
        return self.command("ssh", "shop", str(number), *words).stdout.strip()

    def digests(self) -> list[str]:
        """Of the idle data disks."""
        paths = [self.folder / str(number) / "lun1.qcow2" for number in self.numbers]
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]

    def versions(self) -> list[str]:
        view = json.loads(self.command("show", "shop", "--json").stdout)
        return [instance["imageVersionFound"] for instance in view["instances"]]

    def check(self, *versions: str) -> None:
        """All is well: versions, health, data, files, processes; nothing run twice."""
        assert self.versions() == list(versions)
        shown = self.command("show", "shop", "--health").stdout
        assert shown.count("Healthy") == len(versions), shown
        assert self.digests() == self.idle
        view = json.loads(self.command("show", "shop", "--json").stdout)["instances"]
        for number in self.numbers:
            assert self.ssh(number, "redis-cli", "get", "order") == str(number)
            for path in ("/data/custom-data-runs", "/data/extension-runs"):
                runs = self.ssh(number, "cat", path).split()
                assert len(runs) == len(set(runs)), runs
            generation = view[number]["osDisk"]["generation"]
            disks = {path.name for path in (self.folder / str(number)).glob("*.qcow2")}
            assert disks == {f"os-{generation}.qcow2", "lun0.qcow2", "lun1.qcow2"}
            assert list((self.folder / str(number)).glob("*.part")) == []
        assert len(qemu_processes(str(self.folder))) == len(versions)

    def history(self) -> list[dict[str, object]]:
        """Azure's properties of each upgrade, newest first."""
        value = json.loads(self.command("history", "shop", "--json").stdout)["value"]
        return [entry["properties"] for entry in value]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, built: Callable[[str], Path]) -> Iterator[Shop]:
    command = Command(tmp_path_factory.mktemp("state"))
    try:
        create(command, tmp_path_factory.mktemp("model"), built("1.0.0"), capacity=2)
        yield Shop(command, 2)
    finally:
        command("delete", "--yes", "shop", ok=False)
        assert qemu_processes(str(command.state)) == []


def test_killed_in_a_rollback_and_in_its_resume(shop: Shop, built: Callable[[str], Path]) -> None:
    """M1: SIGKILL as the rollback begins, and again while the resume boots the old disk."""
    shop.check("1.0.0", "1.0.0")
    boots = [shop.ssh(number, *BOOT) for number in shop.numbers]
    shop.command.killed_at("rollback: stop", "image", "publish", "web", "1.2.0", built("1.2.0"))
    refused = shop.command("upgrade", "shop", ok=False)
    assert "vmss resume shop" in refused.stderr
    shop.command.killed_at("rollback: boot", "resume", "shop", after=3.0)
    resumed = shop.command("resume", "shop", ok=False)
    assert resumed.returncode == 1
    assert BREACH in resumed.stdout
    assert "shop_0: rolled back" in resumed.stdout
    assert "shop_1: not started" in resumed.stdout
    shop.check("1.0.0", "1.0.0")
    assert shop.ssh(0, *BOOT) != boots[0]
    assert shop.ssh(1, *BOOT) == boots[1]


def test_qemu_killed_in_mid_upgrade(shop: Shop, built: Callable[[str], Path]) -> None:
    """E5, G1: told apart, and rolled back; the other instance is not touched."""
    shop.check("1.0.0", "1.0.0")
    boots = [shop.ssh(number, *BOOT) for number in shop.numbers]
    publish = ("image", "publish", "web", "1.2.1", built("1.1.0"))
    with shop.command.until("swap: boot", *publish) as process:
        time.sleep(3.0)
        (pid,) = qemu_processes("-shop_0,")
        os.kill(pid, signal.SIGKILL)
        out, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "OSProvisioningNoBoot: the machine ended while it booted" in out
    shop.check("1.0.0", "1.0.0")
    assert shop.ssh(1, *BOOT) == boots[1]
    assert shop.history()[0]["rollbackInfo"] == {
        "successfullyRolledbackInstanceCount": 1,
        "failedRolledbackInstanceCount": 0,
    }


def test_killed_in_the_middle_of_a_swap(shop: Shop) -> None:
    """M1: SIGKILL while the new disk boots; its machine runs on, and the resume takes it up."""
    shop.check("1.0.0", "1.0.0")
    shop.command.killed_at("swap: boot", "upgrade", "shop", after=3.0)
    assert len(qemu_processes(str(shop.folder))) == 2
    resumed = shop.command("resume", "shop")
    assert "Completed" in resumed.stdout
    shop.check("1.1.0", "1.1.0")
    assert shop.history()[0]["progress"] == {
        "successfulInstanceCount": 2,
        "failedInstanceCount": 0,
        "inProgressInstanceCount": 0,
        "pendingInstanceCount": 0,
    }


def test_too_many_down_in_mid_upgrade(shop: Shop, built: Callable[[str], Path]) -> None:
    """D6, G2: another instance dies; the batch is finished, then Azure's code stops it all."""
    before = shop.versions()
    shop.check(*before)
    publish = ("image", "publish", "web", "1.3.0", built("1.1.0"))
    with shop.command.until("swap: boot", *publish) as process:
        (pid,) = qemu_processes("-shop_1,")
        os.kill(pid, signal.SIGKILL)
        out, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "MaxUnhealthyInstancePercentExceededInRollingUpgrade" in out
    assert "shop_0: succeeded" in out
    assert "shop_1: not started" in out
    started = shop.command("start", "shop", "1")
    assert "Completed" in started.stdout
    # HAProxy finds it healthy again by itself.
    deadline = time.monotonic() + 60
    while shop.command("show", "shop", "--health").stdout.count("Healthy") < 2:
        assert time.monotonic() < deadline, "waited 60 s for shop_1 to be healthy, in vain"
    shop.check("1.1.0", before[1])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that can be filled."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1200m,mode=700", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_disk_full_while_the_new_overlay_is_written(
    small_disk: Path, tmp_path: Path, built: Callable[[str], Path]
) -> None:
    """M1, M3: QEMU stops the guest; with room made, the previous disk is back, data and all."""
    command = Command(small_disk)
    policy = {"rollbackFailedInstancesOnPolicyBreach": True}
    try:
        create(command, tmp_path, built("1.0.0"), capacity=1, automatic=False, policy=policy)
        shop = Shop(command, 1)
        shop.ssh(0, "sync")
        command("image", "publish", "web", "1.1.0", built("1.1.0"))
        filler = small_disk / "filler"
        with command.until("swap: boot", "upgrade", "shop") as process:
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(2**20)):  # the last one is cut short, the next fails
                    pass
            assert shutil.disk_usage(small_disk).free < 2**16
            told, _ = process.communicate(timeout=300)
        assert process.returncode == 1
        assert "cannot write to its disks" in told or "cannot be written" in told, told
        filler.unlink()
        if "vmss resume" in told:  # the journal ran full too
            resumed = command("resume", "shop", ok=False)
            assert resumed.returncode == 1
        shop.check("1.0.0")
        assert shop.history()[0]["runningStatus"]["code"] == "Faulted"  # type: ignore[index]
    finally:
        command("delete", "--yes", "shop", ok=False)
        assert qemu_processes(str(small_disk)) == []


def daemons(home: Path) -> list[int]:
    """Pids of the libvirt daemons of a home folder's session."""
    found = []
    for process in psutil.process_iter(["name"]):
        if process.info["name"] in ("libvirtd", "virtqemud"):
            try:
                environment = process.environ()
            except psutil.Error:
                continue
            if environment.get("XDG_RUNTIME_DIR") == str(home / "run"):
                found.append(process.pid)
    return found


def test_libvirts_daemon_restarted_in_mid_upgrade(
    python: Path, place: Path, built: Callable[[str], Path]
) -> None:
    """M1: the machine runs on without it, and the upgrade takes no notice."""
    user = NOBODY if os.geteuid() == 0 else None
    home = place / "restarted"
    (home / "run").mkdir(parents=True, mode=0o700)
    (home / "files").mkdir()
    images = {version: home / f"web-{version}.qcow2" for version in ("1.0.0", "1.1.0")}
    for version, path in images.items():
        shutil.copyfile(built(version), path)
    write_model(home / "files", capacity=1)
    for path in (home, home / "run"):
        if user is not None:
            os.chown(path, user, user)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home / "run"),
        "LANG": "C.UTF-8",
        "VMSS_CONNECT": "qemu:///session",
    }
    command = Command(
        home / "state", program=python.parent / "vmss", environment=environment, user=user
    )
    try:
        command("image", "publish", "web", "1.0.0", images["1.0.0"])
        files = home / "files"
        command("create", files / "shop.yaml", "--load-balancer", files / "lb.json")
        shop = Shop(command, 1)
        publish = ("image", "publish", "web", "1.1.0", images["1.1.0"])
        with command.until("swap: boot", *publish) as process:
            time.sleep(3.0)
            (daemon,) = daemons(home)
            os.kill(daemon, signal.SIGKILL)
            out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out
        assert "Completed" in out
        assert daemons(home) != [daemon]
        shop.check("1.1.0")
    finally:
        command("delete", "--yes", "shop", ok=False)
        assert qemu_processes(str(home)) == []
