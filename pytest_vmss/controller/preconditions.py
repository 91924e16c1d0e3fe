"""Whether what stopped an upgrade before its first batch has been cured (C1)."""

from __future__ import annotations

from pytest_vmss.engine.planner import TOO_UNHEALTHY_BEFORE
from pytest_vmss.engine.preflight import UNREACHABLE, too_unhealthy, unreachable
from pytest_vmss.environment.environment import Environment
from pytest_vmss.store import BatchRecord, OperationRecord

__all__ = ["Preconditions"]

#: Seconds between two requests for the URIs of a model by the control loop.
_REACH_EVERY_S = 60.0
#: The codes of upgrades that were stopped by what :meth:`Preconditions.unmet` checks.
_CHECKED = (TOO_UNHEALTHY_BEFORE, UNREACHABLE)


class Preconditions:
    """Checks again what stopped upgrades before they touched an instance.

    Args:
        environment: The lab's environment.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        #: By operation: when the URIs were last requested, and what was wrong.
        self._asked: dict[str, tuple[float, str]] = {}

    def stopped(self, operation: OperationRecord) -> bool:
        """Whether an upgrade was stopped by what is checked here again: no batch of it began.

        Anything else may be as before: a cluster that did not approve is not asked again by
        itself, and an upgrade that ran out of time would run out of it again.
        """
        if operation.status != "Faulted" or operation.error_code not in _CHECKED:
            return False
        return not self._environment.store.select(BatchRecord, *operation.key)

    def unmet(self, operation: OperationRecord, *, patient: bool) -> str:
        """What would still stop an upgrade before its first batch; empty if it is cured.

        Args:
            operation: The upgrade that was stopped.
            patient: Do not bother a foreign server each time.

        Raises:
            Exception: It cannot be checked now.
        """
        scale_set = operation.scale_set
        return self._unreachable(operation, patient=patient) or too_unhealthy(
            self._environment, scale_set
        )

    def _unreachable(self, operation: OperationRecord, *, patient: bool) -> str:
        now = self._environment.clock.monotonic()
        when, told = self._asked.get(operation.id, (None, ""))
        if patient and told and when is not None and now - when < _REACH_EVERY_S:
            return told
        model = self._environment.revisions.current(operation.scale_set).model
        self._environment.serve_files(operation.scale_set)
        told = "; ".join(unreachable(self._environment, model))
        self._asked[operation.id] = (now, told)
        return told
