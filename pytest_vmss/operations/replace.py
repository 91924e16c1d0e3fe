"""Replaces instances: the old one is deleted once the new one is healthy (D9, K1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_vmss.environment.environment import Environment, InstanceContext
from pytest_vmss.environment.health import HealthSources, observe_health
from pytest_vmss.errors import UnhealthyError
from pytest_vmss.health import worst
from pytest_vmss.journal.work import Work
from pytest_vmss.operations.create import create_steps
from pytest_vmss.operations.delete import begin_removal, delete_steps, give_notice
from pytest_vmss.operations.disk_swap import target_of, undrain
from pytest_vmss.operations.kind import Kind, Plan, StartedBy, at_once
from pytest_vmss.store import Outcome, OutcomeRecord, VersionRecord

__all__ = ["Replace", "replace_instance"]


@dataclass(frozen=True)
class Replace(Kind):
    """Replaces instances by new ones.

    Attributes:
        instance_ids: The instances to replace.
        version: The image version of the new ones.
        started_by: Azure's ``startedBy``.
    """

    instance_ids: Sequence[int]
    version: VersionRecord
    started_by: StartedBy = "User"
    action = "replace"

    def plan(self, environment: Environment, scale_set: str) -> Plan:  # noqa: ARG002
        """Plans all its instances at once; the engine allocates the new ones."""
        return Plan(
            at_once(self.instance_ids), self.version, replaced=self.instance_ids,
            details={"started_by": self.started_by},
        )  # fmt: skip

    @classmethod
    def run(cls, work: Work) -> None:
        """See the class."""
        replace_instance(work, work.plan(lambda: True))


def replace_instance(work: Work, plan: OutcomeRecord) -> None:
    """Creates a replacement, and deletes the old instance once the new one is healthy.

    Upgrades with ``maxSurge`` use it too.

    Raises:
        Exception: It could not be finished for now; call this again.
    """
    old, environment, operation = work.context, work.environment, work.operation
    new = old.at(plan.replacement or 0)
    try:
        if plan.error is None:
            try:
                work.run_on(new, "create", create_steps(target_of(work), operation.revision))
                begin_removal(old)
                give_notice(work, plan)
                _require_healthy(work, new)
            except Exception as error:  # noqa: BLE001 - the old one stays
                work.fail(error)
            else:
                # From here on the new one stays, whatever fails.
                steps = delete_steps(plan.source_revision)
                work.run_untimed("delete", steps, Outcome.SUCCEEDED)
                return
    finally:
        new.leave()
    if old.record.provisioning == "Deleting":  # its deletion had started
        undrain(work)
        environment.store.amend(old.record, provisioning="Succeeded")
    begin_removal(new)
    work.run_on(new, "delete", delete_steps(operation.revision), timed=False)
    work.end(Outcome.ROLLED_BACK if operation.rollback else Outcome.FAILED)


def _require_healthy(work: Work, new: InstanceContext) -> None:
    """Checks the health of a replacement again, since its creation or the notice may be long ago.

    Raises:
        UnhealthyError: It is no longer healthy, and the old instance is still running.
    """
    if work.environment.hypervisor.running_generation(work.context.domain) is None:
        return  # the old one cannot take its place
    applied = new.revision(new.record.revision)
    seen = worst(observe_health(new, HealthSources.of(work.environment, new.scale_set, applied)))
    if not seen.healthy:
        raise UnhealthyError(
            f"{new.name}, which was to take its place, is no longer healthy: {seen.detail}",
            instance=new.name,
        )
