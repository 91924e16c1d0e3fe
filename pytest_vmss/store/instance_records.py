"""Records of instances, their OS disks, and disks that outlive them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar, Literal, Self

from pytest_vmss.model import Health
from pytest_vmss.model.extension_result import ExtensionResult
from pytest_vmss.model.image_version import ImageVersionRef
from pytest_vmss.store.image_records import VersionRecord
from pytest_vmss.store.record import FrozenMapping, Record

__all__ = ["DetachedDiskRecord", "GenerationRecord", "InstanceRecord"]


class InstanceRecord(Record):
    """An instance, with its lasting identity (A4).

    Attributes:
        address: The instance's own loopback address on the host.
        forwards: Guest port to host port on that address.
        placement_group: Number of its placement group, which has at most 100 instances.
        generation: Number of the OS disk that is in use and committed.
        version: Image version of that disk.
        revision: Revision of the model that is applied to it.
        power: The requested power state; only the hypervisor knows whether it is running.
        provisioning: Azure's provisioning state.
        power_failed: It is Failed by nothing but a change of power, such as a restart.
        unproven: Its OS disk or model was changed while it was stopped; its next start proves it.
        in_service: Whether the load balancer may send it traffic.
        changed: When an operation last finished with it.
        repairs: Number of automatic repairs since it was last healthy.
        health: The health last observed; None if it never was.
        health_detail: A description of that observation.
        protect_from_scale_in: Whether scaling in never removes it.
        protected: ``protectFromScaleSetActions``: set-wide actions skip it.
    """

    kind: ClassVar[str] = "instance"

    scale_set: str
    instance_id: int
    uuid: str
    computer_name: str
    mac: str
    address: str
    forwards: FrozenMapping[int, int]
    update_domain: int
    placement_group: int = 0
    zone: str = ""
    created: datetime
    generation: int = 0
    version: str | None = None
    revision: int = 0
    power: Literal["running", "stopped", "deallocated"] = "running"
    provisioning: Literal["Creating", "Updating", "Succeeded", "Failed", "Deleting"] = "Creating"
    power_failed: bool = False
    unproven: bool = False
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
    def key(self) -> tuple[str | int, ...]:
        """The set's name and the instance's id."""
        return (self.scale_set.lower(), self.instance_id)


class GenerationRecord(Record):
    """The n-th OS disk of an instance.

    Attributes:
        version: Image version that it was created from.
        digest: That version's digest.
        hyper_v_generation: That version's: ``V1`` boots by BIOS, ``V2`` by UEFI.
        provisioning: That version's: where the guest looks for what it is to be.
        revision: Revision of the model that it was created from, or that was applied since.
        cloud_instance_id: ``instance-id`` of its seed.
        host_key: The guest's public SSH host key, which is pinned.
        ssh_key: Path of the private SSH key that the guest accepts; empty for the lab's.
        state: Its place in the life cycle, from preparing to discarded.
        started: Whether a VM was ever started on it.
        found_version: ``IMAGE_VERSION`` that was read inside the guest (E2).
        boot_id: Id of the last verified boot.
        boot_before: The ``boot_id`` at the last start of the VM.
        console_from: Length of its console log at that start, in bytes.
        started_at: When that start was.
        started_on: The boot of the host at that start; empty if it is not known.
        saved_on: The boot of the host on which its memory was last saved; empty if it never was.
    """

    kind: ClassVar[str] = "generation"

    scale_set: str
    instance_id: int
    number: int
    gallery: str
    definition: str
    version: str
    digest: str
    hyper_v_generation: Literal["V1", "V2"] = "V1"
    provisioning: Literal["NoCloud", "Azure"] = "NoCloud"
    revision: int
    cloud_instance_id: str
    host_key: str
    ssh_key: str = ""
    created: datetime
    state: Literal["preparing", "current", "previous", "discarded"] = "preparing"
    started: bool = False
    found_version: str | None = None
    boot_id: str | None = None
    boot_before: str | None = None
    console_from: int = 0
    started_at: datetime | None = None
    started_on: str = ""
    saved_on: str = ""
    kernel: str | None = None
    cloud_init: str | None = None
    extensions: tuple[ExtensionResult, ...] = ()

    @property
    def key(self) -> tuple[str | int, ...]:
        """The set's name, the instance's id and the generation's number."""
        return (self.scale_set.lower(), self.instance_id, self.number)

    @property
    def image(self) -> ImageVersionRef:
        """The image version that it was created from."""
        return ImageVersionRef(self.gallery, self.definition, self.version)

    @property
    def never_came_up(self) -> str:
        """Why it counts as never come up on this OS disk (F1); empty if it came up.

        A failed boot and custom data that did not run to its end are never repeated on the same
        disk: only a fresh one mends them (H5).
        """
        if self.boot_id is None:
            return "it never booted on its OS disk"
        if self.cloud_init is None:
            return "cloud-init did not run to its end on its OS disk"
        return ""

    @classmethod
    def from_version(cls, version: VersionRecord, **facts: Any) -> Self:
        """A new OS disk of an image version.

        Args:
            version: The version.
            facts: The other attributes.
        """
        return cls(
            gallery=version.gallery,
            definition=version.definition,
            version=version.version,
            digest=version.digest,
            hyper_v_generation=version.hyper_v_generation,
            provisioning=version.provisioning,
            **facts,
        )

    def is_of(self, version: VersionRecord) -> bool:
        """Whether it was created from an image version, of the same gallery and definition (C3)."""
        return self.image.key == version.image.key


class DetachedDiskRecord(Record):
    """A data disk that outlives its instance (``deleteOption: Detach``, A2)."""

    kind: ClassVar[str] = "detached-disk"

    scale_set: str
    instance_id: int
    lun: int
    path: str
    detached: datetime

    @property
    def key(self) -> tuple[str | int, ...]:
        """The file's path."""
        return (self.path,)
