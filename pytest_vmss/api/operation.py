"""Operations on a scale set, as tests and the command line see them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from pytest_vmss.engine.engine import Engine
from pytest_vmss.environment.environment import Environment
from pytest_vmss.errors import ConflictError, NotFoundError
from pytest_vmss.host.locks import is_locked
from pytest_vmss.journal.report import OperationReport
from pytest_vmss.store import ErrorRecord, EventRecord, OperationRecord, Outcome, StepRecord

__all__ = ["UNPROVEN", "Operation", "Upgrade", "stages_of"]

#: What reports say of an instance that was changed while it was stopped.
UNPROVEN = "stopped, and stays so: nothing was proved about it"

_T = TypeVar("_T")


class Operation:
    """An operation, running or ended; every property is read from the store.

    Attributes:
        id: Its id.
    """

    def __init__(self, environment: Environment, scale_set: str, operation: str) -> None:
        self._environment = environment
        self._scale_set = scale_set
        self.id = operation

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.action} of {self._scale_set}: {self.status}>"

    @property
    def record(self) -> OperationRecord:
        """Its record in the store."""
        record = self._environment.store.get(OperationRecord, self._scale_set.lower(), self.id)
        if record is None:
            raise NotFoundError(f"there is no operation {self.id} of {self._scale_set!r}")
        return record

    @property
    def report(self) -> OperationReport:
        """Its report: outcomes, errors and batches."""
        return OperationReport.of(self._environment.store, self.record)

    @property
    def status(self) -> str:
        """Azure's ``runningStatus.code``."""
        return self.record.status

    @property
    def rolling_back(self) -> bool:
        """Whether any of its instances is being rolled back; Azure has no status for that."""
        return bool(self.report.going_back)

    @property
    def action(self) -> str:
        """Its kind: ``upgrade``, ``create``, ``restart`` and so on."""
        return self.record.action

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.record.ended is not None

    @property
    def interruption(self) -> str:
        """Why it was interrupted (Q1); empty if it has ended or is running in some process."""
        if self.ended or is_locked(self._environment.paths.lock(self._scale_set)):
            return ""
        last = next((event for event in reversed(self.events) if event.kind != "warning"), None)
        if last is not None and last.kind == "interrupted":
            return last.message
        return "interrupted: whoever was at it has ended"

    @property
    def go_on(self) -> str:
        """The command that resumes it if it was interrupted."""
        return f"{self._environment.program} resume {self._scale_set}"

    @property
    def completed(self) -> bool:
        """Whether it ended Completed."""
        return self.status == "Completed"

    @property
    def faulted(self) -> bool:
        """Whether it ended Faulted."""
        return self.status == "Faulted"

    @property
    def cancelled(self) -> bool:
        """Whether it ended Cancelled."""
        return self.status == "Cancelled"

    @property
    def error(self) -> ErrorRecord | None:
        """Azure's error code and message if it was Faulted, else None."""
        record = self.record
        if record.error_code is None:
            return None
        return ErrorRecord(code=record.error_code, message=record.error_message or "")

    @property
    def errors(self) -> dict[str, ErrorRecord]:
        """What went wrong, by the instance's name, with the console's tail."""
        return self._by_name(self.report.errors)

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """The outcome of each instance, by its name (G3)."""
        return self._by_name(self.report.outcomes)

    @property
    def batches(self) -> list[tuple[int, ...]]:
        """The numbers of each batch's instances, in order."""
        return self.report.batches

    @property
    def stages(self) -> dict[str, dict[str, float]]:
        """Seconds that each step took, by the instance's name and by step.

        Without those during which the clock was set back.
        """
        return self._by_name(stages_of(self._environment.store.steps(self.id)))

    def _by_name(self, found: Mapping[int, _T]) -> dict[str, _T]:
        return {f"{self._scale_set}_{number}": what for number, what in found.items()}

    @property
    def events(self) -> list[EventRecord]:
        """All its events, oldest first (J4)."""
        return self._environment.store.events(scale_set=self._scale_set, operation=self.id)

    def explain(self) -> str:
        """Explains what happened and why, for an assertion's message."""
        report = self.report
        record, errors = report.record, report.errors
        target = f" to {record.target}" if record.target else ""
        lines = [f"{record.action} of {self._scale_set}{target}: {record.status}"]
        if record.error_code:
            lines.append(f"  {record.error_code}: {record.error_message}")
        if self.interruption:
            lines.append(f"  {self.interruption}; go on with: {self.go_on}")
        if report.left_out:
            names = ", ".join(report.left_out)
            lines.append(f"  extensions left out, for nobody registered their handlers: {names}")
        for batch in report.batch_records:
            ids = ", ".join(str(number) for number in batch.instance_ids)
            lines.append(f"  batch {batch.number}: {ids} — {batch.reason}")
        if record.reason:
            lines.append(f"  {record.reason}")
        for instance, outcome in sorted(report.outcomes.items()):
            lines.append(f"  {self._scale_set}_{instance}: {outcome}{_unproven(report, instance)}")
            if error := errors.get(instance):
                lines += [f"    {line}" for line in _evidence(error)]
        return "\n".join(lines)

    def raise_for_status(self) -> None:
        """Raises an error if the operation failed.

        Raises:
            ProvisioningError: Instances failed, with the evidence of each.
        """
        self.report.raise_for_status()


class Upgrade(Operation):
    """An OS upgrade."""

    def __repr__(self) -> str:
        return f"<Upgrade of {self._scale_set} to {self.target}: {self.status}>"

    @property
    def target(self) -> str:
        """The image version that it upgrades to."""
        return self.record.target

    def cancel(self) -> None:
        """Cancels it; it ends after its current batch (D8).

        Raises:
            ConflictError: It is not running.
        """
        if self.ended:
            raise ConflictError("There is no ongoing Rolling Upgrade to cancel.")
        Engine(self._environment, self._scale_set).cancel()


def _unproven(report: OperationReport, instance_id: int) -> str:
    return f" ({UNPROVEN})" if report.results[instance_id].stopped else ""


def stages_of(steps: Iterable[StepRecord]) -> dict[int, dict[str, float]]:
    """Seconds that each step took, by instance and by step."""
    stages: dict[int, dict[str, float]] = {}
    for step in steps:
        if step.seconds is not None:
            phase = "" if step.phase in ("swap", "create", "change") else f"{step.phase}: "
            stages.setdefault(step.instance_id, {})[phase + step.name] = step.seconds
    return stages


def _evidence(error: ErrorRecord) -> Iterator[str]:
    """What went wrong on an instance, the end of its console, and where its logs are."""
    yield f"{error.code}: {error.message}"
    yield from (f"| {line}" for line in error.console_tail.splitlines())
    if error.log:
        yield f"whole console log: {error.log}"
    if error.guest_logs:
        yield f"the guest's own logs: {error.guest_logs}"
    if error.missing_guest_logs:
        yield f"logs that the guest did not give: {error.missing_guest_logs}"
