"""Calls a suite's hooks while operations of its lab run, and keeps what they raise."""

from __future__ import annotations

from traceback import format_exception
from typing import Any

import pytest

from pytest_vmss.api.instance import Instance
from pytest_vmss.api.lab import Lab
from pytest_vmss.api.operation import Operation, Upgrade
from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.environment.observers import Moment, Told
from pytest_vmss.errors import NotFoundError
from pytest_vmss.model import Health
from pytest_vmss.operations import OSUpgrade

__all__ = ["HookCaller"]


class HookCaller:
    """Observes a lab, and calls the hooks of :mod:`pytest_vmss.hookspecs`.

    Args:
        lab: The session's lab.
        config: pytest's configuration.

    Attributes:
        failures: What hooks have raised since the list was last emptied.
    """

    def __init__(self, lab: Lab, config: pytest.Config) -> None:
        self._lab = lab
        self._hook = config.hook
        self.failures: list[BaseException] = []

    def __call__(self, told: Told) -> None:
        """Calls the hooks of a moment."""
        __tracebackhide__ = True  # what a hook raised is shown from where the hook begins
        name = f"pytest_vmss_{told.moment.replace(' ', '_')}"
        if not self._is_wanted(name) and told.moment is not Moment.HEALTH_CHANGED:
            return
        try:
            scale_set = self._lab.scale_set(told.scale_set)
            instances = [
                instance for number in told.instance_ids for instance in _find(scale_set, number)
            ]
            self._dispatch(name, told, scale_set, instances)
        except NotFoundError as error:
            if not self._is_gone(told):
                self.failures.append(error)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - what ends no operation ends the test
            self.failures.append(error)

    def _is_wanted(self, name: str) -> bool:
        return bool(getattr(self._hook, name).get_hookimpls())

    def _is_gone(self, told: Told) -> bool:
        """Whether the set was deleted meanwhile."""
        return told.scale_set.lower() not in {each.name.lower() for each in self._lab.scale_sets()}

    def _dispatch(
        self, name: str, told: Told, scale_set: ScaleSet, instances: list[Instance]
    ) -> None:
        __tracebackhide__ = True
        call = getattr(self._hook, name)
        given: dict[str, Any] = {"scale_set": scale_set}
        if told.operation:
            given["operation"] = self._operation(scale_set.name, told.operation)
        match told.moment:
            case Moment.BEFORE_BATCH | Moment.AFTER_BATCH:
                call(**given, instances=instances)
            case Moment.OPERATION_ENDED:
                call(**given)
            case _ if not instances:
                return  # it was removed meanwhile
            case Moment.BEFORE_STEP:
                call(**given, instance=instances[0], step=told.step)
            case Moment.AFTER_STEP:
                call(**given, instance=instances[0], step=told.step, error=told.error)
            case Moment.ROLLED_BACK:
                call(**given, instance=instances[0])
            case Moment.HEALTH_CHANGED:
                changed = {"health": told.health, "before": told.before}
                call(**given, instance=instances[0], **changed)
                if told.health is Health.UNHEALTHY:
                    self._hook.pytest_vmss_unhealthy(scale_set=scale_set, instance=instances[0])

    def _operation(self, scale_set: str, identifier: str) -> Operation:
        operation = Operation(self._lab.environment, scale_set, identifier)
        if operation.action != OSUpgrade.action:
            return operation
        return Upgrade(self._lab.environment, scale_set, identifier)

    def raise_failures(self) -> None:
        """Raises what hooks have raised since the last call; several as a group.

        One that asks pytest to exit is raised before others, for pytest looks for it alone.

        Raises:
            BaseException: What one raised.
        """
        __tracebackhide__ = True
        failures, self.failures = self.failures, []
        failures.sort(key=lambda failure: not isinstance(failure, pytest.exit.Exception))
        if len(failures) == 1 or (failures and isinstance(failures[0], pytest.exit.Exception)):
            raise failures[0]
        if failures:
            raise BaseExceptionGroup("hooks of pytest-vmss failed", failures)

    def add_failures(self, error: BaseException) -> None:
        """Adds what hooks have raised since the last call to what a test failed with anyway."""
        failures, self.failures = self.failures, []
        for failure in failures:
            told = "".join(format_exception(failure)).rstrip()
            error.add_note(f"a hook of pytest-vmss failed too:\n{told}")


def _find(scale_set: ScaleSet, number: int) -> list[Instance]:
    return [each for each in scale_set if each.instance_id == str(number)]
