"""Swaps an instance's OS disk, or applies another model to it, and rolls back on failure.

An instance fails because of its guest, or because the hypervisor refuses something for it;
then it is rolled back. Any other error is raised to the engine, which leaves the operation
unfinished: see :func:`~pytest_vmss.errors.is_verdict`. During a rollback only the guest can
make the instance fail, and any other error is raised. What is committed is never rolled back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pytest_vmss.environment.environment import InstanceContext
from pytest_vmss.errors import InstanceError, WaitTimeoutError, error_summary
from pytest_vmss.journal.work import Work
from pytest_vmss.model.image_version import ImageVersionRef
from pytest_vmss.steps import (
    ApplyModel,
    AwaitHealth,
    Commit,
    CreateDataDisks,
    Discard,
    Drain,
    FinishCloudInit,
    KeepGuestLogs,
    PrepareDisk,
    ProveBoot,
    ReplaceDataDisks,
    RunExtensions,
    Start,
    Step,
    Stop,
    Undrain,
    notice_steps,
)
from pytest_vmss.store import Outcome, OutcomeRecord

__all__ = [
    "bring_up_steps",
    "change",
    "change_or_go_back",
    "change_steps",
    "keep_failed_steps",
    "prove_steps",
    "roll_back",
    "rollback_steps",
    "swap",
    "swap_steps",
    "target_of",
    "undrain",
    "undrain_steps",
    "version_of",
]


# The steps. A phase must be the same list after a crash, because the journal refers to its
# steps by number.


def bring_up_steps(generation: int, *, newer: bool = False) -> list[Step]:
    """Steps from starting a machine on its OS disk to a healthy instance.

    Args:
        generation: Number of the OS disk.
        newer: Rerun extensions whose handler has a higher version.
    """
    return [
        Start(generation),
        ProveBoot(generation),
        FinishCloudInit(generation),
        RunExtensions(generation, newer=newer),
        AwaitHealth(generation, flush=True),
    ]


def prove_steps(generation: int) -> Sequence[Step]:
    """Steps that start an instance which was changed while it was stopped, and prove it."""
    return [
        Drain(),
        Stop(generation),
        *bring_up_steps(generation, newer=True),
        Undrain(),
        Commit(generation),
    ]


def swap_steps(
    old: int,
    new: int,
    version: ImageVersionRef,
    revision: int,
    *,
    data_disks: bool = False,
    notice: Sequence[Step] = (),
) -> Sequence[Step]:
    """Steps that swap the OS disk (E1); the new disk is created before the machine stops.

    Args:
        old: Number of the OS disk in use.
        new: Number of the new one.
        version: Image version of the new disk.
        revision: Revision of the model for the new disk.
        data_disks: Replace data disks by new, empty ones too (``reimageall``).
        notice: Steps that tell the guest first (O4).
    """
    disks: Step = ReplaceDataDisks(revision) if data_disks else CreateDataDisks(revision)
    return [
        PrepareDisk(new, version, revision),
        *notice,
        Drain(),
        Stop(old),
        disks,
        *bring_up_steps(new),
        Undrain(),
        Commit(new),
        Discard(new),
    ]


def stopped_swap_steps(
    old: int, new: int, version: ImageVersionRef, revision: int
) -> Sequence[Step]:
    """The same for an instance that is stopped and stays so: nothing of it is proved."""
    return [
        PrepareDisk(new, version, revision),
        Stop(old),
        CreateDataDisks(revision),
        Commit(new, stopped=True),
        Discard(new),
    ]


def rollback_steps(old: int, new: int) -> Sequence[Step]:
    """Steps that restore the previous OS disk, the same file, and check its recovery (G1).

    The new disk is discarded first, so that nothing of it is left even if the
    instance does not recover.
    """
    return [
        Drain(),
        Stop(new),
        Commit(old),
        Discard(old),
        Start(old),
        ProveBoot(old),
        AwaitHealth(old),
        Undrain(),
    ]


def keep_failed_steps(stays: int, old: int, *, stopped: bool = False) -> Sequence[Step]:
    """Steps without rollback: the instance stays as it is, failed; the old disk is kept.

    Args:
        stays: Number of its current OS disk; 0 if no machine was ever started, so that there
            is nothing to inspect or keep.
        old: Number of the previous OS disk. If that is still the current one, the new disk
            is discarded, and the machine is started again if it had been stopped.
        stopped: Whether the instance stays stopped.
    """
    if not stays:
        return [Discard(0)]
    commit = Commit(stays, provisioning="Failed", stopped=stopped)
    if stopped:
        return [commit, *([Discard(old)] if stays == old else [])]
    back: list[Step] = [Discard(old), Start(old)] if stays == old else []
    return [commit, *back, *undrain_steps()]


def undrain_steps() -> Sequence[Step]:
    """Steps that put a failed instance back into service; the probe decides on its traffic."""
    return [Undrain(wait=False)]


def change_steps(
    generation: int, revision: int, *, restart: bool, newer: bool = False
) -> Sequence[Step]:
    """Steps that apply another revision of the model on the same OS disk; also to roll back.

    Args:
        generation: Number of the OS disk.
        revision: Revision of the model.
        restart: Whether the machine itself changes: its size or data disks.
        newer: Rerun extensions whose handler has a higher version.
    """
    machine: list[Step] = []
    if restart:
        machine = [
            Drain(),
            Stop(generation),
            CreateDataDisks(revision),
            Start(generation),
            ProveBoot(generation),
            FinishCloudInit(generation),
        ]
    return [
        ApplyModel(generation, revision),
        *machine,
        RunExtensions(generation, newer=newer),
        AwaitHealth(generation),
        Undrain(),
        Commit(generation),
    ]


def stopped_change_steps(generation: int, revision: int) -> Sequence[Step]:
    """The same for an instance that is stopped and stays so; its next start does the rest."""
    return [
        ApplyModel(generation, revision),
        CreateDataDisks(revision),
        Commit(generation, stopped=True),
    ]


# Changing an instance, and rolling it back.


def change_or_go_back(
    work: Work,
    *,
    new_disk: Callable[[], bool],
    forward: Callable[[Work, OutcomeRecord], tuple[str, Sequence[Step]]],
    keep_power: bool = False,
) -> None:
    """Changes an instance; one that fails is rolled back, or stays as it is.

    Args:
        work: The instance's work.
        new_disk: Whether it gets a new OS disk; one that never came up always does.
        forward: Returns the phase that changes it, and its steps.
        keep_power: Whether an instance that is stopped stays so.

    Raises:
        Exception: It could not be finished for now; call this again.
    """
    plan = work.plan(
        lambda: work.context.record.generation == 0 or new_disk(), keep_power=keep_power
    )
    if plan.error is None:
        try:
            work.run(*forward(work, plan))
        except Exception as error:
            if work.context.record.generation == plan.result != plan.source:
                raise  # committed: no rollback, a resume does the rest
            work.fail(error)
        else:
            return
    if work.operation.rollback and plan.source:
        roll_back(work)
        return
    result = work.context.generation(plan.result)
    stays = plan.result if result is not None and result.started else plan.source
    steps = keep_failed_steps(stays, plan.source, stopped=plan.stopped)
    work.run_untimed("keep failed", steps)
    work.end_failed(Outcome.FAILED)


def roll_back(work: Work) -> None:
    """Rolls a failed instance back to its previous OS disk or its previous model.

    Raises:
        Exception: The host could not continue; call this again.
    """
    plan, operation = work.result, work.operation
    if plan.stopped and plan.result != plan.source:
        steps: Sequence[Step] = [Discard(plan.source)]  # the new disk was never committed
    elif plan.stopped:
        steps = stopped_change_steps(plan.source, plan.source_revision)
    elif plan.result != plan.source:
        # A phase of its own, for it must take nothing of the rollback's time.
        work.run_untimed("before rollback", [KeepGuestLogs(plan.result)])
        steps = rollback_steps(plan.source, plan.result)
    else:
        steps = change_steps(
            plan.source,
            plan.source_revision,
            restart=is_other_machine(work.context, plan.source_revision, operation.revision),
        )
    work.begin_rollback()
    try:
        work.run("rollback", steps, Outcome.ROLLED_BACK)
    except (InstanceError, WaitTimeoutError) as error:
        work.context.event("error", f"the rollback failed too: {error_summary(error)[1]}")
        undrain(work)
        work.end_failed(Outcome.ROLLBACK_FAILED)


def undrain(work: Work) -> None:
    """Puts a failed instance back into service; the probe decides on its traffic."""
    work.run_untimed("undrain", undrain_steps())


def swap(
    work: Work, plan: OutcomeRecord, *, version: ImageVersionRef, revision: int,
    data_disks: bool = False,
) -> tuple[str, Sequence[Step]]:  # fmt: skip
    """The phase that gives an instance a new OS disk."""
    old = plan.source or plan.result - 1  # one that never came up has no disk yet
    if plan.stopped:
        return "swap", stopped_swap_steps(old, plan.result, version, revision)
    notice = notice_steps("Reimage", work.context, plan.source, plan.source_revision)
    return "swap", swap_steps(
        old, plan.result, version, revision, data_disks=data_disks, notice=notice
    )


def change(
    work: Work, plan: OutcomeRecord, *, revision: int, newer: bool = False
) -> tuple[str, Sequence[Step]]:
    """The phase that applies a revision of the model to an instance on its OS disk."""
    if plan.stopped:
        return "change", stopped_change_steps(plan.source, revision)
    restart = is_other_machine(work.context, plan.source_revision, revision)
    return "change", change_steps(plan.source, revision, restart=restart, newer=newer)


def is_other_machine(context: InstanceContext, before: int, after: int) -> bool:
    """Whether two revisions of the model differ in the machine: size or data disks."""
    if before == after:
        return False
    one, other = context.revision(before).model, context.revision(after).model
    return one.sku.name != other.sku.name or one.data_disks != other.data_disks


def target_of(work: Work) -> ImageVersionRef:
    """The image version that an operation installs."""
    return work.operation.image


def version_of(context: InstanceContext, number: int) -> ImageVersionRef:
    """The image version that an OS disk was made from."""
    return context.existing(number).image
