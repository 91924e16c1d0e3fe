"""What is kept of a failed test: a folder of logs, records and timelines (L3)."""

from __future__ import annotations

from pytest_vmss.report.artifacts.collect import Collected, collect, ways_in
from pytest_vmss.report.artifacts.folder import folder_name

__all__ = ["Collected", "collect", "folder_name", "ways_in"]
