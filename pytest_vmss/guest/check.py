"""Checks that users hand over: every way in which one can end counts (F4, Q3).

``pytest.fail`` and ``pytest.skip`` raise BaseExceptions, an ``async def`` returns a
coroutine that nobody awaits, and a request without a limit never returns. Whatever
is not plainly a success is a failed check.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from pytest_vmss.clock import Interrupted
from pytest_vmss.concurrency import bounded
from pytest_vmss.errors import BootError, GuestCommandError, HostError, HypervisorError, error_text

__all__ = ["Check", "asked", "judge"]

#: A command whose exit status counts, or a function of a testinfra host that returns or
#: raises as an assertion does.
Check = str | Callable[[Any], object]

_TOLD_CHARS = 200


def _says_nothing(failure: Exception) -> bool:
    """Whether an error is not the function's, but the guest's that does not answer, or the host's."""
    if isinstance(failure, GuestCommandError):
        return failure.exit_code < 0
    return isinstance(failure, (BootError, HostError, HypervisorError))


def asked(
    check: Callable[[Any], object],
    host: object,
    *,
    timeout: float,
    pulse: Callable[[], object] = lambda: None,
) -> tuple[bool, str]:
    """Asks a function whether a guest is well; every other end than success speaks against it.

    Args:
        check: Returns something true, or nothing, where it is.
        host: What it is given.
        timeout: Seconds; a function that takes longer counts as failed.
        pulse: Called now and then meanwhile; what it raises ends the wait.

    Returns:
        Whether it is well, and what was seen.

    Raises:
        BootError: The guest does not answer.
        GuestCommandError: The connection to it broke.
        HostError: The host could not tell; also HypervisorError.
    """
    name = getattr(check, "__name__", "the function")
    try:
        wrong = bounded(
            partial(judge, partial(check, host), passes_on=_says_nothing),
            what="the function", timeout=timeout, pulse=pulse,
        )[:_TOLD_CHARS]  # fmt: skip
    except TimeoutError as error:
        wrong = str(error)
    return not wrong, f"{name}: {wrong}" if wrong else f"{name} holds"


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
        return error_text(error)
    except BaseException as error:
        if isinstance(error, Exception) and passes_on(error):
            raise
        return error_text(error)  # whatever it is, it does not hold


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
