"""Lets guests that are emulated boot a few at a time, as many as the host has processors.

More at once only slow each other down: six guests on two processors took 132 s when they booted
together and 97 s two by two (measured). The turns are counted over all labs of a state
directory, and a process that is killed gives its own back (Q2).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pytest_vmss.clock import Clock, wait_for
from pytest_vmss.host.locks import Lock, try_lock

__all__ = ["BootTurns", "lock_files", "processors"]

_INTERVAL_S = 0.1


def processors() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0))


def lock_files(folder: Path) -> list[Path]:
    """The files that stand for turns in a state directory; a killed process leaves its own."""
    return sorted(folder.glob("boot-*.lock"))


class BootTurns:
    """As many turns to boot as there are processors, shared between processes.

    Args:
        folder: The state directory, in which a file stands for each turn that is taken.
        count: How many there are.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self._files = [folder / f"boot-{number}.lock" for number in range(count)]

    def wait(self, timeout: float, clock: Clock, *, waits: Callable[[], object]) -> Lock:
        """Takes a turn, and waits for one if need be.

        Args:
            timeout: In seconds.
            clock: The clock that measures them.
            waits: Called once if all turns are taken.

        Returns:
            The turn; see :meth:`take`.

        Raises:
            WaitTimeoutError: None became free.
            OSError: The files cannot be locked.
        """
        turn = self.take()
        if turn is not None:
            return turn
        waits()
        return wait_for(
            "other guests to have booted",
            self.take,
            timeout=timeout,
            clock=clock,
            interval=_INTERVAL_S,
        )

    def take(self) -> Lock | None:
        """Takes a turn, which ends when the lock is removed or this process ends.

        Returns:
            The turn; None if all are taken.

        Raises:
            OSError: The files cannot be locked.
        """
        return next(filter(None, map(try_lock, self._files)), None)
