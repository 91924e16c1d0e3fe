"""Creates instances: of a new scale set, or by scaling out (A2, A4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_vmss.environment.environment import Environment
from pytest_vmss.errors import error_summary, is_verdict
from pytest_vmss.journal.work import Work
from pytest_vmss.model import ScaleSetDocument
from pytest_vmss.model.image_version import ImageVersionRef
from pytest_vmss.operations.allocate import allocate_instances
from pytest_vmss.operations.disk_swap import bring_up_steps, keep_failed_steps, target_of
from pytest_vmss.operations.kind import Kind, Plan, at_once
from pytest_vmss.operations.revisions import add_revision, register_scale_set
from pytest_vmss.steps import (
    AwaitHealth,
    Commit,
    CreateDataDisks,
    DropRestored,
    PrepareDisk,
    RestoreDisks,
    RestoreMemory,
    Step,
    Stop,
    Undrain,
    Wake,
)
from pytest_vmss.store import Outcome, VersionRecord

__all__ = ["Create", "CreateScaleSet", "ScaleOut", "create_steps"]


def create_steps(version: ImageVersionRef, revision: int) -> Sequence[Step]:
    """Steps that create an instance and wait until it is healthy."""
    return [
        CreateDataDisks(revision),
        PrepareDisk(1, version, revision),
        *bring_up_steps(1),
        Undrain(),
        Commit(1),
    ]


def restore_steps(checkpoint: str, version: ImageVersionRef, revision: int) -> Sequence[Step]:
    """Steps that restore a new instance from a checkpoint, and wait until it is healthy."""
    return [
        RestoreDisks(checkpoint, 1, version, revision),
        RestoreMemory(checkpoint, 1),
        Wake(1),
        AwaitHealth(1),
        Undrain(),
        Commit(1),
    ]


class Create(Kind):
    """Creates instances, or restores them from a checkpoint; one that fails is kept for inspection.

    One that cannot be restored is created.
    """

    action = "create"

    @classmethod
    def in_words(cls, version: VersionRecord | None) -> str:
        """What it does, for events."""
        return "creation" if version is None else f"creation on {version.version}"

    @classmethod
    def run(cls, work: Work) -> None:
        """See the class."""
        if work.result.error is None:
            try:
                if not cls._restore(work):
                    work.run("create", create_steps(target_of(work), work.operation.revision))
            except Exception as error:  # noqa: BLE001 - of the instance, else it is raised
                work.fail(error)
            else:
                return
        # An instance that was started is kept for inspection; the next update repairs it.
        first = work.context.generation(1)
        stays = 1 if first is not None and first.started else 0
        work.run_untimed("keep failed", keep_failed_steps(stays, 0))
        work.end_failed(Outcome.FAILED)

    @classmethod
    def _restore(cls, work: Work) -> bool:
        """Restores an instance from the operation's checkpoint; returns whether it succeeded.

        Raises:
            Exception: The host could not continue.
        """
        checkpoint = work.operation.checkpoint
        if not checkpoint:
            return False
        if not work.has_begun("boot instead"):
            steps = restore_steps(checkpoint, target_of(work), work.operation.revision)
            try:
                work.run("restore", steps)
            except Exception as error:
                if not is_verdict(error):
                    raise
                told = error_summary(error)[1]
                work.context.event("warning", f"cannot be restored, and boots instead: {told}")
            else:
                return True
        work.run_untimed("boot instead", [Stop(1, abrupt=True), DropRestored(1)])
        return False


@dataclass(frozen=True)
class CreateScaleSet(Create):
    """Creates a scale set.

    Attributes:
        document: Its model, validated.
        version: The image version that the model refers to.
        ports: Guest ports to forward besides those of SSH and the probe.
        health_timeout: Seconds to wait for health, in place of the lab's timeout.
        health_command: A command as custom health source (F4).
        health_function: Whether this process has a function as custom health source.
        approver_url: The endpoint that approves update domains (I3).
        approver_function: Whether a function of this process does.
        checkpoint: Name of the checkpoint in the lab to restore from; empty to boot.
    """

    document: ScaleSetDocument
    version: VersionRecord
    ports: Sequence[int] = ()
    health_timeout: float | None = None
    health_command: str | None = None
    health_function: bool = False
    approver_url: str | None = None
    approver_function: bool = False
    checkpoint: str = ""

    def plan(self, environment: Environment, scale_set: str) -> Plan:
        """Registers the set, and allocates its instances."""
        register_scale_set(
            environment, self.document, ports=self.ports, health_timeout=self.health_timeout,
            health_command=self.health_command, health_function=self.health_function,
            approver_url=self.approver_url, approver_function=self.approver_function,
        )  # fmt: skip
        capacity = self.document.model.sku.capacity
        ids = allocate_instances(environment, scale_set, capacity)
        return Plan(at_once(ids), self.version, details={"checkpoint": self.checkpoint})


@dataclass(frozen=True)
class ScaleOut(Create):
    """Scales out.

    Its instances are created as those of a new set.

    Attributes:
        document: The model with the new capacity, validated; recorded if that changes.
        version: The image version that the model refers to.
        count: How many instances to add.
    """

    action = "scale-out"

    document: ScaleSetDocument
    version: VersionRecord
    count: int

    @classmethod
    def in_words(cls, version: VersionRecord | None) -> str:
        """What it does, for events."""
        return "scale-out" if version is None else f"scale-out on {version.version}"

    def plan(self, environment: Environment, scale_set: str) -> Plan:
        """Records the capacity, and allocates the instances."""
        current = environment.revisions.current(scale_set).model
        if self.document.model.sku.capacity != current.sku.capacity:
            add_revision(environment, self.document)
        return Plan(at_once(allocate_instances(environment, scale_set, self.count)), self.version)
