"""R4: as whom QEMU runs where the lab is root's, and what it may then read of the host."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pytest_vmss.api.lab import Lab
from pytest_vmss.checkpoints import CheckpointFiles
from pytest_vmss.host.qemu_account import ACCOUNT, QemuAccount, choose_account
from pytest_vmss.hypervisor import Disk, Machine, PowerState, Seed
from pytest_vmss.settings import Settings
from tests.vm.conftest import qemu_processes

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or choose_account(Settings().state_dir).account is None,
    reason=f"QEMU runs as another account only where root has one for it ({ACCOUNT})",
)


class Running:
    """A lab with one machine that has nothing to boot, on a published image and a data disk."""

    def __init__(self, settings: Settings, ends: ExitStack) -> None:
        self.lab = Lab.session(settings)
        ends.callback(self.lab.destroy)
        paths, hypervisor = self.lab.paths, self.lab.hypervisor
        paths.instance("web", 0).mkdir(parents=True, mode=0o700)
        source = paths.folder / "source.qcow2"
        hypervisor.create_data_disk(source, 1)
        self.image = self.lab.images.path_of(self.lab.gallery().publish("web", "1.0.0", source))
        self.machine = Machine(
            name=f"vmss-{self.lab.identity.id}-web_0",
            uuid=f"406a9d04-57d7-48fb-9e7b-{self.lab.identity.id:0>12}",
            generation=1, vcpus=1, memory_mib=64, mac="52:54:00:00:00:01", forwards=(),
            os_disk=paths.os_disk("web", 0, 1), seed=paths.seed("web", 0, 1),
            console=paths.console("web", 0, 1), agent=paths.run / "0.ga",
            data_disks=(Disk(0, paths.data_disk("web", 0, 0)),),
        )  # fmt: skip
        hypervisor.create_os_disk(self.machine.os_disk, self.image, None)
        hypervisor.create_data_disk(self.machine.data_disks[0].path, 1)
        hypervisor.write_seed(self.machine.seed, Seed("{}", "", "", b""))
        hypervisor.start(self.machine)
        (self.pid,) = qemu_processes(self.machine.name)

    @property
    def account(self) -> QemuAccount:
        account = QemuAccount.parse(self.lab.identity.account)
        assert account is not None
        return account

    def status(self, name: str) -> list[str]:
        """What the kernel says of its QEMU process."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(line.split()[1:] for line in lines if line.startswith(f"{name}:"))

    def may(self, how: str, path: Path) -> bool:
        """Whether the process may read (``-r``), write (``-w``) or enter (``-x``) a path."""
        return self._as_qemu("test", how, path)

    def may_look_into(self, pid: int) -> bool:
        """Whether it may do what a debugger does to a process."""
        return self._as_qemu("cat", f"/proc/{pid}/environ")

    def _as_qemu(self, *command: str | Path) -> bool:
        done = subprocess.run(
            command,
            user=int(self.status("Uid")[0]),
            group=int(self.status("Gid")[0]),
            extra_groups=[int(group) for group in self.status("Groups")],
            cwd="/",
            capture_output=True,
            timeout=30,
            check=False,
        )
        return done.returncode == 0


@pytest.fixture(scope="module")
def labs() -> Iterator[tuple[Running, Running]]:
    # In the same state directory as all others of this process, as libvirt's embedded driver asks.
    settings = Settings()
    with ExitStack() as ends:
        running = Running(settings, ends), Running(settings, ends)
        yield running
    assert [each.lab.paths.folder for each in running if each.lab.paths.folder.exists()] == []


def test_qemu_runs_as_an_account_without_rights(labs: tuple[Running, Running]) -> None:
    """R4: not as root, with no capability, and each lab's in a group of its own."""
    for running in labs:
        assert running.lab.hypervisor.state(running.machine.name) is PowerState.RUNNING
        assert running.status("Uid") == [str(running.account.uid)] * 4
        assert running.status("Gid") == [str(running.account.gid)] * 4
        assert running.account.uid != 0
        assert "0" not in running.status("Groups")
        assert int(running.status("CapEff")[0], 16) == 0
        assert running.status("NoNewPrivs") == ["1"]
    assert labs[0].account.gid != labs[1].account.gid


