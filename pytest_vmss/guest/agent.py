"""Calls to the QEMU guest agent, which works without a network, also in isolated guests (F3)."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from pytest_vmss.clock import Clock, Deadline, wait_for
from pytest_vmss.errors import HypervisorError
from pytest_vmss.untrusted import UnreadableError, one_line, read_json, read_whole

__all__ = ["Ask", "guest_time", "read_file", "run_program", "within"]

_BYTES = 256 * 1024

#: Sends a command (JSON) to the agent and returns its response (JSON).
Ask = Callable[[str], str]


def _call(ask: Ask, execute: str, **arguments: Any) -> Any:
    command: dict[str, Any] = {"execute": execute}
    if arguments:
        command["arguments"] = arguments
    answer = ask(json.dumps(command))
    try:
        return read_json(answer)["return"]
    except (UnreadableError, KeyError, TypeError) as error:
        reason = error if isinstance(error, UnreadableError) else "it has no `return`"
        raise HypervisorError(
            f"the guest agent's answer to {execute} is not valid: {reason}"
        ) from error


def within(ask: Ask, seconds: float) -> Ask:
    """Limits the total time of several calls to the agent; each call has its own timeout besides.

    Args:
        ask: Sends a command to the agent.
        seconds: After this time no further call is made.

    Returns:
        A function like ``ask`` that raises HypervisorError once the time is up.
    """
    deadline = Deadline(seconds)

    def asked(command: str) -> str:
        if deadline.passed:
            raise HypervisorError(f"the guest agent took more than {seconds:g} s for its answers")
        return ask(command)

    return asked


def read_file(ask: Ask, path: str) -> bytes:
    """Reads a file, at most its first 256 KiB.

    Raises:
        HypervisorError: The agent does not respond, or cannot read the file.
    """
    handle = _whole(_call(ask, "guest-file-open", path=path, mode="r"), "the file's handle")
    try:
        answer = _call(ask, "guest-file-read", handle=handle, count=_BYTES)
    finally:
        with contextlib.suppress(HypervisorError):
            _call(ask, "guest-file-close", handle=handle)
    try:
        return base64.b64decode(answer["buf-b64"])[:_BYTES]
    except (ValueError, KeyError, TypeError) as error:
        raise HypervisorError(f"the guest agent returned no content of {path}") from error


def guest_time(ask: Ask) -> int:
    """Returns the guest's time of day, in nanoseconds since the epoch.

    Raises:
        HypervisorError: The agent does not respond.
    """
    return _whole(_call(ask, "guest-get-time"), "the time")


def run_program(
    ask: Ask, arguments: Sequence[str], stdin: bytes, *, timeout: float, clock: Clock
) -> str:
    """Runs a program as root, and waits for it to end.

    Args:
        ask: Sends a command to the agent.
        arguments: The program's path and its arguments.
        stdin: Its standard input.
        timeout: Seconds that it may take.
        clock: The clock for waiting.

    Returns:
        Its standard output.

    Raises:
        HypervisorError: The agent does not respond or refuses, or the program failed.
        WaitTimeoutError: It did not end in time.
    """
    path, *rest = arguments
    told = _call(
        ask,
        "guest-exec",
        **{"path": path, "arg": rest, "capture-output": True},
        **{"input-data": base64.b64encode(stdin).decode()},
    )
    try:
        pid = read_whole(told["pid"], "the process's id")
    except (UnreadableError, KeyError, TypeError) as error:
        raise HypervisorError("the guest agent returned no process id") from error

    def ended() -> dict[str, Any] | None:
        status = _call(ask, "guest-exec-status", pid=pid)
        if not isinstance(status, dict):
            raise HypervisorError(f"the guest agent returned no status of {path}")
        return status if status.get("exited") is True else None

    status = wait_for(f"{path} in the guest", ended, timeout=timeout, clock=clock, interval=0.02)
    if status.get("exitcode") != 0:
        code = one_line(str(status.get("exitcode", "a signal")), 20)
        raise HypervisorError(f"{path} failed in the guest: it ended with {code}")
    try:
        return base64.b64decode(status.get("out-data", ""))[:_BYTES].decode(errors="replace")
    except (ValueError, TypeError) as error:
        raise HypervisorError(f"the guest agent returned no output of {path}") from error


def _whole(told: object, what: str) -> int:
    try:
        return read_whole(told, what)
    except UnreadableError as error:
        raise HypervisorError(f"the guest agent's answer is not valid: {error}") from error
