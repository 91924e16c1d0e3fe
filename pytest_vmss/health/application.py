"""Reads reports of the Application Health extension (F3)."""

from __future__ import annotations

from typing import Any

from pytest_vmss.health.observation import Observation
from pytest_vmss.model import ApplicationHealthSettings, Health, read_status_file
from pytest_vmss.untrusted import one_line, read_whole

__all__ = ["read_report"]

#: Number of probe intervals, plus seconds, after which a report is too old.
_MISSED_LOOKS = 3
_SLACK_S = 10


def read_report(
    text: str | bytes,
    *,
    now: int,
    settings: ApplicationHealthSettings,
    received: int | None = None,
) -> Observation:
    """Parses the extension's status file.

    Args:
        text: The file's content.
        now: The guest's time of day in nanoseconds since the epoch; the host's if ``received`` is.
        settings: The extension's settings.
        received: When the report came; by default it is as old as the guest dated it.

    Returns:
        The reported health. Unknown if the file is invalid, or too old because its writer hangs, or
        dated in the future, as such a report would never get too old.
    """
    try:
        status, entry = read_status_file(text)
        told = {part.name: part.message for part in status.substatus or ()}
        dated = read_whole(entry["nanoseconds"], "nanoseconds")
        age = (now - (dated if received is None else received)) / 1e9
        boot = one_line(str(entry["bootId"]))
    except KeyError as error:
        return Observation(Health.UNKNOWN, f"its report cannot be read: it has no {error}")
    except ValueError as error:
        return Observation(Health.UNKNOWN, f"its report cannot be read: {error}")
    patience = _MISSED_LOOKS * settings.interval_in_seconds + _SLACK_S
    if age > patience:
        return Observation(Health.UNKNOWN, f"its last report is {age:.0f} s old", boot)
    if age < -patience:
        return Observation(
            Health.UNKNOWN, f"its last report is dated {-age:.0f} s in the future", boot
        )
    return Observation(_health(told), status.message, boot, str(told.get("CustomMetrics", "")))


def _health(told: dict[str, Any]) -> Health:
    try:
        return Health(told["ApplicationHealthState"])
    except (KeyError, ValueError):
        return Health.UNKNOWN  # version 1.0 reports none until it has probed often enough
