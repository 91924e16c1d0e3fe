"""Applies the latest model to instances as ``upgradePolicy.mode`` says (C9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pytest_vmss.environment.environment import Environment
from pytest_vmss.journal.work import Work
from pytest_vmss.model import ScaleSetDocument, profile_of
from pytest_vmss.operations.disk_swap import change, change_or_go_back, roll_back, swap, target_of
from pytest_vmss.operations.kind import Kind, OnInstances, Plan, at_once
from pytest_vmss.operations.replace import replace_instance
from pytest_vmss.operations.revisions import add_revision, is_behind
from pytest_vmss.steps import Step
from pytest_vmss.store import InstanceRecord, Outcome, OutcomeRecord, VersionRecord
from pytest_vmss.store.queries import instances_of

__all__ = ["ModelUpdate", "UpdateInstances", "behind_after"]


def behind_after(
    environment: Environment, scale_set: str, document: ScaleSetDocument
) -> list[InstanceRecord]:
    """The instances that would be behind once a model is recorded."""
    current = environment.revisions.current(scale_set).model
    other = profile_of(document.model) != profile_of(current)
    instances = instances_of(environment.store, scale_set)
    return [record for record in instances if other or is_behind(environment, record)]


class _Update(Kind):
    """Applies the latest model to instances, in place or with a new OS disk."""

    action = "update"
    surges = True

    @classmethod
    def in_words(cls, version: VersionRecord | None) -> str:  # noqa: ARG003
        """What it does, for events."""
        return "update to the latest model"

    @classmethod
    def run(cls, work: Work) -> None:
        """See the class."""
        if work.result.replacement is not None:
            replace_instance(work, work.plan(lambda: True))
            return
        context, revision = work.context, work.operation.revision

        def new_disk() -> bool:
            if context.existing(context.record.generation).never_came_up:
                return True
            before = context.revision(context.record.revision).model.image_reference
            return before != context.revision(revision).model.image_reference

        def forward(work: Work, plan: OutcomeRecord) -> tuple[str, Sequence[Step]]:
            if plan.result != plan.source:
                return swap(work, plan, version=target_of(work), revision=revision)
            return change(work, plan, revision=revision)

        change_or_go_back(work, new_disk=new_disk, forward=forward, keep_power=True)

    @classmethod
    def roll_back(cls, work: Work) -> None:
        """Rolls a failed instance back to its previous model."""
        roll_back(work)


@dataclass(frozen=True)
class ModelUpdate(_Update):
    """Records a new model, and applies it to the instances that are behind.

    Attributes:
        document: The model, validated.
        version: The image version that it refers to.
        rolling: Batch by batch, in mode Rolling; else all at once, except protected ones.
    """

    document: ScaleSetDocument
    version: VersionRecord
    rolling: bool

    def plan(self, environment: Environment, scale_set: str) -> Plan:
        """Records the model."""
        behind = behind_after(environment, scale_set, self.document)
        add_revision(environment, self.document)
        if self.rolling:
            instances = instances_of(environment.store, scale_set)
            return Plan(
                {
                    r.instance_id: Outcome.NOT_STARTED
                    for r in instances
                    if is_behind(environment, r)
                },
                self.version,
                rolling=True,
            )
        return Plan(
            at_once(
                (entry.instance_id for entry in behind if not entry.protected),
                skipped=(entry.instance_id for entry in behind if entry.protected),
            ),
            self.version,
        )


@dataclass(frozen=True)
class UpdateInstances(_Update, OnInstances):
    """Applies the latest model to instances, all at once (Azure's ``manualupgrade``).

    Attributes:
        version: The image version that the model refers to.
    """

    version: VersionRecord | None = None

    def plan(self, environment: Environment, scale_set: str) -> Plan:
        """Plans all its instances at once."""
        return replace(OnInstances.plan(self, environment, scale_set), version=self.version)
