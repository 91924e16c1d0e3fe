"""As whom QEMU runs where the lab's processes are root's, and what that account may use (R4)."""

from __future__ import annotations

import grp
import os
import pwd
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_vmss import settings as settings_module
from pytest_vmss.api import backends
from pytest_vmss.api.lab import Lab
from pytest_vmss.cli import doctor
from pytest_vmss.errors import HostError
from pytest_vmss.host import qemu_account
from pytest_vmss.host.accelerator import choose_accelerator
from pytest_vmss.host.paths import LabPaths
from pytest_vmss.host.qemu_account import ACCOUNT, AccountChoice, QemuAccount, choose_account
from pytest_vmss.hypervisor import Disk, Machine
from pytest_vmss.hypervisor.access import Access
from pytest_vmss.labs.identity import find_lab, labs_folder, read_identity
from pytest_vmss.labs.place import open_place
from pytest_vmss.labs.reap import reap
from pytest_vmss.settings import Settings

NOBODY = 65534
GROUP = 0x7A00_1234
QEMU = QemuAccount(NOBODY, GROUP)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to a group")


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that this process is root of, and that has libvirt's account for QEMU."""
    nobody = pwd.getpwuid(NOBODY)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", lambda _name: nobody)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every account may enter; pytest's own are the owner's alone."""
    with tempfile.TemporaryDirectory(prefix="vmss-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


def test_accounts_are_written_and_read() -> None:
    assert QemuAccount.parse("") is None
    assert QemuAccount.parse(str(QEMU)) == QEMU
    assert QEMU.label == f"+{NOBODY}:+{GROUP}"
    for text in ("0:5", "5:0", "5", "root:kvm", "5:5\n", "-1:5"):
        with pytest.raises(ValueError, match="no account for QEMU"):
            QemuAccount.parse(text)


@pytest.mark.usefixtures("root")
def test_each_lab_has_a_group_of_its_own(place: Path) -> None:
    """R4: a number that nobody has, so that no lab's machines read another's disks."""
    folder = place / "state"
    first, second = choose_account(folder, 1), choose_account(folder, 2)
    assert first.account is not None
    assert second.account is not None
    assert first.account.uid == second.account.uid == NOBODY
    assert first.account.gid != second.account.gid
    assert (first.reason, first.is_shared) == ("", False)


@pytest.mark.usefixtures("root")
def test_a_container_with_too_few_numbers_has_one_group_for_all(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nogroup = grp.getgrgid(NOBODY)
    monkeypatch.setattr(qemu_account, "_is_mapped", lambda number, _kind: number < 65536)
    monkeypatch.setattr(grp, "getgrnam", lambda _name: nogroup)
    choice = choose_account(place, 1)
    assert choice.account == QemuAccount(NOBODY, nogroup.gr_gid)
    assert choice.is_shared
    monkeypatch.setattr(qemu_account, "_is_mapped", lambda *_: False)
    assert f"no user number {NOBODY}" in choose_account(place, 1).reason

    def unknown(name: str) -> grp.struct_group:
        raise KeyError(name)

    monkeypatch.setattr(grp, "getgrnam", unknown)
    assert choose_account(place, 1).mend == f"addgroup --system {ACCOUNT}"


@pytest.mark.usefixtures("root")
def test_why_qemu_runs_as_root_is_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R4: only where there is no account, or where it may not enter the labs' folder."""
    barred = place / "home"
    barred.mkdir(mode=0o700)
    choice = choose_account(barred / "state")
    assert choice.account is None
    assert f"may not enter {barred}," in choice.reason
    assert "VMSS_STATE_DIR" in choice.mend

    def unknown(name: str) -> pwd.struct_passwd:
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwnam", unknown)
    choice = choose_account(place)
    assert (choice.account, choice.reason) == (None, f"there is no account {ACCOUNT}")
    assert choice.mend.startswith("apt-get install libvirt-daemon-system")


def test_an_ordinary_account_runs_qemu_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    choice = choose_account(tmp_path)
    assert (choice.account, choice.reason) == (None, "")


def test_kvm_is_for_an_account_that_may_open_it(tmp_path: Path) -> None:
    """A7, R4: root's own right to the device is not QEMU's."""
    cpuinfo, kvm = tmp_path / "cpuinfo", tmp_path / "kvm"
    cpuinfo.write_text("flags\t\t: fpu vmx\n")
    kvm.touch()
    kvm.chmod(0o600)
    choice = choose_accelerator(None, QEMU, cpuinfo=cpuinfo, device=kvm)
    assert choice.accelerator == "tcg"
    assert f"chgrp kvm {kvm}" in choice.reason
    with pytest.raises(HostError, match="let nobody use it") as refused:
        choose_accelerator("kvm", QEMU, cpuinfo=cpuinfo, device=kvm)
    assert refused.value.mend == f"chgrp kvm {kvm} && chmod g+rw {kvm}"
    kvm.chmod(0o666)
    assert choose_accelerator(None, QEMU, cpuinfo=cpuinfo, device=kvm).accelerator == "kvm"
    kvm.unlink()
    assert not QEMU.may_open(kvm)


@as_root
def test_a_device_of_the_accounts_group_may_be_opened(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()
    device.chmod(0o660)
    assert not QEMU.may_open(device)
    os.chown(device, 0, pwd.getpwuid(NOBODY).pw_gid)
    assert QEMU.may_open(device)
    os.chown(device, NOBODY, 0)
    device.chmod(0o066)
    assert not QEMU.may_open(device)


def machine_in(paths: LabPaths) -> Machine:
    """A machine whose files are all there."""
    folder = paths.instance("web", 0)
    folder.mkdir(parents=True, mode=0o700)
    paths.images.mkdir(mode=0o700)
    made = Machine(
        name="vmss-lab-web_0", uuid="", generation=1, vcpus=1, memory_mib=64, mac="", forwards=(),
        os_disk=paths.os_disk("web", 0, 1), seed=paths.seed("web", 0, 1),
        console=paths.console("web", 0, 1), agent=paths.run / "ga",
        data_disks=(Disk(0, paths.data_disk("web", 0, 0)),), nvram=paths.nvram("web", 0, 1),
    )  # fmt: skip
    variables = paths.nvram("web", 0, 1)
    for path in (
        made.os_disk,
        made.seed,
        variables,
        made.data_disks[0].path,
        paths.database,
        paths.key,
    ):
        path.touch(mode=0o600)
    return made


@as_root
def test_a_machines_files_and_no_others_are_given(tmp_path: Path) -> None:
    """R4, M5: by group and mode alone; root stays their owner, and no file is opened."""
    paths = LabPaths(tmp_path / "labs/mine")
    machine = machine_in(paths)
    data = machine.data_disks[0].path
    before = data.stat()
    access = Access(QEMU, paths.folder)
    access.grant(machine)
    access.grant(machine)
    given = {
        str(path.relative_to(paths.folder)): oct(path.stat().st_mode & 0o777)
        for path in (paths.folder, *paths.folder.rglob("*"))
        if path.stat().st_gid == GROUP
    }
    assert given == {
        ".": "0o710", "sets": "0o710", "sets/web": "0o710", "sets/web/0": "0o710",
        "images": "0o710", "sets/web/0/os-1.qcow2": "0o660", "sets/web/0/lun0.qcow2": "0o660",
        "sets/web/0/seed-1.iso": "0o640", "sets/web/0/nvram-1.fd": "0o660",
    }  # fmt: skip
    assert {path.stat().st_uid for path in paths.folder.rglob("*")} == {0}
    assert tmp_path.stat().st_gid == 0
    after = data.stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_atime_ns) == (
        before.st_ino, before.st_mtime_ns, before.st_atime_ns,
    )  # fmt: skip
    machine.os_disk.unlink()
    access.grant(machine)  # libvirt says that it is not there


@as_root
def test_opening_a_lab_again_does_not_shut_its_machines_out(tmp_path: Path) -> None:
    """R4: others are shut out, and QEMU's group is not, which may be about to open a disk."""
    settings = Settings(state_dir=tmp_path / "state", cache_dir=tmp_path / "cache")
    lab = Lab.open(settings, "default")
    lab.close()
    lab.paths.folder.chmod(0o715)
    Lab.open(settings, "default").close()
    assert lab.paths.folder.stat().st_mode & 0o777 == 0o710
    assert labs_folder(settings).stat().st_mode & 0o777 == 0o711


def test_roots_labs_lie_where_qemu_may_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R4: unless another place is named."""
    for name in ("VMSS_STATE_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    in_home = tmp_path / ".local/state/pytest-vmss"
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    assert Settings().state_dir == in_home
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert Settings().state_dir == Path("/var/lib/pytest-vmss")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert Settings().state_dir == tmp_path / "xdg/pytest-vmss"
    monkeypatch.setenv("VMSS_STATE_DIR", "/srv/labs")
    assert Settings().state_dir == Path("/srv/labs")


@as_root
def test_roots_labs_of_earlier_versions_are_found_and_reaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L5: they lie in root's home, with machines that run there; new ones do not."""
    for name in ("VMSS_STATE_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(settings_module, "_ROOTS_STATE_DIR", tmp_path / "var")
    now, before = Settings(), Settings(state_dir=tmp_path / "home/.local/state/pytest-vmss")
    assert now.state_dir == tmp_path / "var"
    Lab.open(before, "mine").close()
    folder = labs_folder(before) / "s123456"
    (folder / "run").mkdir(parents=True)
    found, paths = find_lab(now, "MINE")
    assert (found, paths.folder) == (
        replace(now, state_dir=before.state_dir),
        labs_folder(before) / "mine",
    )
    lab = Lab.open(now, "mine")
    lab.close()
    assert lab.paths.folder == labs_folder(before) / "mine"
    monkeypatch.setattr(doctor, "choose_account", lambda _: AccountChoice(QEMU))
    told = list(doctor._confinement(now))[-1]
    assert (told.level, str(lab.paths.folder) in told.what) == ("note", True)
    assert find_lab(now, "other") == (now, LabPaths(labs_folder(now) / "other"))
    assert reap(now) == [f"removed the folder {folder}, whose making was cut short"]
    # Of two by one name the new one counts.
    open_place(now, LabPaths(labs_folder(now) / "mine"), "lasting", Lab).close()
    assert find_lab(now, "mine") == (now, LabPaths(labs_folder(now) / "mine"))


@as_root
def test_a_lab_keeps_its_account(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R4: as its files do; one whose QEMU runs as root says so among its events."""
    account = pwd.getpwuid(NOBODY)
    monkeypatch.setattr(pwd, "getpwnam", lambda _name: account)
    folder = place / "state"
    settings = Settings(state_dir=folder, cache_dir=place / "cache")
    labs = [Lab.open(settings, name) for name in ("one", "two")]
    accounts = [lab.identity.account for lab in labs]
    assert len(set(accounts)) == 2
    assert [read_identity(lab.paths).account for lab in labs] == accounts
    place.chmod(0o700)
    barred = Lab.open(settings, "three")
    assert barred.identity.account == ""
    monkeypatch.setattr(backends, "open_hypervisor", lambda *_: None)
    for lab in (*labs, barred):
        for _ in range(2):
            lab.backends.connect()
    assert [event.kind for event in labs[0].store.events()] == []
    (event,) = barred.store.events()
    assert (event.kind, f"may not enter {place}," in event.message) == ("warning", True)
    for lab in (*labs, barred):
        lab.close()
