"""Ctrl-C in a session that has VMs: the first ends it, and no further one cuts the removal short."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

__all__ = ["Interrupts"]

#: So many in a row end the process, whatever is left of its lab: the next start removes that.
_IMPATIENT = 4


class Interrupts:
    """Handles SIGINT from the making of a session's lab until pytest has printed its summary.

    The first Ctrl-C raises :class:`KeyboardInterrupt`, as Python's own handler does: pytest ends
    the session, and the fixtures remove the lab within seconds. A later one would stop this, and
    pytest's summary; it is only answered. A plugin of pytest's, for a test that catches the
    first one starts anew.

    Args:
        tell: Tells the user something at once.
    """

    def __init__(self, tell: Callable[[str], object]) -> None:
        self._tell = tell
        self._count = 0
        self._held = False
        self._installed = False

    def install(self) -> None:
        """Takes the place of Python's own handler, unless the suite has put another there."""
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._handle)
            self._installed = True

    def uninstall(self) -> None:
        """Gives the place back."""
        if self._installed:
            self._installed = False
            signal.signal(signal.SIGINT, signal.default_int_handler)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        """Begins to count anew: the session goes on."""
        self._count = 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Raises what comes meanwhile at the end of the block, which takes seconds at most.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        before = self._count
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if before == 0 and self._count:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - Python's
        self._count += 1
        if self._count >= _IMPATIENT or (self._count == 1 and not self._held):
            raise KeyboardInterrupt
        left = _IMPATIENT - self._count
        self._tell(f"is removing the VMs; {left} more times Ctrl-C leaves them to `vmss reap`")
