"""The boundary for all data from guests (R2).

Consoles, agents, SSH, HTTP and status files are under a guest's control, and a guest may be
broken or hostile. This module strips terminal control sequences from text and parses JSON
within bounds; code that receives bytes limits their number and the time. Files that users
supply are read here too (R3).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import unicodedata
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

__all__ = [
    "UnreadableError",
    "clean",
    "ending",
    "listed",
    "looked_in",
    "one_line",
    "read_json",
    "read_json_file",
    "read_regular",
    "read_whole",
    "shown",
]

#: Maximum size of a JSON document in bytes, and its maximum nesting depth.
_JSON_BYTES = 1024 * 1024
_JSON_DEPTH = 64
#: Maximum number of digits of an integer; enough for 64 bits.
_DIGITS = 20
_WHOLE = 2**63
_SHOWN_CHARS = 4096
_LINE_CHARS = 200
#: Maximum number of names that a message lists, and of characters of each.
_LISTED = 20
_LISTED_CHARS = 80

# The patterns run in linear time: quantifiers are possessive, and no sequence's body can contain
# the start of another.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*+[ -/]*+[@-~]"  # CSI: colours, cursor, modes
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x90\x98\x9c-\x9f\n]{0,512}+(?:\x07|\x1b\\|\x9c)"  # strings
    r"|\x1b[ -/]++[0-~]|\x1b[0-~]"
)
_SPACE = re.compile(r"\s")
_LINE_ENDS = re.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
#: Unicode categories that are invisible or change how nearby text is displayed: controls,
#: formats such as bidi, unassigned and private characters.
_UNSEEN = frozenset({"Cc", "Cf", "Cn", "Co"})
#: Letters and marks that are nevertheless invisible: fillers and variation selectors.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)
#: Maximum number of cached characters; a guest may send every one there is.
_REMEMBERED = 16_384
_SURROGATES = re.compile("[\ud800-\udfff]")


class UnreadableError(ValueError):
    """Data from a guest is malformed or too large; the message is safe to show."""

    def __init__(self, reason: str) -> None:
        super().__init__(one_line(reason))


class _Shown(dict[int, str]):
    """Maps a character to how it is shown; entries are computed on first use."""

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        category = unicodedata.category(letter)
        if category == "Cs":
            shown = "\ufffd"
        elif (category in _UNSEEN and letter not in "\n\t") or _INVISIBLE.match(letter):
            shown = ""
        else:
            shown = letter
        if len(self) < _REMEMBERED:
            self[code] = shown
        return shown


_SHOWN = _Shown()


def clean(text: str) -> str:
    """Strips what would control a terminal from a text: escape sequences, controls, bidi.

    Newlines and tabs stay. So do square brackets: callers that print with rich must disable
    its markup.
    """
    if text.isascii() and text.isprintable():
        return text
    text = _LINE_ENDS.sub("\n", _ESCAPES.sub("", text))
    return _CONTROLS.sub("", text) if text.isascii() else text.translate(_SHOWN)


def shown(text: str | bytes, limit: int = _SHOWN_CHARS) -> str:
    """Cleans and shortens a text; a longer one ends with an ellipsis.

    Args:
        text: Text from a guest; bytes need not be valid UTF-8.
        limit: Maximum length of the result, in characters.
    """
    if isinstance(text, str) and len(text) <= limit and text.isascii() and text.isprintable():
        return text
    part = text[: 4 * limit + 1]  # escape sequences may fill much of it
    if isinstance(part, bytes):
        part = part.decode(errors="replace")
    told = clean(part)
    if len(told) <= limit and len(text) <= 4 * limit:
        return told
    return told[: limit - 1] + "…"


def one_line(text: str | bytes, limit: int = _LINE_CHARS) -> str:
    """Cleans and shortens a text, and joins it to one line without surrounding white space.

    Args:
        text: Text from a guest.
        limit: Maximum length of the result, in characters.
    """
    return " ".join(shown(text, limit).split())


def ending(text: str, limit: int) -> str:
    """Shortens a text to its end, without surrounding white space.

    What is left of a word that was cut is left out: masking would not find half of a secret.

    Args:
        text: The text.
        limit: Maximum length of the result, in characters.
    """
    text = text.strip()
    if len(text) <= limit:
        return text
    end = text[1 - limit :]
    word = _SPACE.search(end)
    return "…" + (end[word.start() :] if word else "")


def listed(names: Iterable[str], most: int = _LISTED) -> str:
    """Joins names for a message, such as those available; only the first of very many.

    Args:
        names: At most one more of them is read than is shown.
        most: Maximum number of names shown.

    Returns:
        The names, or ``none``.
    """
    first = list(islice(names, most + 1))
    told = ", ".join(one_line(name, _LISTED_CHARS) for name in first[:most])
    return f"{told}, …" if len(first) > most else told or "none"


def read_json(text: str | bytes, *, limit: int = _JSON_BYTES) -> Any:
    """Parses JSON that a guest wrote.

    Strings may still contain control characters, but no lone surrogates; all numbers are
    finite, and integers have at most 20 digits.

    Args:
        text: The document, in UTF-8.
        limit: Its maximum length, in bytes or characters.

    Raises:
        UnreadableError: It is too long, nested too deep, or not JSON.
    """
    if len(text) > limit:
        raise UnreadableError(f"it is longer than {limit >> 10} KiB")
    try:
        value = json.loads(
            text.decode() if isinstance(text, bytes) else text,
            parse_int=_int,
            parse_float=_float,
            parse_constant=_constant,
        )
    except RecursionError:
        raise UnreadableError("it is nested too deep") from None
    except UnreadableError:
        raise
    except ValueError as error:  # includes UnicodeError
        raise UnreadableError(f"it is no JSON: {error}") from None
    return _sound(value, _JSON_DEPTH)


def read_json_file(path: Path, limit: int) -> Any:
    """Parses a JSON file that a guest, an earlier version or another process may have written.

    Args:
        path: The file.
        limit: Its maximum size in bytes.

    Raises:
        OSError: It cannot be read, is not a regular file, or is too long.
        UnreadableError: See :func:`read_json`.
    """
    return read_json(read_regular(path, limit), limit=limit)


def read_regular(path: Path, limit: int) -> bytes:
    """Reads a file that a user named, if it is a regular file of bounded length.

    Opening a pipe without a writer would block, and a device may never end.

    Args:
        path: The file.
        limit: Its maximum size in bytes.

    Raises:
        OSError: It cannot be read, is not a regular file, or is too long; ``strerror`` says which.
        ValueError: The path is not a valid file name.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        # Some files have size 0 until read, others grow meanwhile.
        content = file.read(limit + 1) if found.st_size <= limit else None
    if content is None or len(content) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit >> 10} KiB", str(path))
    return content


