"""Whether an instance's application is well."""

from __future__ import annotations

from pytest_vmss.health.probe import ProbeResult, probe_once
from pytest_vmss.health.tracker import Tracker

__all__ = ["ProbeResult", "Tracker", "probe_once"]
