"""The lab's records. A record is written before what it describes exists."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

__all__ = [
    "DefinitionRecord",
    "ErrorRecord",
    "EventRecord",
    "ExtensionRecord",
    "GenerationRecord",
    "InstanceRecord",
    "OperationRecord",
    "Outcome",
    "Record",
    "ScaleSetRecord",
    "StepRecord",
    "VersionRecord",
]


class Record(BaseModel):
    """Something the lab remembers under a key."""

    model_config = ConfigDict(frozen=True)

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
        digest: SHA-256 of the stored qcow2, in hex.
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

    @property
    def key(self) -> tuple[str, ...]:
        """Gallery, definition and version, in lower case."""
        return (self.gallery.lower(), self.definition.lower(), self.version)


class ScaleSetRecord(Record):
    """A scale set.

    Attributes:
        model: The whole model, secrets included.
        probe: The load balancer's probe that the model names.
        state: Azure's provisioning state.
        next_instance_id: The number of the next new instance.
    """

    kind: ClassVar[str] = "scale-set"

    name: str
    model: dict[str, Any]
    probe: dict[str, Any] | None
    created: datetime
    state: Literal["Creating", "Succeeded", "Failed", "Deleting"] = "Creating"
    next_instance_id: int = 0
    overrides: dict[str, float] = {}

    @property
    def key(self) -> tuple[str, ...]:
        """The name, in lower case."""
        return (self.name.lower(),)


class InstanceRecord(Record):
    """An instance's lasting identity (A4).

    Attributes:
        address: Loopback address of the host that is its own.
        forwards: Guest port to host port on that address.
        generation: Number of the OS disk that is in use and committed.
        provisioning: Azure's provisioning state.
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
    zone: str = ""
    generation: int = 0
    provisioning: Literal["Creating", "Updating", "Succeeded", "Failed", "Deleting"] = "Creating"
    protected: bool = False

    @property
    def name(self) -> str:
        """Azure's name, ``{set}_{id}``."""
        return f"{self.scale_set}_{self.instance_id}"

    @property
    def key(self) -> tuple[str, ...]:
        """The set's name and the number."""
        return (self.scale_set.lower(), f"{self.instance_id:06d}")


class ExtensionRecord(BaseModel):
    """What came of an extension on one generation; never holds a secret.

    Attributes:
        exit_code: Of its command; None where it did not end.
        message: The end of its output.
        seconds: How long it ran.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    type: str
    status: Literal["success", "error"]
    exit_code: int | None = None
    message: str = ""
    seconds: float = 0.0


class GenerationRecord(Record):
    """The n-th OS disk of an instance.

    Attributes:
        version: Image version that it was made from.
        digest: That version's digest.
        cloud_instance_id: ``instance-id`` of its seed.
        host_key: The guest's public SSH host key, pinned.
        state: Where it stands between being made and being discarded.
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
    cloud_instance_id: str
    host_key: str
    created: datetime
    state: Literal["preparing", "current", "previous", "discarded"] = "preparing"
    found_version: str | None = None
    boot_id: str | None = None
    boot_before: str | None = None
    console_from: int = 0
    kernel: str | None = None
    cloud_init: str | None = None
    extensions: tuple[ExtensionRecord, ...] = ()

    @property
    def key(self) -> tuple[str, ...]:
        """The set's name, the instance's number and its own."""
        return (self.scale_set.lower(), f"{self.instance_id:06d}", f"{self.number:06d}")


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

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    console_tail: str = ""
    log: str = ""


class OperationRecord(Record):
    """Something done to a set: its creation, an upgrade, its deletion.

    Attributes:
        status: Azure's ``runningStatus.code``.
        started_by: Azure's ``startedBy``.
        target: Version that an upgrade brings.
        outcomes: What came of each instance, by number.
        errors: What went wrong on each.
        batches: Instances in the order in which they were taken, with the planner's words.
    """

    kind: ClassVar[str] = "operation"

    id: str
    scale_set: str
    action: Literal["create", "upgrade", "delete"]
    status: Literal["RollingForward", "RollingBack", "Cancelled", "Completed", "Faulted"]
    started_by: Literal["Unknown", "User", "Platform"] = "User"
    started: datetime
    ended: datetime | None = None
    gallery: str = ""
    definition: str = ""
    source_versions: tuple[str, ...] = ()
    target: str = ""
    digest: str = ""
    rollback: bool = True
    cancel_requested: bool = False
    error_code: str | None = None
    error_message: str | None = None
    why: str = ""
    outcomes: dict[int, Outcome] = {}
    errors: dict[int, ErrorRecord] = {}
    batches: tuple[tuple[tuple[int, ...], str], ...] = ()

    @property
    def key(self) -> tuple[str, ...]:
        """The set's name and the operation's id, which sorts by time."""
        return (self.scale_set.lower(), self.id)


class StepRecord(BaseModel):
    """One journalled effect on one instance."""

    model_config = ConfigDict(frozen=True)

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

    model_config = ConfigDict(frozen=True)

    id: int
    time: datetime
    scale_set: str
    instance_id: int | None
    operation: str | None
    kind: str
    message: str
