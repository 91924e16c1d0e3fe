"""Pages of the reference that are made from the code."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Self, cast

import pytest_vmss
from pytest_vmss.plugin.options import add_options

if TYPE_CHECKING:
    import pytest

__all__ = ["api_page", "command_page", "options_page"]

#: What the API's page puts together, in the order of use.
_PARTS = {
    "Labs, sets and instances": ["Lab", "ScaleSet", "Instance"],
    "Operations": ["Operation", "Upgrade"],
    "Images": ["Gallery", "ImageBuilder"],
    "Settings, errors and warnings": ["Settings", "VmssError", "NotModelledWarning"],
    "Simulation": ["SimulatedLab", "Behaviour"],
    "Extensions of your own": [
        "Handler",
        "register",
        "register_package",
        "Command",
        "run_command",
        "ExtensionResult",
    ],
    "Service Fabric": ["RepairTask"],
}


def api_page() -> str:
    """The public names of ``pytest_vmss``, and its hooks, by their docstrings.

    Raises:
        ValueError: A public name has no place on the page.
    """
    placed = [name for names in _PARTS.values() for name in names]
    if sorted(placed) != sorted(pytest_vmss.__all__):
        raise ValueError(f"place {sorted(set(placed) ^ set(pytest_vmss.__all__))} in _PARTS")
    lines = [
        "# Python API",
        "",
        "What `from pytest_vmss import …` gives, made from its docstrings. Fixtures and the marker are in",
        "the [reference](reference.md#fixtures).",
        "",
    ]
    for title, names in _PARTS.items():
        lines += [f"## {title}", ""]
        for name in names:
            lines += [f"::: pytest_vmss.{name}", ""]
    lines += ["## Hooks", "", "::: pytest_vmss.hookspecs", ""]
    return "\n".join(lines)


def command_page() -> str:
    """The commands, by click's own help."""
    return inspect.cleandoc("""
        # Command line

        What `vmss --help` and `vmss COMMAND --help` print. A table of all commands is in the
        [reference](reference.md#command-line).

        ::: mkdocs-click
            :module: pytest_vmss.cli
            :command: main
            :prog_name: vmss
            :style: plain
            :depth: 1
            :list_subcommands: True
    """)


def options_page() -> str:
    """The plugin's options and ini values, by what it declares to pytest."""
    declared = _Declared()
    add_options(cast("pytest.Parser", declared))
    return "\n".join(
        [
            "# Options of pytest",
            "",
            "What `pytest --help` prints of this plugin. What the options mean together, and all settings,",
            "are in the [reference](reference.md#options).",
            "",
            "## On the command line",
            "",
            "| option | what it does |",
            "|---|---|",
            *declared.options,
            "",
            "## In the ini-file",
            "",
            "| name | what it is |",
            "|---|---|",
            *declared.ini,
            "",
        ]
    )


class _Declared:
    """Takes what a plugin declares, as pytest's parser and its option groups do.

    Attributes:
        options: Rows of a table.
        ini: Rows of a table.
    """

    def __init__(self) -> None:
        self.options: list[str] = []
        self.ini: list[str] = []

    def getgroup(self, name: str, description: str) -> Self:
        del name, description
        return self

    def addoption(self, *names: str, help: str, **attributes: Any) -> None:
        value = attributes.get("metavar") or "|".join(attributes.get("choices", ()))
        shown = ", ".join(f"<code>{_cell(f'{name} {value}'.strip())}</code>" for name in names)
        self.options.append(f"| {shown} | {_cell(help)} |")

    def addini(self, name: str, help: str, **_: Any) -> None:
        self.ini.append(f"| `{name}` | {_cell(help)} |")


def _cell(text: str) -> str:
    """A text as the cell of a table, with argparse's escapes undone."""
    return " ".join(text.replace("%%", "%").split()).replace("|", "&#124;").replace("<", "&lt;")
