"""``python -m benchmarks.crash_points``: kills the engine everywhere, and resumes.

In simulation, with the real engine, planner, journal and gallery: the engine is
killed before, in the middle of and after every durable write of the journal,
every call of hypervisor and guest, and every removal of a file; in an upgrade,
in a rollback, in the other operations, and in the resume after such a kill.
Afterwards the set must be where an undisturbed run leaves it, with every data
disk and OS disk there, and no file or machine that the records do not know.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_vmss.guest.simulated import Behaviour, SimulatedGuest
from pytest_vmss.hypervisor.simulated import SimulatedHypervisor
from pytest_vmss.load_balancer import SimulatedBalancer
from pytest_vmss.scale_set import ScaleSet
from pytest_vmss.settings import Settings
from pytest_vmss.simulation import SimulatedLab
from pytest_vmss.store import OperationRecord, Store
from pytest_vmss.upgrade.journal import Account
from tests.models import LOAD_BALANCER, custom_script, web_model

#: What is done to the world. A kill in `_half_done` is one in the middle of an effect.
_EFFECTS: dict[type[Any], tuple[str, ...]] = {
    Store: ("_commit",),
    SimulatedHypervisor: (
        "create_data_disk", "create_os_disk", "write_seed", "start", "request_stop", "power_off",
        "remove", "_half_done",
    ),
    SimulatedGuest: ("wait_boot", "wait_cloud_init", "run_extension", "remove_extension", "sync", "_half_done"),
    SimulatedBalancer: ("ensure", "add", "remove", "take_out", "put_back"),
    Path: ("unlink",),
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


@dataclass(frozen=True)
class Scenario:
    """Something that is done to a set.

    Attributes:
        act: Does it; called again where a kill came before it was recorded.
        policy: The set's rolling upgrade policy.
        automatic: Whether upgrades start by themselves.
        behaviour: How the instances of version 1.1.0 fare, which is published before.
    """

    name: str
    act: Callable[[SimulatedLab, ScaleSet], object]
    policy: dict[str, Any] = field(default_factory=dict)
    automatic: bool = True
    behaviour: Behaviour | None = None


def _run_due(lab: SimulatedLab, _web: ScaleSet) -> None:
    lab.run_due()


def _replace(lab: SimulatedLab, web: ScaleSet) -> None:
    """What automatic repairs do."""
    images = lab.images
    version = images.resolve(images.address_of(web.model.image_reference))
    with web._engine.claim():
        web._engine.replace([1], version=version, started_by="Platform")


_OTHER = custom_script("other", settings={"commandToExecute": "true"})
_OTHER_EXTENSION = {"virtualMachineProfile": {"extensionProfile": {"extensions": [_OTHER]}}}
_NEW_SIZE = {"sku": {"name": "Standard_B1s"}}
_LARGER = {"upgradePolicy": {"mode": "Rolling"}, "sku": {**_NEW_SIZE["sku"], "capacity": 3}}

_SCENARIOS = (
    Scenario("upgrade", _run_due, behaviour=Behaviour.GOOD),
    Scenario("rollback", _run_due, behaviour=Behaviour.UNHEALTHY),
    Scenario(
        "rollback on policy breach",
        lambda _, web: web.upgrade(),
        policy={"rollbackFailedInstancesOnPolicyBreach": True},
        automatic=False,
        behaviour=Behaviour.EXTENSION_FAILS,
    ),
    Scenario(
        "upgrade with maxSurge", _run_due, policy={"maxSurge": True}, behaviour=Behaviour.GOOD
    ),
    Scenario(
        "rollback with maxSurge", _run_due, policy={"maxSurge": True}, behaviour=Behaviour.PANICS
    ),
    Scenario("scale out", lambda _, web: web.scale(_CAPACITY + 2)),
    Scenario("scale in", lambda _, web: web.scale(_CAPACITY - 1)),
    Scenario("reimage", lambda _, web: web.reimage()),
    Scenario("reimageall", lambda _, web: web.reimage_all()),
    Scenario("replace", _replace),
    Scenario("restart", lambda _, web: web.restart()),
    Scenario(
        "another size",
        lambda _, web: (web.update(_NEW_SIZE), web.update_instances()),
        automatic=False,
    ),
    Scenario(
        "another extension in the place of one",
        lambda _, web: (web.update(_OTHER_EXTENSION), web.update_instances()),
        automatic=False,
    ),
    Scenario(
        "rolling update of the model and scale out",
        lambda _, web: web.update(_LARGER),
        automatic=False,
    ),
)


@contextlib.contextmanager
def a_set(scenario: Scenario) -> Iterator[tuple[SimulatedLab, ScaleSet]]:
    """A set of 1.0.0, where need be with 1.1.0 published and due."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lab = SimulatedLab.session(Settings(state_dir=folder, cache_dir=folder / "cache"))
        lab.begin()
        try:
            body = web_model(
                capacity=_CAPACITY, policy=scenario.policy, automatic=scenario.automatic
            )
            web = lab.start(body, LOAD_BALANCER)
            if scenario.behaviour is not None:
                lab.publish("1.1.0", scenario.behaviour)
            yield lab, web
        finally:
            lab.destroy()


def accounts(lab: SimulatedLab) -> list[Account]:
    """All operations after the set's creation."""
    records = lab.store.select(OperationRecord)[1:]
    return [Account.of(lab.store, record) for record in records]


