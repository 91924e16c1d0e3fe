"""Health of an instance's application."""

from __future__ import annotations

from pytest_vmss.health.application import read_report
from pytest_vmss.health.metrics import RollingUpgradeMetrics, parse_custom_metrics
from pytest_vmss.health.observation import Observation, worst
from pytest_vmss.health.probe import probe_once
from pytest_vmss.health.tracker import Tracker

__all__ = [
    "Observation",
    "RollingUpgradeMetrics",
    "Tracker",
    "parse_custom_metrics",
    "probe_once",
    "read_report",
    "worst",
]
