"""Automatic repairs: unhealthy instances are replaced, reimaged or restarted (K1)."""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta
from typing import Any

from pytest_vmss.controller.moments import Moments
from pytest_vmss.engine.engine import Engine
from pytest_vmss.engine.report import OperationReport
from pytest_vmss.environment.environment import Environment
from pytest_vmss.environment.set_health import observe_instances
from pytest_vmss.errors import CapacityError, NotFoundError
from pytest_vmss.health import Observation
from pytest_vmss.model import AutomaticRepairsPolicy, Health
from pytest_vmss.operations import Kind, Reimage, Replace, Restart
from pytest_vmss.store import InstanceRecord, ScaleSetRecord

__all__ = ["Repairs"]

#: Share of all instances repaired at a time, and at least one instance (azure-arm.md 6.4).
_SHARE = 0.05
#: Repairs in a row without success after which automatic repairs are suspended.
_FAILURES = 3


class Repairs:
    """The automatic repairs of one set.

    Args:
        environment: The lab's environment.
        engine: The set's engine.
        grace: Seconds in place of the policy's ``gracePeriod``; None for the policy's.
        moments: Shared by all checks of this process, so that steps of the clock are noticed.
    """

    def __init__(
        self, environment: Environment, engine: Engine, *, grace: float | None, moments: Moments
    ) -> None:
        self._moments = moments
        self._environment = environment
        self._engine = engine
        self._grace = grace

    @property
    def _record(self) -> ScaleSetRecord:
        return self._environment.set_record(self._engine.name)

    @property
    def policy(self) -> AutomaticRepairsPolicy:
        """The set's policy."""
        model = self._environment.revisions.current(self._engine.name).model
        return model.automatic_repairs_policy or AutomaticRepairsPolicy()

    @property
    def running(self) -> bool:
        """Whether automatic repairs are enabled and not suspended, and the set is provisioned."""
        record = self._record
        suspended = record.repairs_suspended is not None
        return self.policy.enabled and record.state == "Succeeded" and not suspended

    def due(self, seen: dict[int, Observation]) -> list[InstanceRecord]:
        """The instances to repair now, those that have waited longest first.

        Never included are instances that are still starting, whose provisioning failed, that
        were stopped or are protected, or that are within the grace period after the last
        change of their state.

        Args:
            seen: The health of each, as just observed.
        """
        now = self._environment.clock.now()
        grace = self.policy.grace_period
        if self._grace is not None:
            grace = timedelta(seconds=self._grace)
        due = [
            record
            for record in self._engine.instances()
            if record.instance_id in seen
            and seen[record.instance_id].health in (Health.UNHEALTHY, Health.UNKNOWN)
            and record.provisioning == "Succeeded"
            and record.power == "running"
            and not record.protected
            and not record.protect_from_scale_in
            and now - self._changed(record) >= grace
        ]
        due.sort(key=self._changed)
        return due[: max(1, int(len(seen) * _SHARE))]

    def _changed(self, record: InstanceRecord) -> datetime:
        return self._moments.placed(record.changed or record.created)

    def needed(self) -> bool:
        """Checks all instances, and returns whether one is due.

        It does not lock the set, so it does not disturb an operation on it.
        """
        return self.running and bool(self.due(self._look()))

    def _look(self) -> dict[int, Observation]:
        records = self._engine.instances()
        seen = observe_instances(self._environment, self._engine.name, records)
        for record in records:
            if record.repairs and seen[record.instance_id].healthy:
                with contextlib.suppress(NotFoundError):  # it was deleted meanwhile
                    self._environment.store.amend(record, repairs=0)
        return seen

    def repair(self) -> OperationReport | None:
        """Checks all instances, and repairs those that are due, 5 % at a time.

        Call with the set locked. After three repairs of an instance in a row that did not
        help, automatic repairs are suspended until they are resumed by hand.

        Returns:
            The repair's report; None if nothing was due.
        """
        if not self.running:
            return None
        store, seen = self._environment.store, self._look()
        due = self.due(seen)
        beyond = [record for record in due if record.repairs >= _FAILURES]
        if beyond:
            self.suspend(f"{beyond[0].repairs} repairs in a row of {beyond[0].name} did not help")
        if beyond or not due:
            return None

        kind = self._kind([record.instance_id for record in due])
        with store.transaction():
            # In the transaction that opens the operation: a repair that never began does not count.
            for record in due:
                store.amend(record, repairs=record.repairs + 1)
                reason = seen[record.instance_id].detail
                store.event(
                    self._engine.name,
                    "repair",
                    f"{self.policy.repair_action}: {reason}",
                    instance_id=record.instance_id,
                )
            self._note()
            operation = self._engine.open(kind)
        return self._engine.run(operation)

    def _kind(self, ids: list[int]) -> Kind:
        """The operation that repairs instances, by the policy and the host's capacity."""
        wanted = self.policy.repair_action
        if wanted == "Replace":
            images = self._environment.images
            model = self._environment.revisions.current(self._engine.name).model
            try:
                self._environment.require_room(len(ids), self._environment.size_of(model))
            except CapacityError as error:
                self._environment.store.event(
                    self._engine.name, "warning", f"Reimage, not Replace: {error.message}"
                )
            else:
                version = images.resolve(images.address_of(model.image_reference))
                return Replace(ids, version, started_by="Platform")
        kind = Restart if wanted == "Restart" else Reimage
        return kind(ids, started_by="Platform")

    # The service.

    def suspend(self, reason: str) -> None:
        """Suspends automatic repairs.

        Args:
            reason: Why, in words, for the event.
        """
        with self._environment.store.transaction():
            self._note(repairs_suspended=self._environment.clock.now())
            self._environment.store.event(
                self._engine.name, "repair", f"automatic repairs are suspended: {reason}"
            )

    def resume(self) -> None:
        """Resumes automatic repairs, and resets the instances' counts of failed repairs."""
        with self._environment.store.transaction():
            self._note(repairs_suspended=None)
            for record in self._engine.instances():
                self._environment.store.amend(record, repairs=0)
            self._environment.store.event(
                self._engine.name, "repair", "automatic repairs are resumed"
            )

    def view(self) -> dict[str, Any]:
        """Azure's entry of ``orchestrationServices``."""
        record = self._record
        state = "Running" if self.policy.enabled else "NotRunning"
        if self.policy.enabled and record.repairs_suspended is not None:
            state = "Suspended"
        busy = self._engine.journal.unfinished()
        repairing = busy is not None and busy.started_by == "Platform" and not busy.rolling
        return {
            "serviceName": "AutomaticRepairs",
            "serviceState": state,
            "latestOperationStatus": "InProgress" if repairing else "Completed",
            "lastStatusChangeTime": (record.repairs_changed or record.created).isoformat(),
        }

    def _note(self, **changes: object) -> None:
        self._environment.store.amend(
            self._record, repairs_changed=self._environment.clock.now(), **changes
        )
