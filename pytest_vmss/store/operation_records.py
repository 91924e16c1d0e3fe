"""Records of operations: their requests, batches, outcomes, steps and events."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from pytest_vmss.model.image_version import ImageVersionRef
from pytest_vmss.store.record import Record

__all__ = [
    "BatchRecord",
    "ErrorRecord",
    "EventRecord",
    "OperationRecord",
    "Outcome",
    "OutcomeRecord",
    "RepairTaskRecord",
    "StepKey",
    "StepRecord",
]


class Outcome(StrEnum):
    """The outcome of an upgrade for one instance (G3)."""

    NOT_STARTED = "not started"
    IN_PROGRESS = "in progress"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ROLLED_BACK = "rolled back"
    ROLLBACK_FAILED = "rollback failed"
    SKIPPED = "skipped"


class ErrorRecord(BaseModel):
    """An error on an instance, with its evidence; never contains a secret.

    Attributes:
        console_tail: The last lines of its console.
        log: Path of the whole console log.
        guest_logs: Folder of what the guest told before its OS disk was discarded (E5).
        missing_guest_logs: What it did not tell, and why; empty if it was not asked.
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    code: str
    message: str
    console_tail: str = ""
    log: str = ""
    guest_logs: str = ""
    missing_guest_logs: str = ""


class OperationRecord(Record):
    """An operation on a scale set: its creation, an upgrade, a restart, and so on.

    Attributes:
        set_id: The set's ``unique_id``.
        action: Its kind; see :mod:`pytest_vmss.operations`.
        status: Azure's ``runningStatus.code``.
        started_by: Azure's ``startedBy``.
        rolling: Whether it goes batch by batch, by the policy, or does all instances at once.
        target: Image version that an upgrade installs.
        published: When that was published; one that is deleted and published anew is another.
        revision: Revision of the model that it applies.
        protections: The set's ``protections`` when it was opened.
        rollback: Whether to roll back an instance that does not recover.
        checkpoint: Key of the checkpoint from which it restores instances, or that it makes.
        zone: The zone that it claims among the upgrades to the same version (D4); empty if none.
        metrics_read: Whether the applications' custom metrics are in the outcomes.
        elapsed: Seconds it had taken when its last batch ended.
        batch_ended: When that was.
        error_code: Why it is stopping or has stopped; set before failed instances are rolled back.
    """

    kind: ClassVar[str] = "operation"

    id: str
    scale_set: str
    set_id: str
    action: str
    status: Literal["RollingForward", "Cancelled", "Completed", "Faulted"]
    started_by: Literal["Unknown", "User", "Platform"] = "User"
    started: datetime
    ended: datetime | None = None
    rolling: bool = False
    gallery: str = ""
    definition: str = ""
    source_versions: tuple[str, ...] = ()
    target: str = ""
    digest: str = ""
    published: datetime | None = None
    revision: int = 0
    protections: int = 0
    rollback: bool = False
    skip_shutdown: bool = False
    checkpoint: str = ""
    zone: str = ""
    metrics_read: bool = False
    cancel_requested: datetime | None = None
    elapsed: float = 0.0
    batch_ended: datetime | None = None
    error_code: str | None = None
    error_message: str | None = None
    reason: str = ""

    @property
    def image(self) -> ImageVersionRef:
        """The image version that it installs, if it installs one."""
        return ImageVersionRef(self.gallery, self.definition, self.target)

    @property
    def key(self) -> tuple[str | int, ...]:
        """The set's name and the operation's id, which sorts by time."""
        return (self.scale_set.lower(), self.id)


class BatchRecord(Record):
    """A batch of an upgrade, with the planner's reason for it."""

    kind: ClassVar[str] = "batch"

    scale_set: str
    operation: str
    number: int
    instance_ids: tuple[int, ...]
    reason: str

    @property
    def key(self) -> tuple[str | int, ...]:
        """The operation and the batch's number."""
        return (self.scale_set.lower(), self.operation, self.number)


class OutcomeRecord(Record):
    """The plan of an operation for one instance, and its outcome.

    Attributes:
        source: Number of the OS disk that it was on.
        result: Number of the OS disk that it moves to; the same if it is changed in place; 0 until
            that is decided.
        source_revision: Revision of the model that was applied to it.
        replacement: Id of the instance that replaces it (``maxSurge``).
        phase: ``PhaseOrderingNumber``, read when the upgrade started.
        error: The error, if it failed.
        going_back: Whether it is being rolled back.
        stopped: Whether it was stopped and stays so, so that nothing is proved about it.
    """

    kind: ClassVar[str] = "outcome"

    scale_set: str
    operation: str
    instance_id: int
    outcome: Outcome
    source: int = 0
    result: int = 0
    source_revision: int = 0
    replacement: int | None = None
    phase: int | None = None
    error: ErrorRecord | None = None
    going_back: bool = False
    stopped: bool = False

    @property
    def key(self) -> tuple[str | int, ...]:
        """The operation and the instance's id."""
        return (self.scale_set.lower(), self.operation, self.instance_id)


class RepairTaskRecord(Record):
    """An update domain of an upgrade that a Service Fabric cluster approves (I3).

    Attributes:
        number: Counts the tasks of the operation.
        zone: Its availability zone; empty where zones are upgraded together.
        group: Its placement group.
        domain: The update domain.
        instance_ids: The instances of it that were left to upgrade when it was asked for.
        state: Preparing until it is approved, Executing until its last batch has ended,
            Restoring until that is reported, then Completed.
    """

    kind: ClassVar[str] = "repair-task"

    scale_set: str
    operation: str
    number: int
    zone: str
    group: int
    domain: int
    instance_ids: tuple[int, ...]
    state: Literal["Preparing", "Executing", "Restoring", "Completed"] = "Preparing"
    result: Literal["Pending", "Succeeded", "Failed", "Cancelled"] = "Pending"
    asked: datetime
    approved: datetime | None = None
    completed: datetime | None = None

    @property
    def key(self) -> tuple[str | int, ...]:
        """The operation and the task's number."""
        return (self.scale_set.lower(), self.operation, self.number)

    @property
    def task_id(self) -> str:
        """The task's id, as the cluster is told."""
        return f"{self.operation}/{self.number}"

    @property
    def place(self) -> tuple[str, int, int]:
        """Zone, placement group and update domain."""
        return (self.zone, self.group, self.domain)


class StepKey(NamedTuple):
    """Which step of an operation it is."""

    operation: str
    instance_id: int
    phase: str
    sequence: int


class StepRecord(BaseModel):
    """A journalled step of an operation on one instance."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    operation: str
    scale_set: str
    instance_id: int
    phase: str
    sequence: int
    name: str
    intended: datetime
    done: datetime | None = None
    error: str | None = None

    @property
    def seconds(self) -> float | None:
        """How long it took; None while it is running, or if the clock was set back meanwhile."""
        if self.done is None or self.done < self.intended:
            return None
        return (self.done - self.intended).total_seconds()


class EventRecord(BaseModel):
    """An event of a scale set (J4)."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    id: int
    time: datetime
    scale_set: str
    instance_id: int | None
    operation: str | None
    kind: str
    message: str
