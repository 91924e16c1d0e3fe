"""A check that must hold all the while (``scale_set.always``)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Self

from pytest_vmss.errors import ViolationError
from pytest_vmss.store import InstanceRecord, Store

__all__ = ["Always", "Violation"]

_SHOWN = 10
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Violation:
    """One time at which the check did not hold.

    Attributes:
        time: When the check was begun.
        seconds: How long it took.
        what: What it answered or raised.
        step: What the set's operation was doing then; empty where it did nothing.
        instances: Where each instance stood.
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
    """Runs a check beside a block of code, again and again.

    Use it with ``with``; at its end a violation fails the test.

    Args:
        store: The lab's.
        scale_set: The set.
        check: Holds where it returns something true, or nothing; what it raises is a
            violation. It must have a time limit of its own.
        every: Seconds from the beginning of one check to that of the next.

    Attributes:
        checks: How many checks were made.
        violations: Every one so far.
        slowest: Seconds that the slowest check took.
    """

    def __init__(
        self, store: Store, scale_set: str, check: Callable[[], object], *, every: float
    ) -> None:
        self._store = store
        self._scale_set = scale_set
        self._check = check
        self._every = every
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
        self._thread.join(_PATIENCE_S)
        problem = self._problem()
        if problem is None:
            return
        if error is not None:
            error.add_note(problem)  # the block's own error is the more telling one
            return
        raise ViolationError(problem, violations=self.violations)

    def _problem(self) -> str | None:
        """What is wrong, in words."""
        if self._thread.is_alive():
            return (
                f"a check of {self._scale_set!r} did not return within {_PATIENCE_S:.0f} s; give it "
                "a time limit of its own"
            )
        if self.checks == 0:
            return f"no check of {self._scale_set!r} was made: the block ended at once"
        if not self.violations:
            return None
        shown = "\n".join(f"  {violation}" for violation in self.violations[:_SHOWN])
        more = len(self.violations) - _SHOWN
        return (
            f"what must always hold for {self._scale_set!r} did not in {len(self.violations)} of "
            f"{self.checks} checks:\n{shown}" + (f"\n  and {more} more" if more > 0 else "")
        )

    def _run(self) -> None:
        while True:
            begun, when = time.monotonic(), datetime.now().astimezone()
            what = self._look()
            spent = time.monotonic() - begun
            self.checks += 1
            self.slowest = max(self.slowest, spent)
            if what is not None:
                self.violations.append(
                    Violation(when, spent, what, self._step(), self._instances())
                )
            if self._ended.wait(max(self._every - spent, 0.0)):
                return

    def _look(self) -> str | None:
        """Makes the check; what is wrong, or None."""
        try:
            answer = self._check()
        except Exception as failure:  # noqa: BLE001 - whatever it is, it does not hold
            return f"{type(failure).__name__}: {failure}"
        return None if answer is None or answer else f"the check returned {answer!r}"

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
            for record in self._store.select(InstanceRecord, self._scale_set.lower())
        }
