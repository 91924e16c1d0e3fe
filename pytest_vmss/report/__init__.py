"""Output for users: the live view and tables. It only reads the store."""

from __future__ import annotations

from pytest_vmss.report.live import LiveView
from pytest_vmss.report.say import counted, plain, say, with_width
from pytest_vmss.report.tables import instance_table, stage_table, upgrade_summary

__all__ = [
    "LiveView",
    "counted",
    "instance_table",
    "plain",
    "say",
    "stage_table",
    "upgrade_summary",
    "with_width",
]
