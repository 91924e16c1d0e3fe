"""Kills at moments that a test chooses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from pytest_vmss.store import Store


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the product catches it."""


@contextlib.contextmanager
def at_write(moment: int, act: Callable[[], object], *, always: bool = False) -> Iterator[None]:
    """Does something before the moment-th durable write, or after it; or at each."""
    commit = Store._commit
    count = 0

    def tick() -> None:
        nonlocal count
        count += 1
        if always or count == moment:
            act()

    def patched(self: Store) -> None:
        tick()
        commit(self)
        # What comes now is in no transaction any more.
        owner, self._owner = self._owner, None
        try:
            tick()
        finally:
            self._owner = owner

    Store._commit = patched  # type: ignore[method-assign]
    try:
        yield
    finally:
        Store._commit = commit  # type: ignore[method-assign]


def kill() -> None:
    raise Killed
