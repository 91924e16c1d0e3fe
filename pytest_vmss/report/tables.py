"""Tables of instances, of an upgrade's outcome, and of the duration of its stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
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


#: Characters that are enough for every table.
_WIDE = 1000
#: Columns that a narrow terminal leaves out, in this order, rather than break what is in others.
_DISPENSABLE = ("boot id", "kernel", "OS disk")


@dataclass(frozen=True)
class _Rows:
    """A table that leaves out columns where there is no room for all.

    Attributes:
        columns: Their names.
        rows: Cells by the names of their columns.
    """

    columns: tuple[str, ...]
    rows: tuple[Mapping[str, Text], ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = list(self.columns)
        for name in _DISPENSABLE:
            wide = options.update_width(_WIDE)
            if Measurement.get(console, wide, self._table(columns)).maximum <= options.max_width:
                break
            columns.remove(name)
        yield self._table(columns)

    def _table(self, columns: Iterable[str]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in columns:
            table.add_column(name, overflow="fold")
        for row in self.rows:
            table.add_row(*(row[name] for name in columns))
        return table


def instance_table(scale_set: ScaleSet, *, health: bool = False) -> RenderableType:
    """A table of a set's instances.

    Args:
        scale_set: The set.
        health: Also query each instance's health, which takes a moment.
    """
    columns = ["instance", "state", "image", "OS disk", "kernel", "boot id", "SSH at"]
    networked = any(instance.private_ip_address for instance in scale_set)
    if networked:
        columns.append("private address")
    if health:
        columns.append("health")
    rows = []
    for instance in scale_set:
        record = instance.record
        address, port = instance.address(SSH_PORT)
        row = {
            "instance": instance.name,
            "state": record.provisioning,
            "SSH at": f"{address}:{port}",
            "private address": instance.private_ip_address or "",
        }
        if record.generation:
            generation = instance.generation
            row |= {
                "image": instance.image_version or "",
                "OS disk": str(generation.number),
                "kernel": generation.kernel or "",
                "boot id": (generation.boot_id or "")[:8],
            }
        cells = {name: plain(row.get(name, "")) for name in columns}
        if health:
            state = instance.health()
            cells["health"] = plain(state, "green" if state == "Healthy" else "red")
        rows.append(cells)
    return _Rows(tuple(columns), tuple(rows))


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
    if record.reason and record.status == "Completed" and not record.rolling:
        text.append(clean(f"\n  {record.reason}"), style="yellow")
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
