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
    return json.loads(ask(json.dumps(command)))["return"]


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
    return base64.b64decode(answer["buf-b64"])


def guest_time(ask: Ask) -> int:
    """The guest's time of day, in nanoseconds.

    Raises:
        HypervisorError: The agent does not answer.
    """
    return int(_call(ask, "guest-get-time"))
