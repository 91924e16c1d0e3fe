"""The journal of operations: written before and after each effect, and at the end (M1)."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

from pytest_vmss.environment.environment import Environment, InstanceContext
from pytest_vmss.environment.observers import Moment, Told
from pytest_vmss.errors import (
    BalancerError,
    HostError,
    InstanceError,
    InterruptedOperationError,
    LabError,
    NotFoundError,
    UpgradeError,
    WaitTimeoutError,
    error_summary,
)
from pytest_vmss.journal.report import OperationReport
from pytest_vmss.steps import Conclusion, Step
from pytest_vmss.store import (
    BatchRecord,
    ErrorRecord,
    InstanceRecord,
    OperationRecord,
    Outcome,
    OutcomeRecord,
    StepKey,
    VersionRecord,
)
from pytest_vmss.store.queries import instances_of

__all__ = ["Journal"]


class Journal:
    """The journal of one scale set.

    Args:
        environment: The lab's environment.
        scale_set: The set's name.
    """

    def __init__(self, environment: Environment, scale_set: str) -> None:
        self._environment = environment
        self._store = environment.store
        self._name = scale_set

    # Operations.

    def operations(self) -> list[OperationRecord]:
        """The set's operations, oldest first; without those of an earlier set of its name."""
        set_id = self._environment.set_record(self._name).unique_id
        records = self._store.select(OperationRecord, self._name.lower())
        return [record for record in records if record.set_id == set_id]

    def unfinished(self) -> OperationRecord | None:
        """The operation that is in progress or was interrupted; None if there is none."""
        return next((entry for entry in self.operations() if entry.ended is None), None)

    def operation(self, operation_id: str) -> OperationRecord:
        """Returns an operation by its id.

        Raises:
            NotFoundError: There is no such operation.
        """
        operation = self._store.get(OperationRecord, self._name.lower(), operation_id)
        if operation is None:
            raise NotFoundError(f"there is no operation {operation_id} of {self._name!r}")
        return operation

    def report(self, operation_id: str) -> OperationReport:
        """The report of an operation."""
        return OperationReport.of(self._store, self.operation(operation_id))

    def ensure_idle(self, action: str | None = None) -> None:
        """Checks that no other operation is unfinished and the set is not being deleted.

        Args:
            action: The action that is to start, if known.

        Raises:
            UpgradeError: An operation was interrupted, or the set is being deleted.
        """
        deleting = self._environment.set_record(self._name).state == "Deleting"
        if deleting and action != "delete":
            raise UpgradeError(
                f"{self._name!r} is being deleted; go on with it: "
                f"{self._environment.program} delete {self._name}",
                code="OperationNotAllowed",
            )
        unfinished = self.unfinished()
        if unfinished is not None:
            raise UpgradeError(
                f"an operation ({unfinished.action}) on {self._name!r} was interrupted; go on with "
                f"it first: {self._environment.program} resume {self._name}",
                code="OperationNotAllowed",
            )

    def open(
        self,
        action: str,
        outcomes: Mapping[int, Outcome],
        *,
        what: str,
        version: VersionRecord | None = None,
        **details: Any,
    ) -> OperationRecord:
        """Opens an operation, durably, before its first effect.

        Args:
            action: Its action, such as ``upgrade``.
            outcomes: Its instances, and the initial outcome of each.
            what: The operation in words, for the event.
            version: The image version that it installs.
            details: Other fields of the record.

        Raises:
            UpgradeError: Another operation was interrupted.
        """
        self.ensure_idle(action)
        now = self._now()
        set_record = self._environment.set_record(self._name)
        image = {}
        if version is not None:
            image = {
                "gallery": version.gallery,
                "definition": version.definition,
                "target": version.version,
                "digest": version.digest,
                "published": version.published,
            }
        operation = OperationRecord.model_validate(
            {
                "id": f"{now:%Y%m%dT%H%M%S%f}-{secrets.token_hex(3)}",
                "scale_set": self._name,
                "set_id": set_record.unique_id,
                "action": action,
                "status": "RollingForward",
                "started": now,
                "revision": set_record.revision,
                "protections": set_record.protections,
                "source_versions": self._versions(),
                **image,
                **details,
            }
        )
        with self._store.transaction():
            self._store.put(operation)
            for number, outcome in outcomes.items():
                self._store.put(
                    OutcomeRecord(
                        scale_set=self._name,
                        operation=operation.id,
                        instance_id=number,
                        outcome=outcome,
                    )
                )
            self._store.event(
                self._name, action, f"{what} started by {operation.started_by}",
                operation=operation.id,
            )  # fmt: skip
        return operation

    def _now(self) -> datetime:
        """The time, but later than any operation's start: setting a clock back reorders nothing."""
        now, known = self._environment.clock.now(), self.operations()
        if not known:
            return now
        return max(now, known[-1].started + timedelta(microseconds=1))

    def _versions(self) -> tuple[str, ...]:
        records = instances_of(self._store, self._name)
        return tuple(sorted({record.version for record in records if record.version}))

    def update(self, operation_id: str, **changes: object) -> OperationRecord:
        """Changes an operation's record."""
        return self._store.amend(self.operation(operation_id), **changes)

    def end(
        self,
        operation_id: str,
        status: Literal["Completed", "Cancelled", "Faulted"],
        *,
        reason: str = "",
        code: str | None = None,
        message: str | None = None,
    ) -> None:
        """Ends an operation, and with it decides the set's provisioning state.

        A set whose creation failed is Succeeded as soon as all its instances are.

        Raises:
            LabError: An instance is still in progress, and would never be finished.
        """
        with self._store.transaction():
            if unsettled := self.report(operation_id).unsettled:
                raise LabError(
                    f"the operation {operation_id} on {self._name!r} cannot end while it is in the "
                    f"middle of the instances {', '.join(map(str, unsettled))}"
                )
            record = self._environment.set_record(self._name)
            if record.state == "Creating" and self.operation(operation_id).action == "create":
                done: Literal["Succeeded", "Failed"] = (
                    "Succeeded" if status == "Completed" else "Failed"
                )
                self._store.amend(record, state=done)
            elif record.state == "Failed" and all(
                entry.provisioning == "Succeeded" for entry in instances_of(self._store, self._name)
            ):
                self._store.amend(record, state="Succeeded")
            self.update(
                operation_id,
                status=status,
                ended=max(self._environment.clock.now(), self.operation(operation_id).started),
                error_code=code,
                error_message=message,
                reason=reason,
            )
            text = f"{status}: {message or reason}" if message or reason else status
            self._store.event(self._name, "end", text, operation=operation_id)

    @contextlib.contextmanager
    def resumable(self, operation_id: str) -> Iterator[None]:
        """Marks an operation as interrupted if the block cannot finish it, to be resumed (Q1).

        Raises:
            InterruptedOperationError: It is unfinished.
        """
        action = "operation"
        try:
            action = self.operation(operation_id).action
            yield
        except Exception as error:
            raise self._interrupted(operation_id, action, error_summary(error)[1]) from error

    @contextlib.contextmanager
    def outside(self, what: str) -> Iterator[None]:
        """Handles failures of the host before, between or after operations.

        Args:
            what: What the block does, in words.

        Raises:
            InterruptedOperationError: The host cannot continue for now; says how to resume.
        """
        try:
            yield
        except (LabError, HostError, BalancerError, OSError) as error:
            raise self._interrupted("", what, error_summary(error)[1]) from error

    def _interrupted(self, operation_id: str, action: str, cause: str) -> InterruptedOperationError:
        """An error that says how to resume; also written as an event, if possible."""
        with contextlib.suppress(LabError):
            self._store.event(
                self._name,
                "interrupted",
                f"interrupted: {cause}",
                operation=operation_id or None,
            )
        return InterruptedOperationError(
            f"the {action} of {self._name!r} is interrupted and unfinished: {cause}\n"
            f"Once that is mended, go on with: {self._environment.program} resume {self._name}",
            scale_set=self._name,
            operation=operation_id,
        )

    def abandon(self, operation_id: str, reason: str) -> None:
        """Ends an operation in favour of another one; instances in progress count as failed."""
        with self._store.transaction():
            for number in self.report(operation_id).unsettled:
                context = InstanceContext(self._environment, self._name, number, operation_id)
                error = ErrorRecord(code="OperationPreempted", message=reason)
                self.note(context, outcome=Outcome.FAILED, going_back=False, error=error)
            self.end(operation_id, "Cancelled", reason=reason)

    # Instances in operations.

    def result(self, context: InstanceContext) -> OutcomeRecord:
        """An instance's outcome record in its operation.

        Raises:
            NotFoundError: The operation does not include it.
        """
        result = self._store.get(OutcomeRecord, *self._outcome_key(context))
        if result is None:
            raise NotFoundError(f"{context.name} has no part in the operation {context.operation}")
        return result

    def note(self, context: InstanceContext, **changes: object) -> OutcomeRecord:
        """Amends an instance's outcome record."""
        return self._store.change(OutcomeRecord, *self._outcome_key(context), **changes)

    def _outcome_key(self, context: InstanceContext) -> tuple[str, str, int]:
        return (self._name.lower(), context.operation, context.instance_id)

    def outcome(self, context: InstanceContext, outcome: Outcome) -> None:
        """Records an instance's outcome."""
        with self._store.transaction():
            if self.result(context).going_back:
                self.going_back(context, value=False)
            self.note(context, outcome=outcome)
            record = self._store.get(InstanceRecord, *context.key)
            if record is not None:
                self._store.amend(record, changed=self._environment.clock.now())
            context.event("outcome", str(outcome))

    def going_back(self, context: InstanceContext, *, value: bool) -> None:
        """Records whether an instance is being rolled back."""
        self.note(context, going_back=value)

    def failed(self, context: InstanceContext, error: Exception) -> None:
        """Records an instance's error, with its evidence."""
        code, message = error_summary(error)
        tail, log = "", ""
        if isinstance(error, InstanceError):
            tail, log = error.console_tail, str(error.log or "")
        with self._store.transaction():
            self.note(
                context,
                error=ErrorRecord(code=code, message=message, console_tail=tail, log=log),
            )
            context.event("error", message)

    def run_phase(
        self,
        context: InstanceContext,
        phase: str,
        steps: Sequence[Step],
        *,
        outcome: Outcome | None = None,
    ) -> None:
        """Runs the steps of a phase that are not journalled as done.

        The end of one step, its conclusion, and the intent of the next are one transaction. It
        is synchronized to the disk before anything is changed outside the store: at once, unless
        the next step needs no such intent, or the instance has succeeded: then the end of the
        batch or the operation follows, durably, if no other instance's step does. A crash of the
        host in between repeats the last steps.

        Args:
            context: The instance.
            phase: Name of the phase.
            steps: All its steps.
            outcome: The instance's outcome once all are done.

        Raises:
            WaitTimeoutError: The instance's deadline has passed.
            LabError: The journal contains other steps than these.
            Interrupted: The lab is being closed, or the operation was stopped.
        """
        done = self._done(context, phase, steps)
        ended: StepKey | None = None
        conclude: Conclusion | None = None

        def end() -> None:
            if conclude is not None:
                conclude()
            if ended is not None:
                self._store.done(ended)

        for sequence, step in enumerate(steps):
            if sequence in done:
                continue
            entry = StepKey(context.operation, context.instance_id, phase, sequence)
            name = f"{phase}: {step.name}"
            with self._store.transaction(durable=step.durable):
                end()
                self._store.intend(entry, self._name, step.name)
                context.event("step", name)
            self._tell(Moment.BEFORE_STEP, context, name)
            try:
                self._environment.clock.check()
                if step.timed:
                    self._check_deadline(context, phase)
                conclude = step.apply(context)
            except Exception as error:
                self._store.done(entry, error=error_summary(error)[1])
                self._tell(Moment.AFTER_STEP, context, name, error)
                raise
            self._tell(Moment.AFTER_STEP, context, name)
            ended = entry
        with self._store.transaction(durable=outcome is not Outcome.SUCCEEDED):
            end()
            if outcome is not None:
                self.outcome(context, outcome)
        if outcome is Outcome.ROLLED_BACK:
            self._tell(Moment.ROLLED_BACK, context)

    def _tell(
        self,
        moment: Moment,
        context: InstanceContext,
        step: str = "",
        error: Exception | None = None,
    ) -> None:
        observers = self._environment.observers
        if observers:
            ids = (context.instance_id,)
            observers.tell(Told(moment, self._name, context.operation, ids, step, error))

    def has_begun(self, context: InstanceContext, phase: str) -> bool:
        """Whether any step of a phase has been started."""
        steps = self._store.steps(context.operation, context.instance_id)
        return any(step.phase == phase for step in steps)

    def _done(self, context: InstanceContext, phase: str, steps: Sequence[Step]) -> set[int]:
        """The numbers of a phase's steps that are done."""
        known = [
            step
            for step in self._store.steps(context.operation, context.instance_id)
            if step.phase == phase
        ]
        names = [step.name for step in steps]
        for step in known:
            if step.sequence >= len(names) or names[step.sequence] != step.name:
                raise LabError(
                    f"the journal of {context.name} has {step.name!r} as step {step.sequence} of "
                    f"its {phase}, and this version of pytest-vmss takes other steps: "
                    f"{', '.join(names)}; go on with the version that began the operation, or "
                    f"delete the set: {self._environment.program} delete {self._name}"
                )
        return {step.sequence for step in known if step.done is not None and step.error is None}

    def _check_deadline(self, context: InstanceContext, phase: str) -> None:
        if context.deadline is not None and self._environment.clock.monotonic() > context.deadline:
            raise WaitTimeoutError(f"the {phase} of {context.name} to end", timeout=context.limit)

    def add_batch(
        self, report: OperationReport, instance_ids: tuple[int, ...], reason: str
    ) -> None:
        """Records the next batch, before anything is done to its instances."""
        operation_id = report.record.id
        number = len(report.batch_records) + 1
        with self._store.transaction():
            self._store.put(
                BatchRecord(
                    scale_set=self._name,
                    operation=operation_id,
                    number=number,
                    instance_ids=instance_ids,
                    reason=reason,
                )
            )
            for instance in instance_ids:
                context = InstanceContext(self._environment, self._name, instance, operation_id)
                self.note(context, outcome=Outcome.IN_PROGRESS)
            self._store.event(
                self._name,
                "batch",
                f"batch {number}: instances {', '.join(str(n) for n in instance_ids)} ({reason})",
                operation=operation_id,
            )
