"""The work of an operation on one instance, written to the journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pytest_vmss.environment.environment import Environment, InstanceContext
from pytest_vmss.errors import is_verdict
from pytest_vmss.journal.journal import Journal
from pytest_vmss.steps import Step
from pytest_vmss.store import OperationRecord, Outcome, OutcomeRecord

__all__ = ["Work"]


class Work:
    """One instance in one operation, as the kind of the operation works on it.

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
        """Plans the OS disks and the model to go from and to; the same after a resume.

        Args:
            new_disk: Whether the instance gets a new OS disk; called once, before the first step.
            keep_power: Whether an instance that is stopped stays so.
        """
        plan = self.result
        if plan.result:
            return plan
        record = self.context.record
        numbers = [generation.number for generation in self.context.generations()]
        new = max(numbers, default=0) + 1
        result = new if new_disk() else record.generation or new
        # The first step that changes anything outside the store makes this durable too.
        with self.environment.store.transaction(durable=False):
            return self._journal.note(
                self.context,
                source=record.generation,
                result=result,
                source_revision=record.revision,
                stopped=keep_power and record.power != "running",
            )

    def run(self, phase: str, steps: Sequence[Step], outcome: Outcome = Outcome.SUCCEEDED) -> None:
        """Runs a phase with the instance's timeout (G4), and then records its outcome.

        Raises:
            Exception: What a step raised.
        """
        self._journal.run_phase(self._timed(self.context), phase, steps, outcome=outcome)

    def run_untimed(
        self, phase: str, steps: Sequence[Step], outcome: Outcome | None = None
    ) -> None:
        """Runs a phase without the instance's timeout; records an outcome if one is given.

        Raises:
            Exception: What a step raised.
        """
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
        """Records the instance's outcome, with which the operation is done with it."""
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
