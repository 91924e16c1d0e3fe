"""Runs an operation's work on its instances, and journals it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from pytest_vmss.clock import run_concurrently
from pytest_vmss.engine.journal import Journal
from pytest_vmss.engine.preflight import require_known
from pytest_vmss.environment.environment import Environment, InstanceContext
from pytest_vmss.errors import LabError, error_summary, is_verdict
from pytest_vmss.operations import kind_of
from pytest_vmss.steps import Step
from pytest_vmss.store import OperationRecord, Outcome, OutcomeRecord

__all__ = ["InstanceWork", "Worker"]


class InstanceWork:
    """The :class:`~pytest_vmss.operations.Work` of an instance.

    Args:
        environment: The lab's environment.
        journal: The set's journal.
        operation: The operation's record.
        context: The instance.
    """

    def __init__(
        self,
        environment: Environment,
        journal: Journal,
        operation: OperationRecord,
        context: InstanceContext,
    ) -> None:
        self.environment = environment
        self.operation = operation
        self.context = context
        self._journal = journal

    @property
    def result(self) -> OutcomeRecord:
        """The instance's outcome record."""
        return self._journal.result(self.context)

    def plan(self, new_disk: Callable[[], bool], *, keep_power: bool = False) -> OutcomeRecord:
        """Plans the OS disks and the model to go from and to; the same after a resume."""
        plan = self.result
        if plan.result:
            return plan
        record = self.context.record
        numbers = [generation.number for generation in self.context.generations()]
        new = max(numbers, default=0) + 1
        return self._journal.note(
            self.context,
            source=record.generation,
            result=new if new_disk() else record.generation or new,
            source_revision=record.revision,
            stopped=keep_power and record.power != "running",
        )

    def run(self, phase: str, steps: Sequence[Step], outcome: Outcome = Outcome.SUCCEEDED) -> None:
        """Runs a phase with the instance's timeout (G4), and then records its outcome."""
        self._journal.run_phase(self._timed(self.context), phase, steps, outcome=outcome)

    def run_untimed(
        self, phase: str, steps: Sequence[Step], outcome: Outcome | None = None
    ) -> None:
        """Runs a phase without the instance's timeout."""
        self._journal.run_phase(self.context, phase, steps, outcome=outcome)

    def run_on(
        self, instance: InstanceContext, phase: str, steps: Sequence[Step], *, timed: bool = True
    ) -> None:
        """Runs a phase of this operation on another instance."""
        self._journal.run_phase(self._timed(instance) if timed else instance, phase, steps)

    def has_begun(self, phase: str) -> bool:
        """Whether any step of a phase has been started."""
        return self._journal.has_begun(self.context, phase)

    def fail(self, error: Exception) -> None:
        """Records an instance's failure.

        Raises:
            Exception: The same error, if it is not a verdict on the instance (Q1).
        """
        if not is_verdict(error):
            raise error
        self._journal.failed(self.context, error)

    def end(self, outcome: Outcome) -> None:
        """Records the instance's outcome."""
        self._journal.outcome(self.context, outcome)

    def end_failed(self, outcome: Outcome, *, power: bool = False) -> None:
        """Records the instance's outcome, and that its provisioning failed."""
        with self.environment.store.transaction():
            record = self.context.record
            self.environment.store.amend(
                record,
                provisioning="Failed",
                power_failed=power and (record.provisioning == "Succeeded" or record.power_failed),
            )
            self._journal.outcome(self.context, outcome)

    def begin_rollback(self) -> None:
        """Records that the instance is being rolled back."""
        self._journal.going_back(self.context, value=True)

    def _timed(self, context: InstanceContext) -> InstanceContext:
        """An instance's context with a deadline, whose time starts now (G4)."""
        return replace(context, deadline=self.environment.clock.monotonic() + context.limit)


class Worker:
    """Works on the instances of one set, concurrently.

    Args:
        environment: The lab's environment.
        journal: The set's journal.
        scale_set: The set's name.
    """

    def __init__(self, environment: Environment, journal: Journal, scale_set: str) -> None:
        self._environment = environment
        self._journal = journal
        self._scale_set = scale_set

    def run(self, operation_id: str, instance_ids: Sequence[int]) -> None:
        """Runs an operation on instances until each has an outcome.

        Raises:
            NotFoundError: Something that they need is not known in this process; none was touched.
            Exception: The first error for which an instance could not continue, after all ended.
        """
        operation = self._journal.operation(operation_id)
        kind = kind_of(operation.action)
        if instance_ids and kind.needs_machine:
            require_known(self._environment, operation)
        self._environment.traffic.serve(self._scale_set)
        self._environment.serve_files(self._scale_set)
        self._each(operation, instance_ids, kind.run)

    def roll_back(self, operation: OperationRecord, instance_ids: Sequence[int]) -> None:
        """Rolls failed instances back to what they had."""
        self._each(operation, instance_ids, kind_of(operation.action).roll_back)

    def _each(
        self,
        operation: OperationRecord,
        instance_ids: Sequence[int],
        act: Callable[[InstanceWork], None],
    ) -> None:
        def one(number: int) -> None:
            context = InstanceContext(self._environment, self._scale_set, number, operation.id)
            try:
                act(InstanceWork(self._environment, self._journal, operation, context))
            except Exception as error:
                with contextlib.suppress(LabError):  # only one is raised; all are reported here
                    context.event("error", f"cannot go on just now: {error_summary(error)[1]}")
                raise
            finally:
                context.leave()

        run_concurrently(instance_ids, one, clock=self._environment.clock)
