"""Finds the operations of a scale set and what is left of its consoles, for timelines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from pytest_vmss.api.lab import Lab
from pytest_vmss.api.operation import Operation
from pytest_vmss.environment.lab_secrets import masker_of
from pytest_vmss.report.timeline.console import ConsoleLog
from pytest_vmss.report.timeline.page import render_page
from pytest_vmss.report.timeline.reading import read_timeline
from pytest_vmss.report.timeline.records import Timeline
from pytest_vmss.store import GenerationRecord, OperationRecord, ScaleSetRecord

__all__ = ["MOST_OPERATIONS", "set_page", "set_timelines"]

#: The last operations of a set that a page shows.
MOST_OPERATIONS = 25


def set_timelines(
    lab: Lab,
    name: str,
    *,
    most: int = MOST_OPERATIONS,
    masked: Callable[[str], str] | None = None,
) -> list[Timeline]:
    """Returns the timelines of a set's operations, oldest first.

    Args:
        lab: The lab.
        name: The set, which may be deleted by now; then the operations of the last one of its
            name are meant.
        most: How many of the last operations.
        masked: Masks the secrets in a text; those that the lab's models declare by default.
    """
    records = lab.store.select(OperationRecord, name.lower())
    records.sort(key=lambda record: record.started)
    known = lab.store.get(ScaleSetRecord, name.lower())
    set_id = known.unique_id if known is not None else records[-1].set_id if records else ""
    mine = [record for record in records if record.set_id == set_id][-most:]
    consoles = list(_consoles(lab, name, masked or masker_of(lab.environment)))
    return [
        read_timeline(lab.store, Operation(lab.environment, record.scale_set, record.id), consoles)
        for record in mine
    ]


def set_page(lab: Lab, name: str, *, title: str = "", notes: Sequence[str] = ()) -> str:
    """Returns a page with the timelines of a set.

    Args:
        lab: The lab.
        name: The set; see :func:`set_timelines`.
        title: The page's title; that these are the set's operations by default.
        notes: Sentences beneath the title.
    """
    masked = masker_of(lab.environment)
    timelines = set_timelines(lab, name, masked=masked)
    where = f"Lab {lab.paths.folder.name}."
    if len(timelines) == MOST_OPERATIONS:
        where += f" These are the last {MOST_OPERATIONS} operations."
    made = f"Made by pytest-vmss at {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC."
    return render_page(
        title or f"Operations of {name}",
        timelines,
        notes=(*notes, where),
        made=made,
        masked=masked,
    )


def _consoles(lab: Lab, name: str, masked: Callable[[str], str]) -> Iterator[ConsoleLog]:
    for record in lab.store.select(GenerationRecord, name.lower()):
        if record.started_at is not None:
            yield ConsoleLog(
                record.instance_id,
                lab.paths.console(record.scale_set, record.instance_id, record.number),
                record.started_at,
                record.console_from,
                masked,
            )
