"""The lab's records. A record is written before what it describes exists."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from pytest_vmss.model import Health
from pytest_vmss.model.extension_result import ExtensionResult

__all__ = [
    "BatchRecord",
    "DefinitionRecord",
    "DetachedDiskRecord",
    "ErrorRecord",
    "EventRecord",
    "GenerationRecord",
    "InstanceRecord",
    "ModelRecord",
    "NetworkRecord",
    "OperationRecord",
    "Outcome",
    "OutcomeRecord",
    "PortRecord",
    "Record",
    "ScaleSetRecord",
    "StepRecord",
    "VersionRecord",
]


class Record(BaseModel):
    """Something the lab remembers under a key."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    kind: ClassVar[str]

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from others of its kind."""
        raise NotImplementedError


class DefinitionRecord(Record):
    """An image definition of a gallery."""

    kind: ClassVar[str] = "definition"

    gallery: str
    name: str
    publisher: str = "local"
    offer: str
    sku: str
    os_type: Literal["Linux", "Windows"] = "Linux"
    hyper_v_generation: Literal["V1", "V2"] = "V1"

    @property
    def key(self) -> tuple[str, ...]:
        """Gallery and name, in lower case."""
        return (self.gallery.lower(), self.name.lower())


class VersionRecord(Record):
    """A published version of an image definition; immutable.

    Attributes:
        digest: Of the stored qcow2, in hex; the file is named by it.
        algorithm: How the digest is made: ``sha256`` of all bytes, as of versions that were
            published before holes were skipped, or ``sha256-data``.
        size: Bytes of the stored file.
        virtual_size: Bytes of the disk that a guest sees.
    """

    kind: ClassVar[str] = "version"

    gallery: str
    definition: str
    version: str
    digest: str
    size: int
    virtual_size: int
    published: datetime
    exclude_from_latest: bool = False
    algorithm: Literal["sha256", "sha256-data"] = "sha256"

    @property
    def key(self) -> tuple[str, ...]:
        """Gallery, definition and version, in lower case."""
        return (self.gallery.lower(), self.definition.lower(), self.version)


class PackagesRecord(Record):
    """The packages that a published version holds, as the document beside it says.

    Attributes:
        packages: Name and version of each.
    """

    kind: ClassVar[str] = "packages"

    gallery: str
    definition: str
    version: str
    packages: tuple[tuple[str, str], ...]

    @property
    def key(self) -> tuple[str, ...]:
        """Gallery, definition and version, in lower case."""
        return (self.gallery.lower(), self.definition.lower(), self.version)


class ScaleSetRecord(Record):
    """A scale set.

    Attributes:
        unique_id: Azure's ``uniqueId``; tells it from an earlier set of that name.
        revision: Of its model now.
        profile_revision: The first revision whose instances are made as the model
            says now: instances on it or later have the latest model applied.
        automatic_since: When automatic OS upgrades were enabled; None while they are not.
        state: Azure's provisioning state.
        next_instance_id: The number of the next new instance.
        ports: Guest ports that are forwarded.
        frontend: Loopback address of its load balancer, where it has one.
        overrides: Limits of waits in place of the lab's.
        health_command: Run in the guest; its exit status is a health source too (F4).
        health_function: Whether a function of the suite is one, in the process that has it.
        repairs_suspended: When automatic repairs were suspended; None while they are not.
        repairs_changed: When that changed, or an instance was repaired.
    """

    kind: ClassVar[str] = "scale-set"

    name: str
    unique_id: str
    revision: int = 1
    profile_revision: int = 1
    created: datetime
    automatic_since: datetime | None = None
    state: Literal["Creating", "Succeeded", "Failed", "Deleting"] = "Creating"
    next_instance_id: int = 0
    ports: tuple[int, ...] = ()
    frontend: str | None = None
    overrides: dict[str, float] = {}
    health_command: str | None = None
    health_function: bool = False
    repairs_suspended: datetime | None = None
    repairs_changed: datetime | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """The name, in lower case."""
        return (self.name.lower(),)


class ModelRecord(Record):
    """A revision of a set's model; never changes.

    Attributes:
        set_id: The set's ``unique_id``.
        model: The whole model, secrets included.
        probe: The load balancer's probe that it names.
        balancer: That load balancer.
    """

    kind: ClassVar[str] = "model"

    set_id: str
    revision: int
    created: datetime
    model: dict[str, Any] = Field(repr=False)
    probe: dict[str, Any] | None
    balancer: dict[str, Any] | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """The set's id and the revision."""
        return (self.set_id, f"{self.revision:06d}")


