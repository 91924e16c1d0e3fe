"""What must hold of a lab whatever befell it, read from the simulated world and the files."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.effects import Effect
from pytest_vmss.api.instance import Instance
from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.journal.report import OperationReport
from pytest_vmss.simulation.lab import SimulatedLab
from pytest_vmss.store import CheckpointRecord, InstanceRecord, Outcome, OutcomeRecord

__all__ = [
    "OutageMonitor",
    "Tally",
    "being_removed",
    "domain_of",
    "end_problems",
    "lost",
    "miscounted",
    "orphans",
    "repeated",
    "serving",
    "state_of",
]  # fmt: skip


def domain_of(lab: SimulatedLab, name: str) -> str:
    """An instance's machine."""
    return f"vmss-{lab.identity.id}-{name}"


def serving(lab: SimulatedLab, web: str = "web") -> set[str]:
    """Names of the instances of a set that run, are healthy and get traffic, as the world has it.

    Neither journal nor records are asked: they may be what is wrong.
    """
    found = set()
    for balancer in lab.balancers.values():
        found |= {
            name
            for name, in_service in balancer.members.items()
            if in_service and name.startswith(f"{web}_") and lab.probe(name).healthy
        }
    return found


@dataclass
class OutageMonitor:
    """Watches at every effect how many instances are out (M2).

    Attributes:
        lab: Where.
        instances: How many there were when nothing had begun.
        most: How many may be out at once; None for any number.
        worst: The most that were.
        cut: Names of those that were stopped while the load balancer sent them traffic.
    """

    lab: SimulatedLab
    instances: int
    most: int | None
    worst: int = 0
    cut: set[str] = field(default_factory=set)

    def look(self, effect: Effect) -> None:
        """Looks once, at an effect."""
        if self.most is not None:
            self.worst = max(self.worst, self.instances - len(serving(self.lab)))
        if effect.name in ("request_stop", "power_off") and effect.when == "before":
            name = effect.target.removeprefix(domain_of(self.lab, ""))
            members = [balancer.members for balancer in self.lab.balancers.values()]
            if any(entry.get(name) for entry in members):
                self.cut.add(name)

    @property
    def wrong(self) -> list[str]:
        """What was seen that must not be, in words."""
        found = [f"{name} was stopped while it was in service" for name in sorted(self.cut)]
        if self.most is not None and self.worst > self.most:
            found.append(f"{self.worst} instances were out at once, {self.most} allowed")
        return found


def state_of(lab: SimulatedLab, reports: Sequence[OperationReport]) -> dict[str, Any]:
    """Where a lab is: what must be the same after an undisturbed run."""
    return {
        "operations": [
            (report.record.action, report.record.status, report.outcomes) for report in reports
        ],
        "sets": {web.name: _state_of_set(lab, web) for web in lab.scale_sets()},
    }


def _state_of_set(lab: SimulatedLab, web: ScaleSet) -> dict[str, Any]:
    return {
        "state": web.record.state,
        "capacity": web.model.sku.capacity,
        "in service": _members(lab, web),
        "instances": [_state_of_instance(lab, instance) for instance in web],
    }


def _members(lab: SimulatedLab, web: ScaleSet) -> dict[str, bool]:
    """Which instances get traffic; none where no load balancer stands before the set."""
    balancer = lab.balancers.get(web.record.unique_id)
    return {} if balancer is None else balancer.members


def _state_of_instance(lab: SimulatedLab, instance: Instance) -> tuple[Any, ...]:
    machine = lab.simulated.running_generation(domain_of(lab, instance.name))
    return (
        instance.name,
        instance.image_version,
        instance.record.provisioning,
        instance.record.power,
        instance.latest_model_applied,
        [result.name for result in instance.extensions],
        str(instance.health()),
        machine == instance.record.generation,
    )


def being_removed(lab: SimulatedLab) -> set[str]:
    """Names of instances that an unfinished operation has begun to remove."""
    found = set()
    for web in lab.scale_sets():
        operation = web._engine.journal.unfinished()
        steps = lab.store.steps(operation.id) if operation is not None else []
        found |= {
            f"{step.scale_set}_{step.instance_id}" for step in steps if step.phase == "delete"
        }
    return found


