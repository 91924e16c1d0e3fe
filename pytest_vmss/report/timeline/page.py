"""Makes a self-contained HTML page of timelines: no scripts, nothing that is loaded.

Everything that is shown is escaped by the template engine, and what guests said is cleaned and
masked as well (R2, M5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import pairwise

from jinja2 import Environment, PackageLoader, StrictUndefined

from pytest_vmss.report.timeline import words
from pytest_vmss.report.timeline.axis import Axis
from pytest_vmss.report.timeline.records import Bar, Mark, Row, Span, Timeline
from pytest_vmss.report.timeline.states import HEALTHY, IN_SERVICE
from pytest_vmss.secrecy import mask
from pytest_vmss.untrusted import clean

__all__ = ["render_page"]

#: Marks that are nearer to each other than this, in percent of the axis, are shown as one.
_NEAR = 1.2
#: What a group of marks is shown as: the gravest of its kinds.
_GRAVITY = ("fault", "interrupted", "error", "warning")
_GROUPS = {
    "drain": "traffic", "undrain": "traffic", "leave load balancer": "traffic",
    "stop": "power", "start": "power", "boot": "power", "restore memory": "power", "wake": "power",
    "power state": "power", "save memory": "power", "remove machine": "power",
    "cloud-init": "guest", "extensions": "guest", "apply model": "guest",
    "health": "health",
}  # fmt: skip


def render_page(
    title: str,
    timelines: Sequence[Timeline],
    *,
    notes: Sequence[str] = (),
    made: str = "",
    masked: Callable[[str], str] = mask,
) -> str:
    """Returns an HTML page of operations.

    Args:
        title: The page's title, such as the name of the set or of a test.
        timelines: The operations, oldest first.
        notes: Sentences that are shown beneath the title.
        made: By what and when the page was made.
        masked: Masks the secrets in a text.
    """
    sections = [_Section(number, timeline) for number, timeline in enumerate(timelines, 1)]
    troubled = [section for section in sections if section.is_trouble]
    for section in troubled or sections[-1:]:
        section.is_open = True
    return (
        _engine(masked)
        .get_template("page.html")
        .render(title=title, sections=sections, troubled=troubled, notes=notes, made=made)
    )


def _engine(masked: Callable[[str], str]) -> Environment:
    engine = Environment(
        loader=PackageLoader("pytest_vmss.report.timeline"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters["duration"] = words.duration
    engine.filters["percent"] = lambda value: f"{value:.3f}%"
    engine.filters["clock"] = lambda time: f"{time:%H:%M:%S}"
    engine.filters["day"] = lambda time: f"{time:%Y-%m-%d %H:%M:%S} UTC"
    engine.filters["shown"] = lambda text: masked(clean(str(text)))
    engine.filters["joined"] = words.joined
    return engine


@dataclass(frozen=True)
class _Marks:
    """Marks that are shown as one."""

    left: float
    kind: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class _Level:
    """How many instances are in a state over a time."""

    span: Span
    count: int
    of: int


class _Section:
    """One operation on a page.

    Args:
        number: Its number on the page.
        timeline: What happened.
    """

    def __init__(self, number: int, timeline: Timeline) -> None:
        self.id = f"operation-{number}"
        self.timeline = timeline
        self.record = timeline.record
        self.rows = timeline.rows
        self.is_open = False
        self.axis = Axis(timeline.start, timeline.end, _busy(timeline))

    @property
    def headline(self) -> str:
        """The operation and its end in one sentence."""
        return words.headline(self.timeline)

    @property
    def title(self) -> str:
        """The operation in a few words."""
        return words.action_words(self.record)

    @property
    def status(self) -> str:
        """How it ended, or that it has not."""
        if self.record.ended is not None:
            return self.record.status
        return "Interrupted" if self.timeline.interruption else "In progress"

    @property
    def is_trouble(self) -> bool:
        """Whether something failed in it, or it is unfinished."""
        return self.status not in ("Completed", "Cancelled") or bool(
            [row for row in self.rows if row.error is not None]
        )

    @cached_property
    def verdicts(self) -> list[words.Verdict]:
        """What became of the instances that need words."""
        return words.verdicts(self.timeline)

    @property
    def why(self) -> list[str]:
        """Why it ended as it did."""
        return words.why_it_stopped(self.timeline)

    def group(self, bar: Bar) -> str:
        """The kind of step that a bar's colour stands for."""
        return _GROUPS.get(bar.name, "disk")

    def since(self, time: datetime) -> str:
        """A time as the time since the operation's start."""
        return words.duration((time - self.timeline.start).total_seconds())

    def has_traffic(self) -> bool:
        """Whether any instance left or entered load balancing."""
        return any(row.traffic for row in self.rows)

    def levels(self, what: str) -> list[_Level]:
        """How many instances were healthy, or in service, over the time."""
        wanted = HEALTHY if what == "health" else IN_SERVICE
        spans = [row.health if what == "health" else row.traffic for row in self.rows]
        return list(_levels([one for one in spans if one], wanted))

    def grouped(self, marks: Iterable[Mark]) -> list[_Marks]:
        """Marks, with those that are near each other together."""
        found: list[_Marks] = []
        for mark in marks:
            left = self.axis.at(mark.time)
            if found and left - found[-1].left < _NEAR:
                known = (*found[-1].marks, mark)
                found[-1] = _Marks(found[-1].left, _gravest(known), known)
            else:
                found.append(_Marks(left, _gravest((mark,)), (mark,)))
        return found

    def order(self) -> list[tuple[Row, Bar]]:
        """All bars with their rows, by time."""
        return sorted(
            ((row, bar) for row in self.rows for bar in row.bars), key=lambda one: one[1].start
        )


def _busy(timeline: Timeline) -> Iterator[tuple[datetime, datetime]]:
    for row in timeline.rows:
        for bar in row.bars:
            yield bar.start, bar.end
        for mark in row.marks:
            yield mark.time, mark.time
    for mark in timeline.marks:
        yield mark.time, mark.time


def _gravest(marks: Sequence[Mark]) -> str:
    kinds = {mark.kind for mark in marks}
    return next((kind for kind in _GRAVITY if kind in kinds), marks[0].kind)


def _levels(spans: Sequence[Sequence[Span]], wanted: str) -> Iterator[_Level]:
    times = sorted({time for own in spans for span in own for time in (span.start, span.end)})
    before: _Level | None = None
    for start, end in pairwise(times):
        count = sum(
            any(one.start <= start < one.end and one.state == wanted for one in own)
            for own in spans
        )
        if before is not None and before.count == count:
            before = _Level(Span(before.span.start, end, wanted), count, len(spans))
            continue
        if before is not None:
            yield before
        before = _Level(Span(start, end, wanted), count, len(spans))
    if before is not None:
        yield before
