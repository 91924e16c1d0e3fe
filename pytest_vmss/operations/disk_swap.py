"""A new OS disk in place of the old one, or another model on the same disk; and the way back.

An instance fails by what its guest does or does not do, and by what the hypervisor
refuses for it; then it goes the way back. Everything else is raised to the engine, which
leaves the operation unfinished: see :func:`~pytest_vmss.errors.is_verdict`. On the way
back nothing but the guest can fail, all else is raised; and what is committed never goes
back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pytest_vmss.environment.environment import InstanceContext
from pytest_vmss.errors import InstanceError, WaitTimeoutError, error_summary
from pytest_vmss.gallery import ImageAddress
from pytest_vmss.operations.kind import Work
from pytest_vmss.steps import (
    ApplyModel,
    AwaitHealth,
    Commit,
    CreateDataDisks,
    Discard,
    Drain,
    FinishCloudInit,
    PrepareDisk,
    ProveBoot,
    ReplaceDataDisks,
    RunExtensions,
    Start,
    Step,
    Stop,
    Sync,
    Undrain,
)
from pytest_vmss.store import Outcome, OutcomeRecord

__all__ = [
    "bring_up_steps",
    "change",
    "change_or_go_back",
    "change_steps",
    "keep_failed_steps",
    "roll_back",
    "rollback_steps",
    "swap",
    "swap_steps",
    "target_of",
    "undrain",
    "undrain_steps",
    "version_of",
]


# The steps. A phase is a list that is the same after a crash, so that the journal can name
# its steps by their number.


def bring_up_steps(generation: int) -> list[Step]:
    """A machine on an OS disk of its own, from its start to healthy."""
    return [
        Start(generation),
        ProveBoot(generation),
        FinishCloudInit(generation),
        RunExtensions(generation),
        AwaitHealth(generation),
    ]


def swap_steps(
    old: int, new: int, version: ImageAddress, revision: int, *, data_disks: bool = False
) -> Sequence[Step]:
    """A new OS disk in place of the old one (E1); the new one is made before the stop.

    Args:
        old: Number of the OS disk in use.
        new: Number of the new one.
        version: Image version that it is made from.
        revision: Revision of the model that it is made for.
        data_disks: New, empty data disks too (``reimageall``).
    """
    disks: Step = ReplaceDataDisks(revision) if data_disks else CreateDataDisks(revision)
    return [
        PrepareDisk(new, version, revision),
        Drain(),
        Stop(old),
        disks,
        *bring_up_steps(new),
        Undrain(),
        Sync(new),
        Commit(new),
        Discard(new),
    ]


def rollback_steps(old: int, new: int) -> Sequence[Step]:
    """The previous OS disk back: same file, its recovery checked too (G1).

    The new disk is given up first, so that nothing of it is left even if the
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


def keep_failed_steps(stays: int, old: int) -> Sequence[Step]:
    """Without rollback: the instance stays as it is, failed; the old disk is kept.

    Args:
        stays: The OS disk that it is on; 0 if no machine was ever started on any, so that
            there is nothing to look at and nothing to keep.
        old: The one from before; where it is still on that, the new one is of no use, and
            the machine runs again if it was stopped already.
    """
    if not stays:
        return [Discard(0)]
    commit = Commit(stays, provisioning="Failed")
    back: list[Step] = [Discard(old), Start(old)] if stays == old else []
    return [commit, *back, *undrain_steps()]


def undrain_steps() -> Sequence[Step]:
    """An instance on which something failed serves again: the probe says whether it gets traffic."""
    return [Undrain(wait=False)]


def change_steps(
    generation: int, revision: int, *, restart: bool, newer: bool = False
) -> Sequence[Step]:
    """Another revision of the model on the same OS disk; also the way back.

    Args:
        generation: Number of the OS disk.
        revision: Revision of the model.
        restart: The machine itself changes: another size, other data disks.
        newer: Run extensions again whose handler has a higher version.
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


# The way there, and the way back.


def change_or_go_back(
    work: Work,
    *,
    new_disk: Callable[[], bool],
    forward: Callable[[Work, OutcomeRecord], tuple[str, Sequence[Step]]],
) -> None:
    """Changes an instance; one that fails gets back what it had, or stays as it is.

    Args:
        work: The instance.
        new_disk: Whether it gets a new OS disk; one that never came up does.
        forward: The phase that changes it, and its steps.

    Raises:
        Exception: It could not be brought to an end now; call it again.
    """
    plan = work.plan(lambda: work.context.record.generation == 0 or new_disk())
    if plan.error is None:
        try:
            work.run(*forward(work, plan))
        except Exception as error:
            if work.context.record.generation == plan.result != plan.source:
                raise  # committed: it never goes back, what is left is done by a resume
            work.fail(error)
        else:
            return
    if work.operation.rollback and plan.source:
        roll_back(work)
        return
    result = work.context.generation(plan.result)
    stays = plan.result if result is not None and result.started else plan.source
    work.run_untimed("keep failed", keep_failed_steps(stays, plan.source))
    work.end_failed(Outcome.FAILED)


def roll_back(work: Work) -> None:
    """Gives a failed instance back what it had: its previous OS disk, or its previous model.

    Raises:
        Exception: The host could not go on; call it again.
    """
    plan, operation = work.result, work.operation
    if plan.result != plan.source:
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
    """The probe says whether an instance gets traffic on which something failed."""
    work.run_untimed("undrain", undrain_steps())


def swap(
    plan: OutcomeRecord, *, version: ImageAddress, revision: int,
    data_disks: bool = False,
) -> tuple[str, Sequence[Step]]:  # fmt: skip
    """The phase that gives an instance a new OS disk."""
    old = plan.source or plan.result - 1  # one that never came up has none of its own
    return "swap", swap_steps(old, plan.result, version, revision, data_disks=data_disks)


def change(
    work: Work, plan: OutcomeRecord, *, revision: int, newer: bool = False
) -> tuple[str, Sequence[Step]]:
    """The phase that brings a revision of the model to an instance on its OS disk."""
    restart = is_other_machine(work.context, plan.source_revision, revision)
    return "change", change_steps(plan.source, revision, restart=restart, newer=newer)


def is_other_machine(context: InstanceContext, before: int, after: int) -> bool:
    """Whether two revisions of the model make different machines."""
    if before == after:
        return False
    one, other = context.revision(before).model, context.revision(after).model
    return one.sku.name != other.sku.name or one.data_disks != other.data_disks


def target_of(work: Work) -> ImageAddress:
    """The image version that an operation brings."""
    operation = work.operation
    return ImageAddress(operation.gallery, operation.definition, operation.target)


def version_of(context: InstanceContext, number: int) -> ImageAddress:
    """The image version that an OS disk was made from."""
    generation = context.existing(number)
    return ImageAddress(generation.gallery, generation.definition, generation.version)
