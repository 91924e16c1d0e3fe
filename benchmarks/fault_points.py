"""``python -m benchmarks.fault_points``: fails every effect, in every way that it can really fail.

In simulation, with the real engine, planner, journal and gallery: each statement of the
database, operation on a file, lock, and call of hypervisor, guest, load balancer and host
fails once, or from then on until that is cured; or so much time passes there that every
limit is over. In creations, upgrades, rollbacks, surges, scalings, reimages, updates,
deletions, and in the resume after a kill; on sets of one and of four with batches of two.

After the cure the operation is resumed as a user does it, in the same process or another
one. Then every instance must have a bootable OS disk that its record names and the data
disks that it had; what was committed must have stayed; what is told must be true of the
simulated world; what only the host failed at must end where an undisturbed run ends;
nothing may be left over; and later operations must work.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from benchmarks.crash_points import Killer
from benchmarks.effects import Effect, observing
from benchmarks.faults import Fault, faults_of
from benchmarks.invariants import (
    OutageMonitor,
    being_removed,
    end_problems,
    lost,
    miscounted,
    orphans,
    repeated,
    state_of,
)
from benchmarks.stage import SCENARIOS, Scenario, Stage, use_memory
from pytest_vmss.errors import InterruptedOperationError, VmssError
from pytest_vmss.simulation.guest import Behaviour
from pytest_vmss.simulation.lab import SimulatedLab
from pytest_vmss.simulation.scheduler import Killed

__all__ = ["PLAYS", "Ground", "Point", "experiment"]

Mode = Literal["once", "until cured"]

#: Seconds: longer than all limits of waits and operations together.
_LONG = 500_000.0
_RESUME = re.compile(r"vmss( --lab \S+)? resume \w")


@dataclass(frozen=True)
class Point:
    """One thing that goes wrong.

    Attributes:
        moment: Number of the effect, counted from 1.
        fault: Label of the fault.
        mode: How long it lasts.
        other_process: Whether it is another process that resumes.
        seed: Of the order of events.
    """

    moment: int
    fault: str
    mode: Mode
    other_process: bool
    seed: int


class Injector:
    """Counts effects, and fails one of them, or from then on what its fault spreads to.

    Args:
        lab: Where.
        point: Which one; None for none.
        watch: Looks at the world at each.
    """

    def __init__(self, lab: SimulatedLab, point: Point | None, watch: OutageMonitor) -> None:
        self.effects: list[Effect] = []
        self.hit: Effect | None = None
        self.fault: Fault | None = None
        self._lab, self._point, self._watch = lab, point, watch

    def __call__(self, effect: Effect) -> None:
        """Tells of an effect."""
        if effect.when != "before":
            return
        self._watch.look(effect)
        if self._point is None:
            self.effects.append(effect)
            return
        if self.hit is not None and self.fault is not None:
            if self._point.mode == "until cured" and self.fault.spreads(effect):
                self._fail()
            return
        self.effects.append(effect)
        if len(self.effects) == self._point.moment:
            self.hit = effect
            self.fault = next(f for f in faults_of(effect) if f.label == self._point.fault)
            self._fail()

    def _fail(self) -> None:
        fault = self.fault
        if fault is not None and fault.error is not None:
            raise fault.error()
        self._lab.virtual._baton.advance(_LONG)


# What is done, and what it comes to.


@dataclass(frozen=True)
class Play:
    """A scenario, or the resume of one that was killed in the middle.

    Attributes:
        killed: At which share of its moments it is killed before; 0 for not at all.
    """

    scenario: Scenario
    killed: float = 0.0

    @property
    def name(self) -> str:
        """Its name."""
        return f"resume of {self.scenario.name}" if self.killed else self.scenario.name


_RESUMED = ("upgrade", "rollback", "upgrade with maxSurge", "create", "reimage", "delete")
PLAYS: Mapping[str, Play] = {
    play.name: play
    for play in (
        *(Play(scenario) for scenario in SCENARIOS.values()),
        *(Play(SCENARIOS[name], killed=0.5) for name in _RESUMED),
    )
}


def _resume(lab: SimulatedLab) -> None:
    for web in lab.scale_sets():
        web.resume()


class Ground:
    """A play's stage, and what undisturbed runs of it come to.

    Args:
        name: The play's.
        folder: For it alone.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.play = PLAYS[name]
        self.stage = Stage(self.play.scenario, folder)
        self._middle = 0
        if self.play.killed:
            lab = self.stage.fresh()
            counting = Killer(0)
            with observing(lab, counting):
                self.play.scenario.act(lab)
            lab.close()
            self._middle = int(counting.count * self.play.killed)
        lab = self.begin(0)
        injector = Injector(lab, None, self.watch(lab))
        with observing(lab, injector):
            self.act(lab)
        self.effects = injector.effects
        self.ideal = state_of(lab, self.stage.reports(lab))
        self.operations = len(self.stage.reports(lab))
        lab.close()

    def begin(self, seed: int) -> SimulatedLab:
        """The lab when nothing has gone wrong yet."""
        lab = self.stage.fresh(seed)
        if self._middle:
            with observing(lab, Killer(self._middle)), contextlib.suppress(Killed):
                self.play.scenario.act(lab)
            lab = self.stage.succeed(lab, seed)
        return lab

    def act(self, lab: SimulatedLab) -> None:
        """Does what the play is about."""
        if self._middle:
            _resume(lab)
        else:
            self.play.scenario.act(lab)

    def watch(self, lab: SimulatedLab) -> OutageMonitor:
        """Watches M2 where it applies."""
        scenario = self.play.scenario
        return OutageMonitor(
            lab, scenario.capacity, scenario.most_out if scenario.rolling else None
        )

    def points(self, *, stride: int) -> list[Point]:
        """One of so many points, spread over all effects and faults.

        Of effects that are repeated many times, as looks in a wait are, the first few count.
        """
        found, times = list[Point](), Counter[Effect]()
        for moment, effect in enumerate(self.effects, 1):
            times[effect] += 1
            if effect.reads and times[effect] > (2 if effect.family != "store" else 40):
                continue
            for fault in faults_of(effect):
                modes: tuple[Mode, ...] = ("once", "until cured") if fault.error else ("once",)
                found += [
                    Point(moment, fault.label, mode, other_process=(moment % 3 == 0), seed=0)
                    for mode in modes
                ]
        return found[stride // 2 :: stride]


def experiment(ground: Ground, point: Point) -> list[str]:
    """Lets one thing go wrong; returns everything that was wrong afterwards."""
    lab = ground.begin(point.seed)
    watch = ground.watch(lab)
    injector = Injector(lab, point, watch)
    wrong: list[str] = []
    with observing(lab, injector):
        wrong += _attempt(lab, ground.act, resuming=ground.play.killed > 0)
        wrong += _q1(lab, ground)
        if point.mode == "until cured":
            for _ in range(2):  # whoever tries again in vain makes it no worse
                wrong += _attempt(lab, _resume, resuming=True)
                wrong += _q1(lab, ground)
    fault, hit = injector.fault, injector.hit
    if fault is None or hit is None:
        lab.close()
        return [f"nothing was hit: there were {len(injector.effects)} effects"]
    if point.other_process:
        lab = ground.stage.succeed(lab, point.seed)
        watch.lab = lab
    with observing(lab, Injector(lab, None, watch)):
        wrong += _after_the_cure(lab, ground, noted=hit.family != "store")
    wrong += _at_the_end(lab, ground, fault)
    wrong += watch.wrong
    if not wrong:
        wrong += _later(lab)
    lab.close()
    return [f"{hit}, {fault.label}, {point.mode}: {text}" for text in wrong]


def _attempt(
    lab: SimulatedLab, act: Callable[[SimulatedLab], object], *, resuming: bool = False
) -> list[str]:
    """Tries something that may fail; what it must tell then.

    Args:
        lab: Where.
        act: What is tried.
        resuming: It is a resume, so that whoever is told knows how to go on.
    """
    try:
        act(lab)
    except InterruptedOperationError as error:
        if not _RESUME.search(error.message):
            return [f"the message does not say how to go on: {error.message}"]
    except VmssError as error:
        if not resuming and _unfinished(lab) and not _RESUME.search(str(error)):
            return [f"unfinished, and the error does not say how to go on: {error!r}"]
    except Exception as error:  # noqa: BLE001 - it is told
        return [f"an error that is nobody's: {error!r}"]
    else:
        if _unfinished(lab):
            return [f"it returned as if it had ended: {_unfinished(lab)}"]
    return []


def _unfinished(lab: SimulatedLab) -> list[str]:
    with _undisturbed():
        return [
            f"{record.action} of {web.name}"
            for web in lab.scale_sets()
            if (record := web._engine.journal.unfinished()) is not None
        ]


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Lets the check itself look without being told of or failed."""
    from benchmarks import effects  # noqa: PLC0415 - its state

    observe, effects._observe = effects._observe, None
    try:
        yield
    finally:
        effects._observe = observe


def _q1(lab: SimulatedLab, ground: Ground) -> list[str]:
    """What must hold at any time: no disk is lost."""
    with _undisturbed():
        return [
            f"lost while it failed: {thing}"
            for thing in lost(lab, _before(ground, None), going=being_removed(lab))
        ]


def _before(ground: Ground, replaced: dict[str, int] | None) -> dict[str, int] | None:
    """The data disks that must be there; ``replaced`` where the play replaces them."""
    return replaced if ground.play.scenario.replaces_data_disks else ground.stage.data_disks


def _after_the_cure(lab: SimulatedLab, ground: Ground, *, noted: bool) -> list[str]:
    """Goes on as a user does: resumes, and does again what was never begun.

    Args:
        lab: Where.
        ground: What was done.
        noted: The interruption could be written down.
    """
    wrong = []
    for web in lab.scale_sets():
        record = web._engine.journal.unfinished()
        if not noted or record is None or record.action != "upgrade":
            continue
        told = web.history()[0].explain()
        if not _RESUME.search(told):
            wrong.append(f"the upgrade's account does not say how to go on: {told}")
    try:
        _resume(lab)
        if len(ground.stage.reports(lab)) < ground.operations:
            ground.play.scenario.act(lab)
    except Exception as error:  # noqa: BLE001 - it is told
        if ground.stage.reports(lab)[-1].record.status != "Faulted":
            wrong.append(f"after the cure: {error!r}")
    return wrong


def _at_the_end(lab: SimulatedLab, ground: Ground, fault: Fault) -> list[str]:
    wrong = [f"unfinished after the cure and a resume: {what}" for what in _unfinished(lab)]
    wrong += [f"lost: {thing}" for thing in lost(lab, _before(ground, {}))]
    wrong += [f"left over: {thing}" for thing in orphans(lab)]
    wrong += repeated(lab) + miscounted(lab)
    reports = ground.stage.reports(lab)
    for report in reports:
        wrong += end_problems(lab, report, ground.stage.os_disks)
    if not fault.judges and not wrong:
        reached = state_of(lab, reports)
        if reached != ground.ideal:
            wrong.append(f"did not converge: {reached}, not {ground.ideal}")
    return wrong


def _later(lab: SimulatedLab) -> list[str]:
    """A later upgrade must succeed on all instances, whatever they have been through."""
    if not lab.scale_sets():
        return []
    web = lab.scale_set("web")
    lab.publish("1.2.0", Behaviour.GOOD)
    lenient = {"maxUnhealthyInstancePercent": 100, "maxUnhealthyUpgradedInstancePercent": 100}
    try:
        web.update({"upgradePolicy": {"mode": "Manual", "rollingUpgradePolicy": lenient}})
        upgrade = web.upgrade()
        stopped = [one.instance_id for one in web if one.record.power != "running"]
        if stopped:
            web.start(stopped)
    except VmssError as error:
        return [f"a later upgrade was refused: {error!r}"]
    versions = {instance.image_version for instance in web}
    if not upgrade.completed or versions != {"1.2.0"} or not web.is_healthy():
        return [f"a later upgrade did not succeed: {versions}: {upgrade.explain()}"]
    return [f"left over by a later upgrade: {thing}" for thing in orphans(lab)]


# Many points, two processes side by side.


@dataclass
class Tally:
    """What came of points.

    Attributes:
        points: How many.
        held: Of how many everything held.
        told: What did not, in words.
    """

    points: int = 0
    held: int = 0
    told: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Adds another tally to this one."""
        self.points += other.points
        self.held += other.held
        self.told += other.told


@lru_cache(maxsize=2)
def _ground(name: str) -> Ground:
    return Ground(name, Path(tempfile.mkdtemp(prefix="vmss-faults-")))


def _work(task: tuple[str, Sequence[Point]]) -> Tally:
    name, points = task
    ground, tally = _ground(name), Tally()
    for point in points:
        wrong = experiment(ground, point)
        tally.points += 1
        tally.held += not wrong
        tally.told += [f"{name}, {point}:\n    {text}" for text in wrong]
    return tally


def run(names: Sequence[str], *, stride: int, jobs: int = 2) -> Tally:
    """Lets much go wrong in plays, and prints what came of each."""
    whole = Tally()
    with tempfile.TemporaryDirectory(prefix="vmss-faults-") as folder:
        outer, tempfile.tempdir = tempfile.tempdir, folder
        try:
            with ProcessPoolExecutor(jobs, initializer=_ground.cache_clear) as pool:
                for name in names:
                    points = _ground(name).points(stride=stride)
                    tasks = [(name, points[n : n + 20]) for n in range(0, len(points), 20)]
                    tally = Tally()
                    for part in pool.map(_work, tasks):
                        tally.add(part)
                    for line in tally.told:
                        print(line, file=sys.stderr, flush=True)
                    print(f"{name}: {tally.points} points, {tally.held} held", flush=True)
                    whole.add(tally)
        finally:
            tempfile.tempdir = outer
            _ground.cache_clear()
    return whole


def main() -> None:
    """Runs the points and prints the tally."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stride", type=int, default=13, help="of all points (default 13)")
    parser.add_argument("--only", choices=list(PLAYS), help="one play by name")
    arguments = parser.parse_args()
    use_memory()
    names = [arguments.only] if arguments.only else list(PLAYS)
    tally = run(names, stride=arguments.stride)
    violated = tally.points - tally.held
    print(f"points={tally.points} held={tally.held} violated={violated}")
    if violated:
        sys.exit(1)


if __name__ == "__main__":
    main()
