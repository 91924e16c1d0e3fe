"""What the plugin writes to the terminal while tests run: the live view, and what is waited for."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO, cast

import pytest

if TYPE_CHECKING:
    from rich.console import Console

    from pytest_vmss.api.lab import Lab
    from pytest_vmss.report import LiveView

__all__ = ["close_streams", "live_view", "open_streams", "tell"]

_TERMINAL: pytest.StashKey[TextIO] = pytest.StashKey()
#: Standard error as it was before pytest captured it.
_ERRORS: pytest.StashKey[TextIO] = pytest.StashKey()


def open_streams(config: pytest.Config) -> None:
    """Duplicates descriptors: pytest captures the originals while tests run."""
    with contextlib.suppress(OSError):
        config.stash[_ERRORS] = os.fdopen(os.dup(2), "w", encoding="utf-8")
    wanted = config.getoption("--vmss-live")
    if wanted == "on" or (wanted == "auto" and sys.stdout.isatty()):
        # While tests run, pytest captures what is written to descriptor 1 itself.
        with contextlib.suppress(OSError, ValueError):
            descriptor = os.dup(sys.stdout.fileno())
            config.stash[_TERMINAL] = os.fdopen(descriptor, "w", encoding="utf-8")


def close_streams(config: pytest.Config) -> None:
    """Closes the duplicated descriptors."""
    for key in (_TERMINAL, _ERRORS):
        stream = config.stash.get(key, None)
        if stream is not None:
            stream.close()


@contextlib.contextmanager
def live_view(lab: Lab, config: pytest.Config) -> Iterator[None]:
    """Shows what the lab's VMs do, unless that is off."""
    from pytest_vmss.report import LiveView

    console = _console(config)
    if console is None:
        yield
        return
    writer = _writer(config)
    view = LiveView.of(lab, console, column=lambda: _column(writer))
    with _shared(writer, view), view:
        yield


def tell(config: pytest.Config, message: str) -> None:
    """Tells at once what the lab waits for, although pytest captures what tests print."""
    stream = config.stash.get(_ERRORS, None)
    if stream is not None:
        worker = os.environ.get("PYTEST_XDIST_WORKER")
        with contextlib.suppress(OSError, ValueError):
            print(f"\n{f'[{worker}] ' if worker else ''}vmss {message}", file=stream, flush=True)


def _console(config: pytest.Config) -> Console | None:
    """The console of the live view; None if it is off."""
    terminal = config.stash.get(_TERMINAL, None)
    if terminal is None:
        return None
    from rich.console import Console

    from pytest_vmss.report import with_width

    # With -s, the tests' own output would be mixed with the table, which nobody could keep apart.
    as_table = terminal.isatty() and config.getoption("capture") != "no"
    return with_width(Console(file=terminal, force_terminal=as_table))


def _writer(config: pytest.Config) -> Any:
    """What pytest writes its lines to the terminal with; None if it has no terminal."""
    return getattr(config.pluginmanager.getplugin("terminalreporter"), "_tw", None)


def _column(writer: Any) -> int:
    """The width of the line that pytest has begun, such as that of a file's dots."""
    return 0 if writer is None else cast("int", writer.width_of_current_line)


@contextlib.contextmanager
def _shared(writer: Any, view: LiveView) -> Iterator[None]:
    """Erases the live view whenever pytest writes, so that neither overwrites the other."""
    if writer is None:
        yield
        return
    write = writer.write

    def write_alone(message: str, *, flush: bool = False, **markup: bool) -> None:
        del flush  # always, for the view writes to the terminal by itself
        with view.writing():
            write(message, flush=True, **markup)

    writer.write = write_alone
    try:
        yield
    finally:
        del writer.write
