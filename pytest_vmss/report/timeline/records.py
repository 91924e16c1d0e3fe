"""What a timeline shows of an operation: rows of bars, states over time, marks, batches."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pytest_vmss.store import ErrorRecord, OperationRecord, Outcome

__all__ = [
    "Bar",
    "BarState",
    "Batch",
    "Interruption",
    "Mark",
    "Row",
    "Span",
    "Timeline",
]


class BarState(StrEnum):
    """How a try of a step ended."""

    DONE = "done"
    FAILED = "failed"
    CUT_OFF = "cut off"
    RUNNING = "running"


@dataclass(frozen=True)
class Bar:
    """One try of a step on an instance.

    Attributes:
        phase: The phase that the step belongs to, such as ``rollback``.
        name: The step's name.
        does: What the step does, in a sentence; may be empty.
        again: Whether an earlier try of it was cut off.
        error: Why it failed or was cut off.
        console: Lines of the instance's console from that time, as far as they are known.
    """

    phase: str
    name: str
    does: str
    start: datetime
    end: datetime
    state: BarState
    again: bool = False
    error: str = ""
    console: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """How long it took; negative if the clock was set back meanwhile."""
        return (self.end - self.start).total_seconds()

    @property
    def goes_back(self) -> bool:
        """Whether it belongs to a rollback."""
        return self.phase == "rollback"


@dataclass(frozen=True)
class Span:
    """A state of an instance over a time.

    Attributes:
        state: A short name of the state, such as ``Healthy`` or ``in service``.
        detail: What it is known from.
    """

    start: datetime
    end: datetime
    state: str
    detail: str = ""


@dataclass(frozen=True)
class Mark:
    """An event that is marked at its time.

    Attributes:
        kind: The event's kind, such as ``fault``, ``warning`` or ``error``.
        instance_id: The instance that it is about; None for the whole set.
    """

    time: datetime
    kind: str
    text: str
    instance_id: int | None = None


@dataclass(frozen=True)
class Batch:
    """A batch, with the time from its decision to the end of its instances' steps."""

    number: int
    start: datetime
    end: datetime
    names: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Interruption:
    """A time during which nobody worked on an operation that was unfinished.

    Attributes:
        end: When it was resumed, or the time up to which the timeline goes.
        resumed: Whether it was resumed.
        reason: Why it was interrupted; empty if the process was killed.
    """

    start: datetime
    end: datetime
    resumed: bool
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """One instance in an operation.

    Attributes:
        outcome: Its outcome; None for a replacement, whose predecessor has it.
        replaces: Name of the instance that it replaces.
        stopped: Whether it was stopped and stayed so, so that nothing was proved about it.
    """

    instance_id: int
    name: str
    outcome: Outcome | None
    bars: tuple[Bar, ...]
    health: tuple[Span, ...]
    traffic: tuple[Span, ...]
    marks: tuple[Mark, ...]
    error: ErrorRecord | None = None
    stopped: bool = False
    replaces: str = ""

    @property
    def failed_bar(self) -> Bar | None:
        """The step at which it failed first."""
        return next((bar for bar in self.bars if bar.state is BarState.FAILED), None)


@dataclass(frozen=True)
class Timeline:
    """An operation from its start to its end, or to now.

    Attributes:
        record: The operation's record.
        end: When it ended; the last thing that is known of it if it has not.
        marks: What is marked for the whole set.
        interruption: Why it is interrupted now; empty if it has ended or is running.
        go_on: The command that resumes it.
        left_out: The set's extensions that no instance runs.
    """

    record: OperationRecord
    start: datetime
    end: datetime
    rows: tuple[Row, ...]
    batches: tuple[Batch, ...]
    marks: tuple[Mark, ...]
    interruptions: tuple[Interruption, ...]
    interruption: str = ""
    go_on: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """How long it took, interruptions included; negative if the clock was set back.

        The journal ends nothing before it began, so what has steps and took no time is that.
        """
        took = (self.end - self.start).total_seconds()
        return -1.0 if not took and any(row.bars for row in self.rows) else took
