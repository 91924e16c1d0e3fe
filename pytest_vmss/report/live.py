"""The live view of running operations: a table on a terminal, lines elsewhere."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from pytest_vmss.operations import KINDS
from pytest_vmss.report.say import plain, say
from pytest_vmss.store import EventRecord, GenerationRecord, InstanceRecord, Store

__all__ = ["LiveView"]

_INTERVAL = 0.2
_ACTIONS = frozenset(KINDS)


@dataclass
class _Row:
    phase: str = ""
    step: str = ""
    since: float = 0.0
    outcome: str = ""


class LiveView:
    """Context manager that shows a lab's events as they happen.

    The table is shown while an operation runs and then erased; what is worth keeping is
    printed above it.

    Args:
        store: The lab's store, which is only read.
        console: Where to print.
    """

    def __init__(self, store: Store, console: Console) -> None:
        self._store = store
        self._console = console
        self._start = time.monotonic()
        self._last = max((event.id for event in store.last_events(None, 1)), default=0)
        self._rows: dict[str, _Row] = {}
        self._running: set[str] = set()
        self._stop = threading.Event()
        self._live: Live | None = None
        self._thread = threading.Thread(target=self._run, name="vmss-live", daemon=True)

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
        if self._running and self._live is None and self._console.is_terminal:
            self._console.print()  # a line may be unfinished
            self._live = Live(
                console=self._console,
                transient=True,
                auto_refresh=False,
                redirect_stdout=False,  # pytest redirects them
                redirect_stderr=False,
            )
            self._live.start()
        if self._live is not None:
            if self._running:
                self._live.update(self._table(), refresh=True)
            else:
                self._live.stop()
                self._live = None

    def _take(self, event: EventRecord) -> None:
        who = event.scale_set
        if event.operation and event.kind in _ACTIONS:
            self._running.add(event.operation)
        if event.operation and event.kind == "end":
            self._running.discard(event.operation)
        if event.instance_id is not None:
            who = f"{event.scale_set}_{event.instance_id}"
            row = self._rows.setdefault(who, _Row())
            if event.kind == "step":
                row.phase, _, row.step = event.message.partition(": ")
                row.since = time.monotonic()
                row.outcome = ""
            elif event.kind == "outcome":
                row.outcome = event.message
        if not self._console.is_terminal or event.kind in (
            "batch",
            "error",
            "warning",
            "end",
            "image",
        ):
            style = {"error": "red", "warning": "yellow", "end": "bold"}.get(event.kind, "")
            elapsed = time.monotonic() - self._start
            say(self._console, f"{elapsed:7.1f} s  {who:<10} {event.message}", style=style)

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("instance", "image", "doing", "step", "for"):
            table.add_column(column)
        now = time.monotonic()
        versions = self._versions()
        for name in sorted({*versions, *self._rows}):
            row = self._rows.get(name, _Row(outcome="–"))
            if row.outcome:
                style = {"succeeded": "green", "–": "dim"}.get(row.outcome, "yellow")
                doing, step, seconds = plain(row.outcome, style), "", ""
            else:
                doing, step = plain(row.phase), row.step
                seconds = f"{now - row.since:.0f} s"
            table.add_row(
                plain(name), plain(versions.get(name, "")), doing, plain(step), plain(seconds)
            )
        return table

    def _versions(self) -> dict[str, str]:
        """Each instance's current image version, and the one it is changing to."""
        versions = {}
        for record in self._store.select(InstanceRecord):
            now, following = "", ""
            for generation in self._store.select(GenerationRecord, *record.key):
                if generation.number == record.generation:
                    now = generation.found_version or generation.version
                elif generation.state == "preparing":
                    following = generation.version
            versions[record.name] = " → ".join(part for part in (now, following) if part)
        return versions
