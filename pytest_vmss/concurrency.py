"""Calls that may never return, in threads of their own."""

from __future__ import annotations

import contextvars
import sys
import threading
import traceback
from collections.abc import Callable
from typing import TypeVar

__all__ = ["bounded", "whereabouts"]

_T = TypeVar("_T")

#: Seconds between two looks at whether the lab is being closed meanwhile.
_PULSE_S = 0.5


def bounded(
    call: Callable[[], _T],
    *,
    what: str,
    timeout: float,
    pulse: Callable[[], object] = lambda: None,
) -> _T:
    """Calls something that may never return, in a thread of its own.

    Args:
        call: What is called; it sees this thread's context variables.
        what: The same in words, for the error message.
        timeout: Seconds; a call that takes longer is left to itself.
        pulse: Called now and then meanwhile; what it raises ends the wait.

    Raises:
        TimeoutError: It did not return in time; the message says where it stands.
        BaseException: Whatever it raised.
    """
    answers: list[_T] = []
    failures: list[BaseException] = []
    ended = threading.Event()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            answers.append(context.run(call))
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
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
    """Where a thread stands now, in words."""
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return "it has ended"
    place = traceback.extract_stack(frame)[-1]
    return f"it stands in {place.name}, {place.filename}:{place.lineno}"
