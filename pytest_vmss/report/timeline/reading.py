"""Reads the timeline of an operation from its journal and events."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from pytest_vmss.api.operation import Operation
from pytest_vmss.report.timeline.bars import bars_of
from pytest_vmss.report.timeline.console import ConsoleLog, with_console
from pytest_vmss.report.timeline.records import (
    Bar,
    BarState,
    Batch,
    Interruption,
    Mark,
    Row,
    Timeline,
)
from pytest_vmss.report.timeline.states import health_spans, traffic_spans
from pytest_vmss.store import ErrorRecord, EventRecord, Store

__all__ = ["read_timeline"]

_K = TypeVar("_K")
_V = TypeVar("_V")

_RESUMED = "resumed after an interruption"
#: Kinds of events that are marked; steps, outcomes and batches are shown in other ways.
_MARKED = frozenset({
    "approval", "error", "fault", "interrupted", "model", "pause", "repair", "turn", "warning",
    "zone",
})  # fmt: skip
#: Kinds of a set's events that belong to no operation, and to whatever happens at their time.
_OWN = frozenset({"fault", "model", "protection", "repair", "warning"})


def read_timeline(
    store: Store, operation: Operation, consoles: Iterable[ConsoleLog] = ()
) -> Timeline:
    """Reads what an operation did, and what happened meanwhile.

    Args:
        store: The lab's database.
        operation: The operation; its set may be deleted by now.
        consoles: The console logs of its instances that are still there.
    """
    record, report, interruption = operation.record, operation.report, operation.interruption
    of_set = store.events(scale_set=record.scale_set)
    events = [event for event in of_set if event.operation == record.id]
    start = record.started
    end = max(record.ended or max((event.time for event in events), default=start), start)
    others = [event for event in of_set if not event.operation and event.time <= end]
    marked = [*events, *(event for event in others if event.kind in _OWN and event.time >= start)]
    interruptions = list(_interruptions(events, end, interruption))
    bars = bars_of(store.steps(record.id), events, interruptions, end)
    logs = _grouped((log.instance_id, log) for log in consoles)
    health = _grouped((event.instance_id, event) for event in others if event.kind == "health")
    earlier = _grouped(
        (event.instance_id, event)
        for event in of_set
        if event.kind == "step" and event.operation != record.id and event.time <= start
    )
    replaced = {
        result.replacement: f"{record.scale_set}_{number}"
        for number, result in report.results.items()
        if result.replacement is not None
    }
    rows = []
    for number in sorted({*report.results, *bars}):
        result = report.results.get(number)
        error = None if result is None else result.error
        mine = _with_tail(with_console(bars.get(number, []), logs[number]), error)
        rows.append(
            Row(
                instance_id=number,
                name=f"{record.scale_set}_{number}",
                outcome=None if result is None else result.outcome,
                bars=tuple(mine),
                health=health_spans(mine, health[number], start, end),
                traffic=traffic_spans(mine, earlier[number], start, end),
                marks=_marks(marked, number),
                error=error,
                stopped=result is not None and result.stopped,
                replaces=replaced.get(number, ""),
            )
        )
    return Timeline(
        record=record,
        start=start,
        end=end,
        rows=tuple(rows),
        batches=tuple(_batches(operation, events, bars, end)),
        marks=_marks(marked, None),
        interruptions=tuple(interruptions),
        interruption=interruption,
        go_on=operation.go_on,
        left_out=report.left_out,
    )


def _with_tail(bars: list[Bar], error: ErrorRecord | None) -> list[Bar]:
    """Gives the step that failed the console's last lines, if no others are known."""
    if error is None or not error.console_tail:
        return bars
    index = next((i for i, bar in enumerate(bars) if bar.state is BarState.FAILED), None)
    if index is not None and not bars[index].console:
        bars[index] = replace(bars[index], console=tuple(error.console_tail.splitlines()))
    return bars


def _grouped(pairs: Iterable[tuple[_K, _V]]) -> defaultdict[_K, list[_V]]:
    found: defaultdict[_K, list[_V]] = defaultdict(list)
    for key, value in pairs:
        found[key].append(value)
    return found


def _interruptions(
    events: Sequence[EventRecord], end: datetime, interruption: str
) -> Iterator[Interruption]:
    """Finds when nobody worked on the operation: up to each resume, and at the end.

    A process that was killed wrote no event about it; then it starts at the last one it wrote.
    """
    before: EventRecord | None = None
    for event in events:
        if before is not None and event.message == _RESUMED:
            yield Interruption(before.time, event.time, resumed=True, reason=_reason(before))
        before = event
    if interruption and before is not None:
        reason = _reason(before) or interruption
        yield Interruption(before.time, max(end, before.time), resumed=False, reason=reason)


def _reason(event: EventRecord) -> str:
    return event.message if event.kind == "interrupted" else ""


def _marks(events: Iterable[EventRecord], instance_id: int | None) -> tuple[Mark, ...]:
    found = [
        Mark(event.time, event.kind, event.message, instance_id)
        for event in events
        if event.instance_id == instance_id and event.kind in _MARKED
    ]
    return tuple(sorted(found, key=lambda mark: mark.time))


def _batches(
    operation: Operation,
    events: Sequence[EventRecord],
    bars: dict[int, list[Bar]],
    end: datetime,
) -> Iterator[Batch]:
    """The batches, each up to the last step of its instances before the next batch."""
    records = operation.report.batch_records
    starts = [event.time for event in events if event.kind == "batch"]
    for index, (record, start) in enumerate(zip(records, starts, strict=False)):
        limit = starts[index + 1] if index + 1 < len(starts) else end
        ends = [
            min(bar.end, limit)
            for number in record.instance_ids
            for bar in bars.get(number, [])
            if start <= bar.start <= limit
        ]
        yield Batch(
            number=record.number,
            start=start,
            end=max(ends, default=start),
            names=tuple(f"{record.scale_set}_{number}" for number in record.instance_ids),
            reason=record.reason,
        )
