"""Says in words what happened to which instance at which step, and why it stopped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_vmss.api.operation import UNPROVEN
from pytest_vmss.report.say import counted
from pytest_vmss.report.timeline.records import Bar, BarState, Row, Timeline
from pytest_vmss.store import OperationRecord, Outcome

__all__ = [
    "Verdict",
    "action_words",
    "duration",
    "headline",
    "joined",
    "verdicts",
    "why_it_stopped",
]

_ACTIONS = {
    "create": "Creation of {name}",
    "scale-out": "Scale-out of {name}",
    "upgrade": "OS upgrade of {name}",
    "delete": "Deletion of instances of {name}",
    "reimageall": "Reimage of {name} with its data disks",
    "extension-upgrade": "Extension upgrade of {name}",
    "update": "Model update of {name}",
}
#: Names in a sentence; the rest is counted.
_NAMES = 6
_MINUTE, _HOUR = 60, 3600


@dataclass(frozen=True)
class Verdict:
    """How an operation ended for one instance, in words.

    Attributes:
        bar: The step at which it failed.
    """

    row: Row
    text: str
    bar: Bar | None = None


def duration(seconds: float) -> str:
    """A duration in words: ``0.4 s``, ``48 s``, ``2 min 03 s``, ``1 h 20 min``."""
    if seconds < 0:
        return "an unknown time (the clock was set back)"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02d} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02d} min"


def joined(names: Iterable[str]) -> str:
    """Names in a sentence: ``a, b and c``; of very many only the first."""
    found = list(names)
    if len(found) > _NAMES + 1:
        return f"{', '.join(found[:_NAMES])} and {len(found) - _NAMES} more"
    return " and ".join(filter(None, (", ".join(found[:-1]), *found[-1:])))


def action_words(record: OperationRecord) -> str:
    """The operation in words: ``OS upgrade of web from 1.0.0 to 1.1.0``."""
    words = _ACTIONS.get(
        record.action, f"{record.action.replace('-', ' ').capitalize()} of {{name}}"
    )
    text = words.format(name=record.scale_set)
    if record.action == "upgrade":
        text += f" from {joined(record.source_versions) or 'nothing'} to {record.target}"
    elif record.target:
        text += f" with image version {record.target}"
    return text


def headline(timeline: Timeline) -> str:
    """One sentence: what it was, how it ended, and for whom."""
    record, rows = timeline.record, timeline.rows
    what = action_words(record)
    bad = [row.name for row in rows if row.error is not None or row.outcome in _BAD]
    good = [row for row in rows if row.outcome is Outcome.SUCCEEDED]
    took, total = duration(timeline.seconds), counted(len(rows), "instance")
    if record.ended is None:
        how = "is interrupted and unfinished" if timeline.interruption else "is in progress"
        return f"{what} {how}: {len(good)} of {total} done after {took}."
    if record.status == "Completed":
        text = f"{what} completed in {took}: {len(good)} of {total} succeeded"
        return f"{text}, but {joined(bad)} failed." if bad else f"{text}."
    if record.status == "Cancelled":
        return f"{what} was cancelled after {took}: {len(good)} of {total} done."
    if not bad:
        return f"{what} stopped after {took}."
    return f"{what} failed after {took}: {_failure(timeline, bad)}."


def _failure(timeline: Timeline, bad: Sequence[str]) -> str:
    """Which instances failed, and at which steps: ``web_0 failed at “boot” and was rolled back``."""
    rows = [row for row in timeline.rows if row.name in bad]
    at = dict.fromkeys(row.failed_bar.name for row in rows if row.failed_bar is not None)
    text = f"{joined(bad)} failed"
    if at:
        text += f" at {joined(f'“{name}”' for name in at)}"
    if all(row.outcome is Outcome.ROLLED_BACK for row in rows):
        text += f" and {'was' if len(rows) == 1 else 'were'} rolled back"
    elif any(row.outcome is Outcome.ROLLBACK_FAILED for row in rows):
        text += ", and a rollback failed too"
    return text


_BAD = frozenset({Outcome.FAILED, Outcome.ROLLED_BACK, Outcome.ROLLBACK_FAILED})


def verdicts(timeline: Timeline) -> list[Verdict]:
    """What became of each instance: those that failed singly and first, the rest together."""
    singly = [row for row in timeline.rows if _needs_words(row)]
    singly.sort(key=lambda row: (_failed_at(row) is None, row.instance_id))
    return [Verdict(row, _story(row, timeline), _failed_at(row)) for row in singly]


def _needs_words(row: Row) -> bool:
    return (
        row.error is not None
        or row.outcome in _BAD
        or row.stopped
        or any(bar.state is not BarState.DONE for bar in row.bars)
    )


def _failed_at(row: Row) -> Bar | None:
    return row.failed_bar


def _story(row: Row, timeline: Timeline) -> str:
    """What became of one instance, in sentences."""
    parts = []
    bar = row.failed_bar
    if bar is not None:
        at = duration((bar.end - timeline.start).total_seconds())
        batch = next((one for one in timeline.batches if row.name in one.names), None)
        of_batch = f" in batch {batch.number}" if batch is not None else ""
        parts.append(
            f"failed at the step “{bar.name}”{of_batch}, {at} after the start, when the step had "
            f"taken {duration(bar.seconds)}."
        )
    cut = [one for one in row.bars if one.state is BarState.CUT_OFF]
    if cut:
        repeated = (
            " and was repeated after the resume" if any(one.again for one in row.bars) else ""
        )
        parts.append(f"The step “{cut[-1].name}” was cut off{repeated}.")
    running = next((one for one in row.bars if one.state is BarState.RUNNING), None)
    if running is not None:
        parts.append(f"The step “{running.name}” has been running for {duration(running.seconds)}.")
    parts.append(_end_of(row))
    text = " ".join(part for part in parts if part)
    return text[:1].upper() + text[1:]


def _end_of(row: Row) -> str:
    if row.outcome is Outcome.ROLLED_BACK:
        back = [bar for bar in row.bars if bar.goes_back]
        took = f" in {duration((back[-1].end - back[0].start).total_seconds())}" if back else ""
        return f"It was rolled back to what it had before{took}, and came up on it."
    if row.outcome is Outcome.ROLLBACK_FAILED:
        failed = [bar for bar in row.bars if bar.goes_back and bar.state is BarState.FAILED]
        where = f" at the step “{failed[-1].name}”: {failed[-1].error}" if failed else ""
        return f"Its rollback failed too{where or '.'}"
    if row.outcome is Outcome.FAILED:
        return "It stays as it is, failed; nothing was rolled back."
    if row.outcome is Outcome.SUCCEEDED:
        return f"It was {UNPROVEN}." if row.stopped else "In the end it succeeded."
    return ""


def why_it_stopped(timeline: Timeline) -> list[str]:
    """Why the operation ended as it did, and what is left to do; empty if all is well."""
    record = timeline.record
    lines = []
    if record.error_code:
        lines.append(f"{record.error_code}: {record.error_message or ''}")
    if record.reason and record.status != "Completed" and record.reason != record.error_message:
        lines.append(f"The decision: {record.reason}.")
    for one in timeline.interruptions:
        at = duration((one.start - timeline.start).total_seconds())
        why = (
            one.reason.removeprefix("interrupted: ")
            or "the process that ran it was killed, or ended"
        )
        gone_on = (
            f"and resumed {duration((one.end - one.start).total_seconds())} later"
            if one.resumed
            else "and nobody has resumed it"
        )
        lines.append(f"It was interrupted {at} after the start ({why}) {gone_on}.")
    if timeline.interruption:
        lines.append(f"To go on: {timeline.go_on}")
    untouched = [row.name for row in timeline.rows if row.outcome is Outcome.NOT_STARTED]
    if untouched and record.ended is not None:
        be = "was" if len(untouched) == 1 else "were"
        lines.append(f"{joined(untouched)} {be} not touched.")
    skipped = [row.name for row in timeline.rows if row.outcome is Outcome.SKIPPED]
    if skipped:
        lines.append(f"Skipped: {joined(skipped)}.")
    if timeline.left_out:
        lines.append(
            f"Extensions left out, for nobody registered their handlers: {joined(timeline.left_out)}."
        )
    return lines
