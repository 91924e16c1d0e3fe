"""Prints text of guests and files without letting it control the terminal (R2)."""

from __future__ import annotations

import shutil

from rich.console import Console
from rich.text import Text

from pytest_vmss.untrusted import clean

__all__ = ["counted", "plain", "say", "with_width"]


def plain(text: str, style: str = "") -> Text:
    """Literal text: no markup in square brackets, no ``:skull:`` emoji, no control characters."""
    return Text(clean(text), style=style)


def counted(count: int, noun: str) -> str:
    """A number of things in words, as ``1 instance`` and ``2 instances``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def with_width(console: Console) -> Console:
    """The same console; asks the terminal for its width where ``COLUMNS`` is 0, which means that."""
    if not console.width:
        console.width = shutil.get_terminal_size().columns
    return console


def say(console: Console, *parts: str | Text, style: str = "") -> None:
    """Prints one line, which the terminal may wrap.

    Args:
        console: Where to print.
        parts: The parts of the line; strings are taken literally.
        style: The style of the strings.
    """
    line = Text()
    for part in parts:
        line.append_text(part if isinstance(part, Text) else plain(part, style))
    console.print(line, highlight=False, soft_wrap=True)