class InstanceRecord(Record):
    """An instance's lasting identity (A4).

    Attributes:
        address: Loopback address of the host that is its own.
        forwards: Guest port to host port on that address.
        placement_group: Number of the placement group; 100 instances at most are in one.
        generation: Number of the OS disk that is in use and committed.
        version: Image version of that disk.
        revision: Revision of the model that is applied to it.
        power: What was asked for last; whether it runs is the hypervisor's to say.
        provisioning: Azure's provisioning state.
        in_service: Whether the load balancer may send it traffic.
        changed: When an operation was through with it last.
        repairs: Automatic repairs since it was healthy last.
        health: As it was observed last; None where it never was.
        health_detail: What was seen then, in words.
        protect_from_scale_in: Scaling in never takes it.
        protected: ``protectFromScaleSetActions``: set-wide actions leave it out.
    """

    kind: ClassVar[str] = "instance"

    scale_set: str
    instance_id: int
    uuid: str
    computer_name: str
    mac: str
    address: str
    forwards: dict[int, int]
    update_domain: int
    placement_group: int = 0
    zone: str = ""
    created: datetime
    generation: int = 0
    version: str | None = None
    revision: int = 0
    power: Literal["running", "stopped", "deallocated"] = "running"
    provisioning: Literal["Creating", "Updating", "Succeeded", "Failed", "Deleting"] = "Creating"
    in_service: bool = False
    changed: datetime | None = None
    repairs: int = 0
    health: Health | None = None
    health_detail: str = ""
    protect_from_scale_in: bool = False
    protected: bool = False

    @property
    def name(self) -> str:
        """Azure's name, ``{set}_{id}``."""
        return f"{self.scale_set}_{self.instance_id}"

    @property
    def key(self) -> tuple[str, ...]:
        """The set's name and the number."""
        return (self.scale_set.lower(), f"{self.instance_id:06d}")


class NetworkRecord(Record):
    """A loopback network that the lab has claimed besides its first."""

    kind: ClassVar[str] = "network"

    network: str

    @property
    def key(self) -> tuple[str, ...]:
        """The network."""
        return (self.network,)


class PortRecord(Record):
    """A port of the host's loopback at which the lab listens."""

    kind: ClassVar[str] = "port"

    name: str
    port: int

    @property
    def key(self) -> tuple[str, ...]:
        """What listens there."""
        return (self.name,)


class DetachedDiskRecord(Record):
    """A data disk whose instance is gone (``deleteOption: Detach``, A2)."""

    kind: ClassVar[str] = "detached-disk"

    scale_set: str
    instance_id: int
    lun: int
    path: str
    detached: datetime

    @property
    def key(self) -> tuple[str, ...]:
        """The file's path."""
        return (self.path,)


class GenerationRecord(Record):
    """The n-th OS disk of an instance.

    Attributes:
        version: Image version that it was made from.
        digest: That version's digest.
        revision: Revision of the model that it was made from, or was given since.
        cloud_instance_id: ``instance-id`` of its seed.
        host_key: The guest's public SSH host key, pinned.
        state: Where it stands between being made and being discarded.
        started: Whether a machine was ever started on it.
        found_version: ``IMAGE_VERSION`` that was read inside the guest (E2).
        boot_id: Of the last boot that was proved.
        boot_before: What ``boot_id`` was when the machine was started last.
        console_from: Bytes that its console log had then.
    """

    kind: ClassVar[str] = "generation"

    scale_set: str
    instance_id: int
    number: int
    gallery: str
    definition: str
    version: str
    digest: str
    revision: int
    cloud_instance_id: str
    host_key: str
    created: datetime
    state: Literal["preparing", "current", "previous", "discarded"] = "preparing"
    started: bool = False
    found_version: str | None = None
    boot_id: str | None = None
    boot_before: str | None = None
    console_from: int = 0
    kernel: str | None = None
    cloud_init: str | None = None
    extensions: tuple[ExtensionResult, ...] = ()

    @property
    def key(self) -> tuple[str, ...]:
        """The set's name, the instance's number and its own."""
        return (self.scale_set.lower(), f"{self.instance_id:06d}", f"{self.number:06d}")

    def is_of(self, version: VersionRecord) -> bool:
        """Whether it was made from an image version: of the same gallery and definition (C3)."""
        own = (self.gallery.lower(), self.definition.lower(), self.version)
        return own == version.key


