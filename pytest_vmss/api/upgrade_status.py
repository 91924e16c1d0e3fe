"""Status and history of upgrades with Azure's wire names (J1, J2, azure-arm.md 5)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from pytest_vmss.engine.journal import Account
from pytest_vmss.environment.environment import World
from pytest_vmss.errors import NotFoundError
from pytest_vmss.store import Outcome

__all__ = ["history_info", "status_info"]

_KEPT = 5
_MONTHS = timedelta(days=61)

_FAILED = (Outcome.FAILED, Outcome.ROLLED_BACK, Outcome.ROLLBACK_FAILED)


def status_info(world: World, scale_set: str, accounts: Sequence[Account]) -> dict[str, Any]:
    """``RollingUpgradeStatusInfo``: the body of ``rollingUpgrades/latest`` (J1).

    Args:
        world: Where the set is.
        scale_set: The set.
        accounts: Its rolling upgrades, oldest first.

    Raises:
        NotFoundError: There was none yet.
    """
    if not accounts:
        raise NotFoundError("The entity was not found in this Azure location.", code="NotFound")
    latest = accounts[-1]
    record = latest.record
    model = world.current_revision(scale_set).model
    last = (
        ("Cancel", record.cancel_requested)
        if record.cancel_requested
        else ("Start", record.started)
    )
    return {
        "type": "Microsoft.Compute/virtualMachineScaleSets/rollingUpgrades",
        "location": model.location,
        "properties": {
            "policy": model.rolling_policy.wire(),
            "runningStatus": {
                "code": record.status,
                "startTime": _time(record.started),
                "lastAction": last[0],
                "lastActionTime": _time(last[1]),
            },
            "progress": _progress(latest),
            **_error(latest),
        },
    }


def history_info(world: World, scale_set: str, accounts: Sequence[Account]) -> list[dict[str, Any]]:
    """``UpgradeOperationHistoricalStatusInfo``: OS upgrades, newest first (J2).

    As in Azure the last five are told, and none that began more than two months ago.

    Args:
        world: Where the set is.
        scale_set: The set.
        accounts: Its OS upgrades, oldest first.
    """
    model = world.current_revision(scale_set).model
    since = world.clock.now() - _MONTHS
    recent = [account for account in accounts if account.record.started >= since]
    return [_historical(account, model.location) for account in reversed(recent[-_KEPT:])]


def _historical(account: Account, location: str) -> dict[str, Any]:
    record = account.record
    status: dict[str, Any] = {"code": record.status, "startTime": _time(record.started)}
    if record.ended is not None:
        status["endTime"] = _time(record.ended)
    properties: dict[str, Any] = {
        "runningStatus": status,
        "progress": _progress(account),
        **_error(account),
        "startedBy": record.started_by,
        "targetImageReference": {
            "id": f"/galleries/{record.gallery}/images/{record.definition}"
            f"/versions/{record.target}",
            "exactVersion": record.target,
        },
    }
    back = account.count(Outcome.ROLLED_BACK)
    stuck = account.count(Outcome.ROLLBACK_FAILED)
    if back or stuck:
        properties["rollbackInfo"] = {
            "successfullyRolledbackInstanceCount": back,
            "failedRolledbackInstanceCount": stuck,
        }
        if stuck:
            number = min(
                n for n, what in account.outcomes.items() if what is Outcome.ROLLBACK_FAILED
            )
            error = account.errors[number]
            properties["rollbackInfo"]["rollbackError"] = {
                "code": error.code,
                "message": error.message,
                "target": str(number),
            }
    return {
        "type": "Microsoft.Compute/virtualMachineScaleSets/rollingUpgrades",
        "location": location,
        "properties": properties,
    }


def _progress(account: Account) -> dict[str, int]:
    return {
        "successfulInstanceCount": account.count(Outcome.SUCCEEDED),
        "failedInstanceCount": account.count(*_FAILED),
        "inProgressInstanceCount": account.count(Outcome.IN_PROGRESS),
        "pendingInstanceCount": account.count(Outcome.NOT_STARTED),
    }


def _error(account: Account) -> dict[str, Any]:
    record = account.record
    if record.error_code is None:
        return {}
    details = [
        {"code": error.code, "message": error.message, "target": str(number)}
        for number, error in sorted(account.errors.items())
    ]
    error: dict[str, Any] = {"code": record.error_code, "message": record.error_message or ""}
    return {"error": {**error, "details": details} if details else error}


def _time(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
