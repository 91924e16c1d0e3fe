"""A terminal to write to: what is on its screen afterwards, as a person sees it."""

from __future__ import annotations

import io

import pyte


class Terminal(io.TextIOBase):
    """A text file that draws on a screen.

    Args:
        width: Its columns.
        height: Its lines.
    """

    def __init__(self, width: int = 80, height: int = 30) -> None:
        self._screen = pyte.HistoryScreen(width, height, history=1000)
        self._screen.set_mode(pyte.modes.LNM)
        self._stream = pyte.Stream(self._screen)

    def write(self, text: str) -> int:
        """Draws a text, with its control sequences."""
        self._stream.feed(text)
        return len(text)

    def isatty(self) -> bool:
        """Says that it is one."""
        return True

    @property
    def column(self) -> int:
        """The cursor's column."""
        return int(self._screen.cursor.x)

    @property
    def lines(self) -> list[str]:
        """All lines, those that have scrolled away first."""
        above = ["".join(line[n].data for n in sorted(line)) for line in self._screen.history.top]
        return [line.rstrip() for line in (*above, *self._screen.display)]

    @property
    def text(self) -> str:
        """The lines as one text."""
        return "\n".join(self.lines).strip()
