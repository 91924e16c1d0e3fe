"""A check that must hold throughout a block of code (``scale_set.always``)."""

from __future__ import annotations

import sys
import threading
import time
import unittest
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Self

from pytest_vmss.concurrency import whereabouts
from pytest_vmss.errors import ViolationError, error_text
from pytest_vmss.guest.check import judge
from pytest_vmss.store import Store
from pytest_vmss.store.queries import instances_of

__all__ = ["Always", "Violation"]

_SHOWN = 10
_LIMIT_S = 60.0


@dataclass(frozen=True)
class Violation:
    """One time at which the check did not hold.

    Attributes:
        time: When the check started.
        seconds: How long it took.
        what: What it returned or raised.
        step: What the set's operation was doing then; empty if none was running.
        instances: The state of each instance, by name.
    """

    time: datetime
    seconds: float
    what: str
    step: str
    instances: dict[str, str]

    def __str__(self) -> str:
        doing = f" during {self.step!r}" if self.step else ""
        states = ", ".join(f"{name} {state}" for name, state in self.instances.items())
        return f"{self.time:%H:%M:%S.%f} ({self.seconds:.2f} s){doing}: {self.what}\n    {states}"


class Always:
    """Context manager that runs a check repeatedly, in a thread, during a block of code.

    Violations fail the test at the end of the block.

    Args:
        store: The lab's store.
        scale_set: The set.
        check: Holds if it returns a true value or None; anything it raises is a violation,
            ``pytest.fail`` and ``pytest.skip`` included. It must have a timeout of its own.
        every: Seconds from the start of one check to the start of the next.
        timeout: Seconds that one check may take. A longer one is a violation whatever it
            returns, because nothing else is observed meanwhile.

    Attributes:
        checks: How many checks were made.
        violations: All violations so far.
        slowest: Seconds that the slowest check took.
    """

    def __init__(
        self,
        store: Store,
        scale_set: str,
        check: Callable[[], object],
        *,
        every: float,
        timeout: float = _LIMIT_S,
    ) -> None:
        self._store = store
        self._scale_set = scale_set
        self._check = check
        self._every = every
        self._timeout = timeout
        self._broken = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vmss-always", daemon=True)
        self.checks = 0
        self.violations: list[Violation] = []
        self.slowest = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join(self._timeout)
        problem = self._problem()
        if problem is None:
            return
        if error is None or _is_skip(error):
            raise ViolationError(problem, violations=self.violations) from error
        error.add_note(problem)  # the block's own error says more

    def _problem(self) -> str | None:
        """What is wrong, in words; None if nothing is."""
        wrong = []
        if self._thread.is_alive():
            wrong.append(
                f"a check of {self._scale_set!r} did not return within {self._timeout:g} s of the "
                f"block's end ({whereabouts(self._thread)}); give it a time limit of its own"
            )
        elif self._broken:
            wrong.append(
                f"the checks of {self._scale_set!r} ended before the block did: {self._broken}"
            )
        elif self.checks == 0:
            wrong.append(f"no check of {self._scale_set!r} was made: the block ended at once")
        if self.violations:
            shown = "\n".join(f"  {violation}" for violation in self.violations[:_SHOWN])
            more = len(self.violations) - _SHOWN
            wrong.append(
                f"what must always hold for {self._scale_set!r} did not in "
                f"{len(self.violations)} of {self.checks} checks:\n{shown}"
                + (f"\n  and {more} more" if more > 0 else "")
            )
        return "\n".join(wrong) or None

    def _run(self) -> None:
        try:
            while True:
                elapsed = self._look()
                if self._ended.wait(max(self._every - elapsed, 0.0)):
                    return
        except BaseException as error:  # noqa: BLE001 - reported at the block's end
            self._broken = error_text(error)

    def _look(self) -> float:
        """Runs the check once; returns the seconds that it took."""
        begun, when = time.monotonic(), datetime.now().astimezone()
        what = judge(self._check)
        elapsed = time.monotonic() - begun
        if not what and elapsed > self._timeout:
            what = f"the check took {elapsed:.0f} s; nothing was watched meanwhile"
        self.checks += 1
        self.slowest = max(self.slowest, elapsed)
        if what:
            try:
                step, instances = self._step(), self._instances()
            except Exception as error:  # noqa: BLE001 - the violation is what matters
                step, instances = "", {self._scale_set: f"unknown ({error_text(error)})"}
            self.violations.append(Violation(when, elapsed, what, step, instances))
        return elapsed

    def _step(self) -> str:
        events = self._store.last_events(self._scale_set, 20)
        for event in reversed(events):
            if event.kind == "end":
                return ""
            if event.kind in ("step", "batch"):
                number = (
                    "" if event.instance_id is None else f"{self._scale_set}_{event.instance_id} "
                )
                return number + event.message
        return ""

    def _instances(self) -> dict[str, str]:
        return {
            record.name: f"{record.provisioning} on {record.version}"
            + ("" if record.in_service else ", out of load balancing")
            for record in instances_of(self._store, self._scale_set)
        }


def _is_skip(error: BaseException) -> bool:
    """Whether pytest would skip the test because of an error, and so hide the violations."""
    pytest = sys.modules.get("pytest")  # the command line does not import it
    skips = (unittest.SkipTest,) if pytest is None else (unittest.SkipTest, pytest.skip.Exception)
    return isinstance(error, skips)
