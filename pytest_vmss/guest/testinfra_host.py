"""Instances as testinfra hosts, over the lab's own pinned connection (L6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from testinfra.backend.base import BaseBackend, CommandResult
from testinfra.host import Host

from pytest_vmss.guest.shell import Runner

__all__ = ["testinfra_host"]

#: Of a command, and without output.
_LIMIT_S, _SILENCE_S = 3600.0, 300.0


class _ShellBackend(BaseBackend):  # type: ignore[misc]  # testinfra's backends are untyped
    """Runs testinfra's commands as root."""

    NAME = "vmss"

    def __init__(self, name: str, shell: Callable[[], Runner]) -> None:
        super().__init__(name)
        self._connect = shell

    def get_encoding(self) -> str:
        """UTF-8: testinfra would ask the guest, which may name an encoding that does harm."""
        return "utf-8"

    def decode(self, data: bytes) -> str:
        """A command's output as text; what is not UTF-8 is replaced."""
        return data.decode(errors="replace")

    def run(self, command: str, *args: str, **_: Any) -> CommandResult:
        line = self.get_command(command, *args)
        done = self._connect().run(line, sudo=True, timeout=_LIMIT_S, silence=_SILENCE_S)
        return self.result(
            done.exit_code, self.encode(line), self.encode(done.stdout), self.encode(done.stderr)
        )


def testinfra_host(name: str, shell: Callable[[], Runner]) -> Host:
    """A testinfra host that runs everything as root.

    Args:
        name: The instance's.
        shell: Gives the connection, made anew after a swap.
    """
    return Host(_ShellBackend(name, shell))
