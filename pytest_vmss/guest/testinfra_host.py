"""Exposes instances as testinfra hosts over the lab's own pinned connection (L6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from testinfra.backend.base import BaseBackend, CommandResult
from testinfra.host import Host

from pytest_vmss.guest.connection import with_connection
from pytest_vmss.guest.runner import Runner

__all__ = ["testinfra_host"]

#: Timeout of a command, and of one without output.
_LIMIT_S, _SILENCE_S = 3600.0, 300.0


class _ShellBackend(BaseBackend):  # type: ignore[misc]  # testinfra's backends are untyped
    """Runs testinfra's commands as root."""

    NAME = "vmss"

    def __init__(self, name: str, shell: Callable[[], Runner]) -> None:
        super().__init__(name)
        self._connect = shell

    def get_encoding(self) -> str:
        """Returns UTF-8; testinfra would ask the guest, which could name a harmful encoding."""
        return "utf-8"

    def decode(self, data: bytes) -> str:
        """Decodes a command's output, replacing what is not UTF-8."""
        return data.decode(errors="replace")

    def run(self, command: str, *args: str, **_: Any) -> CommandResult:
        line = self.get_command(command, *args)
        done = with_connection(
            self._connect,
            lambda shell: shell.run(line, sudo=True, timeout=_LIMIT_S, silence=_SILENCE_S),
        )
        return self.result(
            done.exit_code, self.encode(line), self.encode(done.stdout), self.encode(done.stderr)
        )


def testinfra_host(name: str, shell: Callable[[], Runner]) -> Host:
    """Returns a testinfra host that runs everything as root.

    Args:
        name: The instance's name.
        shell: Returns a connection, reconnecting after a swap.
    """
    return Host(_ShellBackend(name, shell))