def lost(
    lab: SimulatedLab, before: Mapping[str, int] | None, *, going: Collection[str] = ()
) -> list[str]:
    """Disks that are gone, or are others than before.

    Args:
        lab: Where.
        before: The inodes of data disks that must be the same, by their paths; None where
            data disks are being replaced.
        going: Names of instances that may lack theirs.
    """
    found, same = [], before or {}
    for instance in _instances(lab):
        if not instance.record.generation or instance.name in going:
            continue  # it never came up, or is about to go
        if not instance.os_disk.exists():
            found.append(f"the OS disk {instance.os_disk.name} of {instance.name}")
        for path in () if before is None else instance.data_disks.values():
            inode = _inode(path)
            if inode is None or same.get(str(path), inode) != inode:
                found.append(f"the data disk {path.name} of {instance.name}")
    return found


def _instances(lab: SimulatedLab) -> Iterator[Instance]:
    for web in lab.scale_sets():
        yield from web


def orphans(lab: SimulatedLab) -> list[str]:
    """Files, machines and members of load balancers that the records do not know."""
    records = lab.store.select(InstanceRecord)
    domains = {domain_of(lab, record.name) for record in records}
    found = [f"machine {name}" for name in sorted(set(lab.simulated.defined) - domains)]
    for balancer in lab.balancers.values():
        names = {record.name for record in records}
        found += [f"member {name}" for name in sorted(set(balancer.members) - names)]
    known = {web.name for web in lab.scale_sets()}
    top = lab.paths.scale_set("any").parent
    found += [f"sets/{path.name}" for path in top.iterdir() if _unknown(path, known)]
    for web in lab.scale_sets():
        folder = lab.paths.scale_set(web.name)
        ids = {instance.instance_id for instance in web}
        there = {path.name for path in folder.iterdir()} if folder.exists() else set()
        found += [f"{web.name}/{name}" for name in sorted(there - ids)]
    for instance in _instances(lab):
        found += _unknown_files(lab, instance)
    parts = [path for path in lab.paths.folder.rglob("*") if ".part" in path.name]
    swept = lab.paths.checkpoint("any").parent  # by whoever takes the next checkpoint
    parts = [path for path in parts if swept not in path.parents]
    return found + [str(path.relative_to(lab.paths.folder)) for path in parts]


def _unknown(path: Path, known: set[str]) -> bool:
    return path.name not in known and path.suffix != ".lock"


def _unknown_files(lab: SimulatedLab, instance: Instance) -> list[str]:
    """Files in an instance's folder; one that was left as it failed keeps its previous disk."""
    folder = lab.paths.instance(instance.record.scale_set, instance.record.instance_id)
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    kept = {instance.record.generation}
    if instance.record.provisioning == "Failed":
        generations = instance._context.generations()
        kept |= {entry.number for entry in generations if entry.state == "previous"}
    known = {"lun0.qcow2"} | {f"os-{n}.qcow2" for n in kept} | {f"seed-{n}.iso" for n in kept}
    known |= {
        f"nvram-{entry.number}.fd"
        for entry in instance._context.generations()
        if entry.number in kept and entry.hyper_v_generation == "V2"
    }
    # Of OS disks that failed, what their guests told.
    known |= {f"guest-{entry.number}" for entry in instance._context.generations()}
    return [f"{instance.name}/{name}" for name in sorted(there - known) if "console" not in name]


def repeated(lab: SimulatedLab) -> list[str]:
    """What guests were made to do twice on the same OS disk (E4)."""
    return [
        f"{what} on OS disk {generation} of {name}: {times} times"
        for (name, generation, what), times in lab.executions.items()
        if times > 1
    ]


def miscounted(lab: SimulatedLab) -> list[str]:
    """Sets that have other than as many instances as their model says."""
    return [
        f"{web.name} has {len(web)} instances, its model {web.model.sku.capacity}"
        for web in lab.scale_sets()
        if len(web) != web.model.sku.capacity
    ]


def end_problems(
    lab: SimulatedLab, report: OperationReport, os_disks: Mapping[str, int]
) -> list[str]:
    """What an ended operation says that is not true of the world (G3, Q1).

    Args:
        lab: Where.
        report: The operation.
        os_disks: The inodes of OS disks before it, by their paths.
    """
    record, found = report.record, list[str]()
    if record.ended is None:
        return [f"the {record.action} has not ended"]
    outcomes = set(report.outcomes.values())
    if record.status == "Completed" and not outcomes <= {Outcome.SUCCEEDED, Outcome.SKIPPED}:
        found.append(f"the {record.action} is Completed, with {report.outcomes}")
    if record.status == "Faulted" and not record.error_code:
        found.append(f"the {record.action} is Faulted, and does not say why")
    there = {entry.instance_id: entry for entry in _instances_of(lab, record.scale_set)}
    for number, result in report.results.items():
        instance = there.get(str(number))
        what = f"{record.scale_set}_{number} is told {result.outcome}"
        found += [
            f"{what}, but {problem}" for problem in _untrue(lab, report, result, instance, os_disks)
        ]
    return found


