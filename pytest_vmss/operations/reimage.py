"""Reimages instances: a fresh OS disk from their current image and model (E3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pytest_vmss.environment.environment import Environment, InstanceContext
from pytest_vmss.errors import ConflictError, NotFoundError
from pytest_vmss.journal.work import Work
from pytest_vmss.operations.disk_swap import change_or_go_back, swap, version_of
from pytest_vmss.operations.kind import OnInstances, Plan
from pytest_vmss.steps import Step
from pytest_vmss.store import OutcomeRecord

__all__ = ["Reimage", "ReimageAll"]


class Reimage(OnInstances):
    """Gives instances a fresh OS disk; data disks stay."""

    action = "reimage"
    #: Whether data disks are replaced by empty ones too.
    data_disks: ClassVar[bool] = False

    def plan(self, environment: Environment, scale_set: str) -> Plan:
        """Plans all its instances at once, if each has an image to start from again."""
        for number in self.instance_ids:
            context = InstanceContext(environment, scale_set, number)
            generation = context.generation(context.record.generation)
            if generation is None:
                raise ConflictError(
                    f"{context.name} cannot be reimaged, for it has no OS disk yet: nothing was "
                    "changed; update it (update_instances), which makes it one"
                )
            try:
                environment.images.resolve(version_of(context, generation.number))
            except NotFoundError as error:
                raise NotFoundError(
                    f"{context.name} cannot be reimaged, and nothing was changed: {error.message}; "
                    "upgrade the set, or publish that version again",
                    code=error.code,
                ) from error
        return OnInstances.plan(self, environment, scale_set)

    @classmethod
    def run(cls, work: Work) -> None:
        """See the class."""

        def forward(work: Work, plan: OutcomeRecord) -> tuple[str, Sequence[Step]]:
            return swap(
                work, plan, version=version_of(work.context, plan.source),
                revision=plan.source_revision, data_disks=cls.data_disks,
            )  # fmt: skip

        change_or_go_back(work, new_disk=lambda: True, forward=forward)


class ReimageAll(Reimage):
    """Gives instances a fresh OS disk, and fresh, empty data disks."""

    action = "reimageall"
    data_disks = True