def looked_in(path: Path) -> str:
    """Tells, for messages, the folder in which a relative path was looked for."""
    if path.is_absolute():
        return ""
    try:
        return f", in {Path.cwd()}"
    except OSError:
        return ""


def read_whole(value: object, what: str) -> int:
    """Validates a whole number of 64 bits.

    Args:
        value: The value from a guest: a number, or a string of digits.
        what: Describes the value, for the message.

    Returns:
        The number.

    Raises:
        UnreadableError: It is not such a number.
    """
    if isinstance(value, str) and len(value) <= _DIGITS:
        with contextlib.suppress(ValueError):
            value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not -_WHOLE <= value < _WHOLE:
        raise UnreadableError(f"{what} is no whole number of 64 bits")
    return value


def _int(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise UnreadableError(f"it has a number of {len(digits)} digits")
    return int(digits)


def _float(digits: str) -> float:
    if len(digits) > 400:
        raise UnreadableError(f"it has a number of {len(digits)} digits")
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise UnreadableError("it has a number that is too large")
    return value


def _constant(name: str) -> NoReturn:
    raise UnreadableError(f"it is no JSON: {name}")


def _sound(value: Any, depth: int) -> Any:
    """Replaces lone surrogates, which cannot be encoded, and checks the depth."""
    if isinstance(value, str):
        return _SURROGATES.sub("\ufffd", value)
    if isinstance(value, (list, dict)) and not depth:
        raise UnreadableError("it is nested too deep")
    if isinstance(value, list):
        return [_sound(item, depth - 1) for item in value]
    if isinstance(value, dict):
        return {_sound(key, 0): _sound(item, depth - 1) for key, item in value.items()}
    return value
