"""Records of the checkpoints that a scale set has of itself."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from pydantic import Field

from pytest_vmss.store.instance_records import GenerationRecord, InstanceRecord
from pytest_vmss.store.record import FrozenMapping, Record

__all__ = ["CheckpointRecord"]


class CheckpointRecord(Record):
    """A checkpoint of a scale set, to which the set can be restored (L1).

    Written when the operation that makes it begins; it can be used once that has succeeded.

    Attributes:
        set_id: The set's ``unique_id``.
        name: Name of its folder in the lab.
        label: The name by which it is asked for; may be empty.
        revision: The set's revision of the model.
        profile_revision: The set's, by which an instance has the latest model.
        instances: The records of the instances.
        disks: The records of their OS disks, in the same order.
        sizes: The sizes in bytes of its files and of those on which its disks are based, by their
            paths relative to its folder; empty if none were recorded.
        heads: Digests of the beginnings of these files.
    """

    kind: ClassVar[str] = "checkpoint"

    scale_set: str
    set_id: str
    name: str
    label: str
    created: datetime
    revision: int
    profile_revision: int
    instances: tuple[InstanceRecord, ...]
    disks: tuple[GenerationRecord, ...]
    sizes: FrozenMapping[str, int] = Field(default_factory=dict, validate_default=True)
    heads: FrozenMapping[str, str] = Field(default_factory=dict, validate_default=True)

    @property
    def key(self) -> tuple[str | int, ...]:
        """The set's name and that of the folder."""
        return (self.scale_set.lower(), self.name)

    def disk_of(self, instance_id: int) -> GenerationRecord | None:
        """The OS disk of an instance; None if it was not there."""
        return next((disk for disk in self.disks if disk.instance_id == instance_id), None)
