"""Ordinary accounts, made and removed here: where they may be, and where that is asked for."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import yaml

from pytest_vmss.image_builder import ImageBuilder
from pytest_vmss.settings import Settings
from tests.models import CUSTOM_DATA, LOAD_BALANCER, web_model, with_application_health
from tests.vm.conftest import qemu_processes

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not (os.environ.get("CI") or os.environ.get("VMSS_TEST_ACCOUNTS")),
    reason="makes accounts: only as root, in CI or with VMSS_TEST_ACCOUNTS=1",
)


class Account:
    """An account of its own, with an empty home folder of mode 0700.

    Args:
        program: The command ``vmss``, where all accounts may run it.
        umask: Of what it runs.
        subordinate_ids: Whether it gets what ``useradd`` gives on Debian.
    """

    def __init__(self, program: Path, *, umask: int, subordinate_ids: bool) -> None:
        self.name = f"vmss-test-{secrets.token_hex(3)}"
        self._program = program
        self._umask = umask
        none = () if subordinate_ids else ("-K", "SUB_UID_COUNT=0", "-K", "SUB_GID_COUNT=0")
        subprocess.run(["useradd", "-m", *none, self.name], check=True, timeout=60)
        entry = pwd.getpwnam(self.name)
        self.uid, self._gid, self.home = entry.pw_uid, entry.pw_gid, Path(entry.pw_dir)
        self.home.chmod(0o700)
        lines = [line.split(":") for line in Path("/etc/subuid").read_text().splitlines()]
        self._ids = [
            range(int(first), int(first) + int(count))
            for name, first, count in lines
            if name == self.name
        ]
        assert bool(self._ids) == subordinate_ids

    def vmss(self, *arguments: str | Path) -> str:
        """Runs the command as this account, in its home; returns its output."""
        done = subprocess.run(
            [self._program, *arguments],
            cwd=self.home,
            env={
                "HOME": str(self.home),
                "PATH": "/usr/local/bin:/usr/bin:/bin",  # as Debian's /etc/profile has it
                "LANG": "C.UTF-8",
                "COLUMNS": "200",
            },
            user=self.uid,
            group=self._gid,
            extra_groups=[],
            umask=self._umask,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, f"{self.name}: {arguments}\n{done.stdout}{done.stderr}"
        return done.stdout

    def write(self, name: str, text: str) -> Path:
        """Writes a file in its home."""
        path = self.home / name
        path.write_text(text)
        os.chown(path, self.uid, self._gid)
        return path

    def processes(self) -> list[psutil.Process]:
        """All that runs as this account or as one of its subordinate ids."""
        found = []
        for process in psutil.process_iter():
            try:
                uid = process.uids().real
            except psutil.NoSuchProcess:
                continue
            if uid == self.uid or any(uid in ids for ids in self._ids):
                found.append(process)
        return found

    def remove(self) -> None:
        """Removes the account, its processes and its files, whatever it is doing."""
        deadline = time.monotonic() + 60
        while running := self.processes():
            assert time.monotonic() < deadline, f"waited 60 s for the end of {running}, in vain"
            for process in running:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            psutil.wait_procs(running, timeout=5)
        for folder in (Path("/var/tmp"), Path("/tmp")):
            for path in folder.glob("vmss-build-*"):
                if path.lstat().st_uid == self.uid:
                    shutil.rmtree(path)
        # -f: also where the account's group or mail folder is not as useradd left it.
        subprocess.run(["userdel", "-rf", self.name], check=True, timeout=60, capture_output=True)


def scratch_of(account: Account) -> list[Path]:
    return [
        path
        for folder in (Path("/var/tmp"), Path("/tmp"), account.home / ".cache/pytest-vmss")
        for path in folder.rglob("vmss-build-*")
        if path.lstat().st_uid == account.uid
    ]


def rehearse(account: Account) -> str:
    """From nothing to an instance that serves, by hand; returns the digest of its image."""
    image = account.vmss("image", "build", "web", "1.0.0").strip()
    assert scratch_of(account) == []
    model = account.write("shop.yaml", yaml.safe_dump(web_model("shop", capacity=1)))
    balancer = account.write("lb.json", json.dumps(LOAD_BALANCER))
    custom = account.write("custom.yaml", CUSTOM_DATA)
    account.vmss("image", "publish", "web", "1.0.0", image)
    account.vmss("create", model, "--load-balancer", balancer, "--custom-data", custom)
    assert len(qemu_processes(str(account.home))) == 1
    served = ("ssh", "shop", "0", "curl", "-sf", "localhost/version")
    assert '"1.0.0"' in account.vmss(*served)
    account.vmss("delete", "--yes", "shop")
    assert qemu_processes(str(account.home)) == []
    return hashlib.sha256(Path(image).read_bytes()).hexdigest()


Rehearsals = tuple[tuple[Account, Future[str]], tuple[Account, Future[str]]]


@pytest.fixture(scope="module")
def rehearsals(python: Path) -> Iterator[Rehearsals]:
    """Both accounts at work side by side: most of a build waits for the network and the disk.

    The first is as ``useradd`` makes it on Debian, the second has no subordinate ids.
    """
    program = python.parent / "vmss"
    accounts: list[Account] = []
    pool = ThreadPoolExecutor(2)
    try:
        usual = Account(program, umask=0o022, subordinate_ids=True)
        accounts.append(usual)
        plain = Account(program, umask=0o077, subordinate_ids=False)
        accounts.append(plain)
        yield (
            (usual, pool.submit(rehearse, usual)),
            (plain, pool.submit(rehearse, plain)),
        )
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for account in accounts:
            account.remove()  # with its processes, so that the threads end too
        pool.shutdown()


def test_an_account_as_useradd_makes_it(rehearsals: Rehearsals) -> None:
    """B5: its home is 0700 and its subordinate ids may not enter; it builds, and has an instance that serves."""
    (account, rehearsal), _ = rehearsals
    rehearsal.result()
    assert "mode, unpacked in /var/tmp (tried)" in account.vmss("doctor")


def test_an_account_without_subordinate_ids(rehearsals: Rehearsals) -> None:
    """B5, L2: under umask 0077 too; `vmss doctor` tells what would be faster."""
    _, (account, rehearsal) = rehearsals
    rehearsal.result()
    told = account.vmss("doctor")
    assert "fakechroot mode, unpacked in" in told
    assert f"usermod --add-subuids {free_ids()}-" in told
    assert account.name in told


def test_disks_are_the_same_whoever_builds_them(rehearsals: Rehearsals) -> None:
    """B5: same inputs, same digest, in either mode and under any umask."""
    (_, usual), (_, plain) = rehearsals
    assert usual.result() == plain.result()


@pytest.fixture
def account(python: Path) -> Iterator[Account]:
    """Another account, which others cannot look into."""
    made = Account(python.parent / "vmss", umask=0o077, subordinate_ids=False)
    yield made
    made.remove()


def test_an_image_for_azure_of_generation_2(account: Account) -> None:
    """O1, O5, R4: on the account's own libvirt; its process, sockets, DVD and UEFI variables."""
    built = ImageBuilder.named("azure-web", Settings().cache_dir).build("1.0.0").path
    disk = account.home / "web.vhd"
    subprocess.run(
        ["qemu-img", "convert", "-f", "qcow2", "-O", "vpc",
         "-o", "subformat=dynamic,force_size=on", built, disk],
        check=True, timeout=300,
    )  # fmt: skip
    os.chown(disk, account.uid, -1)
    body = with_application_health(
        web_model("shop", capacity=1), "1.0", requestPath="/healthz",
        intervalInSeconds=5, numberOfProbes=1,
    )  # fmt: skip
    model = account.write("shop.yaml", yaml.safe_dump(body))
    azure = ("--provisioning", "Azure", "--hyper-v-generation", "V2")
    account.vmss("image", "publish", "web", "1.0.0", disk, *azure)
    account.vmss("create", model)
    asked = "cloud-id; ls -d /sys/firmware/efi; cat /data/custom-data-runs /data/extension-runs"
    metadata = "http://169.254.169.254/metadata/instance/compute/name?api-version=2021-08-01"
    asked += f"; curl -s -H Metadata:true '{metadata}&format=text'"
    told = account.vmss("ssh", "shop", "0", asked).split()
    assert told[:2] == ["azure", "/sys/firmware/efi"]
    assert told[-1] == "shop_0"
    assert len(told[2:-1]) == 2
    assert len(set(told[2:-1])) == 1
    assert "Healthy" in account.vmss("show", "shop", "--health")
    names = {process.name() for process in account.processes()}
    assert any(name.startswith("qemu-system") for name in names)
    account.vmss("delete", "--yes", "shop")
    deadline = time.monotonic() + 30  # a process that was told to end may take its time
    while left := machines_of(account):
        assert time.monotonic() < deadline, f"30 s after the deletion there are: {left}"
        time.sleep(0.2)


def machines_of(account: Account) -> list[str]:
    """Its virtual machines, and what serves their guests."""
    found = []
    for process in account.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            line = f"{process.name()} {' '.join(process.cmdline())}"
            if line.startswith("qemu") or "guest_platform" in line:
                found.append(line)
    return found


def free_ids() -> int:
    """The first subordinate id that no account of this host has."""
    ends = [100_000]
    for name in ("/etc/subuid", "/etc/subgid"):
        for line in Path(name).read_text().splitlines():
            _, first, count = line.split(":")
            ends.append(int(first) + int(count))
    return max(ends)
