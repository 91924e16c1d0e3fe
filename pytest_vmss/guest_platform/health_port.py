"""Reads what the guest's Application Health program writes to its virtio port (F3, O1).

The port needs no guest agent and no network. Each message is a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from pytest_vmss.untrusted import UnreadableError, read_json_file

__all__ = ["HEALTH_PORT", "HealthMessage", "connect", "keep_in_thread", "read_message"]

#: The port's name in the guest: ``/dev/virtio-ports/…``.
HEALTH_PORT = "org.pytest-vmss.health"

_LINE = 256 * 1024
_CHUNK = 64 * 1024
_FILE = 2 * _LINE + 1024
#: Seconds between two messages that are kept; a guest may write as many as it likes.
_SHORTEST_S = 0.05


@dataclass(frozen=True)
class HealthMessage:
    """The last message.

    Attributes:
        text: What the guest wrote.
        received: The host's time of day when it came, in nanoseconds.
    """

    text: str
    received: int


def read_message(path: Path) -> HealthMessage | None:
    """Reads the file that :func:`keep_in_thread` writes; None if there is no message yet."""
    try:
        document = read_json_file(path, _FILE)
        return HealthMessage(str(document["text"]), int(document["received"]))
    except (OSError, UnreadableError, ValueError, KeyError, TypeError):
        return None


def connect(port: str) -> socket.socket | None:
    """Connects to the port's socket; None if there is none."""
    link = socket.socket(socket.AF_UNIX)
    try:
        link.connect(port)
    except OSError:
        link.close()
        return None
    return link


def keep_in_thread(link: socket.socket, path: Path) -> None:
    """Keeps the port's last message in a file, in a thread of its own.

    Args:
        link: The connection; it ends with the VM.
        path: The file.
    """
    threading.Thread(target=_follow, args=[link, path], name="vmss-health", daemon=True).start()


def _follow(link: socket.socket, path: Path) -> None:
    with contextlib.suppress(OSError), link:
        _take(link, path)


def _take(link: socket.socket, keep: Path) -> None:
    """Keeps messages until the connection ends; one that is too long is dropped."""
    waiting = bytearray()
    is_whole = True
    while part := link.recv(_CHUNK):
        *lines, rest = (waiting + part).split(b"\n")
        if lines:
            if not is_whole:
                lines = lines[1:]
            is_whole = True
            if lines and lines[-1].strip():
                _keep(bytes(lines[-1]), keep)
                time.sleep(_SHORTEST_S)
        waiting = rest
        if len(waiting) > _LINE:
            waiting.clear()
            is_whole = False


def _keep(line: bytes, path: Path) -> None:
    """Replaces the file; whatever fails, the next message is kept again."""
    message = {"text": line[:_LINE].decode(errors="replace"), "received": time.time_ns()}
    # A message that is JSON grows to twice its size at most.
    body = json.dumps(message, ensure_ascii=False).encode()
    if len(body) > _FILE:
        return
    part = path.with_suffix(".part")
    with contextlib.suppress(OSError):  # such as a full disk
        with os.fdopen(os.open(part, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
            file.write(body)
        part.replace(path)
