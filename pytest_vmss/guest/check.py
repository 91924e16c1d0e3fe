"""A health source of the lab's own: a user's function, asked about one guest (F4, Q3)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from pytest_vmss.checks import bounded, judge
from pytest_vmss.errors import BootError, GuestCommandError, HostError, HypervisorError

__all__ = ["Check", "asked"]

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