def _instances_of(lab: SimulatedLab, scale_set: str) -> list[Instance]:
    known = {web.name.lower(): web for web in lab.scale_sets()}
    return list(known.get(scale_set.lower(), []))


def _untrue(
    lab: SimulatedLab,
    report: OperationReport,
    result: OutcomeRecord,
    instance: Instance | None,
    os_disks: Mapping[str, int],
) -> Iterator[str]:
    """What is not true of an instance's outcome."""
    outcome = result.outcome
    stopped = instance is not None and instance.record.power != "running"
    stopped = stopped and (result.stopped or outcome is Outcome.NOT_STARTED)
    if _committed(lab, report, result.instance_id) and outcome is not Outcome.SUCCEEDED:
        yield "it was committed"
    match outcome:
        case Outcome.IN_PROGRESS:
            yield "the operation has ended"
        case Outcome.SUCCEEDED:
            yield from _not_done(lab, report, result, instance)
        case Outcome.ROLLED_BACK | Outcome.NOT_STARTED:
            yield from _not_well(lab, instance, stopped=stopped)
            if instance and os_disks.get(str(instance.os_disk)) != _inode(instance.os_disk):
                yield f"its OS disk {instance.os_disk.name} is not the one that it had"
        case Outcome.FAILED | Outcome.ROLLBACK_FAILED:
            if result.error is None:
                yield "nothing says why"
            if instance and instance.record.generation and not _is_member(lab, instance):
                yield "it is out of load balancing, although only its probe may say so"


def _is_member(lab: SimulatedLab, instance: Instance) -> bool:
    if instance.record.power != "running" or not _is_balanced(lab, instance):
        return True
    members = [balancer.members for balancer in lab.balancers.values()]
    return any(each.get(instance.name) for each in members)


def _is_balanced(lab: SimulatedLab, instance: Instance) -> bool:
    """Whether a load balancer stands before its set."""
    return lab.scale_set(instance.record.scale_set).record.unique_id in lab.balancers


def _inode(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


def _not_done(
    lab: SimulatedLab, report: OperationReport, result: OutcomeRecord, instance: Instance | None
) -> Iterator[str]:
    """What an instance lacks for which the operation is told to have succeeded."""
    action, target = report.record.action, report.record.target
    stopped = result.stopped and instance is not None and instance.record.power != "running"
    if action == "delete" or result.replacement or _is_removed_by(lab, report, result):
        if instance is not None:
            yield "it is still there"
        return
    yield from _not_well(lab, instance, stopped=stopped or action in ("stop", "deallocate"))
    if instance and target not in ("", instance.image_version):
        yield f"it is on {instance.image_version}"


def _is_removed_by(lab: SimulatedLab, report: OperationReport, result: OutcomeRecord) -> bool:
    """Whether an operation restores a checkpoint that does not have an instance."""
    record = report.record
    saved = lab.store.get(CheckpointRecord, record.scale_set.lower(), record.checkpoint)
    if record.action != "restore" or saved is None:
        return False
    return saved.disk_of(result.instance_id) is None


def _not_well(
    lab: SimulatedLab, instance: Instance | None, *, stopped: bool = False
) -> Iterator[str]:
    if instance is None:
        yield "it is gone"
        return
    running = lab.simulated.running_generation(domain_of(lab, instance.name))
    if running != (None if stopped else instance.record.generation):
        yield f"it runs on OS disk {running} instead of {instance.record.generation}"
    elif stopped or not _is_balanced(lab, instance):
        pass
    elif instance.name not in serving(lab, instance.record.scale_set):
        yield "it does not serve"
    if instance.record.provisioning != "Succeeded":
        yield f"its provisioning state is {instance.record.provisioning}"


def _committed(lab: SimulatedLab, report: OperationReport, number: int) -> bool:
    """Whether the journal says that an instance's new OS disk became its own."""
    return any(
        step.phase == "swap" and step.name == "commit" and step.done and step.error is None
        for step in lab.store.steps(report.record.id, number)
    )


@dataclass
class Tally:
    """What came of points.

    Attributes:
        points: How many.
        converged: How many ended as an undisturbed run.
        lost: Disks.
        orphans: What was left over, or done twice, or out too much at once.
        told: Everything that was wrong, in words.
    """

    points: int = 0
    converged: int = 0
    lost: int = 0
    orphans: int = 0
    told: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Adds another tally to this one."""
        self.points += other.points
        self.converged += other.converged
        self.lost += other.lost
        self.orphans += other.orphans
        self.told += other.told
