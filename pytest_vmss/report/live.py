"""The live view of running operations: a table on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType
from rich.table import Table
from rich.text import Text

from pytest_vmss.api.lab import Lab
from pytest_vmss.environment.environment import InstanceContext
from pytest_vmss.guest.console import Console as SerialConsole
from pytest_vmss.operations import KINDS
from pytest_vmss.report.say import plain, say
from pytest_vmss.report.step_times import StepTimes
from pytest_vmss.store import (
    EventRecord,
    GenerationRecord,
    InstanceRecord,
    OperationRecord,
    Store,
)

__all__ = ["LiveView"]

_INTERVAL = 0.2
_ACTIONS = frozenset(KINDS)
#: What is printed as a line although a table shows the rest.
_LASTING = frozenset({"batch", "error", "warning", "end", "image"})
_STYLES = {"error": "red", "warning": "yellow", "end": "bold"}
_BAR = 10
#: Steps that take less are over before a bar is seen.
_SHORT_S = 1.0
#: Lines of the terminal that are not the table's rows.
_OTHER_LINES = 5


@dataclass
class _Row:
    scale_set: str = ""
    instance_id: int = 0
    step: str = ""
    since: float = 0.0
    began: datetime | None = None
    outcome: str = ""


class LiveView:
    """Context manager that shows a lab's events as they happen.

    The table is shown while an operation runs and then erased; what is worth keeping is
    printed above it.

    Args:
        store: The lab's store, which is only read.
        console: Where to print.
        times: What steps took before; it learns from what it sees.
        serial: Returns the serial console of an instance's OS disk; None shows none.
        column: Returns the width of an unfinished line that something else has written to the
            same terminal; see :meth:`writing`.
    """

    def __init__(
        self,
        store: Store,
        console: Console,
        *,
        times: StepTimes | None = None,
        serial: Callable[[GenerationRecord], SerialConsole] | None = None,
        column: Callable[[], int] = lambda: 0,
    ) -> None:
        self._store = store
        self._console = console
        self._times = times or StepTimes()
        self._serial_of = serial
        self._column = column
        self._start = time.monotonic()
        self._last = max((event.id for event in store.last_events(None, 1)), default=0)
        self._rows: dict[str, _Row] = {}
        self._seen: set[str] = set()
        self._running: dict[str, tuple[str, str]] = {}  # by id: the set, and what is done to it
        self._stop = threading.Event()
        self._lock = threading.RLock()  # held to write to the terminal
        self._live: Live | None = None
        self._serial: SerialConsole | None = None
        self._broken = 0  # width of the unfinished line above the table
        self._is_ended = False  # whether this has ended the line that the other has begun
        self._fit()
        self._thread = threading.Thread(target=self._run, name="vmss-live", daemon=True)

    @classmethod
    def of(cls, lab: Lab, console: Console, *, column: Callable[[], int] = lambda: 0) -> Self:
        """A view of a lab, which remembers in its cache folder what steps take."""
        times = StepTimes(lab.settings.cache_dir / "step-times.json")

        def serial(generation: GenerationRecord) -> SerialConsole:
            name, number = generation.scale_set, generation.instance_id
            return InstanceContext(lab.environment, name, number).console(generation)

        return cls(lab.store, console, times=times, serial=serial, column=column)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._running.clear()
        self._show()
        self._times.save()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Erases the table while something else writes to the terminal.

        It goes on where it had stopped, also in the middle of a line.
        """
        with self._lock:
            self._hide()
            yield
            self._is_ended = False

    def _run(self) -> None:
        while True:
            ending = self._stop.wait(_INTERVAL)
            for event in self._store.events(after=self._last):
                self._last = event.id
                self._take(event)
            self._show()
            if ending:
                return

    def _show(self) -> None:
        """Shows the table while an operation runs, and erases it afterwards."""
        with self._lock:
            self._fit()
            view = self._view() if self._running and self._console.is_terminal else None
            if view is None:
                self._hide()
                return
            if self._live is None:
                self._end_line()
                self._live = Live(
                    console=self._console,
                    transient=True,
                    auto_refresh=False,
                    redirect_stdout=False,  # pytest redirects them
                    redirect_stderr=False,
                )
                self._live.start()
            self._live.update(view, refresh=True)

    def _fit(self) -> None:
        """Takes the terminal's own size, which rich cannot find while pytest captures output."""
        with contextlib.suppress(OSError, ValueError):  # it is no terminal
            columns, lines = os.get_terminal_size(self._console.file.fileno())
            if columns and lines:
                self._console.size = ConsoleDimensions(columns, lines)

    def _hide(self) -> None:
        """Erases the table, and puts the cursor back to where it was."""
        if self._live is None:
            return
        self._live.stop()
        self._live = None
        if self._broken:
            self._console.control(
                Control((ControlType.CURSOR_UP, 1), (ControlType.CURSOR_FORWARD, self._broken))
            )
            self._broken, self._is_ended = 0, False

    def _end_line(self) -> None:
        """Ends a line that something else has begun, and remembers its width."""
        column = 0 if self._is_ended else self._column()
        if column:
            self._console.line()
            self._broken, self._is_ended = (column - 1) % self._console.width + 1, True

    def _take(self, event: EventRecord) -> None:
        who = event.scale_set
        if event.operation and event.kind in _ACTIONS:
            what = event.message.rpartition(" started by ")[0]
            self._running[event.operation] = (event.scale_set, what or event.kind)
        if event.instance_id is not None:
            who = f"{event.scale_set}_{event.instance_id}"
            self._note(who, event)
        if event.kind == "deleted" and event.instance_id is None:
            self._forget(event.scale_set)
        if not self._console.is_terminal or event.kind in _LASTING:
            elapsed = time.monotonic() - self._start
            with self._lock:
                self._end_line()
                self._broken = 0
                self._say(f"{elapsed:7.1f} s  {who:<10} ", self._words(event), event.kind)
        if event.operation and event.kind == "end":
            self._running.pop(event.operation, None)

    def _say(self, prefix: str, message: str, kind: str) -> None:
        """Prints an event: in one line, or on a terminal wrapped beside its prefix."""
        style = _STYLES.get(kind, "")
        if not self._console.is_terminal:
            say(self._console, prefix + message, style=style)
            return
        grid = Table.grid()
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row(plain(prefix, style), plain(message, style))
        self._console.print(grid)

    def _words(self, event: EventRecord) -> str:
        """What an event says; the end of an operation with the operation's name."""
        if event.kind != "end" or not event.operation:
            return event.message
        known = self._running.get(event.operation)
        if known is not None:
            return f"{known[1]}: {event.message}"
        key = (event.scale_set.lower(), event.operation)
        record = self._store.get(OperationRecord, *key)
        return event.message if record is None else f"{record.action}: {event.message}"

    def _note(self, who: str, event: EventRecord) -> None:
        """Notes a step or an outcome of an instance, and learns what the step before took."""
        if event.kind not in ("step", "outcome"):
            return
        row = self._rows.setdefault(who, _Row(event.scale_set, event.instance_id or 0))
        if row.step and row.began is not None and not row.outcome:
            self._times.learn(row.step, (event.time - row.began).total_seconds())
        if event.kind == "step":
            row.step, row.outcome = event.message, ""
            row.since, row.began = time.monotonic(), event.time
        else:
            row.outcome = event.message

    def _forget(self, scale_set: str) -> None:
        for name in [name for name, row in self._rows.items() if row.scale_set == scale_set]:
            del self._rows[name]

    def _view(self) -> RenderableType | None:
        """The table, and the last line of the slowest instance's console; None if it is empty."""
        table = self._table()
        if not table.row_count:
            return None
        said = self._last_line()
        return table if said is None else Group(table, said)

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("instance", no_wrap=True)
        table.add_column("image", no_wrap=True, overflow="ellipsis")
        table.add_column("step", overflow="ellipsis")  # the one that gives way
        table.add_column("progress", no_wrap=True, min_width=_BAR)
        table.add_column("for", no_wrap=True, overflow="ellipsis")
        versions = self._versions()
        gone = self._seen - set(versions)
        self._seen |= set(versions)
        sets = {name for name, _ in self._running.values()}
        rows = [name for name, row in self._rows.items() if not sets or row.scale_set in sets]
        names = [name for name in {*versions, *rows} if name not in gone]
        names.sort(key=lambda name: (not self._is_busy(name), name))
        most = max(self._console.height - _OTHER_LINES, 1)
        for name in names[:most]:
            shown = plain(_shortened(name, self._console.width // 4))
            table.add_row(shown, plain(versions.get(name, "")), *self._progress(name))
        if len(names) > most:
            table.add_row(f"… {len(names) - most} more")
        return table

    def _is_busy(self, name: str) -> bool:
        row = self._rows.get(name)
        return row is not None and bool(row.step) and not row.outcome

    def _progress(self, name: str) -> tuple[Text, Text, Text]:
        """What is done to an instance, how far it is, and for how long."""
        row = self._rows.get(name, _Row(outcome="–"))
        if row.outcome:
            style = {"succeeded": "green", "–": "dim"}.get(row.outcome, "yellow")
            return _in_a_line(plain(row.outcome, style)), Text(), Text()
        elapsed, expected = time.monotonic() - row.since, self._times.expected(row.step)
        step = _in_a_line(plain(row.step.removeprefix("swap: ")))
        if expected is None or expected < _SHORT_S:
            return step, Text(), Text(f"{elapsed:.0f} s")
        full = min(round(_BAR * elapsed / expected), _BAR)
        bar = Text.assemble(("━" * full, "green"), ("━" * (_BAR - full), "dim"))
        left = expected - elapsed
        told = f"{left:.0f} s left" if left >= 0 else f"{-left:.0f} s over"
        return step, bar, Text(f"{elapsed:.0f} s, {told}")

    def _last_line(self) -> Text | None:
        """The last line of the console of the instance that is slowest against what is usual."""
        busy = [(name, row) for name, row in self._rows.items() if self._is_busy(name)]
        if self._serial_of is None or not busy:
            return None
        now = time.monotonic()

        def lateness(entry: tuple[str, _Row]) -> float:
            return now - entry[1].since - (self._times.expected(entry[1].step) or 0.0)

        name, row = max(busy, key=lateness)
        key = (row.scale_set.lower(), row.instance_id)
        known = self._store.select(GenerationRecord, *key)
        if not known:
            return None
        serial = self._serial_of(max(known, key=lambda each: each.number))
        if self._serial is None or self._serial.path != serial.path:
            self._serial = serial
        said = self._serial.tail(1)
        if not said:
            return None
        return _in_a_line(plain(f"{name}: {said}", "dim"))

    def _versions(self) -> dict[str, str]:
        """Current image version of the instances in running operations, and the one to come."""
        versions = {}
        for scale_set in sorted({name for name, _ in self._running.values()}):
            for record in self._store.select(InstanceRecord, scale_set.lower()):
                now, following = "", ""
                for generation in self._store.select(GenerationRecord, *record.key):
                    if generation.number == record.generation:
                        now = generation.found_version or generation.version
                    elif generation.state == "preparing":
                        following = generation.version
                versions[record.name] = " → ".join(part for part in (now, following) if part)
        return versions


def _in_a_line(text: Text) -> Text:
    """The same text, which is cut off rather than wrapped."""
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _shortened(name: str, most: int) -> str:
    """A name of at most so many characters; its end, which tells instances apart, is kept."""
    return name if len(name) <= most else f"{name[: most // 3]}…{name[1 + most // 3 - most :]}"
