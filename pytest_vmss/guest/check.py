"""Runs users' health checks; anything but plain success counts as failure (F4, Q3).

``pytest.fail`` and ``pytest.skip`` raise BaseExceptions, an ``async def`` returns a coroutine
that is never awaited, and a request without a timeout may never return.
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
from pytest_vmss.guest.runner import Runner
from pytest_vmss.untrusted import ending, shown

__all__ = ["Check", "judge", "run_command_check", "run_function_check"]

#: A command whose exit status counts, or a function that takes a testinfra host and returns or
#: raises like an assertion.
Check = str | Callable[[Any], object]

_TOLD_CHARS = 200
#: Maximum output of a check command, in bytes.


def _says_nothing(failure: Exception) -> bool:
    """Whether an error is due to an unresponsive guest or to the host, not to the check."""
    if isinstance(failure, GuestCommandError):
        return failure.exit_code < 0
    return isinstance(failure, (BootError, HostError, HypervisorError))


def run_command_check(command: str, runner: Runner, *, timeout: float) -> tuple[bool, str]:
    """Runs a check command; any exit status but 0 counts as failure.

    Args:
        command: For the guest's shell.
        runner: Runs it in the guest.
        timeout: In seconds.

    Returns:
        Whether the guest is healthy, and what was observed.

    Raises:
        GuestCommandError: The connection broke, or the command timed out.
    """
    done = runner.run(command, timeout=timeout)
    told = ending(done.stdout + done.stderr, _TOLD_CHARS)
    seen = f"`{command}` ended with status {done.exit_code}"
    return done.exit_code == 0, f"{seen}: {told}" if told else seen


def run_function_check(
    check: Callable[[Any], object],
    host: object,
    *,
    timeout: float,
    pulse: Callable[[], object] = lambda: None,
) -> tuple[bool, str]:
    """Runs a check function with a timeout; any outcome but success counts as failure.

    Args:
        check: Returns something true, or None, if the guest is healthy.
        host: The argument it is called with.
        timeout: In seconds; a function that takes longer fails.
        pulse: Called regularly meanwhile; if it raises, the wait ends.

    Returns:
        Whether the guest is healthy, and what was observed.

    Raises:
        BootError: The guest does not answer.
        GuestCommandError: The connection to it broke.
        HostError: The host could not run the check; also HypervisorError.
    """
    name = getattr(check, "__name__", "the function")
    try:
        wrong = bounded(
            partial(judge, partial(check, host), passes_on=_says_nothing),
            what="the function", timeout=timeout, pulse=pulse,
        )  # fmt: skip
    except TimeoutError as error:
        wrong = str(error)
    return not wrong, f"{name}: {shown(wrong, _TOLD_CHARS)}" if wrong else f"{name} holds"


def judge(
    check: Callable[[], object], *, passes_on: Callable[[Exception], bool] = lambda _: False
) -> str:
    """Runs a check in the calling thread.

    Args:
        check: Passes if it returns something true, or None.
        passes_on: Whether an exception says nothing about the check and is to be raised.

    Returns:
        Why the check failed; empty if it passed.

    Raises:
        Interrupted: The lab is being closed.
        KeyboardInterrupt: Ctrl-C in the main thread.
        Exception: The check's own, if ``passes_on`` accepts it.
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
            answer.close()  # else Python warns that it was never awaited
        return (
            f"the check returned a {kind}, so nothing of it has run; use a plain function, e.g. "
            "with asyncio.run() inside"
        )
    return "" if answer is None or answer else f"the check returned {answer!r}"
