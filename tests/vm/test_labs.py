"""L5, Q1, Q2: real machines of a session that was killed, reaped by several at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pytest_vmss.api.lab import Lab
from pytest_vmss.clock import SystemClock, wait_for
from pytest_vmss.host.paths import LabPaths
from pytest_vmss.labs.identity import labs_folder, read_identity
from pytest_vmss.settings import Settings
from tests.vm.conftest import ROOT, qemu_processes

LIMIT_S = 180

#: A session with two machines that have nothing to boot; it lives until it is killed.
SESSION = """
import sys
from pytest_vmss.hypervisor import Machine, Seed
from pytest_vmss.api.lab import Lab
from pytest_vmss.settings import Settings

lab = Lab.session(Settings())
for number in range(2):
    lab.paths.instance("web", number).mkdir(parents=True)
    disk, seed = lab.paths.os_disk("web", number, 1), lab.paths.seed("web", number, 1)
    lab.hypervisor.create_data_disk(disk, 1)
    lab.hypervisor.write_seed(seed, Seed("{}", "", "", b""))
    lab.hypervisor.start(Machine(
        name=f"vmss-{lab.identity.id}-web_{number}",
        uuid=f"406a9d04-57d7-48fb-9e7b-f19fe24fd39{number}",
        generation=1, vcpus=1, memory_mib=64, mac=f"52:54:00:00:00:0{number}", forwards=(),
        os_disk=disk, seed=seed, console=lab.paths.console("web", number, 1),
        agent=lab.paths.run / f"{number}.ga", data_disks=(),
    ))
print(lab.paths.folder.name, flush=True)
sys.stdin.read()
"""
REAP = "from pytest_vmss.cli import main; main(['reap'])"


def test_a_killed_session_and_a_killed_reaping(place: Path) -> None:
    """While it lives nobody touches it; then four reap, of whom one is killed at it."""
    state = place / "labs-state"
    labs = labs_folder(Settings(state_dir=state))
    environment = {**os.environ, "VMSS_STATE_DIR": str(state), "PYTHONPATH": str(ROOT)}

    def start(code: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def reap() -> str:
        process = start(REAP)
        out, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, err
        return out

    session = start(SESSION)
    try:
        assert session.stdout is not None
        name = session.stdout.readline().strip()
        assert name, session.communicate(timeout=LIMIT_S)[1]
        known = read_identity(LabPaths(labs / name)).id
        assert reap().startswith("nothing was left behind\n")
        assert len(qemu_processes(known)) == 2
    finally:
        session.kill()
        session.communicate(timeout=LIMIT_S)
    # QEMU runs on, and holds nothing that says that its session lives.
    assert len(qemu_processes(known)) == 2
    command = [sys.executable, "-m", "pytest_vmss.labs.reap", str(labs / name)]
    killed = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    wait_for(
        "a machine to be removed",
        lambda: True if len(qemu_processes(known)) < 2 or killed.poll() is not None else None,
        timeout=LIMIT_S,
        clock=SystemClock(),
        interval=0.001,
    )
    killed.kill()
    killed.communicate(timeout=LIMIT_S)
    others = [start(REAP) for _ in range(4)]
    told = [process.communicate(timeout=LIMIT_S) for process in others]
    assert [process.returncode for process in others] == [0] * 4, told
    assert " stays: " not in "".join(out for out, _ in told), told
    assert qemu_processes(known) == []
    reap()
    left = [path for path in state.rglob("*") if path.is_symlink() or not path.is_dir()]
    assert left == []
    assert list(labs.iterdir()) == []


def test_a_process_opens_as_many_labs_as_it_likes(vmss: Lab) -> None:
    """L4, R4: libvirt's embedded driver has room for twenty connections in a process's life."""
    for _ in range(25):
        lab = Lab.session(vmss.settings)
        assert lab.hypervisor.running_generation("nothing") is None
        lab.destroy()
