"""Timelines of operations as a self-contained HTML page (L3)."""

from __future__ import annotations

from pytest_vmss.report.timeline.console import ConsoleLog
from pytest_vmss.report.timeline.page import render_page
from pytest_vmss.report.timeline.reading import read_timeline
from pytest_vmss.report.timeline.records import Timeline
from pytest_vmss.report.timeline.sources import set_page, set_timelines

__all__ = ["ConsoleLog", "Timeline", "read_timeline", "render_page", "set_page", "set_timelines"]
