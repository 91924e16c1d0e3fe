"""The outputs and timeouts of one command in a guest, which may write anything or nothing (R2)."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

__all__ = ["CommandLimits", "CommandOutput", "TooMuchOutputError", "watchdog"]

_CHUNK = 65536


class TooMuchOutputError(OSError):
    """A command wrote more output than allowed."""


class CommandLimits:
    """The timeouts of one command."""

    def __init__(self, total: float, silence: float | None) -> None:
        self._total = total
        self._silence = silence
        self._end = time.monotonic() + total
        self._heard = time.monotonic()

    def hear(self) -> None:
        """Records that it has just written something."""
        self._heard = time.monotonic()

    def rest(self) -> float:
        """Returns the seconds until the timeout; never less than 0."""
        return max(self._end - time.monotonic(), 0.0)

    def left(self) -> float:
        """Returns the seconds until the timeout or the silence timeout, whichever is first."""
        if self._silence is None:
            return self.rest()
        return max(min(self._end, self._heard + self._silence) - time.monotonic(), 0.0)

    def told(self) -> str:
        """Describes the timeout that was reached."""
        if self._silence is not None and time.monotonic() < self._end:
            return f"it wrote nothing for {self._silence:g} s"
        return f"the limit is {self._total:g} s"


class CommandOutput:
    """Reads one of a command's outputs in a thread, so that the other cannot block it."""

    def __init__(
        self,
        receive: Callable[[int], bytes],
        timeouts: CommandLimits,
        most: int,
    ) -> None:
        self._receive = receive
        self._timeouts = timeouts
        self._most = most
        self._parts: list[bytes] = []
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._read, name="ssh-output", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        size = 0
        try:
            while part := self._receive(_CHUNK):
                self._timeouts.hear()
                self._parts.append(part)
                size += len(part)
                if size > self._most:
                    self._parts.clear()
                    raise TooMuchOutputError(f"more than {self._most >> 20} MiB")
        except Exception as error:  # noqa: BLE001 - raised in the waiting thread
            self._failure = error

    def wait(self) -> None:
        """Waits until the output is closed.

        Raises:
            OSError: There was too much output, or a timeout was reached.
            Exception: Anything else that paramiko raised while reading.
        """
        while self._thread.is_alive():
            left = self._timeouts.left()
            if left <= 0:
                raise TimeoutError
            self._thread.join(left)
        if self._failure is not None:
            raise self._failure

    def text(self) -> str:
        """Returns the output."""
        return b"".join(self._parts).decode(errors="replace")


@contextlib.contextmanager
def watchdog(seconds: float, give_up: Callable[[], None]) -> Iterator[None]:
    """Gives up on timeout, since paramiko would wait for the guest forever."""
    watchdog = threading.Timer(seconds, give_up)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()
