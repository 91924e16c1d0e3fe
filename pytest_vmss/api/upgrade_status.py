"""Status and history of upgrades with Azure's wire names (J1, J2, azure-arm.md 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from pytest_vmss.api.instance_view import azure_time, shown_tags
from pytest_vmss.environment.environment import Environment
from pytest_vmss.errors import NotFoundError
from pytest_vmss.journal.report import OperationReport
from pytest_vmss.model.resource_ids import image_reference_of, scale_set_id
from pytest_vmss.store import ErrorRecord, OperationRecord, Outcome

__all__ = ["history_info", "is_recent", "status_info"]

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
        raise NotFoundError(
            "The entity was not found in this Azure location: no rolling upgrade of "
            f"{scale_set!r} has run yet. One starts by itself where automatic upgrades are enabled "
            "and a newer image version is published, or by: "
            f"{environment.program} upgrade {scale_set}",
            code="NotFound",
        )
    latest = reports[-1]
    record = latest.record
    model = environment.revisions.current(scale_set).model
    last = (
        ("Cancel", record.cancel_requested)
        if record.cancel_requested
        else ("Start", record.started)
    )
    lab = environment.paths.folder.name
    return {
        "id": f"{scale_set_id(model, lab)}/rollingUpgrades/latest",
        "name": "latest",
        "type": "Microsoft.Compute/virtualMachineScaleSets/rollingUpgrades",
        "location": model.location,
        "tags": shown_tags(model),
        "properties": {
            "policy": model.rolling_policy.wire(),
            "runningStatus": {
                "code": record.status,
                "startTime": azure_time(record.started),
                "lastAction": last[0],
                "lastActionTime": azure_time(last[1]),
            },
            "progress": _progress(latest),
            **_error(latest),
        },
        "lab": {"rollingBackInstanceCount": len(latest.going_back)},
    }


def is_recent(record: OperationRecord, now: datetime) -> bool:
    """Whether Azure's history still has an upgrade: for two months, and while it runs."""
    return record.ended is None or record.started >= now - _MONTHS


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
    now = environment.clock.now()
    recent = [report for report in reports if is_recent(report.record, now)]
    return [
        _historical(environment, report, model.location) for report in reversed(recent[-_KEPT:])
    ]


def _historical(environment: Environment, report: OperationReport, location: str) -> dict[str, Any]:
    record = report.record
    status: dict[str, Any] = {"code": record.status, "startTime": azure_time(record.started)}
    if record.ended is not None:
        status["endTime"] = azure_time(record.ended)
    properties: dict[str, Any] = {
        "runningStatus": status,
        "progress": _progress(report),
        **_error(report),
        "startedBy": record.started_by,
        "targetImageReference": image_reference_of(
            environment.revisions.get(record.set_id, record.revision).model.image_reference,
            record.image,
            lab=environment.paths.folder.name,
        ),
        "rollbackInfo": _rollback(report),
    }
    return {
        "type": "Microsoft.Compute/virtualMachineScaleSets/rollingUpgrades",
        "location": location,
        "properties": properties,
    }


def _rollback(report: OperationReport) -> dict[str, Any]:
    """Azure's ``RollbackStatusInfo``."""
    stuck = [n for n, what in report.outcomes.items() if what is Outcome.ROLLBACK_FAILED]
    told: dict[str, Any] = {
        "successfullyRolledbackInstanceCount": report.count(Outcome.ROLLED_BACK),
        "failedRolledbackInstanceCount": len(stuck),
    }
    if stuck:
        errors = {number: report.errors[number] for number in stuck}
        first = errors[min(errors)]
        told["rollbackError"] = _api_error(first.code, first.message, errors)
    return told


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
    return {"error": _api_error(record.error_code, record.error_message or "", report.errors)}


def _api_error(code: str, message: str, errors: Mapping[int, ErrorRecord]) -> dict[str, Any]:
    """Azure's ``ApiError``.

    Args:
        code: Its code.
        message: Its message.
        errors: The errors of instances, of which the first is the inner one.
    """
    error: dict[str, Any] = {"code": code, "message": message}
    if not errors:
        return error
    first = min(errors)
    return {
        **error,
        "target": str(first),
        "details": [
            {"code": entry.code, "message": entry.message, "target": str(number)}
            for number, entry in sorted(errors.items())
        ],
        "innererror": {
            "exceptiontype": errors[first].code,
            "errordetail": errors[first].message,
        },
    }
