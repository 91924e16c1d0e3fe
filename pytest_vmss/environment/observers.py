"""Functions that are called while operations run: what a suite's hooks are made of."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from pytest_vmss.model import Health

__all__ = ["Moment", "Observer", "Observers", "Told"]


class Moment(StrEnum):
    """When observers are called.

    What they are told of batches, of rollbacks and of ends of operations is durable by then; of
    steps, a crash of the host may undo it.
    """

    BEFORE_BATCH = "before batch"
    AFTER_BATCH = "after batch"
    BEFORE_STEP = "before step"
    AFTER_STEP = "after step"
    HEALTH_CHANGED = "health changed"
    ROLLED_BACK = "rolled back"
    OPERATION_ENDED = "operation ended"


@dataclass(frozen=True)
class Told:
    """What an observer is told.

    Attributes:
        moment: When it is called.
        scale_set: The set's name.
        operation: The operation's id; empty outside of one.
        instance_ids: The instances of the batch, or the one instance.
        step: The phase and the step, such as ``swap: boot``.
        error: What a step failed with; None if it did not.
        health: The instance's health now.
        before: Its health before; None if it was not known.
    """

    moment: Moment
    scale_set: str
    operation: str = ""
    instance_ids: tuple[int, ...] = ()
    step: str = ""
    error: Exception | None = None
    health: Health | None = None
    before: Health | None = None


#: Called in the thread that does the work, so that the work waits for it; it must not raise.
Observer = Callable[[Told], None]


class Observers:
    """The observers of a lab in this process."""

    def __init__(self) -> None:
        self._all: list[Observer] = []
        self._running: dict[str, int] = {}  # to the thread that runs it

    def add(self, observer: Observer) -> None:
        """Calls a function from now on; instances of one batch do so from several threads."""
        self._all.append(observer)

    @contextmanager
    def running(self, operation: str) -> Iterator[None]:
        """An operation that this thread runs and tells of."""
        self._running[operation] = threading.get_ident()
        try:
            yield
        finally:
            self._running.pop(operation, None)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._all)

    def know(self, operation: str) -> bool:
        """Whether all was told of an operation that has ended; observers themselves know it."""
        return self._running.get(operation) in (None, threading.get_ident())

    def tell(self, told: Told) -> None:
        """Calls all observers, in the order in which they were added."""
        for observer in self._all:
            observer(told)
