"""Makes checkpoints of a set: for the cache, or for the set itself (L1)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_vmss.checkpoints import CheckpointFiles
from pytest_vmss.environment.environment import Environment
from pytest_vmss.errors import ConflictError, error_summary, is_verdict
from pytest_vmss.journal.journal import Journal
from pytest_vmss.journal.report import OperationReport
from pytest_vmss.journal.work import Work
from pytest_vmss.operations.disk_swap import undrain
from pytest_vmss.operations.kind import Kind, Plan, at_once
from pytest_vmss.steps import (
    AwaitHealth,
    Drain,
    FreezeDisks,
    ProveBoot,
    RestoreMemory,
    SaveMemory,
    Start,
    Step,
    Stop,
    SyncFiles,
    Undrain,
    Wake,
)
from pytest_vmss.store import CheckpointRecord, GenerationRecord, InstanceRecord, Outcome
from pytest_vmss.store.queries import current_disk, instances_of

__all__ = [
    "MakeCheckpoint",
    "SaveScaleSet",
    "checkpoint_steps",
    "checkpoints_of",
    "drop_checkpoints",
    "drop_incomplete",
    "remove_memory",
]

_BOOT_AGAIN = "boot again"


def checkpoint_steps(checkpoint: str, generation: int, *, movable: bool = True) -> Sequence[Step]:
    """Steps that save an instance, and continue it from what was saved like any other.

    Args:
        checkpoint: Name of the checkpoint's folder in the lab.
        generation: Number of the OS disk.
        movable: Whether other labs are to use it.
    """
    return [
        Drain(),
        SaveMemory(checkpoint),
        FreezeDisks(checkpoint, generation, movable=movable),
        RestoreMemory(checkpoint, generation, goes_on=True),
        Wake(generation),
        AwaitHealth(generation),
        Undrain(),
        SyncFiles(checkpoint, generation),
    ]


def boot_again_steps(generation: int) -> Sequence[Step]:
    """Steps that boot an instance which could not be saved or restored, on the same disks.

    It may run all the same, with data that it has not written to its disks yet: it shuts down.
    """
    return [
        Stop(generation),
        Start(generation),
        ProveBoot(generation),
        AwaitHealth(generation),
        Undrain(),
    ]


def _boot_phase(work: Work, generation: int) -> str:
    """The phase in which an instance boots again: a new one if the host crashed in the last."""
    phase, count = _BOOT_AGAIN, 1
    while work.has_begun(following := f"{_BOOT_AGAIN} {count + 1}"):
        phase, count = following, count + 1
    hypervisor, context = work.environment.hypervisor, work.context
    is_over = (
        work.has_begun(phase)
        and hypervisor.running_generation(context.domain) is None
        and context.existing(generation).started_on != hypervisor.host_boot
    )
    return following if is_over else phase


@dataclass(frozen=True)
class MakeCheckpoint(Kind):
    """Saves all instances; one that cannot be saved is booted again, and is none of it.

    So is one whose machine went on and then stopped before that was journalled, as in a crash of
    the host: it boots from its disks as it left them, for what it wrote since may be acknowledged.

    Attributes:
        checkpoint: Name of the checkpoint's folder in the lab.
    """

    action = "checkpoint"

    checkpoint: str

    def plan(self, environment: Environment, scale_set: str) -> Plan:
        """Plans all instances at once."""
        records = instances_of(environment.store, scale_set)
        return Plan(
            at_once(record.instance_id for record in records),
            details={"checkpoint": self.checkpoint},
        )

    @classmethod
    def remark(cls, report: OperationReport) -> str:
        """That there is no checkpoint, if not all instances were saved."""
        unsaved = [n for n, outcome in report.outcomes.items() if outcome is not Outcome.SUCCEEDED]
        if not unsaved:
            return ""
        named = ", ".join(f"{report.record.scale_set}_{number}" for number in unsaved)
        return f"no checkpoint was made, for {named} could not be saved"

    @classmethod
    def run(cls, work: Work) -> None:
        """See the class."""
        generation, name = work.context.record.generation, work.operation.checkpoint
        own = work.environment.store.get(CheckpointRecord, work.context.key[0], name)
        if not work.has_begun(_BOOT_AGAIN):
            try:
                steps = checkpoint_steps(name, generation, movable=own is None)
                work.run("checkpoint", steps)
            except Exception as error:
                if not is_verdict(error):
                    raise
                told = error_summary(error)[1]
                work.context.event("warning", f"no checkpoint of it: {told}; it boots again")
            else:
                return
        try:
            phase = _boot_phase(work, generation)
            work.run(phase, boot_again_steps(generation), Outcome.SKIPPED)
        except Exception as error:  # noqa: BLE001 - of the instance, else it is raised
            work.fail(error)
            undrain(work)
            work.end_failed(Outcome.FAILED, power=True)


@dataclass(frozen=True)
class SaveScaleSet(MakeCheckpoint):
    """Makes a checkpoint to which the set itself can be restored.

    Attributes:
        label: The name by which it is asked for; may be empty.
    """

    label: str = ""

    def plan(self, environment: Environment, scale_set: str) -> Plan:
        """Records the instances as they are, if each can be saved.

        Raises:
            ConflictError: One cannot; nothing was changed.
        """
        record = environment.set_record(scale_set)
        instances = instances_of(environment.store, scale_set)
        disks = [_disk_to_save(environment, instance) for instance in instances]
        if not instances:
            raise ConflictError(f"{scale_set!r} has no instances of which a checkpoint could be")
        environment.store.put(
            CheckpointRecord(
                scale_set=record.name,
                set_id=record.unique_id,
                name=self.checkpoint,
                label=self.label,
                created=environment.clock.now(),
                revision=record.revision,
                profile_revision=record.profile_revision,
                instances=tuple(instances),
                disks=tuple(disks),
            )
        )
        return MakeCheckpoint.plan(self, environment, scale_set)


def _disk_to_save(environment: Environment, instance: InstanceRecord) -> GenerationRecord:
    """The OS disk of an instance that runs and is well.

    Raises:
        ConflictError: It is not.
    """
    disk = current_disk(environment.store, instance)
    state = f"its provisioning state is {instance.provisioning}"
    if instance.power != "running":
        state = f"it is {instance.power}"
    elif instance.provisioning == "Succeeded" and disk is not None and not instance.unproven:
        return disk
    raise ConflictError(
        f"a checkpoint has the memory of every instance, and {instance.name} has none to save "
        f"({state}); nothing was changed: start it, mend it (update_instances) or remove it"
    )


def checkpoints_of(environment: Environment, scale_set: str) -> list[CheckpointRecord]:
    """The checkpoints to which a set can be restored, the oldest first.

    One counts once the operation that made it has succeeded on all instances. Their order is that
    of the operations, which no clock changes that is set back.
    """
    record = environment.set_record(scale_set)
    journal = Journal(environment, record.name)
    made = []
    for operation in journal.operations():
        if operation.action == MakeCheckpoint.action and operation.status == "Completed":
            outcomes = journal.report(operation.id).outcomes.values()
            if all(outcome is Outcome.SUCCEEDED for outcome in outcomes):
                made.append(operation.checkpoint)
    found = {
        entry.name: entry
        for entry in environment.store.select(CheckpointRecord, record.name.lower())
        if entry.set_id == record.unique_id
    }
    return [found[name] for name in made if name in found]


def drop_checkpoints(environment: Environment, records: Sequence[CheckpointRecord]) -> None:
    """Removes checkpoints of a set; their disks stay with it, for its own may be based on them."""
    for record in records:
        environment.store.delete(record)
        remove_memory(environment, record.name)


def drop_incomplete(environment: Environment, scale_set: str) -> None:
    """Removes checkpoints of an idle set that were not made, and memory that it has no use for.

    Whoever makes a checkpoint, or creates a set from one, removes what is needed no more, unless a
    kill or the host ends it before. The set must be locked, for one that is made for the cache is
    linked there before the lock is released.
    """
    complete = {entry.name for entry in checkpoints_of(environment, scale_set)}
    known = environment.store.select(CheckpointRecord, scale_set.lower())
    drop_checkpoints(environment, [entry for entry in known if entry.name not in complete])
    for operation in Journal(environment, scale_set).operations():
        if operation.ended is not None and operation.checkpoint not in {"", *complete}:
            remove_memory(environment, operation.checkpoint)


def remove_memory(environment: Environment, checkpoint: str) -> None:
    """Removes the memory in a checkpoint's folder: it is as large as the set's guests.

    What the disks of instances are based on stays.
    """
    files = CheckpointFiles(environment.paths.checkpoint(checkpoint))
    with contextlib.suppress(OSError):  # it goes with the set
        for path in files.memories():
            path.unlink(missing_ok=True)
