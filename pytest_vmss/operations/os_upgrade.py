"""OS upgrade: moves every instance to an image version, batch by batch (D, E1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_vmss.environment.environment import Environment
from pytest_vmss.journal.work import Work
from pytest_vmss.operations.disk_swap import change_or_go_back, roll_back, swap, target_of
from pytest_vmss.operations.kind import Kind, Plan, StartedBy
from pytest_vmss.operations.replace import replace_instance
from pytest_vmss.steps import Step
from pytest_vmss.store import (
    InstanceRecord,
    Outcome,
    OutcomeRecord,
    VersionRecord,
)
from pytest_vmss.store.queries import current_disk, instances_of

__all__ = ["OSUpgrade"]


@dataclass(frozen=True)
class OSUpgrade(Kind):
    """Upgrades a scale set to an image version.

    Attributes:
        version: The target, fixed from now on (C4).
        started_by: Azure's ``startedBy``.
        rollback: Roll an instance that fails back to its previous OS disk.
    """

    version: VersionRecord
    started_by: StartedBy = "User"
    rollback: bool = False
    action = "upgrade"
    surges = True
    by_zones = True

    def plan(self, environment: Environment, scale_set: str) -> Plan:
        """Plans every instance that is not on the target."""

        def is_on_target(record: InstanceRecord) -> bool:
            generation = current_disk(environment.store, record)
            return generation is not None and generation.is_of(self.version)

        instances = instances_of(environment.store, scale_set)
        return Plan(
            {r.instance_id: Outcome.NOT_STARTED for r in instances if not is_on_target(r)},
            self.version,
            rolling=True,
            details={"started_by": self.started_by, "rollback": self.rollback},
        )

    @classmethod
    def run(cls, work: Work) -> None:
        """See the class."""
        if work.result.replacement is not None:
            replace_instance(work, work.plan(lambda: True))
            return

        def forward(work: Work, plan: OutcomeRecord) -> tuple[str, Sequence[Step]]:
            return swap(work, plan, version=target_of(work), revision=work.operation.revision)

        change_or_go_back(work, new_disk=lambda: True, forward=forward, keep_power=True)

    @classmethod
    def roll_back(cls, work: Work) -> None:
        """Rolls a failed instance back to its previous OS disk."""
        roll_back(work)
