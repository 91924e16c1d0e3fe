"""What is done to an instance, as lists of steps.

A phase is a list that is the same after a crash, so that the journal can name
its steps by their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pytest_vmss.gallery import ImageAddress
from pytest_vmss.steps import (
    ApplyModel,
    AwaitHealth,
    Commit,
    CreateDataDisks,
    Discard,
    Drain,
    FinishCloudInit,
    Forget,
    LeaveBalancer,
    PrepareDisk,
    ProveBoot,
    RemoveFiles,
    RemoveMachine,
    ReplaceDataDisks,
    RunExtensions,
    SetPower,
    Start,
    Step,
    Stop,
    Sync,
    Undrain,
)

__all__ = [
    "Phase",
    "change_steps",
    "create_steps",
    "delete_steps",
    "keep_failed_steps",
    "restart_steps",
    "rollback_steps",
    "start_steps",
    "stop_steps",
    "swap_steps",
    "undrain_steps",
]

#: Names a phase in the journal.
Phase = Literal[
    "create",
    "swap",
    "change",
    "rollback",
    "settle",
    "serve again",
    "start",
    "stop",
    "restart",
    "delete",
]


def _bring_up(generation: int) -> list[Step]:
    return [
        Start(generation),
        ProveBoot(generation),
        FinishCloudInit(generation),
        RunExtensions(generation),
        AwaitHealth(generation),
    ]


def create_steps(version: ImageAddress, revision: int) -> Sequence[Step]:
    """A new instance, from nothing to healthy."""
    return [
        CreateDataDisks(revision),
        PrepareDisk(1, version, revision),
        *_bring_up(1),
        Undrain(),
        Sync(1),
        Commit(1),
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
        *_bring_up(new),
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
    """An instance on which something failed is served again: the probe says whether it gets traffic."""
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


def start_steps(generation: int) -> Sequence[Step]:
    """A stopped instance runs again."""
    return [Start(generation), ProveBoot(generation), Undrain(wait=False), SetPower("running")]


def stop_steps(
    generation: int, power: Literal["stopped", "deallocated"], *, abrupt: bool = False
) -> Sequence[Step]:
    """An instance stops."""
    return [Drain(), Stop(generation, abrupt=abrupt), SetPower(power)]


def restart_steps(generation: int) -> Sequence[Step]:
    """An instance stops and runs again, on the same OS disk."""
    return [Drain(), Stop(generation), *start_steps(generation)]


def delete_steps(revision: int) -> Sequence[Step]:
    """An instance goes, with its disks."""
    return [Drain(), LeaveBalancer(), RemoveMachine(), RemoveFiles(revision), Forget()]
