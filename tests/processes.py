"""Other processes, as tests see them."""

from __future__ import annotations

import contextlib
import time

import psutil

__all__ = ["wait_until_ended", "with_argument"]


def with_argument(mark: str) -> list[psutil.Process]:
    """The processes that have an argument. One that ended and that nobody collected has none."""
    return [p for p in psutil.process_iter(["cmdline"]) if mark in (p.info["cmdline"] or [])]


def wait_until_ended(pid: int, limit: float = 30.0) -> None:
    """Waits for the end of a process that was killed, whether or not somebody collects it.

    Args:
        pid: The process.
        limit: For how many seconds.

    Raises:
        AssertionError: If it still runs then.
    """
    deadline = time.monotonic() + limit
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        while process.is_running() and not _is_dead(process):
            assert time.monotonic() < deadline, f"{process} still runs {limit:g} s after its end"
            time.sleep(0.01)


def _is_dead(process: psutil.Process) -> bool:
    """Whether all its threads have ended: until then it holds its locks, a zombie or not."""
    return process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1
