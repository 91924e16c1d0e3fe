"""The bars of a timeline: every try of a step, also those that were cut off.

The journal has one entry for each step, which a resume writes anew; what was tried before is
known from the events alone.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache

from pytest_vmss import steps
from pytest_vmss.report.timeline.records import Bar, BarState, Interruption
from pytest_vmss.store import EventRecord, StepRecord

__all__ = ["bars_of"]

_KILLED = "the process that was at it was killed, or ended, in the middle of this step"


def bars_of(
    journal: Iterable[StepRecord],
    events: Sequence[EventRecord],
    interruptions: Sequence[Interruption],
    end: datetime,
) -> dict[int, list[Bar]]:
    """Returns the bars of an operation by instance, in order of their start.

    Args:
        journal: The operation's entries in the journal.
        events: Its events, oldest first.
        interruptions: When nobody worked on it.
        end: When it ended, or the last time that is known of it.
    """
    tries = defaultdict[int, list[EventRecord]](list)
    errors = defaultdict[int, list[EventRecord]](list)
    for event in events:
        if event.instance_id is not None and event.kind in ("step", "error"):
            (tries if event.kind == "step" else errors)[event.instance_id].append(event)
    found = defaultdict[int, list[Bar]](list)
    for entry in journal:
        mine = tries[entry.instance_id]
        last = next((event for event in mine if _is_of(event, entry)), None)
        if last is not None:
            mine.remove(last)
        found[entry.instance_id].append(_bar(entry, interruptions, end))
    for instance_id, left in tries.items():
        for event in left:
            found[instance_id].append(
                _earlier_try(event, found[instance_id], errors[instance_id], interruptions)
            )
    again = {
        (number, bar.phase, bar.name): bar.start
        for number, bars in found.items()
        for bar in bars
        if bar.state is BarState.CUT_OFF
    }
    return {
        number: sorted(
            (_marked_again(bar, again.get((number, bar.phase, bar.name))) for bar in bars),
            key=lambda bar: bar.start,
        )
        for number, bars in found.items()
    }


def _is_of(event: EventRecord, entry: StepRecord) -> bool:
    """Whether an event is of the try that the journal's entry describes: its last one."""
    return event.message == f"{entry.phase}: {entry.name}" and event.time >= entry.intended


def _bar(entry: StepRecord, interruptions: Sequence[Interruption], end: datetime) -> Bar:
    done, error, state = entry.done, entry.error or "", BarState.DONE
    if done is None:
        cut = next((one for one in interruptions if one.start >= entry.intended), None)
        done = end if cut is None else cut.start
        state = BarState.RUNNING if cut is None else BarState.CUT_OFF
        error = "" if cut is None else cut.reason or _KILLED
    elif entry.error is not None:
        state = BarState.FAILED
    return Bar(
        phase=entry.phase,
        name=entry.name,
        does=_does(entry.name),
        start=entry.intended,
        end=max(done, entry.intended),
        state=state,
        error=error,
    )


def _earlier_try(
    event: EventRecord,
    bars: Sequence[Bar],
    errors: Sequence[EventRecord],
    interruptions: Sequence[Interruption],
) -> Bar:
    """The bar of a try that a later one of the same step has replaced in the journal."""
    phase, _, name = event.message.partition(": ")
    cut = next((one for one in interruptions if one.start >= event.time), None)
    following = min((bar.start for bar in bars if bar.start > event.time), default=event.time)
    end = following if cut is None else cut.start
    told = next((one.message for one in errors if event.time <= one.time <= end), "")
    return Bar(
        phase=phase,
        name=name,
        does=_does(name),
        start=event.time,
        end=max(end, event.time),
        state=BarState.CUT_OFF,
        error=told or (cut.reason if cut is not None else "") or _KILLED,
    )


def _marked_again(bar: Bar, before: datetime | None) -> Bar:
    if before is None or bar.start <= before:
        return bar
    return replace(bar, again=True)


@cache
def _sentences() -> dict[str, str]:
    """What each step does, by its name: the first sentence of its class's description."""
    classes = [getattr(steps, name) for name in steps.__all__]
    return {
        step.name: (inspect.getdoc(step) or "").partition("\n\n")[0].replace("\n", " ")
        for step in classes
        if isinstance(getattr(step, "name", None), str)
    }


def _does(name: str) -> str:
    return _sentences().get(name, "")