def test_qemu_may_use_the_files_of_its_machine(labs: tuple[Running, Running]) -> None:
    """R4: the disks it writes, and what it only reads."""
    for running in labs:
        machine = running.machine
        for path in (machine.os_disk, machine.data_disks[0].path):
            assert running.may("-r", path)
            assert running.may("-w", path)
        for path in (machine.seed, running.image):
            assert running.may("-r", path)
            assert not running.may("-w", path)
        assert machine.console.exists()


def test_qemu_may_read_nothing_else(labs: tuple[Running, Running], place: Path) -> None:
    """R4, M5: neither its lab's secrets nor another lab, nor root's and the host's own files."""
    host_key = place / "ssh_host_ed25519_key"
    host_key.touch(mode=0o600)
    for mine, other in (labs, labs[::-1]):
        paths, theirs = mine.lab.paths, other.lab.paths
        secret = [
            paths.database, paths.key, paths.identity, paths.blobs, paths.run, paths.locks,
            paths.door.parent, theirs.database, theirs.key, theirs.images, theirs.sets,
            other.machine.os_disk, other.machine.seed, other.machine.data_disks[0].path,
            other.image, Path("/etc/shadow"), Path("/root"), host_key,
            *Path("/etc/ssh").glob("ssh_host_*_key"), Path.home() / ".ssh",
        ]  # fmt: skip
        assert [path for path in secret if mine.may("-r", path)] == []
        folders = [
            paths.folder, paths.sets, paths.images, mine.machine.os_disk.parent,
            paths.folder.parent, paths.folder.parent.parent, theirs.folder,
        ]  # fmt: skip
        assert [folder for folder in folders if mine.may("-w", folder)] == []
        assert [folder for folder in folders if mine.may("-r", folder)] == [
            folder for folder in folders if folder.stat().st_mode & 0o004
        ]
        assert not mine.may("-x", theirs.folder)
        assert mine.may_look_into(mine.pid)
        assert not mine.may_look_into(other.pid)


def test_qemu_starts_again_on_the_same_disks(labs: tuple[Running, Running]) -> None:
    """A5: a data disk keeps its bytes, owner and group through a restart."""
    running = labs[0]
    hypervisor, disk = running.lab.hypervisor, running.machine.data_disks[0].path
    before = (disk.read_bytes(), disk.stat().st_uid, disk.stat().st_gid, disk.stat().st_mode)
    hypervisor.power_off(running.machine.name)
    after = (disk.read_bytes(), disk.stat().st_uid, disk.stat().st_gid, disk.stat().st_mode)
    assert after == before
    hypervisor.start(running.machine)
    (running.pid,) = qemu_processes(running.machine.name)
    assert running.status("Uid")[0] == str(running.account.uid)


def test_machines_of_two_labs_go_on_from_one_checkpoint(labs: tuple[Running, Running]) -> None:
    """R4, L1: frozen disks are links that both labs have; each reads them by its own way."""
    maker, other = labs
    made, taken = (
        CheckpointFiles(running.lab.paths.checkpoint(name))
        for running, name in ((maker, "key.1"), (other, "key.2"))
    )
    hypervisor = maker.lab.hypervisor
    for files in (made, taken):
        files.folder.mkdir(parents=True, mode=0o700)
    hypervisor.save(maker.machine.name, made.memory(0))
    hypervisor.freeze_disk(maker.machine.os_disk, made.os_disk(0), made.image(maker.image.stem))
    hypervisor.freeze_disk(maker.machine.data_disks[0].path, made.data_disk(0, 0), None)
    for path in made.folder.iterdir():
        (taken.folder / path.name).hardlink_to(path)
    other.lab.hypervisor.power_off(other.machine.name)
    for running, files in ((maker, made), (other, taken)):
        hypervisor, machine = running.lab.hypervisor, running.machine
        hypervisor.create_layer(machine.os_disk, files.os_disk(0))
        hypervisor.create_layer(machine.data_disks[0].path, files.data_disk(0, 0))
        hypervisor.restore(machine, files.memory(0))
        (running.pid,) = qemu_processes(machine.name)
        assert running.status("Uid")[0] == str(running.account.uid)
        assert running.status("Gid")[0] == str(running.account.gid)
    assert made.os_disk(0).samefile(taken.os_disk(0))
    for mine, files, theirs in ((maker, made, taken), (other, taken, made)):
        assert mine.may("-r", files.os_disk(0))
        assert not mine.may("-w", files.os_disk(0))
        assert not mine.may("-r", files.memory(0))
        assert not mine.may("-r", theirs.os_disk(0))
