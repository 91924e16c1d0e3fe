"""An instance's health and its place in load balancing over the time of an operation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from pytest_vmss.report.timeline.records import Bar, BarState, Span
from pytest_vmss.store import EventRecord

__all__ = ["DRAINING", "HEALTHY", "IN_SERVICE", "health_spans", "traffic_spans"]

HEALTHY = "Healthy"
UNHEALTHY = "Unhealthy"
UNSEEN = "not looked at"
DOWN = "not running"
BOOTING = "coming up"

IN_SERVICE = "in service"
DRAINING = "draining"
OUT = "out of service"

_OF_TRAFFIC = ("drain", "undrain", "leave load balancer")

#: A change of state: its time, the state, and what it is known from.
_Change = tuple[datetime, str, str]


def health_spans(
    bars: Sequence[Bar], events: Iterable[EventRecord], start: datetime, end: datetime
) -> tuple[Span, ...]:
    """Returns an instance's health, by what the lab saw of it; nothing is guessed.

    Args:
        bars: Its bars, in order.
        events: The events of changes of its health, oldest first; earlier ones too.
        start: When the operation started.
        end: When it ended.
    """
    changes: list[_Change] = [(start, UNSEEN, "")]
    for event in events:
        state, _, detail = event.message.partition(": ")
        changes.append((max(event.time, start), state, detail))
    for bar in bars:
        changes += _health_changes(bar)
    return _spans(changes, end)


def _health_changes(bar: Bar) -> list[_Change]:
    failed = bar.state is BarState.FAILED
    if bar.name == "stop":
        return [(bar.end, DOWN, "its machine was stopped")]
    if bar.name in ("start", "restore memory"):
        return [(bar.end, BOOTING, "its machine was started")]
    if bar.name == "remove machine":
        return [(bar.end, DOWN, "its machine was removed")]
    if failed and bar.phase != "rollback" and bar.name in ("boot", "cloud-init", "extensions"):
        return [(bar.end, UNHEALTHY, bar.error)]
    if bar.name == "health" and bar.state is BarState.DONE:
        return [(bar.end, HEALTHY, "its health sources said so at the end of the step")]
    if bar.name == "health" and failed:
        return [(bar.end, UNHEALTHY, bar.error)]
    return []


def traffic_spans(
    bars: Sequence[Bar], steps: Iterable[EventRecord], start: datetime, end: datetime
) -> tuple[Span, ...]:
    """Returns whether load balancing may send an instance traffic.

    Args:
        bars: Its bars, in order.
        steps: The events of its steps in earlier operations, oldest first.
        start: When the operation started.
        end: When it ended.

    Returns:
        The spans; none if it was never in load balancing nor leaves it.
    """
    of_traffic = [bar for bar in bars if bar.name in _OF_TRAFFIC]
    before = [name for event in steps if (name := _step_of(event)) in _OF_TRAFFIC]
    if before:
        first = IN_SERVICE if before[-1] == "undrain" else OUT
    elif of_traffic:
        first = OUT if of_traffic[0].name == "undrain" else IN_SERVICE
    else:
        return ()
    changes: list[_Change] = [(start, first, "as the operation found it")]
    for bar in of_traffic:
        if bar.name == "drain":
            changes.append((bar.start, DRAINING, "it gets no new connections"))
        if bar.state is BarState.DONE:
            into = bar.name == "undrain"
            changes.append((bar.end, IN_SERVICE if into else OUT, ""))
    return _spans(changes, end)


def _step_of(event: EventRecord) -> str:
    return event.message.partition(": ")[2]


def _spans(changes: list[_Change], end: datetime) -> tuple[Span, ...]:
    """Joins changes to spans; of two at the same time the later one counts."""
    changes = sorted(changes, key=lambda change: change[0])
    spans: list[Span] = []
    for index, (time, state, detail) in enumerate(changes):
        until = min(changes[index + 1][0] if index + 1 < len(changes) else end, end)
        if until <= time and index + 1 < len(changes):
            continue
        if spans and spans[-1].state == state:
            spans[-1] = Span(spans[-1].start, until, state, spans[-1].detail)
        else:
            spans.append(Span(time, until, state, detail))
    return tuple(spans)
