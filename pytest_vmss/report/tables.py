"""Tables of instances, of an upgrade's outcome, and of the duration of its stages."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from pytest_vmss.api.operation import UNPROVEN, stages_of
from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.guest import SSH_PORT
from pytest_vmss.journal.report import OperationReport
from pytest_vmss.report.say import plain
from pytest_vmss.store import OperationRecord, Outcome, StepRecord
from pytest_vmss.untrusted import clean

__all__ = ["instance_table", "stage_table", "upgrade_summary"]

_STYLES = {
    Outcome.SUCCEEDED: "green",
    Outcome.ROLLED_BACK: "yellow",
    Outcome.FAILED: "red",
    Outcome.ROLLBACK_FAILED: "bold red",
    Outcome.NOT_STARTED: "dim",
    Outcome.SKIPPED: "dim",
}


def instance_table(scale_set: ScaleSet, *, health: bool = False) -> Table:
    """A table of a set's instances.

    Args:
        scale_set: The set.
        health: Also query each instance's health, which takes a moment.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("instance", "state", "image", "OS disk", "kernel", "boot id", "SSH at"):
        table.add_column(column, overflow="fold")
    networked = any(instance.private_ip_address for instance in scale_set)
    if networked:
        table.add_column("private address")
    if health:
        table.add_column("health")
    for instance in scale_set:
        record = instance.record
        view = [instance.name, record.provisioning]
        if record.generation:
            generation = instance.generation
            view += [
                instance.image_version or "",
                str(generation.number),
                generation.kernel or "",
                (generation.boot_id or "")[:8],
            ]
        else:
            view += ["", "", "", ""]
        address, port = instance.address(SSH_PORT)
        view.append(f"{address}:{port}")
        if networked:
            view.append(instance.private_ip_address or "")
        cells = [plain(entry) for entry in view]
        if health:
            state = instance.health()
            cells.append(plain(state, "green" if state == "Healthy" else "red"))
        table.add_row(*cells)
    return table


def upgrade_summary(report: OperationReport) -> Text:
    """How an upgrade ended, and each instance's outcome."""
    record, errors = report.record, report.errors
    style = {"Completed": "bold green", "Faulted": "bold red"}.get(record.status, "bold yellow")
    text = Text.assemble(
        f"{record.scale_set}: {_what(record)}  ",
        (record.status, style),
    )
    if record.error_code:
        text.append(f"\n{record.error_code}", style="red")
    if report.left_out:
        text.append(clean(f"\n  extensions left out: {', '.join(report.left_out)}"), style="dim")
    for number, outcome in sorted(report.outcomes.items()):
        text.append(f"\n  {record.scale_set}_{number}: ")
        text.append(str(outcome), style=_STYLES.get(outcome, ""))
        if report.results[number].stopped:
            text.append(f" ({UNPROVEN})", style="yellow")
        if error := errors.get(number):
            text.append(clean(f"  {error.code}: {error.message}"))
    return text


def _what(record: OperationRecord) -> str:
    if record.action == "upgrade":
        return f"{', '.join(record.source_versions)} → {record.target}"
    return record.action


def stage_table(record: OperationRecord, steps: Iterable[StepRecord]) -> Table | Group:
    """A table of the seconds that each stage of each instance took; empty if none was taken.

    Args:
        record: The operation.
        steps: Its journalled steps.
    """
    stages = stages_of(steps)
    if not stages:
        return Group()
    names = list(dict.fromkeys(name for stage in stages.values() for name in stage))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.add_column("seconds")
    for number in stages:
        table.add_column(plain(f"{record.scale_set}_{number}"), justify="right")
    for name in names:
        table.add_row(
            plain(name),
            *(f"{stage[name]:.1f}" if name in stage else "" for stage in stages.values()),
        )
    table.add_section()
    table.add_row("sum", *(f"{sum(stage.values()):.1f}" for stage in stages.values()))
    return table
