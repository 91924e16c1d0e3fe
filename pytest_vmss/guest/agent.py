"""Files in a guest, read over its agent: without network, also where the guest is cut off (F3)."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable
from typing import Any

from pytest_vmss.errors import HypervisorError

__all__ = ["guest_time", "read_file"]

_BYTES = 256 * 1024

#: Gives the agent a command (JSON) and returns its answer (JSON).
Ask = Callable[[str], str]


def _call(ask: Ask, execute: str, **arguments: Any) -> Any:
    command: dict[str, Any] = {"execute": execute}
    if arguments:
        command["arguments"] = arguments
    answer = ask(json.dumps(command))
    try:
        return json.loads(answer)["return"]
    except (ValueError, KeyError, TypeError, RecursionError) as odd:
        raise HypervisorError(f"the guest agent answered {execute} with what it must not") from odd


def read_file(ask: Ask, path: str) -> bytes:
    """Reads a file's first 256 KiB.

    Raises:
        HypervisorError: The agent does not answer, or cannot read it.
    """
    handle = _call(ask, "guest-file-open", path=path, mode="r")
    try:
        answer = _call(ask, "guest-file-read", handle=handle, count=_BYTES)
    finally:
        with contextlib.suppress(HypervisorError):
            _call(ask, "guest-file-close", handle=handle)
    try:
        return base64.b64decode(answer["buf-b64"])[:_BYTES]
    except (ValueError, KeyError, TypeError) as odd:
        raise HypervisorError(f"the guest agent sent no file for {path}") from odd


def guest_time(ask: Ask) -> int:
    """The guest's time of day, in nanoseconds.

    Raises:
        HypervisorError: The agent does not answer.
    """
    told = _call(ask, "guest-get-time")
    if not isinstance(told, int):
        raise HypervisorError("the guest agent told no time")
    return told
