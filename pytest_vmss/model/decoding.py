"""Decodes the text of documents as ARM's own tools do: byte-order marks, UTF-16, comments."""

from __future__ import annotations

import codecs
import re

__all__ = ["decode", "without_comments"]

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
#: A string, which hides what looks like a comment. The patterns run in linear time: what is not
#: closed goes on to the end.
_STRING = r"\"[^\"\\]*(?:\\.[^\"\\]*)*\"?"
_COMMENT = re.compile(rf"{_STRING}|(//[^\r\n]*|/\*(?:.*?\*/|.*))", re.DOTALL)
_TRAILING_COMMA = re.compile(rf"{_STRING}|(,)(?=[ \t\r\n]*[\]}}])", re.DOTALL)
_VISIBLE = re.compile(r"[^\r\n\t]")


def decode(content: bytes) -> str:
    """Decodes a document: UTF-8, or UTF-16 with a byte-order mark or recognized by its zeros.

    Raises:
        UnicodeDecodeError: It is neither.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content.decode(encoding)
    if len(content) >= 4 and not len(content) % 2:
        zeros = content[0] == 0, content[1] == 0
        if zeros[0] != zeros[1]:
            return content.decode("utf-16-be" if zeros[0] else "utf-16-le")
    return content.decode()


def without_comments(text: str) -> str:
    """Replaces comments and trailing commas by blanks, so that lines and columns stay."""
    if "//" in text or "/*" in text:
        text = _blanked(_COMMENT, text)
    return _blanked(_TRAILING_COMMA, text)


def _blanked(pattern: re.Pattern[str], text: str) -> str:
    """Replaces what is visible of a pattern's first group; there may be a million of strings."""
    parts, end = [], 0
    for match in pattern.finditer(text):
        if match.lastindex:
            parts += [
                text[end : match.start()],
                " " if match[1] == "," else _VISIBLE.sub(" ", match[1]),
            ]
            end = match.end()
    return "".join([*parts, text[end:]])
