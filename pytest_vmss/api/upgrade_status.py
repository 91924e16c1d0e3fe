"""Status and history of upgrades with Azure's wire names (J1, J2, azure-arm.md 5)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from pytest_vmss.environment.environment import Environment
from pytest_vmss.errors import NotFoundError
from pytest_vmss.journal.report import OperationReport
from pytest_vmss.store import Outcome

__all__ = ["history_info", "status_info"]

_KEPT = 5
_MONTHS = timedelta(days=61)

_FAILED = (Outcome.FAILED, Outcome.ROLLED_BACK, Outcome.ROLLBACK_FAILED)


def status_info(
    environment: Environment, scale_set: str, reports: Sequence[OperationReport]
) -> dict[str, Any]:
    """``RollingUpgradeStatusInfo``: the body of ``rollingUpgrades/latest`` (J1).

    Args:
        environment: The lab's environment.
        scale_set: The set.
        reports: Its rolling upgrades, oldest first.

    Raises:
        NotFoundError: There has been none yet.
    """
    if not reports:
        raise NotFoundError("The entity was not found in this Azure location.", code="NotFound")
    latest = reports[-1]
    record = latest.record
    model = environment.revisions.current(scale_set).model
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


def history_info(
    environment: Environment, scale_set: str, reports: Sequence[OperationReport]
) -> list[dict[str, Any]]:
    """``UpgradeOperationHistoricalStatusInfo``: OS upgrades, newest first (J2).

    As in Azure, the last five are listed, and none that started more than two months ago.

    Args:
        environment: The lab's environment.
        scale_set: The set.
        reports: Its OS upgrades, oldest first.
    """
    model = environment.revisions.current(scale_set).model
    since = environment.clock.now() - _MONTHS
    recent = [report for report in reports if report.record.started >= since]
    return [_historical(report, model.location) for report in reversed(recent[-_KEPT:])]


def _historical(report: OperationReport, location: str) -> dict[str, Any]:
    record = report.record
    status: dict[str, Any] = {"code": record.status, "startTime": _time(record.started)}
    if record.ended is not None:
        status["endTime"] = _time(record.ended)
    properties: dict[str, Any] = {
        "runningStatus": status,
        "progress": _progress(report),
        **_error(report),
        "startedBy": record.started_by,
        "targetImageReference": {
            "id": f"/galleries/{record.gallery}/images/{record.definition}"
            f"/versions/{record.target}",
            "exactVersion": record.target,
        },
    }
    back = report.count(Outcome.ROLLED_BACK)
    stuck = report.count(Outcome.ROLLBACK_FAILED)
    if back or stuck:
        properties["rollbackInfo"] = {
            "successfullyRolledbackInstanceCount": back,
            "failedRolledbackInstanceCount": stuck,
        }
        if stuck:
            number = min(
                n for n, what in report.outcomes.items() if what is Outcome.ROLLBACK_FAILED
            )
            error = report.errors[number]
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


def _progress(report: OperationReport) -> dict[str, int]:
    return {
        "successfulInstanceCount": report.count(Outcome.SUCCEEDED),
        "failedInstanceCount": report.count(*_FAILED),
        "inProgressInstanceCount": report.count(Outcome.IN_PROGRESS),
        "pendingInstanceCount": report.count(Outcome.NOT_STARTED),
    }


def _error(report: OperationReport) -> dict[str, Any]:
    record = report.record
    if record.error_code is None:
        return {}
    details = [
        {"code": error.code, "message": error.message, "target": str(number)}
        for number, error in sorted(report.errors.items())
    ]
    error: dict[str, Any] = {"code": record.error_code, "message": record.error_message or ""}
    return {"error": {**error, "details": details} if details else error}


def _time(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
