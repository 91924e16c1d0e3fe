"""Records of scale sets and their models."""

from __future__ import annotations

from datetime import datetime
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from pydantic import Field

from pytest_vmss.store.record import FrozenMapping, Record

__all__ = ["ModelRecord", "ScaleSetRecord"]


class ScaleSetRecord(Record):
    """A scale set.

    Attributes:
        unique_id: Azure's ``uniqueId``; distinguishes it from an earlier set of that name.
        revision: The current revision of its model.
        profile_revision: The first revision with the current profile: instances on it or a later
            one have the latest model applied.
        automatic_since: When automatic OS upgrades were first enabled; None if they never were.
        protections: How often the protection of an instance was changed.
        state: Azure's provisioning state.
        next_instance_id: Id of the next new instance.
        ports: Guest ports that are forwarded.
        frontend: Loopback address of its load balancer, if it has one.
        overrides: Timeouts that replace the lab's, in seconds.
        health_command: A command run in the guest whose exit status is a health source (F4).
        health_function: Whether a function of the suite is one, in the process that defines it.
        own_size: The size of the lab's own that it was made in: name, vCPUs and MiB (A3).
        left_out: Names of extensions, in lower case, that are left out since nobody registered
            their handlers (P4).
        approver_url: The endpoint that approves update domains of a Service Fabric set (I3).
        approver_function: Whether a function of the suite does, in the process that defines it.
        repairs_suspended: When automatic repairs were suspended; None while they are not.
        repairs_changed: When that last changed, or an instance was last repaired.
    """

    kind: ClassVar[str] = "scale-set"

    name: str
    unique_id: str
    revision: int = 1
    profile_revision: int = 1
    created: datetime
    automatic_since: datetime | None = None
    protections: int = 0
    state: Literal["Creating", "Succeeded", "Failed", "Deleting"] = "Creating"
    next_instance_id: int = 0
    ports: tuple[int, ...] = ()
    frontend: str | None = None
    overrides: FrozenMapping[str, float] = Field(default_factory=lambda: MappingProxyType({}))
    health_command: str | None = None
    health_function: bool = False
    own_size: tuple[str, int, int] | None = None
    left_out: tuple[str, ...] = ()
    approver_url: str | None = Field(default=None, repr=False)
    approver_function: bool = False
    repairs_suspended: datetime | None = None
    repairs_changed: datetime | None = None

    @property
    def key(self) -> tuple[str | int, ...]:
        """The name, in lower case."""
        return (self.name.lower(),)


class ModelRecord(Record):
    """A revision of a set's model; immutable.

    Attributes:
        set_id: The set's ``unique_id``.
        model: The whole model, with secrets.
        secrets: Paths of its texts that are secret although neither name nor content tells so.
        probe: The load-balancer probe that it names.
        balancer: That load balancer.
        clusters: The Service Fabric clusters that were given with it (C7).
    """

    kind: ClassVar[str] = "model"
    mutable: ClassVar[bool] = True  # a document, which is read once

    set_id: str
    revision: int
    created: datetime
    model: dict[str, Any] = Field(repr=False)
    secrets: list[tuple[str | int, ...]] = Field(default_factory=list)
    probe: dict[str, Any] | None
    balancer: dict[str, Any] | None = None
    clusters: list[dict[str, Any]] = Field(default_factory=list)

    @property
    def key(self) -> tuple[str | int, ...]:
        """The set's ``unique_id`` and the revision."""
        return (self.set_id, self.revision)
