"""Finds the lines of console logs that belong to a step, by the kernel's time stamps.

A console log has no times of the host. The kernel writes seconds since its start before its own
lines, and cloud-init its uptime into some of its; when the machine was started, the records say.
Lines without a stamp belong to the last one before them.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from pytest_vmss.environment.masking import mask_lines
from pytest_vmss.report.timeline.records import Bar, BarState
from pytest_vmss.untrusted import clean

__all__ = ["ConsoleLog", "with_console"]

#: Bytes read of a log, from the start of its last boot.
_READ_BYTES = 1024 * 1024
#: The last lines that are shown with a step, and with one that failed.
_LINES = 6
_LINES_OF_FAILED = 25
_LINE_CHARS = 240
_STAMP = re.compile(r"\[ {0,12}(\d{1,9}\.\d{1,9})\]|\bUp (\d{1,9}\.\d{1,3}) seconds")


@dataclass(frozen=True)
class ConsoleLog:
    """The console log of an instance's OS disk.

    Attributes:
        started: When its machine was last started on the disk.
        begin: Offset in bytes of what was written since.
        masked: Masks the secrets in a text.
    """

    instance_id: int
    path: Path
    started: datetime
    begin: int = 0
    masked: Callable[[str], str] = mask_lines


def with_console(bars: Sequence[Bar], logs: Iterable[ConsoleLog]) -> list[Bar]:
    """Returns bars with the lines of their time, where a log has lines with a stamp.

    Args:
        bars: An instance's bars, in order.
        logs: The instance's logs.
    """
    found = list(bars)
    for log in logs:
        if not bars or log.started > bars[-1].end:
            continue  # a later operation's
        lines = _read(log)
        times = [log.started + timedelta(seconds=stamp) for stamp, _ in lines]
        for index, bar in enumerate(found):
            first, last = bisect_left(times, bar.start), bisect_right(times, bar.end)
            most = _LINES if bar.state is BarState.DONE else _LINES_OF_FAILED
            texts = tuple(text for _, text in lines[first:last][-most:])
            if texts:
                found[index] = replace(bar, console=texts)
    return found


def _read(log: ConsoleLog) -> list[tuple[float, str]]:
    """Returns the lines of a log's last boot with their seconds; empty if it has no stamps."""
    try:
        descriptor = os.open(log.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        data = os.pread(descriptor, _READ_BYTES, log.begin)
    except OSError:
        return []
    finally:
        os.close(descriptor)
    lines: list[tuple[float, str]] = []
    latest: float | None = None
    # Masked before it is cut, for a part of a secret is not known to be one.
    for text in log.masked(clean(data.decode(errors="replace"))).split("\n"):
        stamp = _STAMP.search(text[:_LINE_CHARS])
        if stamp is not None:
            latest = max(float(stamp[1] or stamp[2]), latest or 0.0)
        if latest is not None and text.strip():
            lines.append((latest, text.rstrip()[:_LINE_CHARS]))
    return lines
