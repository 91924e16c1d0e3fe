"""M1, M2, E4: kills at a part of all points; `python -m benchmarks.crash_points` has them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.crash_points import Ground, Points, Synchronized, judge, plan
from benchmarks.effects import observing
from benchmarks.invariants import Tally
from pytest_vmss import steps
from pytest_vmss.settings import Settings
from pytest_vmss.simulation.lab import SimulatedLab

#: Kills that differ most: of a swap, of the way back, of a replacement, of what is not rolling.
SCENARIOS = ("upgrade", "rollback on policy breach", "upgrade with maxSurge", "create", "delete")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_anywhere_a_resume_ends_where_it_should(scenario: str, memory: Path) -> None:
    """M1: of the process by SIGKILL too."""
    ground, whole = Ground(scenario, memory), Tally()
    for points in plan(ground, every=31, stride=120, real=73):
        whole.add(judge(points, ground))
    assert ground.told == []
    assert whole.told == []
    assert whole.points >= 8
    assert (whole.converged, whole.lost, whole.orphans) == (whole.points, 0, 0)


@pytest.mark.parametrize("scenario", ["make a checkpoint", "restore", "reimage", "scale in"])
def test_what_guests_wrote_is_there_after_a_crash_of_the_host(scenario: str, memory: Path) -> None:
    """M1, A5: where it is kept, which a restore to an earlier state does not."""
    ground = Ground(scenario, memory)
    moments = tuple((moment,) for moment in range(1, min(ground.moments), 11))[:20]
    tally = judge(Points(scenario, moments, "host crash"), ground)
    assert tally.told == []
    assert tally.points >= 8
    assert (tally.converged, tally.lost, tally.orphans) == (tally.points, 0, 0)


def test_such_a_crash_costs_the_database_what_was_not_synchronized(settings: Settings) -> None:
    """Q4: a check that forgets nothing finds nothing."""
    lab = SimulatedLab.open(settings, "lab")
    synchronized = Synchronized(lab)
    with observing(lab, synchronized):
        lab.store.event("web", "test", "kept")
        with lab.store.transaction(durable=False):
            lab.store.event("web", "test", "lost")
    assert synchronized.lost == 1
    lab.close()
    synchronized.put_back()
    lab = SimulatedLab.open(settings, "lab")
    told = [event.message for event in lab.store.events() if event.kind == "test"]
    lab.close()
    assert told == ["kept"]


def test_a_disk_that_goes_before_its_successors_commit_is_synchronized_is_missed(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q4, M3: a crash of the host then costs the instance the disk that its record names."""
    monkeypatch.setattr(steps.Discard, "durable", False)
    ground = Ground("upgrade of one", memory)
    moments = tuple((moment,) for moment in range(min(ground.moments) - 15, min(ground.moments)))
    tally = judge(Points("upgrade of one", moments, "host crash"), ground)
    assert tally.lost
    assert any("lost the OS disk os-1.qcow2 of web_0" in line for line in tally.told)
