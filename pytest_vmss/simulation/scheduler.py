"""A deterministic scheduler: exactly one thread runs at a time, in an order set by a seed.

For simulations: what is concurrent on real hosts runs on threads here too, and may be
preempted at every effect, but the same seed gives the same run. Time is discrete: it
advances when every thread sleeps, to the time at which the first of them wakes.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import TypeVar

__all__ = ["Baton", "Killed"]

_I = TypeVar("_I")

#: Seconds of real time after which a thread that waits for its turn gives up: the running
#: thread is then stuck on a lock held by one that was preempted.
_STUCK_S = 300.0


class Killed(BaseException):
    """Simulates SIGKILL: nothing in the product catches it.

    Threads that run concurrently with the one that raises it die where they are.
    """


@dataclass(eq=False)
class _Group:
    """The tasks that one caller runs concurrently.

    Attributes:
        left: How many have not ended.
        caller: The task that waits for them; None if the caller is not scheduled here.
        ended: Set when the last one ends, for a caller that is not scheduled here.
    """

    left: int
    caller: _Task | None
    ended: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False)
class _Task:
    """A thread that takes turns.

    Attributes:
        go: Released when it is its turn.
        wake: The time at which its sleep ends, in seconds.
        waits: Whether it waits for tasks that it runs concurrently.
        poison: An exception to raise in it at its next turn.
    """

    group: _Group
    go: threading.Lock = field(default_factory=threading.Lock)
    wake: float = 0.0
    waits: bool = False
    poison: BaseException | None = None

    def __post_init__(self) -> None:
        self.go.acquire()


class Baton:
    """Passes the right to run from thread to thread.

    Threads that it did not start are not scheduled; what they sleep is added to the time.

    Args:
        seed: The same seed gives the same order.

    Attributes:
        elapsed: Seconds that have passed.
    """

    def __init__(self, seed: int) -> None:
        self.elapsed = 0.0
        self._random = random.Random(seed)  # noqa: S311 - not for secrets
        self._mutex = threading.Lock()
        self._tasks: list[_Task] = []
        self._running: _Task | None = None
        self._here = threading.local()

    def shuffle(self, items: list[_I]) -> None:
        """Shuffles items in place, as the seed decides."""
        with self._mutex:
            self._random.shuffle(items)

    def sleep(self, seconds: float) -> None:
        """Sleeps while other threads run; 0 only lets the others run."""
        me = self._me
        with self._mutex:
            if me is None:
                self.elapsed += seconds
                return
            if me.poison is not None:
                raise me.poison
            me.wake = self.elapsed + seconds
            following = self._choose()
        self._hand_over(me, following)

    def advance(self, seconds: float) -> None:
        """Advances the time without letting other threads run."""
        with self._mutex:
            self.elapsed += seconds

    def run(
        self,
        items: Sequence[_I],
        act: Callable[[_I], object],
        *,
        interrupt: Callable[[], object] = lambda: None,
    ) -> list[BaseException | None]:
        """Acts on items, each in a thread of its own.

        Args:
            items: What to act on.
            act: Called for each item.
            interrupt: Called on Ctrl-C; it must make the calls end.

        Returns:
            For each item the exception that was raised, or None.

        Raises:
            Killed: One was killed, and all others with it.
        """
        me = self._me
        group = _Group(len(items), me)
        raised: list[BaseException | None] = [None] * len(items)

        contexts = [copy_context() for _ in items]

        def live(number: int, task: _Task) -> None:
            self._here.task = task
            try:
                self._await_turn(task)
                contexts[number].run(act, items[number])
            except BaseException as error:  # noqa: BLE001 - the caller raises it
                raised[number] = error
            finally:
                self._end(task, raised[number])

        tasks = [_Task(group) for _ in items]
        for entry in enumerate(tasks):
            threading.Thread(target=live, args=entry, name="vmss", daemon=True).start()
        self._begin(me, tasks)
        if me is None:
            try:
                group.ended.wait()
            except KeyboardInterrupt:
                interrupt()
                group.ended.wait()
                raise
        killed = next((error for error in raised if isinstance(error, Killed)), None)
        if killed is not None:
            raise killed
        return raised

    def _begin(self, me: _Task | None, tasks: Sequence[_Task]) -> None:
        """Starts scheduling tasks; if the caller is a task itself, it waits for their end."""
        following = None
        with self._mutex:
            for task in tasks:
                task.wake = self.elapsed
            self._tasks += tasks
            if me is not None:
                me.waits = True
            if me is not None or self._running is None:
                following = self._choose()
        if me is not None:
            self._hand_over(me, following)
        elif following is not None:
            following.go.release()

    @property
    def _me(self) -> _Task | None:
        return getattr(self._here, "task", None)

    def _hand_over(self, me: _Task, following: _Task | None) -> None:
        if following is not me:
            if following is not None:
                following.go.release()
            self._await_turn(me)
        elif me.poison is not None:
            raise me.poison

    @staticmethod
    def _await_turn(me: _Task) -> None:
        if not me.go.acquire(timeout=_STUCK_S):
            raise AssertionError(
                f"no turn within {_STUCK_S:.0f} s: whoever runs waits for a lock whose holder was "
                "preempted; nothing may sleep, or have an effect, while it holds one"
            )
        if me.poison is not None:
            raise me.poison

    def _choose(self) -> _Task | None:
        """Chooses the next task to run; called with the mutex held."""
        waiting = [task for task in self._tasks if not task.waits]
        ready = [task for task in waiting if task.wake <= self.elapsed or task.poison]
        if not ready and waiting:
            self.elapsed = min(task.wake for task in waiting)
            ready = [task for task in waiting if task.wake <= self.elapsed]
        if not ready:
            self._running = None
        else:
            self._running = ready[0] if len(ready) == 1 else self._random.choice(ready)
        return self._running

    def _end(self, task: _Task, error: BaseException | None) -> None:
        """Handles the end of a task, in its own thread."""
        group = task.group
        with self._mutex:
            self._tasks.remove(task)
            if isinstance(error, Killed):
                for other in self._tasks:
                    other.poison = other.poison or error
            group.left -= 1
            if not group.left and group.caller is not None:
                group.caller.waits = False
                group.caller.wake = self.elapsed
            following = self._choose()
        if following is not None:
            following.go.release()
        if not group.left and group.caller is None:
            group.ended.set()
