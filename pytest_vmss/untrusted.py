"""The boundary through which everything comes that a guest says (R2).

Consoles, agents, SSH, HTTP and status files are a guest's to write, and a guest may be broken
or hostile. Here text loses what a terminal would obey, and JSON is read within bounds; whoever
receives bytes bounds how many and for how long. Files that users hand in are read here too (R3).
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
    "listed",
    "one_line",
    "read_json",
    "read_regular",
    "read_whole",
    "shown",
]

#: Bytes of one JSON document, and how deep it may be nested.
_JSON_BYTES = 1024 * 1024
_JSON_DEPTH = 64
#: Digits of a number; more than 64 bits have.
_DIGITS = 20
_WHOLE = 2**63
_SHOWN_CHARS = 4096
_LINE_CHARS = 200
#: Names that a message lists, and characters of each.
_LISTED = 20
_LISTED_CHARS = 80

# Possessive quantifiers, and no body that holds another's beginning: linear in the text.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*+[ -/]*+[@-~]"  # CSI: colours, cursor, modes
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x90\x98\x9c-\x9f\n]{0,512}+(?:\x07|\x1b\\|\x9c)"  # strings
    r"|\x1b[ -/]++[0-~]|\x1b[0-~]"
)
_LINE_ENDS = re.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
#: Unicode's categories of what is not shown or changes how the text around it is: controls,
#: formats such as bidi, unassigned and private characters.
_UNSEEN = frozenset({"Cc", "Cf", "Cn", "Co"})
#: Letters and marks that are not seen all the same: fillers and variation selectors.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)
#: Characters whose translation is remembered; a guest may send all that there are.
_REMEMBERED = 16_384
_SURROGATES = re.compile("[\ud800-\udfff]")


class UnreadableError(ValueError):
    """What a guest said cannot be read; the message is fit to be shown."""

    def __init__(self, reason: str) -> None:
        super().__init__(one_line(reason))


class _Shown(dict[int, str]):
    """How each character is shown, found out when it first comes."""

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
    """A text without what a terminal would obey: escape sequences, controls, bidi.

    Lines and tabs stay. Square brackets stay too: whoever prints with rich must not read
    markup in it.
    """
    if text.isascii() and text.isprintable():
        return text
    text = _LINE_ENDS.sub("\n", _ESCAPES.sub("", text))
    return _CONTROLS.sub("", text) if text.isascii() else text.translate(_SHOWN)


def shown(text: str | bytes, limit: int = _SHOWN_CHARS) -> str:
    """A cleaned text of bounded length; what is longer ends with an ellipsis.

    Args:
        text: What was said; bytes need not be UTF-8.
        limit: Characters.
    """
    part = text[: 4 * limit + 1]  # escape sequences may fill much of it
    if isinstance(part, bytes):
        part = part.decode(errors="replace")
    told = clean(part)
    if len(told) <= limit and len(text) <= 4 * limit:
        return told
    return told[: limit - 1] + "…"


def one_line(text: str | bytes, limit: int = _LINE_CHARS) -> str:
    """The same on one line, without white space at its ends.

    Args:
        text: What was said.
        limit: Characters.
    """
    return " ".join(shown(text, limit).split())


def listed(names: Iterable[str], most: int = _LISTED) -> str:
    """Names for a message, such as those that there are; only the first of very many.

    Args:
        names: No more of them are read than are shown, and one.
        most: How many are shown.

    Returns:
        ``none`` where there are none.
    """
    first = list(islice(names, most + 1))
    told = ", ".join(one_line(name, _LISTED_CHARS) for name in first[:most])
    return f"{told}, …" if len(first) > most else told or "none"


def read_json(text: str | bytes, *, limit: int = _JSON_BYTES) -> Any:
    """Reads JSON that a guest wrote.

    Strings may hold control characters still, but no lone surrogates, and all numbers can
    be reckoned with.

    Args:
        text: The document, in UTF-8.
        limit: Bytes, or characters, that it may have.

    Raises:
        UnreadableError: It is too long, too deep, or no JSON.
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
    except ValueError as error:  # UnicodeError is one
        raise UnreadableError(f"it is no JSON: {error}") from None
    return _sound(value, _JSON_DEPTH)


def read_regular(path: Path, limit: int) -> bytes:
    """Reads a file that somebody named: a regular one, of bounded length.

    A pipe that nobody writes to would never open, and a device may never end.

    Args:
        path: The file.
        limit: Bytes that it may hold.

    Raises:
        OSError: It cannot be read, is not a regular file, or is longer; ``strerror`` says which.
        ValueError: It cannot be the name of a file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        # Some have no length before they are read, others grow meanwhile.
        content = file.read(limit + 1) if found.st_size <= limit else None
    if content is None or len(content) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit >> 10} KiB", str(path))
    return content


def read_whole(value: object, what: str) -> int:
    """A whole number of 64 bits.

    Args:
        value: What was read.
        what: The same in words, for the message.

    Raises:
        UnreadableError: It is none.
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
    """A value without lone surrogates, which nothing can store."""
    if isinstance(value, str):
        return _SURROGATES.sub("\ufffd", value)
    if isinstance(value, (list, dict)) and not depth:
        raise UnreadableError("it is nested too deep")
    if isinstance(value, list):
        return [_sound(item, depth - 1) for item in value]
    if isinstance(value, dict):
        return {_sound(key, 0): _sound(item, depth - 1) for key, item in value.items()}
    return value
