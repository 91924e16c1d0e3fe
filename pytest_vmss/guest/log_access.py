"""How a guest is asked for its logs: over SSH, or else over its guest agent (L3)."""

from __future__ import annotations

from pytest_vmss.clock import wait_for
from pytest_vmss.errors import GuestUnreachableError, WaitTimeoutError
from pytest_vmss.guest.agent import Ask, run_program
from pytest_vmss.guest.connection import Connection, ReconnectingRunner
from pytest_vmss.guest.logs import LOG_BYTES, Run, ended

__all__ = ["log_access"]

#: The most bytes of a log over the agent, whose answers are single lines of JSON.
_AGENT_BYTES = 150_000


def log_access(connection: Connection, ask: Ask | None, *, patience: float) -> Run:
    """Returns what runs commands as root in a guest.

    Args:
        connection: The connection to the guest.
        ask: Sends a command to its guest agent; None if it has none that is connected.
        patience: Seconds for which it is tried to log in, if the guest has no other way.

    Raises:
        KernelPanicError: The kernel panicked.
        NoBootError: Nothing to boot was found, or the VM stopped.
        GuestUnreachableError: The guest answers neither way.
    """
    connection.watch.check()
    shell = connection.connect()
    if shell is None and ask is not None:
        return _over_agent(ask, connection)
    if shell is None:
        _wait(connection, patience)
    return _over_ssh(connection)


def _wait(connection: Connection, patience: float) -> None:
    what = f"{connection.name} to answer over SSH"
    try:
        wait_for(what, connection.connect, timeout=patience, clock=connection.clock)
    except WaitTimeoutError as error:
        raise GuestUnreachableError(
            "answers neither over SSH nor over a guest agent", instance=connection.name
        ) from error


def _over_ssh(connection: Connection) -> Run:
    runner = ReconnectingRunner(connection.require, most=LOG_BYTES)

    def run(command: str, timeout: float) -> str:
        return runner.run(command, sudo=True, timeout=timeout).stdout

    return run


def _over_agent(ask: Ask, connection: Connection) -> Run:
    def run(command: str, timeout: float) -> str:
        program = ["/bin/sh", "-c", f"{{ {command}; }} | tail -c {_AGENT_BYTES}"]
        told = run_program(ask, program, b"", timeout=timeout, clock=connection.clock)
        return ended(told, _AGENT_BYTES)

    return run
