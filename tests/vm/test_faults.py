"""M3, Q1 on real VMs: the host's disk is full, and its libvirt is away."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.vm.command import Command
from tests.vm.conftest import NOBODY, qemu_processes
from tests.vm.shop import Shop, create, write_model

#: Seconds for which libvirt's daemon is away.
AWAY_S = 20.0


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


@pytest.mark.nightly  # two minutes; tests/simulation/test_host_faults.py has it in each run
def test_disk_full_while_the_new_overlay_is_written(
    small_disk: Path, tmp_path: Path, built: Callable[[str], Path]
) -> None:
    """M1, M3: QEMU stops the guest; with room made, the previous disk is back, data and all."""
    command = Command(small_disk)
    policy = {"rollbackFailedInstancesOnPolicyBreach": True}
    try:
        create(command, tmp_path, built("1.0.0"), capacity=1, automatic=False, policy=policy)
        shop = Shop(command, 1)
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
        shop.check(["1.0.0"])
        assert shop.history()[0]["runningStatus"]["code"] == "Faulted"
    finally:
        command("delete", "--yes", "shop", ok=False)
        assert qemu_processes(str(small_disk)) == []


def daemons(home: Path) -> list[psutil.Process]:
    """The libvirt daemons of a home folder's session."""
    found = []
    for process in psutil.process_iter(["name"]):
        if process.info["name"] in ("libvirtd", "virtqemud"):
            with contextlib.suppress(psutil.Error):
                if process.environ().get("XDG_RUNTIME_DIR") == str(home / "run"):
                    found.append(process)
    return found


def test_libvirts_daemon_away_in_mid_upgrade(
    python: Path, place: Path, built: Callable[[str], Path]
) -> None:
    """M1, Q1: its machines run on without it; when it is back, so is the upgrade.

    As a user, whose daemon libvirt's own library starts on demand. Here it may not.
    """
    user = NOBODY if os.geteuid() == 0 else None
    home = place / "without-libvirt"
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
    program = python.parent / "vmss"
    command = Command(home / "state", program=program, environment=environment, user=user)
    patient = Command(
        home / "state",
        program=program,
        environment={**environment, "LIBVIRT_AUTOSTART": "0"},
        user=user,
    )
    try:
        command("image", "publish", "web", "1.0.0", images["1.0.0"])
        files = home / "files"
        command("create", files / "shop.yaml", "--load-balancer", files / "lb.json")
        shop = Shop(command, 1)
        publish = ("image", "publish", "web", "1.1.0", images["1.1.0"])
        with patient.until("swap: boot", *publish) as process:
            time.sleep(3.0)
            (daemon,) = daemons(home)
            (machine,) = shop.pids()
            argv = daemon.cmdline()
            daemon.kill()
            time.sleep(AWAY_S)
            assert daemons(home) == [], "it was away all the while"
            assert shop.pids() == [machine]
            subprocess.run(
                [*argv, "--daemon"], env=environment, user=user, group=user,
                extra_groups=None if user is None else [], check=True, timeout=60,
            )  # fmt: skip
            out, _ = process.communicate(timeout=300)
        if process.returncode != 0:
            assert "vmss resume shop" in out
            out = command("resume", "shop").stdout
        assert "Completed" in out
        assert shop.pids() == [machine]
        shop.check(["1.1.0"])
    finally:
        command("delete", "--yes", "shop", ok=False)
        assert qemu_processes(str(home)) == []
