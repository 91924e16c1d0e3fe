"""The report of an operation: its record, outcomes, errors and batches."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_vmss.errors import ProvisioningError
from pytest_vmss.store import (
    BatchRecord,
    ErrorRecord,
    OperationRecord,
    Outcome,
    OutcomeRecord,
    ScaleSetRecord,
    Store,
)

__all__ = ["ENDED", "OperationReport"]

#: Outcomes of instances that an operation has finished with.
ENDED = frozenset({Outcome.SUCCEEDED, Outcome.FAILED, Outcome.ROLLED_BACK, Outcome.ROLLBACK_FAILED})


@dataclass(frozen=True)
class OperationReport:
    """An operation's record, with its outcomes, errors and batches.

    Attributes:
        left_out: Names of the set's extensions that no instance runs, for nobody registered their
            handlers (P4).
    """

    record: OperationRecord
    results: dict[int, OutcomeRecord]
    batch_records: tuple[BatchRecord, ...]
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(cls, store: Store, record: OperationRecord) -> OperationReport:
        """Reads it from the store."""
        key = (record.scale_set.lower(), record.id)
        scale_set = store.get(ScaleSetRecord, record.scale_set.lower())
        return cls(
            record,
            {result.instance_id: result for result in store.select(OutcomeRecord, *key)},
            tuple(store.select(BatchRecord, *key)),
            () if scale_set is None else scale_set.left_out,
        )

    @property
    def outcomes(self) -> dict[int, Outcome]:
        """The outcome of each instance, by number (G3)."""
        return {number: result.outcome for number, result in self.results.items()}

    @property
    def errors(self) -> dict[int, ErrorRecord]:
        """The errors of instances, by number."""
        return {n: result.error for n, result in self.results.items() if result.error is not None}

    @property
    def batches(self) -> list[tuple[int, ...]]:
        """The numbers of each batch's instances, in order."""
        return [batch.instance_ids for batch in self.batch_records]

    @property
    def busy(self) -> list[int]:
        """The instances in progress."""
        return [n for n, what in self.outcomes.items() if what is Outcome.IN_PROGRESS]

    @property
    def going_back(self) -> list[int]:
        """The instances that are being rolled back."""
        return [number for number, result in self.results.items() if result.going_back]

    @property
    def unsettled(self) -> list[int]:
        """The instances in progress or being rolled back."""
        return [
            number
            for number, result in self.results.items()
            if result.going_back or result.outcome is Outcome.IN_PROGRESS
        ]

    def count(self, *outcomes: Outcome) -> int:
        """How many instances have one of these outcomes."""
        return sum(1 for result in self.results.values() if result.outcome in outcomes)

    def raise_for_status(self) -> None:
        """Raises an error if the operation failed.

        Raises:
            ProvisioningError: Instances failed, with the evidence of each.
        """
        record, errors = self.record, self.errors
        if record.status != "Faulted":
            return
        creates = record.action in ("create", "scale-out")
        what = "did not come up" if creates else f"failed to {record.action}"
        raise ProvisioningError(
            f"{len(errors)} of {len(self.results)} instances of the scale set "
            f"{record.scale_set!r} {what}",
            scale_set=record.scale_set,
            evidence="\n".join(
                f"{record.scale_set}_{number}: {error.code}: {error.message}\n"
                f"{error.console_tail}\nwhole console log: {error.log}"
                for number, error in sorted(errors.items())
            ),
            code=record.error_code or "VMProvisioningFailed",
        )
