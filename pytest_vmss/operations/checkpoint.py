"""Makes a checkpoint of a set whose instances have just been created (L1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_vmss.environment.environment import Environment
from pytest_vmss.errors import error_summary, is_verdict
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
    Undrain,
    Wake,
)
from pytest_vmss.store import Outcome
from pytest_vmss.store.queries import instances_of

__all__ = ["MakeCheckpoint", "checkpoint_steps"]


def checkpoint_steps(checkpoint: str, generation: int) -> Sequence[Step]:
    """Steps that save an instance, and continue it from what was saved like any other."""
    return [
        Drain(),
        SaveMemory(checkpoint),
        FreezeDisks(checkpoint, generation),
        RestoreMemory(checkpoint, generation),
        Wake(generation),
        AwaitHealth(generation),
        Undrain(),
    ]


def boot_again_steps(generation: int) -> Sequence[Step]:
    """Steps that boot an instance which could not be saved or restored, on the same disks."""
    return [
        Stop(generation, abrupt=True),
        Start(generation),
        ProveBoot(generation),
        AwaitHealth(generation),
        Undrain(),
    ]


@dataclass(frozen=True)
class MakeCheckpoint(Kind):
    """Saves all instances; one that cannot be saved is booted again, and is none of it.

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
    def run(cls, work: Work) -> None:
        """See the class."""
        generation = work.context.record.generation
        if not work.has_begun("boot again"):
            try:
                work.run("checkpoint", checkpoint_steps(work.operation.checkpoint, generation))
            except Exception as error:
                if not is_verdict(error):
                    raise
                told = error_summary(error)[1]
                work.context.event("warning", f"no checkpoint of it: {told}; it boots again")
            else:
                return
        try:
            work.run("boot again", boot_again_steps(generation), Outcome.SKIPPED)
        except Exception as error:  # noqa: BLE001 - of the instance, else it is raised
            work.fail(error)
            undrain(work)
            work.end_failed(Outcome.FAILED)
