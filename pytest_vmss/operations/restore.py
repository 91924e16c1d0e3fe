"""Restores a set to one of its checkpoints (L1)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from pytest_vmss.checkpoints import CheckpointFiles, Seals
from pytest_vmss.environment.environment import Environment
from pytest_vmss.environment.revisions import Revision
from pytest_vmss.errors import CheckpointError, HostError, error_summary, is_verdict
from pytest_vmss.journal.work import Work
from pytest_vmss.model import ScaleSetDocument
from pytest_vmss.operations.delete import begin_removal, delete_steps
from pytest_vmss.operations.disk_swap import keep_failed_steps
from pytest_vmss.operations.kind import Kind, Plan, at_once
from pytest_vmss.operations.revisions import add_revision
from pytest_vmss.steps import (
    AwaitHealth,
    Commit,
    Discard,
    Drain,
    PowerOff,
    ProveBoot,
    PutBackDisks,
    RestoreMemory,
    Start,
    Step,
    Stop,
    Undrain,
    Wake,
)
from pytest_vmss.store import (
    CheckpointRecord,
    InstanceRecord,
    Outcome,
    OutcomeRecord,
    ScaleSetRecord,
)
from pytest_vmss.store.queries import instances_of

__all__ = ["RestoreCheckpoint", "missing_from"]


@dataclass(frozen=True)
class RestoreCheckpoint(Kind):
    """Puts a set back as it was at a checkpoint: model, instances, disks and memory.

    All instances are restored at once, and there is no way back: what was written since is gone.
    Whatever is unfinished on the set is ended by it.

    One whose memory cannot be restored boots on the disks of the checkpoint. Instances that were
    removed since come back, and those that were added are removed.

    Attributes:
        checkpoint: The checkpoint.
    """

    action = "restore"
    ends_others = "the set is restored"

    checkpoint: CheckpointRecord

    def plan(self, environment: Environment, scale_set: str) -> Plan:
        """Puts back the model and the records of missing instances.

        Raises:
            HostError: Files of the checkpoint are not there; nothing was changed.
        """
        saved = self.checkpoint
        _require_files(environment, saved)
        _put_back_model(environment, saved)
        missing = missing_from(environment, saved)
        for instance in missing:
            environment.store.put(_back(environment, instance))
        numbers = {instance.instance_id for instance in instances_of(environment.store, scale_set)}
        return Plan(at_once(sorted(numbers)), details={"checkpoint": saved.name})

    @classmethod
    def run(cls, work: Work) -> None:
        """See the class."""
        saved = _checkpoint_of(work)
        if saved.disk_of(work.context.instance_id) is None:
            revision = work.plan(lambda: False).source_revision
            begin_removal(work.context)
            work.run_untimed("delete", delete_steps(revision), Outcome.SUCCEEDED)
            return
        plan = work.plan(lambda: True)
        if plan.error is None:
            try:
                if not cls._restore(work, saved, plan):
                    work.run("boot instead", _boot_steps(work, saved, plan))
            except Exception as error:  # noqa: BLE001 - of the instance, else it is raised
                work.fail(error)
            else:
                return
        restored = work.context.generation(plan.result)
        stays = plan.result if restored is not None and restored.started else plan.source
        work.run_untimed("keep failed", keep_failed_steps(stays, plan.source))
        work.end_failed(Outcome.FAILED)

    @classmethod
    def _restore(cls, work: Work, saved: CheckpointRecord, plan: OutcomeRecord) -> bool:
        """Restores an instance with its memory; returns whether it succeeded.

        Raises:
            Exception: The host could not continue.
        """
        if work.has_begun("boot instead"):
            return False
        try:
            work.run("restore", _restore_steps(work, saved, plan))
        except Exception as error:
            restored = work.context.generation(plan.result)
            if not is_verdict(error) or restored is None:
                raise
            if work.context.record.generation == plan.result:
                raise  # committed: a resume does the rest
            told = error_summary(error)[1]
            work.context.event(
                "warning", f"it is not restored with its memory, and boots instead: {told}"
            )
            return False
        return True


def _restore_steps(work: Work, saved: CheckpointRecord, plan: OutcomeRecord) -> Sequence[Step]:
    """Steps that restore an instance with its memory, from whatever it is doing now."""
    new = plan.result
    off: list[Step] = [Drain(), PowerOff()] if plan.source else []
    return [
        *off,
        _put_back(work, saved, new),
        RestoreMemory(saved.name, new),
        Wake(new),
        AwaitHealth(new),
        Undrain(),
        Commit(new),
        Discard(new),
    ]


def _put_back(work: Work, saved: CheckpointRecord, new: int) -> PutBackDisks:
    """The step that puts an instance's disks back."""
    context = work.context
    disk = saved.disk_of(context.instance_id)
    if disk is None:  # pragma: no cover - the caller has looked
        raise ValueError(f"{context.name} is not in the checkpoint")
    luns = tuple(entry.lun for entry in context.revision(disk.revision).model.data_disks)
    if disk.revision >= saved.profile_revision:  # it had the latest model, and has it again
        disk = disk.model_copy(update={"revision": work.operation.revision})
    return PutBackDisks(saved.name, new, disk, luns)


