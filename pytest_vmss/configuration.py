"""Settings from TOML: the table ``[tool.vmss]``, the ini-file, and single assignments.

All three name settings alike, as :class:`~pytest_vmss.settings.Settings` does:
``timeouts.boot = 120``, ``first_rollout_delay = 10800``, ``sizes.Tiny = [1, 256]``.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pytest_vmss.errors import LabError
from pytest_vmss.settings import ImageLimits, Settings, Timeouts, shown_value
from pytest_vmss.untrusted import read_regular

__all__ = ["configured", "find_project", "overlay", "read_assignments", "read_project"]

#: Settings that decide where labs are and go on after a run: for options and variables alone.
_NOT_IN_TABLES = ("state_dir", "cache_dir", "connect", "keep")
_GROUPS: dict[str, type[Timeouts | ImageLimits]] = {"timeouts": Timeouts, "images": ImageLimits}
#: Variables of the environment, which count more than a file of the project.
_VARIABLES = {
    "guest_network": "VMSS_GUEST_NETWORK",
    "checkpoints_gib": "VMSS_MAX_CHECKPOINTS_GIB",
    "images.virtual_gib": "VMSS_MAX_IMAGE_GIB",
    "images.stored_gib": "VMSS_MAX_IMAGE_FILE_GIB",
}
_PROJECT = "pyproject.toml"
_BYTES = 1024**2
_SHOWN_CHARS = 100


def find_project(folder: Path) -> Path | None:
    """The nearest ``pyproject.toml`` in a folder or above it; None if there is none.

    Folders that may not be entered have none, as for whoever works below another's home.
    """
    for parent in (folder, *folder.parents):
        path = parent / _PROJECT
        with contextlib.suppress(PermissionError):
            if path.is_file():
                return path
    return None


def read_project(path: Path | None) -> dict[str, Any]:
    """Reads the table ``[tool.vmss]`` of a ``pyproject.toml``; empty if there is none.

    Raises:
        LabError: The file cannot be read, or has no such settings.
    """
    if path is None or not path.is_file():
        return {}
    try:
        content = _parsed(read_regular(path, _BYTES).decode())
    except (OSError, ValueError) as error:  # includes UnicodeError and TOMLDecodeError
        raise LabError(f"{path} cannot be read: {error}; mend the file") from error
    tools = content.get("tool", {})
    if not isinstance(tools, dict):
        raise LabError(f"[tool] in {path} must be a table; given {_shown(tools)}; mend the file")
    table = _checked(tools.get("vmss", {}), f"[tool.vmss] in {path}")
    return _without_variables(table)


def _parsed(text: str) -> dict[str, Any]:
    """Parses TOML.

    Raises:
        ValueError: It is malformed, nested too deeply, or has a number of thousands of digits.
    """
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _without_variables(table: dict[str, Any]) -> dict[str, Any]:
    """Returns a table without the settings that the environment's variables give."""
    kept = {name: value for name, value in table.items() if not os.environ.get(_variable(name))}
    if "images" in kept:
        kept["images"] = {
            name: value
            for name, value in kept["images"].items()
            if not os.environ.get(_variable(f"images.{name}"))
        }
    return kept


def _variable(name: str) -> str:
    return _VARIABLES.get(name, "")


def read_assignments(lines: Iterable[str], source: str) -> dict[str, Any]:
    """Reads assignments such as ``timeouts.boot = 120``; the last of a name counts.

    Args:
        lines: One assignment each, in TOML.
        source: Where they were given, for messages.

    Raises:
        LabError: One is not an assignment in TOML, or there is no such setting.
    """
    found: dict[str, Any] = {}
    for line in lines:
        try:
            found = overlay(found, _parsed(line))
        except ValueError as error:  # includes TOMLDecodeError
            raise LabError(
                f"{source}: {line[:_SHOWN_CHARS]!r} is not of the form NAME = VALUE in TOML, such "
                f"as timeouts.boot = 120: {error}"
            ) from error
    return _checked(found, source)


def overlay(table: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a table in which the values of another one count more."""
    merged = dict(table)
    for name, value in other.items():
        known = merged.get(name)
        if isinstance(known, Mapping) and isinstance(value, Mapping):
            merged[name] = overlay(known, value)
        else:
            merged[name] = value
    return merged


def configured(table: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a checked table to arguments of :class:`~pytest_vmss.settings.Settings`."""
    arguments: dict[str, Any] = {}
    for name, value in table.items():
        if name in _GROUPS:
            arguments[name] = _GROUPS[name](**value)
        elif name == "sizes":
            arguments[name] = {size: _pair(numbers) for size, numbers in value.items()}
        else:
            arguments[name] = _pair(value)
    return arguments


def _pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _checked(table: Any, source: str) -> dict[str, Any]:
    """Checks the names in a table; their values are checked where they are used.

    Raises:
        LabError: There is no such setting, or a table is none.
    """
    if not isinstance(table, dict):
        raise LabError(f"{source} must be a table of settings; given {_shown(table)}")
    known = [entry.name for entry in fields(Settings) if entry.name not in _NOT_IN_TABLES]
    _check_names(table, known, source, "")
    for name in (*_GROUPS, "sizes"):
        group = table.get(name, {})
        if not isinstance(group, dict):
            raise LabError(f"{source}: {name} must be a table; given {_shown(group)}")
        if name in _GROUPS:
            _check_names(group, [entry.name for entry in fields(_GROUPS[name])], source, f"{name}.")
    return table


def _shown(value: object) -> str:
    return shown_value(value, repr)[:_SHOWN_CHARS]


def _check_names(table: Mapping[str, Any], known: list[str], source: str, prefix: str) -> None:
    for name in table:
        if name in known:
            continue
        close = difflib.get_close_matches(name, known, 1)
        meant = (
            f"; did you mean {prefix}{close[0]}?" if close else f"; there are: {', '.join(known)}"
        )
        if name in _NOT_IN_TABLES:
            meant = "; give it on the command line or as a variable of the environment"
        raise LabError(f"{source}: there is no setting {prefix + name:.{_SHOWN_CHARS}}{meant}")
