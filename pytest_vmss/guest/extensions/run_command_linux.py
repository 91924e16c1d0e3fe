"""Azure's Run Command: runs a script in a guest, on request or from the model (H2, K1)."""

from __future__ import annotations

from typing import Any

from pytest_vmss.guest.extensions.command import Command, remove_runs, run_command
from pytest_vmss.guest.extensions.handler import Handler, Target
from pytest_vmss.model import Extension, respelled
from pytest_vmss.model.extension_result import ExtensionResult

__all__ = ["RunCommandLinux"]

_KNOWN = {"script", "commandId"}


class RunCommandLinux(Handler):
    """``Microsoft.CPlat.Core/RunCommandLinux``; its ``script`` is a list of lines."""

    publisher = "Microsoft.CPlat.Core"
    type = "RunCommandLinux"
    version = "1.0.5"

    def check(self, extension: Extension) -> list[str]:
        """Validates its settings, and returns the problems."""
        settings = _settings(extension)
        problems = []
        lines = settings.get("script")
        if not isinstance(lines, list) or not lines or not all(isinstance(x, str) for x in lines):
            problems.append("script must be a list of lines")
        unknown = sorted(settings.keys() - _KNOWN)
        if unknown:
            problems.append(f"there is no setting {', '.join(unknown)}; there is: script")
        if settings.get("commandId", "RunShellScript") != "RunShellScript":
            problems.append("commandId must be RunShellScript")
        return problems

    def run(self, target: Target, extension: Extension, *, run: str) -> ExtensionResult:
        """Runs the lines as one ``/bin/sh`` script, as root."""
        settings = _settings(extension)
        command = Command(text="\n".join(settings["script"]))
        return run_command(target, extension, command, run=run)

    def remove(self, target: Target, extension: Extension) -> str:
        """Removes the files of its runs."""
        return remove_runs(target, extension)


def _settings(extension: Extension) -> dict[str, Any]:
    return {
        **respelled(extension.settings, _KNOWN),
        **respelled(extension.protected_settings, _KNOWN),
    }