class Outcome(StrEnum):
    """What came of an instance in an upgrade (G3)."""

    NOT_STARTED = "not started"
    IN_PROGRESS = "in progress"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ROLLED_BACK = "rolled back"
    ROLLBACK_FAILED = "rollback failed"
    SKIPPED = "skipped"


class ErrorRecord(BaseModel):
    """What went wrong on an instance, with its evidence; never holds a secret."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    code: str
    message: str
    console_tail: str = ""
    log: str = ""


class OperationRecord(Record):
    """Something done to a set: its creation, an upgrade, a restart.

    Attributes:
        set_id: The set's ``unique_id``.
        action: Its kind; see :mod:`pytest_vmss.operations`.
        status: Azure's ``runningStatus.code``.
        started_by: Azure's ``startedBy``.
        rolling: Batch after batch, as the policy says; else all instances at once.
        target: Image version that an upgrade brings.
        revision: Revision of the model that it applies.
        rollback: Give an instance that does not recover its previous state back.
        metrics_read: Whether the applications' custom metrics are in the outcomes.
        elapsed: Seconds that it took until its last batch ended.
        batch_ended: When that was.
        error_code: Why it stops or has stopped; set before failed instances are rolled back.
    """

    kind: ClassVar[str] = "operation"

    id: str
    scale_set: str
    set_id: str
    action: str
    status: Literal["RollingForward", "RollingBack", "Cancelled", "Completed", "Faulted"]
    started_by: Literal["Unknown", "User", "Platform"] = "User"
    started: datetime
    ended: datetime | None = None
    rolling: bool = False
    gallery: str = ""
    definition: str = ""
    source_versions: tuple[str, ...] = ()
    target: str = ""
    digest: str = ""
    revision: int = 0
    rollback: bool = False
    skip_shutdown: bool = False
    metrics_read: bool = False
    cancel_requested: datetime | None = None
    elapsed: float = 0.0
    batch_ended: datetime | None = None
    error_code: str | None = None
    error_message: str | None = None
    reason: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """The set's name and the operation's id, which sorts by time."""
        return (self.scale_set.lower(), self.id)


class BatchRecord(Record):
    """A batch of an upgrade, with the planner's words."""

    kind: ClassVar[str] = "batch"

    scale_set: str
    operation: str
    number: int
    instance_ids: tuple[int, ...]
    reason: str

    @property
    def key(self) -> tuple[str, ...]:
        """The operation and the batch's number."""
        return (self.scale_set.lower(), self.operation, f"{self.number:04d}")


class OutcomeRecord(Record):
    """What an operation plans for an instance, and what came of it.

    Attributes:
        source: Number of the OS disk that it was on.
        result: Number of the one that it goes to; the same where it is changed in place;
            0 until that is decided.
        source_revision: Revision of the model that was applied to it.
        replacement: Number of the instance that takes its place (``maxSurge``).
        phase: ``PhaseOrderingNumber``, read when the upgrade started.
        error: What went wrong.
        going_back: Whether it is being given back what it had.
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

    @property
    def key(self) -> tuple[str, ...]:
        """The operation and the instance's number."""
        return (self.scale_set.lower(), self.operation, f"{self.instance_id:06d}")


class StepRecord(BaseModel):
    """One journalled effect on one instance."""

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
        """How long it took; None while it runs."""
        return None if self.done is None else (self.done - self.intended).total_seconds()


class EventRecord(BaseModel):
    """Something that happened (J4)."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    id: int
    time: datetime
    scale_set: str
    instance_id: int | None
    operation: str | None
    kind: str
    message: str
