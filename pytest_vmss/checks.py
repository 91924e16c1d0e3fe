"""Checks that users hand over: every way in which one can end counts (Q3).

``pytest.fail`` and ``pytest.skip`` raise BaseExceptions, an ``async def`` returns a
coroutine that nobody awaits, and a request without a limit never returns. Whatever
is not plainly a success is a failed check.
"""

from __future__ import annotations

import contextvars
import inspect
import sys
import threading
import traceback
from collections.abc import Callable
from typing import TypeVar

from pytest_vmss.clock import Interrupted

__all__ = ["bounded", "in_words", "judge", "whereabouts"]

_T = TypeVar("_T")

#: Seconds between two looks at whether the lab is being closed meanwhile.
_PULSE_S = 0.5


def judge(
    check: Callable[[], object], *, passes_on: Callable[[Exception], bool] = lambda _: False
) -> str:
    """Makes a check in this thread.

    Args:
        check: Holds where it returns something true, or nothing.
        passes_on: Whether an error says nothing about the check; then it is raised.

    Returns:
        Why it does not hold, in words; empty where it holds.

    Raises:
        Interrupted: The lab is being closed.
        KeyboardInterrupt: Ctrl-C in the main thread.
    """
    try:
        return _verdict(check())
    except Interrupted:
        raise
    except KeyboardInterrupt as error:
        if threading.current_thread() is threading.main_thread():
            raise
        return in_words(error)
    except BaseException as error:
        if isinstance(error, Exception) and passes_on(error):
            raise
        return in_words(error)  # whatever it is, it does not hold


def _verdict(answer: object) -> str:
    if inspect.isawaitable(answer) or inspect.isgenerator(answer) or inspect.isasyncgen(answer):
        kind = type(answer).__name__
        if inspect.iscoroutine(answer):
            answer.close()  # else Python warns that nobody awaited it
        return (
            f"the check returned a {kind}, so nothing of it has run; use a plain function, e.g. "
            "with asyncio.run() inside"
        )
    return "" if answer is None or answer else f"the check returned {answer!r}"


def in_words(failure: BaseException) -> str:
    """An exception's kind and text, also of one that cannot be printed."""
    try:
        text = str(failure)
    except Exception as error:  # noqa: BLE001 - a failure must not be lost for its words
        text = f"(its text cannot be had: {type(error).__name__})"
    kind = type(failure).__name__
    return f"{kind}: {text}" if text else kind


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
