"""Deletes instances: with their scale set, or by scaling in (A2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_vmss.environment.environment import Environment, InstanceContext
from pytest_vmss.journal.work import Work
from pytest_vmss.model import ScaleSetDocument
from pytest_vmss.operations.kind import Kind, Plan, at_once
from pytest_vmss.operations.revisions import add_revision
from pytest_vmss.steps import (
    Drain,
    Forget,
    LeaveBalancer,
    RemoveFiles,
    RemoveMachine,
    Step,
    notice_steps,
)
from pytest_vmss.store import InstanceRecord, Outcome, OutcomeRecord
from pytest_vmss.store.queries import instances_of

__all__ = ["Delete", "DeleteScaleSet", "ScaleIn", "begin_removal", "delete_steps", "give_notice"]


def delete_steps(revision: int) -> Sequence[Step]:
    """Steps that delete an instance with its disks."""
    return [Drain(), LeaveBalancer(), RemoveMachine(), RemoveFiles(revision), Forget()]


def begin_removal(instance: InstanceContext) -> None:
    """Records that an instance is being deleted, if it still has a record."""
    store = instance.environment.store
    if store.get(InstanceRecord, *instance.key) is not None:
        store.amend(instance.record, provisioning="Deleting")


def give_notice(work: Work, plan: OutcomeRecord) -> None:
    """Tells the guest that its instance is about to be deleted, and waits for it (O4).

    Raises:
        Exception: It could not be told for now.
    """
    if not work.has_begun("delete"):
        steps = notice_steps("Terminate", work.context, plan.source, plan.source_revision)
        work.run_untimed("notice", steps)


class Delete(Kind):
    """Deletes instances; without rollback or timeout, and resumed until all are gone."""

    action = "delete"
    needs_machine = False

    @classmethod
    def run(cls, work: Work) -> None:
        """See the class."""
        plan = work.plan(lambda: False)
        begin_removal(work.context)
        give_notice(work, plan)
        work.run_untimed("delete", delete_steps(plan.source_revision), Outcome.SUCCEEDED)


@dataclass(frozen=True)
class ScaleIn(Delete):
    """Scales in.

    Attributes:
        instance_ids: The instances to delete.
        document: The model with the new capacity, validated; recorded if that changes.
    """

    instance_ids: Sequence[int]
    document: ScaleSetDocument

    def plan(self, environment: Environment, scale_set: str) -> Plan:
        """Records the capacity."""
        current = environment.revisions.current(scale_set).model
        if self.document.model.sku.capacity != current.sku.capacity:
            add_revision(environment, self.document)
        return Plan(at_once(self.instance_ids))


@dataclass(frozen=True)
class DeleteScaleSet(Delete):
    """Deletes a scale set; an unfinished operation on it is ended."""

    ends_others = "the set is deleted"

    def plan(self, environment: Environment, scale_set: str) -> Plan:
        """Records that the set is being deleted."""
        environment.store.amend(environment.set_record(scale_set), state="Deleting")
        instances = instances_of(environment.store, scale_set)
        return Plan(at_once(instance.instance_id for instance in instances))
