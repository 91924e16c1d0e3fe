"""``python -m benchmarks.crash_points``: kills the engine everywhere, and resumes.

In simulation, with the real engine, planner, journal and gallery: the engine is
killed before and after every write of the journal and every call of hypervisor
and guest, of an upgrade, of a rollback, and of the resume after such a kill.
Afterwards the set must be where an undisturbed run leaves it, with every data
disk and OS disk there, and no file or machine that the records do not know.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_vmss.guest.simulated import Behaviour, SimulatedGuest
from pytest_vmss.hypervisor.simulated import SimulatedHypervisor
from pytest_vmss.scale_set import ScaleSet
from pytest_vmss.settings import Settings
from pytest_vmss.simulation import SimulatedLab
from pytest_vmss.store import Store
from tests.models import LOAD_BALANCER, web_model

_EFFECTS: dict[type[Any], tuple[str, ...]] = {
    Store: ("put", "intend", "done"),
    SimulatedHypervisor: (
        "create_os_disk", "write_seed", "start", "request_stop", "power_off",
    ),
    SimulatedGuest: ("wait_boot", "wait_cloud_init", "run_extension"),
}  # fmt: skip
_CAPACITY = 2


class KilledError(BaseException):
    """Stands for SIGKILL: nothing in the product catches it."""


@dataclass
class Killer:
    """Counts the moments before and after every effect, and kills at one of them."""

    moment: int
    count: int = 0
    originals: list[tuple[type[Any], str, Any]] = field(default_factory=list)

    def tick(self) -> None:
        """Counts a chance, and takes the one that is meant."""
        self.count += 1
        if self.count == self.moment:
            raise KilledError

    def wrap(self, kind: type[Any], name: str) -> None:
        """Puts a chance before and after an effect."""
        original = getattr(kind, name)
        self.originals.append((kind, name, original))

        def call(owner: Any, *arguments: Any, **named: Any) -> Any:
            self.tick()
            result = original(owner, *arguments, **named)
            self.tick()
            return result

        setattr(kind, name, call)


@contextlib.contextmanager
def killing(moment: int) -> Iterator[Killer]:
    """Kills at the moment-th chance; a moment of 0 only counts."""
    killer = Killer(moment)
    for kind, names in _EFFECTS.items():
        for name in names:
            killer.wrap(kind, name)
    try:
        yield killer
    finally:
        for kind, name, original in killer.originals:
            setattr(kind, name, original)


@contextlib.contextmanager
def a_set(behaviour: Behaviour) -> Iterator[tuple[SimulatedLab, ScaleSet]]:
    """A set of 1.0.0, with 1.1.0 published and due."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lab = SimulatedLab.session(Settings(state_dir=folder, cache_dir=folder / "cache"))
        lab.begin()
        try:
            web = lab.start(web_model(capacity=_CAPACITY), LOAD_BALANCER)
            lab.publish("1.1.0", behaviour)
            yield lab, web
        finally:
            lab.destroy()


def state_of(lab: SimulatedLab, web: ScaleSet) -> dict[str, Any]:
    """Where a set is: what must be the same after an undisturbed run."""
    return {
        "outcomes": web.history()[0].outcomes,
        "status": web.history()[0].status,
        "instances": [
            (i.image_version, i.record.provisioning, str(i.health), lab_generation(lab, i.name))
            for i in web
        ],
    }


def lab_generation(lab: SimulatedLab, name: str) -> bool:
    """Whether the machine runs on the OS disk that the records say."""
    running = lab.simulated.running_generation(f"vmss-{lab.identity.id}-{name}")
    return any(i.name == name and i.record.generation == running for i in lab.scale_set("web"))


def lost(web: ScaleSet, before: dict[str, int]) -> int:
    """Disks that are gone or are others, and work of a guest done twice."""
    missing = 0
    for instance in web:
        missing += not instance.os_disk.exists()
        for path in instance.data_disks.values():
            missing += not path.exists() or path.stat().st_ino != before[str(path)]
    return missing


def orphans(lab: SimulatedLab, web: ScaleSet) -> int:
    """Files and machines that the records do not know, and work done twice."""
    found = 0
    for instance in web:
        number = instance.record.generation
        known = {"lun0.qcow2", f"os-{number}.qcow2", f"seed-{number}.iso"}
        folder = lab.paths.instance("web", int(instance.instance_id))
        found += len({path.name for path in folder.iterdir()} - known)
    found += len(lab.simulated.defined) - len(web)
    return found + sum(times > 1 for times in lab.runs.values())


@dataclass
class Tally:
    """What came of all points."""

    points: int = 0
    converged: int = 0
    lost: int = 0
    orphans: int = 0

    def judge(self, lab: SimulatedLab, web: ScaleSet, before: dict[str, int], ideal: Any) -> None:
        """Compares an end with an undisturbed run's."""
        self.points += 1
        reached = state_of(lab, web)
        self.converged += reached == ideal and web.history()[0].ended
        if reached != ideal:
            print(f"did not converge: {reached}, not {ideal}", file=sys.stderr)
        self.lost += lost(web, before)
        self.orphans += orphans(lab, web)


def experiment(behaviour: Behaviour, moments: Sequence[int], tally: Tally, ideal: Any) -> None:
    """Kills an upgrade at the first moment, its resume at the second, and so on."""
    with a_set(behaviour) as (lab, web):
        before = {str(p): p.stat().st_ino for i in web for p in i.data_disks.values()}
        with killing(moments[0]), contextlib.suppress(KilledError):
            lab.run_due()
        for moment in moments[1:]:
            with killing(moment), contextlib.suppress(KilledError):
                web.resume()
        lab.run_due()  # it is still due where it was killed before it was recorded
        web.resume()
        tally.judge(lab, web, before, ideal)


def run(behaviour: Behaviour, tally: Tally, *, stride: int) -> None:
    """Kills one kind of upgrade at every point, and resumes of it at points of theirs."""
    with a_set(behaviour) as (lab, web), killing(0) as killer:
        lab.run_due()
        total = killer.count
        ideal = state_of(lab, web)
    for moment in range(1, total + 1):
        experiment(behaviour, (moment,), tally, ideal)
    for moment in range(1, total + 1, stride):
        for second in range(1 + moment % stride, total - moment + 1, stride):
            experiment(behaviour, (moment, second), tally, ideal)
            experiment(behaviour, (moment, second, second // 2 + 1), tally, ideal)


def main() -> None:
    """Runs all points and prints the tally."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stride", type=int, default=13, help="of kills of resumes (default 13)")
    stride = parser.parse_args().stride
    tally = Tally()
    for behaviour in (Behaviour.GOOD, Behaviour.UNHEALTHY):
        run(behaviour, tally, stride=stride)
    print(
        f"points={tally.points} converged={tally.converged} "
        f"lost={tally.lost} orphans={tally.orphans}"
    )
    if tally.converged != tally.points or tally.lost or tally.orphans:
        sys.exit(1)


if __name__ == "__main__":
    main()
