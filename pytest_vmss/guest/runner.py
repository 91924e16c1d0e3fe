"""The interface of what runs commands in a guest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["CommandResult", "Runner"]


@dataclass(frozen=True)
class CommandResult:
    """The result of a command.

    Attributes:
        exit_code: Its exit status; -1 if a signal ended it.
        stdout: Its standard output.
        stderr: Its standard error.
    """

    exit_code: int
    stdout: str
    stderr: str


class Runner(Protocol):
    """Runs commands in a guest, over one connection or several in succession."""

    def run(
        self,
        command: str,
        *,
        stdin: bytes = b"",
        sudo: bool = False,
        timeout: float = 60.0,
        silence: float | None = None,
    ) -> CommandResult:
        """See :meth:`Shell.run`."""

    def check(
        self, command: str, *, stdin: bytes = b"", sudo: bool = False, timeout: float = 60.0
    ) -> str:
        """See :meth:`Shell.check`."""
