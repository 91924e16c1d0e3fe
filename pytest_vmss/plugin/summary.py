"""The session's summary: its upgrades, and the ways into VMs that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_vmss.api.lab import Lab

__all__ = ["keep_summary", "show_summary", "take_summary"]

_SUMMARIES: pytest.StashKey[list[str]] = pytest.StashKey()
#: Name in pytest-xdist's ``workeroutput`` of what a worker tells the controller.
_OUTPUT = "vmss_upgrades"


def keep_summary(lab: Lab, config: pytest.Config, kept: Sequence[str]) -> None:
    """Stores the summary that is shown after the lab is gone: by a worker's controller, if any.

    Args:
        lab: The session's lab.
        config: pytest's configuration.
        kept: Names of the sets that outlive the session.
    """
    lines = _summarise(lab, kept)
    output: dict[str, object] | None = getattr(config, "workeroutput", None)
    if output is None:
        config.stash[_SUMMARIES] = lines
    else:
        output[_OUTPUT] = lines


def take_summary(node: Any) -> None:
    """Takes the summary of a worker of pytest-xdist that has ended."""
    lines = getattr(node, "workeroutput", {}).get(_OUTPUT)
    if lines:
        summaries = node.config.stash.setdefault(_SUMMARIES, [])
        summaries += [f"{node.gateway.id}:", *lines]


def show_summary(reporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints the session's upgrades."""
    lines = config.stash.get(_SUMMARIES, [])
    if lines:
        reporter.section("upgrades")
        for line in lines:
            reporter.line(line)


def _summarise(lab: Lab, kept: Sequence[str]) -> list[str]:
    """Summarises the session's upgrades, their stages' durations, and where kept VMs are."""
    from rich.console import Console

    from pytest_vmss.report import stage_table, upgrade_summary

    out = StringIO()
    console = Console(file=out, width=120)
    for report in lab.finished_upgrades():
        console.print(upgrade_summary(report))
        console.print(stage_table(report.record, lab.store.steps(report.record.id)))
    lines = out.getvalue().splitlines()
    if kept:
        from pytest_vmss.report.artifacts import ways_in

        lines += ["VMs are kept:", *(f"  {line}" for name in kept for line in ways_in(lab, name))]
    return lines
