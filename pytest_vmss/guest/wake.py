"""Makes a guest current that was restored from a checkpoint: its clock and random numbers."""

from __future__ import annotations

import secrets
import shlex
import time
from importlib.resources import files

from pytest_vmss.errors import GuestCommandError, HypervisorError, WaitTimeoutError
from pytest_vmss.guest.agent import Ask, run_program
from pytest_vmss.guest.boot_facts import FACT_CHARS
from pytest_vmss.guest.connection import Connection
from pytest_vmss.untrusted import ending, one_line

__all__ = ["wake"]

_TOLD_CHARS = 200


def wake(connection: Connection, ask: Ask | None) -> str:
    """Sets a restored guest's clock and reseeds its random number generator.

    Over the guest agent where it is connected, since a login takes longer than the restore.

    Args:
        connection: The connection to the guest.
        ask: Sends a command to its guest agent; None if it has none that is connected.

    Returns:
        The id of the boot that it continues.

    Raises:
        GuestUnreachableError: The guest does not answer.
        GuestCommandError: It could not be done.
    """
    program = ["/usr/bin/python3", "-I", "-S", "-c", _in_guest("wake.py")]
    limit = connection.login_limit
    if ask is not None:
        try:
            told = run_program(ask, program, _now(), timeout=limit, clock=connection.clock)
            return one_line(told, FACT_CHARS)
        except (HypervisorError, WaitTimeoutError):
            pass  # the agent may not be allowed to run programs
    done = connection.runner().run(shlex.join(program), stdin=_now(), sudo=True, timeout=limit)
    if done.exit_code != 0:
        raise GuestCommandError(
            f"its clock and random seed could not be set after its restore: {ending(done.stderr, _TOLD_CHARS)}",
            instance=connection.name, exit_code=done.exit_code, stderr=done.stderr,
        )  # fmt: skip
    return one_line(done.stdout, FACT_CHARS)


def _now() -> bytes:
    """The input of the program: the time, and a seed that no other instance gets."""
    return f"{time.time_ns()}\n{secrets.token_hex(64)}\n".encode()


def _in_guest(name: str) -> str:
    """The source of a program that runs in guests."""
    return (files("pytest_vmss.guest.in_guest") / name).read_text(encoding="utf-8")
