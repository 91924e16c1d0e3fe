"""The pytest hooks that a suite may implement.

Those of operations are called in the thread that does the work, which waits for them: keep them
short. Instances of one batch call them side by side. One that raises, or fails by ``pytest.fail``,
changes nothing in the operation; the test that runs fails with it when it ends. They are not called
for operations of other processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_vmss.api.instance import Instance
    from pytest_vmss.api.lab import Lab
    from pytest_vmss.api.operation import Operation
    from pytest_vmss.api.scale_set import ScaleSet
    from pytest_vmss.model import Health
    from pytest_vmss.settings import Settings

__all__ = [
    "pytest_vmss_after_batch",
    "pytest_vmss_after_step",
    "pytest_vmss_before_batch",
    "pytest_vmss_before_step",
    "pytest_vmss_configure_lab",
    "pytest_vmss_health_changed",
    "pytest_vmss_operation_ended",
    "pytest_vmss_rolled_back",
    "pytest_vmss_settings",
    "pytest_vmss_unhealthy",
]


@pytest.hookspec(firstresult=True)
def pytest_vmss_settings(config: pytest.Config, settings: Settings) -> Settings | None:
    """Called before the session's lab is created; may return other settings.

    Args:
        config: pytest's configuration.
        settings: The settings that the options give.
    """


@pytest.hookspec
def pytest_vmss_configure_lab(config: pytest.Config, lab: Lab) -> None:
    """Called when the session's lab has been created, before its first scale set.

    Use it to publish images that all tests need.

    Args:
        config: pytest's configuration.
        lab: The session's lab.
    """


@pytest.hookspec
def pytest_vmss_before_batch(
    scale_set: ScaleSet, operation: Operation, instances: list[Instance]
) -> None:
    """Called before a batch of a rolling upgrade begins.

    Args:
        scale_set: The set.
        operation: The upgrade.
        instances: The instances of the batch.
    """


@pytest.hookspec
def pytest_vmss_after_batch(
    scale_set: ScaleSet, operation: Operation, instances: list[Instance]
) -> None:
    """Called when a batch of a rolling upgrade has ended, before the next is decided.

    Args:
        scale_set: The set.
        operation: The upgrade.
        instances: The instances of the batch that are still there.
    """


@pytest.hookspec
def pytest_vmss_before_step(
    scale_set: ScaleSet, operation: Operation, instance: Instance, step: str
) -> None:
    """Called before a step of an operation on one instance.

    Args:
        scale_set: The set.
        operation: The operation.
        instance: The instance.
        step: The phase and the step, such as ``swap: boot`` or ``create: cloud-init``.
    """


@pytest.hookspec
def pytest_vmss_after_step(
    scale_set: ScaleSet,
    operation: Operation,
    instance: Instance,
    step: str,
    error: Exception | None,
) -> None:
    """Called after a step of an operation on one instance.

    Args:
        scale_set: The set.
        operation: The operation.
        instance: The instance.
        step: The phase and the step.
        error: What it failed with; None if it did not.
    """


@pytest.hookspec
def pytest_vmss_health_changed(
    scale_set: ScaleSet, instance: Instance, health: Health, before: Health | None
) -> None:
    """Called when an instance's health was observed to have changed.

    Args:
        scale_set: The set.
        instance: The instance.
        health: Its health now.
        before: Its health before; None if it was not known.
    """


@pytest.hookspec
def pytest_vmss_unhealthy(scale_set: ScaleSet, instance: Instance) -> None:
    """Called when an instance was observed to have become Unhealthy.

    Args:
        scale_set: The set.
        instance: The instance.
    """


@pytest.hookspec
def pytest_vmss_rolled_back(scale_set: ScaleSet, operation: Operation, instance: Instance) -> None:
    """Called when an instance has its previous OS disk back, and is healthy on it.

    Args:
        scale_set: The set.
        operation: The upgrade.
        instance: The instance.
    """


@pytest.hookspec
def pytest_vmss_operation_ended(scale_set: ScaleSet, operation: Operation) -> None:
    """Called when an operation has ended; not for the deletion of a set.

    Args:
        scale_set: The set.
        operation: The operation; ``operation.status`` says how it ended.
    """
