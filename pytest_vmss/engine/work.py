"""Runs an operation's work on its instances, concurrently."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from pytest_vmss.clock import run_concurrently
from pytest_vmss.engine.preflight import require_known
from pytest_vmss.environment.environment import Environment, InstanceContext
from pytest_vmss.errors import LabError, error_summary
from pytest_vmss.journal.journal import Journal
from pytest_vmss.journal.work import Work
from pytest_vmss.operations import kind_of
from pytest_vmss.store import OperationRecord

__all__ = ["Worker"]


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
        act: Callable[[Work], None],
    ) -> None:
        def one(number: int) -> None:
            context = InstanceContext(self._environment, self._scale_set, number, operation.id)
            try:
                act(Work(self._environment, self._journal, operation, context))
            except Exception as error:
                with contextlib.suppress(LabError):  # only one is raised; all are reported here
                    context.event("error", f"cannot go on just now: {error_summary(error)[1]}")
                raise
            finally:
                context.leave()

        run_concurrently(instance_ids, one, clock=self._environment.clock)
