"""L4: emulated guests boot a few at a time, over all labs of a host."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from unittest.mock import Mock

import pytest

from pytest_vmss.api.backends import LocalBackends
from pytest_vmss.api.operation import Operation
from pytest_vmss.errors import HostError, InterruptedOperationError
from pytest_vmss.guest.boot_facts import BootFacts
from pytest_vmss.host import boot_turns
from pytest_vmss.host.boot_turns import lock_files
from pytest_vmss.labs.reap import reap
from pytest_vmss.report.timeline.reading import read_timeline
from pytest_vmss.settings import Settings, Timeouts
from pytest_vmss.simulation.guest import Behaviour, SimulatedGuest
from tests.simulation.conftest import SimulatedLab

HOLDER = """
import sys
from pathlib import Path
from pytest_vmss.host.boot_turns import BootTurns

turn = BootTurns(Path(sys.argv[1]), 1).take()
print(turn is not None, flush=True)
sys.stdin.read()
"""


@dataclass
class Boots:
    """Guests that boot now, and the most that did at once."""

    now: int = 0
    most: int = 0


@pytest.fixture
def boots(monkeypatch: pytest.MonkeyPatch) -> Boots:
    seen, wait_boot = Boots(), SimulatedGuest.wait_boot

    def counted(guest: SimulatedGuest, previous: str | None) -> BootFacts:
        seen.now += 1
        seen.most = max(seen.most, seen.now)
        try:
            return wait_boot(guest, previous)
        finally:
            seen.now -= 1

    monkeypatch.setattr(SimulatedGuest, "wait_boot", counted)
    return seen


def waits(lab: SimulatedLab) -> list[str]:
    return [event.message for event in lab.store.events() if event.kind == "turn"]


@pytest.mark.parametrize(("turns", "most"), [(1, 1), (2, 2), (None, 3)])
def test_guests_boot_as_many_at_a_time_as_there_are_turns(
    lab: SimulatedLab, boots: Boots, turns: int | None, most: int
) -> None:
    lab.turns = turns
    web = lab.start_web(3)
    assert web.is_healthy()
    assert boots.most == most
    assert waits(lab) == ["waits for others to have booted, up to 120 s"] * (3 - most)
    assert lock_files(lab.settings.state_dir) == []


@pytest.mark.parametrize("policy", [{}, {"maxSurge": True}])
@pytest.mark.parametrize("behaviour", [Behaviour.GOOD, Behaviour.PANICS, Behaviour.UNHEALTHY])
def test_whatever_becomes_of_a_boot_its_turn_ends(
    lab: SimulatedLab, behaviour: Behaviour, policy: dict[str, bool]
) -> None:
    """Also where the old disk boots again, and where the old instance stays."""
    lab.turns = 1
    web = lab.start_web(2, policy=policy)
    assert lab.roll(web, "1.1.0", behaviour).record.ended is not None
    web.redeploy([web[0].instance_id])
    assert lock_files(lab.settings.state_dir) == []


def test_a_failure_between_start_and_boot_gives_the_turn_back(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operation can be resumed, which waits for a turn again."""
    lab.turns = 1
    web = lab.start_web(2)
    failing = Mock(side_effect=HostError("the connection to libvirt broke"))
    with monkeypatch.context() as patch:
        patch.setattr(lab.simulated, "start", failing)
        with pytest.raises(InterruptedOperationError):
            web.redeploy([0])
    assert lock_files(lab.settings.state_dir) == []
    web.resume()
    assert web.is_healthy()


@pytest.fixture
def taken(lab: SimulatedLab) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds the only turn."""
    lab.turns = 1
    command = [sys.executable, "-c", HOLDER, str(lab.settings.state_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"True\n"
        yield holder
        holder.kill()


@pytest.mark.usefixtures("taken")
def test_another_process_is_waited_for_but_not_for_long(lab: SimulatedLab) -> None:
    """A fifth of the time for a boot, which is ten times longer without KVM."""
    began = lab.virtual.monotonic()
    web = lab.start_web(1)
    assert web.is_healthy()
    assert lab.virtual.monotonic() - began > 0.2 * 600
    assert waits(lab) == ["waits for others to have booted, up to 120 s"]


@pytest.mark.usefixtures("taken")
def test_waiting_takes_no_more_than_a_quarter_of_what_is_left(settings: Settings) -> None:
    """G4: the wait counts as time of the instance."""
    timeouts = Timeouts(instance=10.0)  # 100 s without KVM
    lab = SimulatedLab.session(replace(settings, timeouts=timeouts))
    lab.turns = 1
    web = lab.start_web(1)
    assert web.is_healthy()
    (told,) = waits(lab)
    assert re.fullmatch(r"waits for others to have booted, up to 2[345] s", told)
    lab.destroy()


def test_a_killed_process_gives_its_turn_back(
    lab: SimulatedLab, taken: subprocess.Popen[bytes]
) -> None:
    """Q2: at once, although its file stays until a sweep (L5)."""
    files = lock_files(lab.settings.state_dir)
    assert len(files) == 1
    assert reap(lab.settings) == []
    assert lock_files(lab.settings.state_dir) == files
    taken.kill()
    taken.wait()
    assert lock_files(lab.settings.state_dir) == files
    assert lab.start_web(1).is_healthy()
    assert waits(lab) == []
    assert lock_files(lab.settings.state_dir) == []


def test_what_a_killed_process_left_is_swept(
    lab: SimulatedLab, taken: subprocess.Popen[bytes]
) -> None:
    """L5"""
    taken.kill()
    taken.wait()
    assert reap(lab.settings) == []
    assert lock_files(lab.settings.state_dir) == []


def test_a_turn_that_cannot_be_swept_keeps_no_other(lab: SimulatedLab) -> None:
    """L5: what a link leads to is left alone."""
    folder = lab.settings.state_dir
    strange, other, victim = folder / "boot-0.lock", folder / "boot-1.lock", folder / "victim"
    victim.write_text("of another account")
    strange.symlink_to(victim)
    other.touch()
    (told,) = reap(lab.settings)
    assert str(strange) in told
    assert lock_files(folder) == [strange]
    assert victim.read_text() == "of another account"


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_turns_that_cannot_be_had_stop_nobody(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """They only save time."""
    lab.turns = 1
    failing = Mock(side_effect=OSError(code, os.strerror(code)))
    monkeypatch.setattr(boot_turns, "try_lock", failing)
    assert lab.start_web(2).is_healthy()
    assert failing.called
    assert waits(lab) == []


@pytest.mark.parametrize(
    ("accelerator", "turns"), [("kvm", None), ("tcg", boot_turns.processors())]
)
def test_only_emulated_guests_wait(lab: SimulatedLab, accelerator: str, turns: int | None) -> None:
    """As many at a time as there are processors."""
    hypervisor = Mock(accelerator=accelerator)
    found = LocalBackends.boot_turns(lab.backends, hypervisor)
    taken = 0
    while found is not None and found.take() is not None:
        taken += 1
    assert (None if found is None else taken) == turns


def test_a_wait_is_a_mark_in_the_timeline(lab: SimulatedLab) -> None:
    """L3: else the start of a machine would seem to take minutes."""
    lab.turns = 1
    web = lab.start_web(2)
    (record,) = web._engine.journal.operations()
    timeline = read_timeline(lab.store, Operation(lab.environment, web.name, record.id))
    (mark,) = [mark for row in timeline.rows for mark in row.marks]
    assert "waits for others to have booted" in mark.text
