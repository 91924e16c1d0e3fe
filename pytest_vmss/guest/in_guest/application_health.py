"""The Application Health extension's own process: looks at the application from inside (F3).

Runs in guests, and imports nothing of this package. Every ``intervalInSeconds``
it writes a status file in the Azure guest agent's format. The file is in /run,
so that what an earlier boot has said is gone (F5).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import sys
import time
from typing import Any

HEALTHY = "Healthy"
UNHEALTHY = "Unhealthy"
UNKNOWN = "Unknown"
INITIALIZING = "Initializing"
#: A virtio port by which a guest without an agent tells the lab.
PORT = "/dev/virtio-ports/org.pytest-vmss.health"


class Rules:
    """The application's state, from consecutive looks at it.

    Args:
        probes: ``numberOfProbes``: equal looks in a row that make a state.
        grace: ``gracePeriod`` in seconds; None for version 1.0, which has no rich states.
        expired: The state when the grace period ends before there is one.
        started: Moment at which the extension started, in seconds.
    """

    def __init__(self, probes: int, grace: float | None, expired: str, started: float) -> None:
        self._probes = probes
        self._grace = grace
        self._expired = expired
        self._started = started
        self._last: str | None = None
        self._count = 0
        self.state: str | None = None if grace is None else INITIALIZING

    def observe(self, seen: str, now: float) -> str | None:
        """Takes a look's result; returns the state, None while version 1.0 has none yet."""
        self._count = self._count + 1 if seen == self._last else 1
        self._last = seen
        enough = self._count >= self._probes
        if self.state == INITIALIZING and self._grace is not None:
            if enough and seen != UNKNOWN:
                self.state = seen
            elif now - self._started >= self._grace:
                self.state = self._expired
        elif enough:
            self.state = seen
        return self.state


def rules_of(settings: dict[str, Any], started: float) -> Rules:
    """The rules that settings ask for, with Azure's defaults filled in."""
    expired = UNHEALTHY if settings["protocol"] == "tcp" else UNKNOWN
    return Rules(settings["numberOfProbes"], settings.get("gracePeriod"), expired, started)


def _short(text: str) -> str:
    """A text as messages quote it; a mark tells where it is cut, for secrets may be."""
    return text if len(text) <= 50 else f"{text[:49]}…"


def judge(settings: dict[str, Any], status: int, body: bytes) -> tuple[str, str, str | None]:
    """What an answer over HTTP says.

    Returns:
        The state, what was seen in words, and ``customMetrics`` where there are any.
    """
    if settings.get("gracePeriod") is None:
        return (HEALTHY if status == 200 else UNHEALTHY), f"HTTP status {status}", None
    if not 200 <= status < 300:
        return UNKNOWN, f"HTTP status {status}", None
    try:
        answer = json.loads(body.decode("utf-8"))
        state = answer["ApplicationHealthState"]
        metrics = answer.get("customMetrics")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return UNKNOWN, "the body has no ApplicationHealthState", None
    told = metrics if isinstance(metrics, str) else None
    if state not in (HEALTHY, UNHEALTHY):
        return UNKNOWN, f"ApplicationHealthState is {_short(str(state))!r}", told
    return state, f"ApplicationHealthState is {state}", told


def look(settings: dict[str, Any]) -> tuple[str, str, str | None]:
    """Looks at the application once; as :func:`judge`."""
    try:
        if settings["protocol"] == "tcp":
            socket.create_connection(
                ("127.0.0.1", settings["port"]), settings["intervalInSeconds"]
            ).close()
            return HEALTHY, f"port {settings['port']} takes connections", None
        return judge(settings, *_get(settings))
    except (OSError, http.client.HTTPException) as failed:
        rich_http = settings.get("gracePeriod") is not None and settings["protocol"] != "tcp"
        state = UNKNOWN if rich_http else UNHEALTHY
        return state, f"port {settings['port']}: {failed or type(failed).__name__}", None


def _get(settings: dict[str, Any]) -> tuple[int, bytes]:
    timeout = settings["intervalInSeconds"]
    if settings["protocol"] == "https":
        import ssl

        link: http.client.HTTPConnection = http.client.HTTPSConnection(
            "127.0.0.1",
            settings["port"],
            timeout=timeout,
            context=ssl._create_unverified_context(),  # noqa: S323 - as Azure's does
        )
    else:
        link = http.client.HTTPConnection("127.0.0.1", settings["port"], timeout=timeout)
    try:
        link.request("GET", settings["requestPath"], headers={"Connection": "close"})
        answer = link.getresponse()
        return answer.status, answer.read(65536)
    finally:
        link.close()


def document(state: str | None, words: str, metrics: str | None, boot: str, now: int) -> str:
    """The status file.

    Args:
        state: None where there is none yet.
        words: What the last look saw.
        metrics: ``customMetrics``.
        boot: The kernel's boot id.
        now: Time of day in nanoseconds.
    """
    result = {HEALTHY: "success", UNHEALTHY: "error"}.get(state or "", "transitioning")
    found = "unhealthy" if result == "error" else "healthy"
    told = words if result == "transitioning" else f"Application found to be {found}"
    substatus = [_status("AppHealthStatus", result, told)]
    if state is not None:
        substatus.append(_status("ApplicationHealthState", result, state))
    if metrics is not None:
        substatus.append(_status("CustomMetrics", _readable(metrics), metrics))
    status = {
        "operation": "enable",
        "status": "success",
        "formattedMessage": {"lang": "en-US", "message": words},
        "substatus": substatus,
    }
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now / 1e9))
    entry = {"version": 1.0, "timestampUTC": stamp, "status": status}
    return json.dumps([dict(entry, bootId=boot, nanoseconds=now)])


def _status(name: str, status: str, message: str) -> dict[str, Any]:
    return {
        "name": name,
        "status": status,
        "formattedMessage": {"lang": "en-US", "message": message},
    }


def _readable(metrics: str) -> str:
    try:
        return "success" if isinstance(json.loads(metrics), dict) else "error"
    except (ValueError, RecursionError):
        return "error"


def tell(path: str, port: str, text: str) -> None:
    """Reports by file and by port; where one of them fails, the other one still tells."""
    with contextlib.suppress(OSError):  # such as a full disk: what it holds gets too old
        _write(path, text)
    _send(port, text)


def _write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".part", "w") as file:
        file.write(text)
    os.replace(path + ".part", path)


def _send(port: str, text: str) -> None:
    """Writes a line to the lab's virtio port, where there is one; nobody may be reading it."""
    try:
        descriptor = os.open(port, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return
    try:
        # The line before may have been cut off, so it is ended first.
        os.write(descriptor, b"\n" + text.encode() + b"\n")
    except OSError:
        pass
    finally:
        os.close(descriptor)


def main(settings_path: str, status_path: str) -> None:
    """Looks for ever."""
    with open(settings_path) as file:
        settings = json.load(file)
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    rules = rules_of(settings, time.monotonic())
    tell(status_path, PORT, document(rules.state, "not looked yet", None, boot, time.time_ns()))
    while True:
        begun = time.monotonic()
        seen, words, metrics = look(settings)
        state = rules.observe(seen, time.monotonic())
        tell(status_path, PORT, document(state, words, metrics, boot, time.time_ns()))
        time.sleep(max(settings["intervalInSeconds"] - (time.monotonic() - begun), 0.1))


if __name__ == "__main__":
    main(*sys.argv[1:])
