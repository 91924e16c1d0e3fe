"""Everything that is known of an operation."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_vmss.errors import ProvisioningError
from pytest_vmss.store import (
    BatchRecord,
    ErrorRecord,
    OperationRecord,
    Outcome,
    OutcomeRecord,
    Store,
)

__all__ = ["ENDED", "OperationReport"]

#: Outcomes of instances that an operation has finished with.
ENDED = frozenset({Outcome.SUCCEEDED, Outcome.FAILED, Outcome.ROLLED_BACK, Outcome.ROLLBACK_FAILED})


@dataclass(frozen=True)
class OperationReport:
    """Everything that is known of an operation."""

    record: OperationRecord
    results: dict[int, OutcomeRecord]
    batch_records: tuple[BatchRecord, ...]

    @classmethod
    def of(cls, store: Store, record: OperationRecord) -> OperationReport:
        """Reads what the store holds."""
        key = (record.scale_set.lower(), record.id)
        return cls(
            record,
            {result.instance_id: result for result in store.select(OutcomeRecord, *key)},
            tuple(store.select(BatchRecord, *key)),
        )

    @property
    def outcomes(self) -> dict[int, Outcome]:
        """What came of each instance, by number (G3)."""
        return {number: result.outcome for number, result in self.results.items()}

    @property
    def errors(self) -> dict[int, ErrorRecord]:
        """What went wrong on each instance."""
        return {n: result.error for n, result in self.results.items() if result.error is not None}

    @property
    def batches(self) -> list[tuple[int, ...]]:
        """The instances of each batch, in order."""
        return [batch.instance_ids for batch in self.batch_records]

    @property
    def busy(self) -> list[int]:
        """The instances that it has begun with and is not through with."""
        return [n for n, what in self.outcomes.items() if what is Outcome.IN_PROGRESS]

    @property
    def unsettled(self) -> list[int]:
        """The instances in the middle of something: begun with, or on the way back."""
        return [n for n, result in self.results.items() if result.going_back or n in self.busy]

    def count(self, *outcomes: Outcome) -> int:
        """How many instances have one of these outcomes."""
        return sum(1 for result in self.results.values() if result.outcome in outcomes)

    def raise_for_status(self) -> None:
        """Raises what the operation failed with.

        Raises:
            ProvisioningError: Instances failed, with the evidence of each.
        """
        record, errors = self.record, self.errors
        if record.status != "Faulted":
            return
        what = "did not come up" if record.action == "create" else f"failed to {record.action}"
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
