"""The OS upgrades of a set: its history, and the wait for the next automatic one (J2)."""

from __future__ import annotations

from collections.abc import Callable

from pytest_vmss.api.operation import Operation, Upgrade
from pytest_vmss.api.upgrade_status import is_recent
from pytest_vmss.clock import wait_for
from pytest_vmss.controller.controller import Controller
from pytest_vmss.engine.engine import Engine
from pytest_vmss.environment.environment import Environment
from pytest_vmss.errors import InterruptedOperationError, UpgradeError, WaitTimeoutError
from pytest_vmss.journal.report import OperationReport
from pytest_vmss.operations import OSUpgrade
from pytest_vmss.store import OperationRecord

__all__ = ["Upgrades"]


class Upgrades:
    """The OS upgrades of one set; remembers which of them a caller has been given.

    Args:
        environment: The lab's environment.
        controller: Runs the automatic ones.
        engine: The set's.
    """

    def __init__(self, environment: Environment, controller: Controller, engine: Engine) -> None:
        self._environment = environment
        self._controller = controller
        self._engine = engine
        self._name = engine.name
        self._seen = {upgrade.id for upgrade in self.history(limit=None)}

    def history(self, *, limit: int | None) -> list[Upgrade]:
        """The upgrades, newest first.

        Args:
            limit: The most to return, of recent ones; None for all, however old.
        """
        self._engine.require_own()
        now = self._environment.clock.now()
        upgrades = [
            entry
            for entry in self._engine.journal.operations()
            if entry.action == OSUpgrade.action and (limit is None or is_recent(entry, now))
        ]
        return [Upgrade(self._environment, self._name, entry.id) for entry in reversed(upgrades)][
            :limit
        ]

    def reports(self, wanted: Callable[[OperationRecord], bool]) -> list[OperationReport]:
        """The reports of the set's operations for which a function returns True."""
        self._engine.require_own()
        store = self._environment.store
        return [
            OperationReport.of(store, entry)
            for entry in self._engine.journal.operations()
            if wanted(entry)
        ]

    def operation(self, record: OperationRecord) -> Operation:
        """Returns the handle of an operation; :meth:`wait` does not return it again."""
        if record.action == OSUpgrade.action:
            return self.take(record.id)
        return Operation(self._environment, self._name, record.id)

    def take(self, operation: str) -> Upgrade:
        """Returns the handle of an OS upgrade that :meth:`wait` will then not return again."""
        self._seen.add(operation)
        return Upgrade(self._environment, self._name, operation)

    def wait(self, *, timeout: float) -> Upgrade:
        """Waits for an automatic upgrade to end; see :meth:`ScaleSet.wait_for_upgrade`.

        Args:
            timeout: In seconds.

        Raises:
            InterruptedOperationError: The host could not continue it.
            UpgradeError: None is due, or it could not be started; the message says why.
            WaitTimeoutError: It did not end in time.
        """
        try:
            upgrade = wait_for(
                f"the upgrade of {self._name} to end",
                self._ended,
                timeout=timeout,
                clock=self._environment.clock,
            )
        except WaitTimeoutError as error:
            running = [entry.explain() for entry in self.history(limit=None) if not entry.ended]
            raise WaitTimeoutError(error.what, timeout=timeout, last="\n".join(running)) from error
        return self.take(upgrade.id)

    def _ended(self) -> Upgrade | None:
        """Returns the oldest upgrade that nobody was given, once it and its hooks have ended.

        Raises:
            InterruptedOperationError: It is unfinished, and no process is running it.
            UpgradeError: None is due, or it could not be started.
        """
        idle = self._controller.is_idle(self._name)
        fresh = [entry for entry in self.history(limit=None) if entry.id not in self._seen]
        if fresh and fresh[-1].ended:
            return fresh[-1] if self._environment.observers.know(fresh[-1].id) else None
        self._controller.failures.check(self._name)
        if fresh:
            self._require_going_on(fresh[-1], idle=idle)
        elif idle:
            self._require_due()
        return None

    def _require_due(self) -> None:
        """Checks that an automatic upgrade is due, and wakes the control loop, which missed it.

        Raises:
            UpgradeError: None is due, or nobody would run it.
        """
        reason = self._controller.rollouts.why_not(self._name)
        if reason:
            raise UpgradeError(f"no upgrade of {self._name!r} is due: {reason}")
        if not self._controller.watching:
            raise UpgradeError(
                f"an upgrade of {self._name!r} is due, but nothing in this process runs it; call "
                "run_due() or watch() of the lab"
            )
        self._controller.wake()

    def _require_going_on(self, upgrade: Upgrade, *, idle: bool) -> None:
        """Checks that an upgrade is being run, by this or another process.

        Raises:
            InterruptedOperationError: It is unfinished, and no process is running it.
        """
        if idle and (interruption := upgrade.interruption) and not upgrade.ended:
            raise InterruptedOperationError(
                f"the upgrade of {self._name!r} to {upgrade.target} is unfinished, and no process "
                f"is running it ({interruption}); go on with: {upgrade.go_on}",
                scale_set=self._name,
                operation=upgrade.id,
            )
