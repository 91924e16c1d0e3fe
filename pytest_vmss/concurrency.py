"""Calls with a timeout, in a thread of their own, to code that may never return."""

from __future__ import annotations

import contextvars
import sys
import threading
import traceback
from collections.abc import Callable
from typing import TypeVar

__all__ = ["bounded", "whereabouts"]

_T = TypeVar("_T")

#: Seconds between two calls of ``pulse``, e.g. to check whether the lab is being closed.
_PULSE_S = 0.5


def bounded(
    call: Callable[[], _T],
    *,
    what: str,
    timeout: float,
    pulse: Callable[[], object] = lambda: None,
) -> _T:
    """Calls something that may never return, in a thread of its own, with a timeout.

    Args:
        call: What to call; it sees this thread's context variables.
        what: Describes the call, for the error message.
        timeout: In seconds; a call that takes longer is abandoned, but keeps running.
        pulse: Called every half second meanwhile; if it raises, the wait ends.

    Returns:
        What the call returned.

    Raises:
        TimeoutError: It did not return in time; the message says where it is.
        BaseException: Whatever the call raised.
    """
    answers: list[_T] = []
    failures: list[BaseException] = []
    ended = threading.Event()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            answers.append(context.run(call))
        except BaseException as error:  # noqa: BLE001 - raised in the waiting thread
            failures.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=run, name="vmss-check", daemon=True)
    thread.start()
    left = timeout
    while not ended.wait(min(_PULSE_S, left)):
        pulse()
        left -= _PULSE_S
        if left <= 0:
            raise TimeoutError(
                f"{what} did not return within {timeout:g} s ({whereabouts(thread)}); give it a "
                "time limit of its own"
            )
    if failures:
        raise failures[0]
    return answers[0]


def whereabouts(thread: threading.Thread) -> str:
    """Describes where a thread is executing."""
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return "it has ended"
    place = traceback.extract_stack(frame)[-1]
    return f"it stands in {place.name}, {place.filename}:{place.lineno}"