def _boot_steps(work: Work, saved: CheckpointRecord, plan: OutcomeRecord) -> Sequence[Step]:
    """Steps that boot an instance on the disks of a checkpoint.

    They are put back once more: the first time may have failed half way, or a guest have written
    to them since.
    """
    new = plan.result
    return [
        Stop(new, abrupt=True),
        _put_back(work, saved, new),
        Start(new),
        ProveBoot(new),
        AwaitHealth(new),
        Undrain(),
        Commit(new),
        Discard(new),
    ]


def _checkpoint_of(work: Work) -> CheckpointRecord:
    """The checkpoint that an operation restores.

    Raises:
        HostError: Its record is not there.
    """
    name = work.operation.checkpoint
    saved = work.environment.store.get(CheckpointRecord, work.context.key[0], name)
    if saved is None:
        raise HostError(f"the record of the checkpoint {name} is not in the lab's database")
    return saved


def missing_from(environment: Environment, saved: CheckpointRecord) -> list[InstanceRecord]:
    """The instances of a checkpoint that its set does not have any more."""
    there = {record.instance_id for record in instances_of(environment.store, saved.scale_set)}
    return [instance for instance in saved.instances if instance.instance_id not in there]


def _back(environment: Environment, saved: InstanceRecord) -> InstanceRecord:
    """The record of an instance that is to come back, without an OS disk yet."""
    used = {record.address for record in environment.store.select(InstanceRecord)}
    used |= {record.frontend or "" for record in environment.store.select(ScaleSetRecord)}
    address = saved.address
    if address in used:
        (address,) = environment.free_addresses(1)
    return saved.model_copy(
        update={
            "address": address,
            "generation": 0,
            "version": None,
            "provisioning": "Creating",
            "in_service": False,
            "health": None,
            "health_detail": "",
        }
    )


def _put_back_model(environment: Environment, saved: CheckpointRecord) -> None:
    """Records the checkpoint's model as a new revision, if the set has another one now."""
    current = environment.revisions.current(saved.scale_set)
    before = environment.revisions.get(saved.set_id, saved.revision)
    if _content(before) == _content(current):
        return
    document = ScaleSetDocument(
        before.model, before.probe, saved.scale_set, before.clusters, before.balancer
    )
    add_revision(environment, replace(document, base=current.number))


def _content(revision: Revision) -> Collection[object]:
    return (revision.model.full(), revision.probe, revision.balancer, revision.clusters)


def _require_files(environment: Environment, saved: CheckpointRecord) -> None:
    """Checks that the disks of a checkpoint are there, and as they were made.

    Raises:
        HostError: One is not.
    """
    files = CheckpointFiles(environment.paths.checkpoint(saved.name))
    seals = Seals(files.folder, saved.sizes, saved.heads, known=bool(saved.sizes))
    needed = seals.below()
    for disk in saved.disks:
        number = disk.instance_id
        model = environment.revisions.get(saved.set_id, disk.revision).model
        frozen = [files.data_disk(number, entry.lun) for entry in model.data_disks]
        needed += [files.os_disk(number), files.seed(number), *frozen]
        if disk.hyper_v_generation == "V2":
            needed.append(files.nvram(number))
    try:
        seals.check(*needed)
    except CheckpointError as error:
        raise HostError(
            f"{saved.scale_set!r} cannot be restored, and nothing was changed: {error.message}; "
            "bring the file back as it was, or make another checkpoint"
        ) from error
