"""A suite's own health check and approver of a set (F4, I3).

A command or URL is stored, and applies in every process; a function is kept in this process.
"""

from __future__ import annotations

from pytest_vmss.environment.environment import Environment
from pytest_vmss.errors import ModelError, ModelProblem
from pytest_vmss.guest import Check
from pytest_vmss.model import Approver, ScaleSetModel, is_durable
from pytest_vmss.store import ScaleSetRecord

__all__ = ["keep_functions", "replace_approver", "replace_health_check", "require_durable"]


def replace_health_check(
    environment: Environment, record: ScaleSetRecord, check: Check | None
) -> None:
    """Sets a set's custom health source, or removes it; see :meth:`ScaleSet.set_health_check`."""
    command = check if isinstance(check, str) else None
    record = environment.store.amend(
        record, health_command=command, health_function=callable(check)
    )
    environment.checks.pop(record.unique_id, None)
    keep_functions(environment, record.unique_id, check=check)


def replace_approver(
    environment: Environment, record: ScaleSetRecord, approver: Approver | None
) -> None:
    """Sets who approves the update domains of a set; see :meth:`ScaleSet.set_approver`.

    Raises:
        ModelError: Nobody would ask it; nothing was changed.
    """
    require_durable(environment.revisions.get(record.unique_id, record.revision).model, approver)
    url = approver if isinstance(approver, str) else None
    record = environment.store.amend(record, approver_url=url, approver_function=callable(approver))
    environment.approvers.pop(record.unique_id, None)
    keep_functions(environment, record.unique_id, approver=approver)


def keep_functions(
    environment: Environment,
    set_id: str,
    *,
    check: Check | None = None,
    approver: Approver | None = None,
) -> None:
    """Keeps those of a set's health check and approver that are functions."""
    if check is not None and not isinstance(check, str):
        environment.checks[set_id] = check
    if approver is not None and not isinstance(approver, str):
        environment.approvers[set_id] = approver


def require_durable(model: ScaleSetModel, approver: Approver | None) -> None:
    """Checks that an approver, if one is given, would be asked.

    Raises:
        ModelError: The model is no Service Fabric node type of durability Silver or Gold.
    """
    if approver is not None and not is_durable(model):
        problem = ModelProblem(
            "approver",
            "InvalidParameter",
            "would never be asked: the model has no Service Fabric extension "
            "(Microsoft.Azure.ServiceFabric) of durabilityLevel Silver or Gold",
        )
        raise ModelError([problem], source="what was asked for", expected="possible")