def state_of(lab: SimulatedLab, web: ScaleSet) -> dict[str, Any]:
    """Where a set is: what must be the same after an undisturbed run."""
    return {
        "operations": [
            (account.record.action, account.record.status, account.outcomes)
            for account in accounts(lab)
        ],
        "capacity": web.model.sku.capacity,
        "in service": lab.balancers[web.record.unique_id].members,
        "instances": [
            (
                instance.name,
                instance.image_version,
                instance.record.provisioning,
                instance.latest_model_applied,
                [result.name for result in instance.extensions],
                str(instance.health),
                lab.simulated.running_generation(f"vmss-{lab.identity.id}-{instance.name}")
                == instance.record.generation,
            )
            for instance in web
        ],
    }


def data_disks(web: ScaleSet) -> dict[str, int]:
    """The inode of each data disk."""
    return {str(p): p.stat().st_ino for i in web for p in i.data_disks.values()}


def lost(web: ScaleSet, before: dict[str, int]) -> int:
    """Disks that are gone, or are others than before."""
    missing = 0
    for instance in web:
        missing += not instance.os_disk.exists()
        for path in instance.data_disks.values():
            same = path.exists() and before.get(str(path), path.stat().st_ino) == path.stat().st_ino
            missing += not same
    return missing


def orphans(lab: SimulatedLab, web: ScaleSet) -> int:
    """Files and machines that the records do not know, and work of a guest done twice."""
    found = 0
    folder = lab.paths.scale_set("web")
    known = {instance.instance_id for instance in web}
    found += len({path.name for path in folder.iterdir()} - known)
    for instance in web:
        number = instance.record.generation
        files = {"lun0.qcow2", f"os-{number}.qcow2", f"seed-{number}.iso"}
        there = {path.name for path in (folder / instance.instance_id).iterdir()}
        found += len(there - files)
    found += len(set(lab.simulated.defined) - {f"vmss-{lab.identity.id}-{i.name}" for i in web})
    return found + sum(times > 1 for times in lab.runs.values())


@dataclass
class Tally:
    """What came of all points."""

    points: int = 0
    converged: int = 0
    lost: int = 0
    orphans: int = 0

    def judge(
        self, lab: SimulatedLab, web: ScaleSet, before: dict[str, int], ideal: Any, what: str
    ) -> None:
        """Compares an end with an undisturbed run's."""
        self.points += 1
        reached = state_of(lab, web)
        self.converged += reached == ideal
        if reached != ideal:
            print(f"{what}: did not converge: {reached}, not {ideal}", file=sys.stderr)
        gone, left = lost(web, before), orphans(lab, web)
        if gone or left:
            print(f"{what}: lost {gone}, orphans {left}", file=sys.stderr)
        self.lost += gone
        self.orphans += left


def experiment(
    scenario: Scenario, moments: Sequence[int], tally: Tally, ideal: Any, steps: int
) -> None:
    """Kills what is done at the first moment, its resume at the second, and so on."""
    with a_set(scenario) as (lab, web):
        before = {} if scenario.name == "reimageall" else data_disks(web)
        with killing(moments[0]), contextlib.suppress(KilledError):
            scenario.act(lab, web)
        for moment in moments[1:]:
            with killing(moment), contextlib.suppress(KilledError):
                web.resume()
        web.resume()
        if len(accounts(lab)) < steps:  # it was killed before it was recorded
            scenario.act(lab, web)
        tally.judge(lab, web, before, ideal, f"{scenario.name}, killed at {list(moments)}")


def run(scenario: Scenario, tally: Tally, *, stride: int) -> int:
    """Kills one thing at every point, and resumes of it at points of theirs."""
    with a_set(scenario) as (lab, web), killing(0) as killer:
        scenario.act(lab, web)
        total = killer.count
        ideal = state_of(lab, web)
        steps = len(accounts(lab))
    points = tally.points
    for moment in range(1, total + 1):
        experiment(scenario, (moment,), tally, ideal, steps)
    for moment in range(1, total + 1, stride):
        for second in range(1 + moment % stride, total - moment + 1, stride):
            experiment(scenario, (moment, second), tally, ideal, steps)
            experiment(scenario, (moment, second, second // 2 + 1), tally, ideal, steps)
    return tally.points - points


def main() -> None:
    """Runs all points and prints the tally."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stride", type=int, default=40, help="of kills of resumes (default 40)")
    parser.add_argument("--only", help="one scenario by name")
    arguments = parser.parse_args()
    shared = Path("/dev/shm")  # the journal itself is not what is measured
    if shared.is_dir() and shutil.disk_usage(shared).free > 2**28:
        tempfile.tempdir = str(shared)
    tally, counts = Tally(), Counter[str]()
    for scenario in _SCENARIOS:
        if arguments.only in (None, scenario.name):
            counts[scenario.name] = run(scenario, tally, stride=arguments.stride)
            print(f"{scenario.name}: {counts[scenario.name]} points", flush=True)
    print(
        f"points={tally.points} converged={tally.converged} "
        f"lost={tally.lost} orphans={tally.orphans}"
    )
    if tally.converged != tally.points or tally.lost or tally.orphans:
        sys.exit(1)


if __name__ == "__main__":
    main()
