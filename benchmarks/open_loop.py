"""Load at a fixed rate, whether or not answers come."""

from __future__ import annotations

import http.client
import math
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Self
from urllib.parse import urlsplit

__all__ = ["Load", "get"]

_TIMEOUT_S = 10.0
#: A request connects, sends and reads, each of which may take its own limit.
_END_S = 4 * _TIMEOUT_S


def get(url: str) -> None:
    """One HTTP request on a connection of its own.

    Raises:
        OSError: There was no answer within 10 seconds.
        http.client.HTTPException: The answer is not one, or its status is not 200.
    """
    parts = urlsplit(url)
    link = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
    try:
        link.request("GET", parts.path or "/", headers={"Connection": "close"})
        answer = link.getresponse()
        answer.read()
    finally:
        link.close()
    if answer.status != 200:
        raise http.client.HTTPException(f"HTTP status {answer.status}")


@dataclass
class Load:
    """Sends requests at a fixed rate, each in a thread of its own (an open loop).

    Clients that wait for an answer before they send again go quiet while a service
    stalls, and then count one slow answer where users would have met many. So
    requests here go out on time whatever became of those before them, and the time
    of an answer counts from the moment at which its request was due.

    Attributes:
        send: Makes one request; raises what it fails with.
        rate: Requests a second.
        answered: For each answer, when it came and the seconds since its request was due.
        failures: For each failure, when its request was due and what went wrong.
        sent: Requests so far.
    """

    send: Callable[[], None]
    rate: float
    answered: list[tuple[float, float]] = field(default_factory=list)
    failures: list[tuple[float, str]] = field(default_factory=list)
    sent: int = 0
    _requests: list[tuple[float, threading.Thread]] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _begun: float = math.nan
    _over: float = math.nan

    def __enter__(self) -> Self:
        """Begins."""
        self._begun = time.monotonic()
        self._sender = threading.Thread(target=self._run, name="load", daemon=True)
        self._sender.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Sends no more, and waits for the answers that are still to come."""
        self._ended.set()
        self._sender.join()
        self._over = time.monotonic()
        for due, thread in self._requests:
            thread.join(max(self._over + _END_S - time.monotonic(), 0.0))
            if thread.is_alive():
                self.failures.append((due, f"not answered {_END_S:.0f} s after the end"))

    @property
    def slowest(self) -> float:
        """The slowest answer in seconds; 0 where there was none."""
        return max((took for _, took in self.answered), default=0.0)

    @property
    def longest_gap(self) -> float:
        """The longest time without an answer in seconds, first and last moments included."""
        moments = [self._begun, *sorted(moment for moment, _ in self.answered)]
        moments.append(max(self._over, moments[-1]))
        return max(after - before for before, after in pairwise(moments))

    def report(self) -> str:
        """What was seen, in one line."""
        median = statistics.median(took for _, took in self.answered) if self.answered else 0.0
        return (
            f"requests={self.sent} rate={self.rate:g}/s failed={len(self.failures)} "
            f"median={median:.3f}s slowest={self.slowest:.2f}s longest_gap={self.longest_gap:.2f}s"
        )

    def explain(self, most: int = 10) -> list[str]:
        """The first failures in words."""
        return [
            f"{moment - self._begun:.1f} s after the beginning: {failure}"
            for moment, failure in sorted(self.failures)[:most]
        ]

    def _run(self) -> None:
        number = 0
        while True:
            due = self._begun + number / self.rate
            if self._ended.wait(max(due - time.monotonic(), 0.0)):
                return
            self.sent = number = number + 1
            thread = threading.Thread(target=self._request, args=(due,), daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the host has no more threads
                self.failures.append((due, f"not sent: {error}"))
            else:
                self._requests.append((due, thread))

    def _request(self, due: float) -> None:
        try:
            self.send()
        except (OSError, http.client.HTTPException) as error:
            self.failures.append((due, f"{type(error).__name__}: {error}"))
        else:
            now = time.monotonic()
            self.answered.append((now, now - due))
