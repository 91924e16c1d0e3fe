"""What operations do to one instance: journalled phases, and what came of them.

An instance fails by what its guest does or does not do, and by what the hypervisor
refuses for it; then it goes the way back. Everything else is raised to the engine, which
leaves the operation unfinished: see :func:`~pytest_vmss.errors.is_verdict`. On the way
back nothing but the guest can fail, all else is raised; and what is committed never goes
back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pytest_vmss.engine.journal import Journal, describe
from pytest_vmss.environment.environment import Environment, InstanceContext
from pytest_vmss.environment.health import HealthSources, observe_health
from pytest_vmss.errors import (
    InstanceError,
    UnhealthyError,
    WaitTimeoutError,
    is_verdict,
)
from pytest_vmss.gallery import ImageAddress
from pytest_vmss.health import worst
from pytest_vmss.operations import phases
from pytest_vmss.steps import Step
from pytest_vmss.store import (
    InstanceRecord,
    OperationRecord,
    Outcome,
    OutcomeRecord,
)

__all__ = ["Worker"]


class Worker:
    """Acts on instances of one set, one at a time, for an operation.

    Every method can be called again after a crash or an error, and goes on where the
    journal ends.

    Args:
        environment: What it acts on.
        journal: The set's.
    """

    def __init__(self, environment: Environment, journal: Journal) -> None:
        self._environment = environment
        self._journal = journal

    def act(self, context: InstanceContext, operation: OperationRecord) -> None:
        """Does what an operation does to an instance.

        Raises:
            Exception: It could not be brought to an end; it can be called again.
        """
        match operation.action:
            case "create":
                self._create(context, operation)
            case "upgrade" | "update" | "extension-upgrade" | "reimage" | "reimageall" | "replace":
                self._upgrade(context, operation)
            case "delete":
                self._delete(context)
            case "start" | "stop" | "deallocate" | "restart":
                self._set_power(context, operation)

    # New instances, and instances that go.

    def _create(self, context: InstanceContext, operation: OperationRecord) -> None:
        if self._journal.result(context).error is None:
            try:
                steps = phases.create_steps(_target(operation), operation.revision)
                self._run(context, "create", steps)
            except Exception as error:  # noqa: BLE001 - of the instance, else it is raised
                self._failed(context, error)
            else:
                return
        # What was started is there to be looked at, and the next update mends it.
        first = context.generation(1)
        stays = 1 if first is not None and first.started else 0
        self._journal.run_phase(context, "settle", phases.keep_failed_steps(stays, 0))
        self._end_failed(context, Outcome.FAILED)

    def _delete(self, context: InstanceContext) -> None:
        """There is no way back, and no limit: it is resumed until all is gone."""
        self._remove(context, self._plan(context, None).source_revision, Outcome.SUCCEEDED)

    def _remove(
        self, context: InstanceContext, revision: int, outcome: Outcome | None = None
    ) -> None:
        if self._environment.store.get(InstanceRecord, *context.key) is not None:
            self._environment.store.amend(context.record, provisioning="Deleting")
        steps = phases.delete_steps(revision)
        self._journal.run_phase(context, "delete", steps, outcome=outcome)

    # Power.

    def _set_power(self, context: InstanceContext, operation: OperationRecord) -> None:
        plan = self._plan(context, None)
        steps: Sequence[Step]
        if plan.error is None:
            try:
                match operation.action:
                    case "start":
                        steps = phases.start_steps(plan.source)
                        self._run(context, "start", steps)
                    case "restart":
                        steps = phases.restart_steps(plan.source)
                        self._run(context, "restart", steps)
                    case action:
                        power: Literal["stopped", "deallocated"] = (
                            "deallocated" if action == "deallocate" else "stopped"
                        )
                        steps = phases.stop_steps(
                            plan.source, power, abrupt=operation.skip_shutdown
                        )
                        self._run(context, "stop", steps)
            except Exception as error:  # noqa: BLE001 - of the instance, else it is raised
                self._failed(context, error)
            else:
                return
        self._undrain(context)
        self._end_failed(context, Outcome.FAILED)

    # Upgrades, updates, reimages.

    def _upgrade(self, context: InstanceContext, operation: OperationRecord) -> None:
        plan = self._plan(context, operation)
        if plan.replacement is not None:
            self._surge(context, operation, plan)
            return
        if plan.error is None:
            try:
                if plan.result != plan.source:
                    self._swap(context, operation, plan)
                else:
                    self._change(context, operation, plan)
            except Exception as error:
                if context.record.generation == plan.result != plan.source:
                    raise  # committed: it never goes back, what is left is done by a resume
                self._failed(context, error)
            else:
                return
        if operation.rollback and plan.source:
            self.roll_back(context, operation)
            return
        result = context.generation(plan.result)
        stays = plan.result if result is not None and result.started else plan.source
        self._journal.run_phase(context, "settle", phases.keep_failed_steps(stays, plan.source))
        self._end_failed(context, Outcome.FAILED)

    def _swap(
        self, context: InstanceContext, operation: OperationRecord, plan: OutcomeRecord
    ) -> None:
        reimage = operation.action in ("reimage", "reimageall")
        version = _version_of(context, plan.source) if reimage else _target(operation)
        steps = phases.swap_steps(
            plan.source or plan.result - 1,  # one that never came up has none of its own
            plan.result,
            version,
            plan.source_revision if reimage else operation.revision,
            data_disks=operation.action == "reimageall",
        )
        self._run(context, "swap", steps)

    def _change(
        self, context: InstanceContext, operation: OperationRecord, plan: OutcomeRecord
    ) -> None:
        upgrade = operation.action == "extension-upgrade"
        revision = plan.source_revision if upgrade else operation.revision
        steps = phases.change_steps(
            plan.source,
            revision,
            restart=self._other_machine(context, plan.source_revision, revision),
            newer=upgrade,
        )
        self._run(context, "change", steps)

    def roll_back(self, context: InstanceContext, operation: OperationRecord) -> None:
        """Gives a failed instance back what it had: its previous OS disk, or its previous model.

        Raises:
            Exception: The host could not go on; it can be called again.
        """
        plan = self._journal.result(context)
        if plan.result != plan.source:
            steps = phases.rollback_steps(plan.source, plan.result)
        else:
            steps = phases.change_steps(
                plan.source,
                plan.source_revision,
                restart=self._other_machine(context, plan.source_revision, operation.revision),
            )
        self._journal.going_back(context, value=True)
        try:
            self._run(context, "rollback", steps, Outcome.ROLLED_BACK)
        except (InstanceError, WaitTimeoutError) as error:
            context.event("error", f"the rollback failed too: {describe(error)[1]}")
            self._undrain(context)
            self._end_failed(context, Outcome.ROLLBACK_FAILED)

    def _surge(
        self, context: InstanceContext, operation: OperationRecord, plan: OutcomeRecord
    ) -> None:
        """A new instance in place of the old one, which goes once the new one is healthy (D9)."""
        new = context.at(plan.replacement or 0)
        try:
            if plan.error is None:
                try:
                    steps = phases.create_steps(_target(operation), operation.revision)
                    self._journal.run_phase(self._timed(new), "create", steps)
                    self._require_healthy(context, new)
                except Exception as error:  # noqa: BLE001 - the old one stays
                    self._failed(context, error)
                else:
                    # From here on the new one is the one that stays, whatever fails.
                    self._remove(context, plan.source_revision, Outcome.SUCCEEDED)
                    return
        finally:
            new.leave()
        if context.record.provisioning == "Deleting":  # it was to go already
            self._undrain(context)
            self._environment.store.amend(context.record, provisioning="Succeeded")
        self._remove(new, operation.revision)
        self._journal.outcome(
            context, Outcome.ROLLED_BACK if operation.rollback else Outcome.FAILED
        )

    def _require_healthy(self, old: InstanceContext, new: InstanceContext) -> None:
        """Looks once more at a replacement that a resume finds ready.

        Raises:
            UnhealthyError: It is no longer healthy, and the old instance is still there.
        """
        if not self._journal.has_begun(old, "delete"):
            return  # this very moment it was
        if self._environment.hypervisor.running_generation(old.domain) is None:
            return  # the old one cannot take its place
        applied = new.revision(new.record.revision)
        seen = worst(
            observe_health(new, HealthSources.of(self._environment, new.scale_set, applied))
        )
        if not seen.healthy:
            raise UnhealthyError(
                f"{new.name}, which was to take its place, is no longer healthy: {seen.detail}",
                instance=new.name,
            )

    def _plan(self, context: InstanceContext, operation: OperationRecord | None) -> OutcomeRecord:
        """From which OS disk to which, and from which model; the same after a resume."""
        plan = self._journal.result(context)
        if plan.result:
            return plan
        record = context.record
        numbers = [generation.number for generation in context.generations()]
        new = max(numbers, default=0) + 1
        stays = operation is None or (
            record.generation != 0 and not self._needs_disk(context, operation, record.revision)
        )
        return self._journal.note(
            context,
            source=record.generation,
            result=record.generation or new if stays else new,
            source_revision=record.revision,
        )

    def _needs_disk(
        self, context: InstanceContext, operation: OperationRecord, applied: int
    ) -> bool:
        """Whether an instance gets a new OS disk, or is changed as it is."""
        if operation.action == "update":
            before = context.revision(applied).model.image_reference
            return before != context.revision(operation.revision).model.image_reference
        return operation.action != "extension-upgrade"

    # Helpers.

    def _failed(self, context: InstanceContext, error: Exception) -> None:
        """Notes what went wrong on an instance, which from now on goes the way back.

        Raises:
            Exception: It tells nothing of the instance.
        """
        if not is_verdict(error):
            raise error
        self._journal.failed(context, error)

    def _undrain(self, context: InstanceContext) -> None:
        """The probe says whether an instance gets traffic on which something failed."""
        self._journal.run_phase(context, "serve again", phases.undrain_steps())

    def _end_failed(self, context: InstanceContext, outcome: Outcome) -> None:
        with self._environment.store.transaction():
            self._environment.store.amend(context.record, provisioning="Failed")
            self._journal.outcome(context, outcome)

    def _other_machine(self, context: InstanceContext, before: int, after: int) -> bool:
        """Whether two revisions of the model make different machines."""
        if before == after:
            return False
        one, other = context.revision(before).model, context.revision(after).model
        return one.sku.name != other.sku.name or one.data_disks != other.data_disks

    def _run(
        self,
        context: InstanceContext,
        phase: phases.Phase,
        steps: Sequence[Step],
        outcome: Outcome = Outcome.SUCCEEDED,
    ) -> None:
        """Runs a phase that must end in time (G4), and with which the instance is through."""
        self._journal.run_phase(self._timed(context), phase, steps, outcome=outcome)

    def _timed(self, context: InstanceContext) -> InstanceContext:
        """An instance that must be done in time, from now on (G4)."""
        timeout = context.base_timeouts.instance
        return replace(context, deadline=self._environment.clock.monotonic() + timeout)


def _target(operation: OperationRecord) -> ImageAddress:
    """The image version that an operation brings."""
    return ImageAddress(operation.gallery, operation.definition, operation.target)


def _version_of(context: InstanceContext, number: int) -> ImageAddress:
    """The image version that an OS disk was made from."""
    generation = context.existing(number)
    return ImageAddress(generation.gallery, generation.definition, generation.version)
