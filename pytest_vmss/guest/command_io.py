"""The outputs and timeouts of one command in a guest, which may write anything or nothing (R2)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from pytest_vmss.clock import Deadline

__all__ = ["CommandLimits", "CommandOutput", "TooMuchOutputError", "watchdog"]

_CHUNK = 65536


class TooMuchOutputError(OSError):
    """A command wrote more output than allowed."""


class CommandLimits:
    """The timeouts of one command."""

    def __init__(self, total: float, silence: float | None) -> None:
        self._total, self._silence = total, silence
        self._end = Deadline(total)
        self._quiet_end: Deadline | None = None
        self.hear()

    def hear(self) -> None:
        """Records that it has just written something."""
        self._quiet_end = None if self._silence is None else Deadline(self._silence)

    def rest(self) -> float:
        """Returns the seconds until the timeout; never less than 0."""
        return self._end.left()

    def left(self) -> float:
        """Returns the seconds until the timeout or the silence timeout, whichever is first."""
        quiet_end = self._quiet_end
        return self.rest() if quiet_end is None else min(self.rest(), quiet_end.left())

    def told(self) -> str:
        """Describes the timeout that was reached."""
        if self._silence is not None and not self._end.passed:
            return f"it wrote nothing for {self._silence:g} s"
        return f"it did not end within {self._total:g} s"


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
