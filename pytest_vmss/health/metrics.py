"""Custom metrics of the Application Health extension (D5, azure-arm.md 6.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_vmss.untrusted import UnreadableError, read_json, read_whole

__all__ = ["RollingUpgradeMetrics", "parse_custom_metrics"]

_BYTES = 64 * 1024


@dataclass(frozen=True)
class RollingUpgradeMetrics:
    """What an application reports about its own upgrade.

    Attributes:
        phase: ``PhaseOrderingNumber``: lower ones are upgraded first, instances without one last.
        skip: ``SkipUpgrade``: do not upgrade this instance.
    """

    phase: int | None = None
    skip: bool = False


def parse_custom_metrics(text: str) -> RollingUpgradeMetrics:
    """Parses ``customMetrics``, a JSON string as in Azure.

    The case of keys does not matter, and ``SkipUpgrade`` may be a string too. Invalid metrics
    are ignored: an application's mistake must not block an upgrade.

    Args:
        text: E.g. ``{"rollingUpgrade": {"PhaseOrderingNumber": 0, "SkipUpgrade": "false"}}``.
    """
    try:
        raw = read_json(text, limit=_BYTES)
    except UnreadableError:
        return RollingUpgradeMetrics()
    values = _lower(_lower(raw).get("rollingupgrade"))
    phase = values.get("phaseorderingnumber")
    try:
        number = None if phase is None else read_whole(phase, "PhaseOrderingNumber")
    except UnreadableError:
        number = None
    return RollingUpgradeMetrics(number, str(values.get("skipupgrade", "")).lower() == "true")


def _lower(value: object) -> dict[str, object]:
    """Returns a mapping with its keys in lower case; an empty one for any other value."""
    if not isinstance(value, Mapping):
        return {}
    return {str(key).lower(): item for key, item in value.items()}
