"""Lines on a terminal, in which nothing of a guest's or a file's is obeyed (R2)."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from pytest_vmss.untrusted import clean

__all__ = ["plain", "say"]


def plain(text: str, style: str = "") -> Text:
    """A text as it is: square brackets are no markup, ``:skull:`` no emoji, controls are gone."""
    return Text(clean(text), style=style)


def say(console: Console, *parts: str | Text, style: str = "") -> None:
    """Prints one line, which the terminal may wrap.

    Args:
        console: Where.
        parts: What it is made of; strings are taken as they are.
        style: Of the strings.
    """
    line = Text()
    for part in parts:
        line.append_text(part if isinstance(part, Text) else plain(part, style))
    console.print(line, highlight=False, soft_wrap=True)
