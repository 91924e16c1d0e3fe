"""Runs what a document tells to type, on a simulated lab, with real files and a real shell."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from click.testing import Result

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(
    r"^( *)```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^\1```$", re.MULTILINE | re.DOTALL
)
_SUBSTITUTION = re.compile(r'"\$\((vmss [^)]+)\)"')


class Block(NamedTuple):
    """A block of code.

    Attributes:
        language: As the page names it.
        file: Where a reader is told to write it.
        text: What is in it.
    """

    language: str
    file: str
    text: str


def blocks(page: str) -> list[Block]:
    """The blocks of code of a page of the repository, in order."""
    found = _BLOCK.findall((ROOT / page).read_text())
    return [
        Block(language, file, re.sub(f"^{indent}", "", text, flags=re.MULTILINE))
        for indent, language, file, text in found
    ]


def commands(text: str) -> Iterator[str]:
    """The commands of a block: lines, with those that go on in the next put together."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.strip()


class Reader:
    """Does what a page says, in a folder.

    Args:
        folder: The working directory.
        vmss: Runs a command of ours.
        fails: Words of the command that ends with status 1, as the page says.
        skipped: First words of commands that are not run here.
    """

    def __init__(
        self,
        folder: Path,
        vmss: Callable[..., Result],
        *,
        fails: str,
        skipped: tuple[str, ...],
    ) -> None:
        self._folder = folder
        self._vmss = vmss
        self._fails = fails
        self._skipped = skipped
        self.ran: list[str] = []

    def follow(self, page: str) -> None:
        """Writes the page's files and runs its commands, in order."""
        for block in blocks(page):
            if block.file:
                (self._folder / block.file).write_text(block.text)
            elif block.language == "sh":
                for command in commands(block.text):
                    self._run(command)

    def _run(self, command: str) -> None:
        if command.startswith(self._skipped):
            return
        self.ran.append(command)
        if not command.startswith("vmss "):
            subprocess.run(["sh", "-ec", command], cwd=self._folder, check=True, env=os.environ)
            return
        command = _SUBSTITUTION.sub(lambda match: self._output(match[1]), command)
        self._output(command, expected=int(self._fails in command))

    def _output(self, command: str, expected: int = 0) -> str:
        words = shlex.split(command, comments=True)[1:]
        done = self._vmss(*words)
        assert done.exit_code == expected, f"{command}\n{done.output}\n{done.exception!r}"
        return done.stdout.strip()
