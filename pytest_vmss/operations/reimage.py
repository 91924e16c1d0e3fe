"""Reimages instances: a fresh OS disk from their current image and model (E3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pytest_vmss.environment.environment import Environment
from pytest_vmss.operations.disk_swap import change_or_go_back, swap, version_of
from pytest_vmss.operations.kind import Kind, Plan, StartedBy, Work, at_once
from pytest_vmss.steps import Step
from pytest_vmss.store import OutcomeRecord

__all__ = ["Reimage", "ReimageAll"]


@dataclass(frozen=True)
class Reimage(Kind):
    """Gives instances a fresh OS disk; data disks stay.

    Attributes:
        instance_ids: The instances to reimage.
        skipped: The instances that a set-wide call skips.
        started_by: Azure's ``startedBy``.
    """

    instance_ids: Sequence[int]
    skipped: Sequence[int] = ()
    started_by: StartedBy = "User"
    action = "reimage"
    #: Whether data disks are replaced by empty ones too.
    data_disks: ClassVar[bool] = False

    def plan(self, environment: Environment, scale_set: str) -> Plan:  # noqa: ARG002
        """Plans all its instances at once."""
        return Plan(
            at_once(self.instance_ids, skipped=self.skipped),
            details={"started_by": self.started_by},
        )

    @classmethod
    def run(cls, work: Work) -> None:
        """See the class."""

        def forward(work: Work, plan: OutcomeRecord) -> tuple[str, Sequence[Step]]:
            return swap(
                plan, version=version_of(work.context, plan.source),
                revision=plan.source_revision, data_disks=cls.data_disks,
            )  # fmt: skip

        change_or_go_back(work, new_disk=lambda: True, forward=forward)


class ReimageAll(Reimage):
    """Gives instances a fresh OS disk, and fresh, empty data disks."""

    action = "reimageall"
    data_disks = True
