"""Upgrades extension handlers to newer versions, batch by batch (H3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_vmss.environment.environment import Environment
from pytest_vmss.guest.extensions import handler_versions
from pytest_vmss.journal.work import Work
from pytest_vmss.operations.disk_swap import change, change_or_go_back, roll_back
from pytest_vmss.operations.kind import Kind, Plan, StartedBy
from pytest_vmss.steps import Step
from pytest_vmss.store import (
    InstanceRecord,
    Outcome,
    OutcomeRecord,
    VersionRecord,
)
from pytest_vmss.store.queries import current_disk, instances_of

__all__ = ["ExtensionUpgrade"]


@dataclass(frozen=True)
class ExtensionUpgrade(Kind):
    """Rolls newer versions of extension handlers through a scale set.

    Attributes:
        started_by: Azure's ``startedBy``.
        rollback: Roll an instance that fails back to its previous state.
    """

    started_by: StartedBy = "User"
    rollback: bool = False
    action = "extension-upgrade"

    @classmethod
    def in_words(cls, version: VersionRecord | None) -> str:  # noqa: ARG003
        """What it does, for events."""
        return "upgrade of extensions"

    def plan(self, environment: Environment, scale_set: str) -> Plan:
        """Plans every instance on which a handler is not the latest registered version."""
        versions = {f"{p}.{t}": v for (p, t), v in handler_versions().items()}

        def is_on_target(record: InstanceRecord) -> bool:
            generation = current_disk(environment.store, record)
            return generation is None or all(
                entry.version == versions.get(entry.type.lower(), entry.version)
                for entry in generation.extensions
            )

        instances = instances_of(environment.store, scale_set)
        return Plan(
            {r.instance_id: Outcome.NOT_STARTED for r in instances if not is_on_target(r)},
            rolling=True,
            details={"started_by": self.started_by, "rollback": self.rollback},
        )

    @classmethod
    def run(cls, work: Work) -> None:
        """See the class."""

        def forward(work: Work, plan: OutcomeRecord) -> tuple[str, Sequence[Step]]:
            return change(work, plan, revision=plan.source_revision, newer=True)

        change_or_go_back(work, new_disk=lambda: False, forward=forward, keep_power=True)

    @classmethod
    def roll_back(cls, work: Work) -> None:
        """Rolls a failed instance back to its previous extensions."""
        roll_back(work)
