"""The axis of a timeline: real time, with long gaps in which nothing happened cut short."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

__all__ = ["Axis", "Cut", "Tick"]

#: A gap is cut if it is longer than this, in seconds, and than this share of the rest.
_GAP_S = 20.0
_GAP_SHARE = 0.25
#: The share of the axis that stands for a gap that is cut.
_CUT_SHARE = 0.035
#: How far ticks stay from the middle of a cut, whose length is written there, in percent.
_CUT_CLEAR = 5.0
_TICKS = 9
_STEPS_S = (
    0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800,
    86400,
)  # fmt: skip


@dataclass(frozen=True)
class Cut:
    """A gap that is cut short.

    Attributes:
        left: Where it starts on the axis, in percent.
        width: Its width, in percent.
        seconds: How long it really is.
    """

    left: float
    width: float
    seconds: float


@dataclass(frozen=True)
class Tick:
    """A labelled time on the axis, ``left`` in percent of it."""

    left: float
    label: str


class Axis:
    """Maps times to percent of the width.

    Args:
        start: The time at its left end.
        end: The time at its right end.
        busy: When something happened; the gaps between are cut if they are long.
    """

    def __init__(
        self, start: datetime, end: datetime, busy: Iterable[tuple[datetime, datetime]]
    ) -> None:
        self._start = start
        self._length = max((end - start).total_seconds(), 0.001)
        spans = sorted((self._seconds(first), self._seconds(last)) for first, last in busy)
        gaps = _gaps(spans, self._length)
        worked = self._length - sum(last - first for first, last in gaps)
        self._gaps = [
            (first, last)
            for first, last in gaps
            if last - first > max(_GAP_S, _GAP_SHARE * max(worked, 0.001))
        ]
        cut = sum(last - first for first, last in self._gaps)
        shares = _CUT_SHARE * len(self._gaps)
        self._scale = (100.0 - 100.0 * shares) / max(self._length - cut, 0.001)

    def _seconds(self, time: datetime) -> float:
        return min(max((time - self._start).total_seconds(), 0.0), self._length)

    def at(self, time: datetime) -> float:
        """Where a time is on the axis, in percent."""
        return self._at(self._seconds(time))

    def _at(self, seconds: float) -> float:
        left, before = 0.0, 0.0
        for first, last in self._gaps:
            if seconds <= first:
                break
            left += (first - before) * self._scale
            if seconds < last:
                return left + 100.0 * _CUT_SHARE * (seconds - first) / (last - first)
            left += 100.0 * _CUT_SHARE
            before = last
        return min(left + (seconds - before) * self._scale, 100.0)

    def width(self, start: datetime, end: datetime) -> float:
        """The width of a span, in percent."""
        return max(self.at(end) - self.at(start), 0.0)

    @property
    def cuts(self) -> list[Cut]:
        """The gaps that are cut short."""
        return [
            Cut(self._at(first), 100.0 * _CUT_SHARE, last - first) for first, last in self._gaps
        ]

    @property
    def ticks(self) -> list[Tick]:
        """Round numbers of seconds since the start, where the axis is not cut."""
        shown = self._length - sum(last - first for first, last in self._gaps)
        step = next((one for one in _STEPS_S if shown / one <= _TICKS), _STEPS_S[-1])
        found: list[Tick] = []
        cuts = self.cuts
        count = int(self._length / step) + 1
        for number in range(min(count, 10_000)):
            seconds = number * step
            left = self._at(seconds)
            if any(abs(left - cut.left - cut.width / 2) < _CUT_CLEAR for cut in cuts):
                continue
            if not found or left - found[-1].left > 100 / (_TICKS * 2):
                found.append(Tick(left, _label(seconds, step)))
        return found


def _gaps(spans: Sequence[tuple[float, float]], length: float) -> list[tuple[float, float]]:
    """The parts of the whole that no span covers."""
    found, covered = [], 0.0
    for first, last in spans:
        if first > covered:
            found.append((covered, first))
        covered = max(covered, last)
    if covered < length:
        found.append((covered, length))
    return found


def _label(seconds: float, step: float) -> str:
    if step < 1:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
