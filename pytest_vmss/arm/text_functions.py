"""Functions of strings, and conversions from and to them."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, unquote, urljoin

from pytest_vmss.arm.limits import TemplateError
from pytest_vmss.arm.values import integer, is_integer, kind_of, read_json, text, to_text

__all__ = ["TEXT_FUNCTIONS"]

#: More characters than any padding or format needs.
_WIDEST = 4096
_PLACE = re.compile(r"\{\{|\}\}|\{([0-9]{1,3})(?:,(-?[0-9]{1,4}))?(?::([^{}]{0,32}))?\}|[{}]")
#: The longest text that is made, and the longest JSON that is read.
_MOST_CHARS, _JSON_CHARS = 4 * 1024 * 1024, 1024 * 1024


def _require_room(chars: int, most: int = _MOST_CHARS) -> None:
    """Refuses a text before it is made or read.

    Raises:
        TemplateError: It would be too long.
    """
    if chars > most:
        raise TemplateError(f"makes or reads more than {most >> 20} MiB of text")


def _base64(value: Any) -> str:
    return base64.b64encode(text(value).encode()).decode()


def _from_base64(value: Any) -> str:
    given = text(value)
    try:
        return base64.b64decode(given, validate=True).decode()
    except (binascii.Error, ValueError):
        pass
    raise TemplateError("the argument is not base64 of a text in UTF-8")


def _json(value: Any) -> Any:
    given = text(value)
    _require_room(len(given), _JSON_CHARS)
    try:
        found = read_json(given)
    except RecursionError:
        pass
    except ValueError:
        # Newtonsoft's reader takes single quotes, and so templates use them.
        return _relaxed(given)
    else:
        return found
    raise TemplateError("the argument is JSON that is nested too deep")


#: A string in double or single quotes; one that is not closed goes on to the end.
_LAX = re.compile(r"\"[^\"\\]*(?:\\.[^\"\\]*)*\"?|'([^'\\]*(?:\\.[^'\\]*)*)'?", re.DOTALL)


def _relaxed(given: str) -> Any:
    def double(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0]
        return '"' + match[1].replace("\\'", "'").replace('"', '\\"') + '"'

    try:
        return read_json(_LAX.sub(double, given))
    except (ValueError, RecursionError):
        pass
    raise TemplateError("the argument is not JSON")


def _string(value: Any) -> str:
    return to_text(value)


def _format(pattern: Any, *arguments: Any) -> str:
    made = 0

    def place(match: re.Match[str]) -> str:
        nonlocal made
        if match[0] in ("{{", "}}"):
            return match[0][0]
        if match[1] is None:
            raise TemplateError("the format has a single brace; write it twice")
        index, width = int(match[1]), int(match[2] or 0)
        if index >= len(arguments):
            raise TemplateError(f"the format names the argument {index}; it has {len(arguments)}")
        told = _formatted(arguments[index], match[3] or "")
        made += max(len(told), abs(width))
        _require_room(made)
        return told.ljust(-width) if width < 0 else told.rjust(width)

    return _PLACE.sub(place, text(pattern))


_NUMBER_FORMAT = re.compile(r"([DdXxNnFf])([0-9]{0,2})|(0+)")


def _formatted(value: Any, code: str) -> str:
    if not code or not is_integer(value):
        return to_text(value)
    found = _NUMBER_FORMAT.fullmatch(code)
    if found is None:
        raise TemplateError("the format of a number is not known here")
    if found[3]:
        return f"{value:0{len(found[3])}d}"
    letter, digits = found[1], int(found[2] or 0)
    if letter in "Dd":
        return f"{'-' if value < 0 else ''}{abs(value):0{digits}d}" if digits else str(value)
    if letter in "Xx":
        return f"{value & (2**64 - 1):0{max(digits, 1)}{letter}}"
    decimals = digits if found[2] else 2
    return f"{value:,.{decimals}f}" if letter in "Nn" else f"{value:.{decimals}f}"


def _pad_left(value: Any, width: Any, fill: Any = " ") -> str:
    wide = integer(width, "the length")
    letter = text(fill, "the character")
    if len(letter) != 1:
        raise TemplateError("the character to fill with must be one")
    if wide > _WIDEST:
        raise TemplateError(f"the length must be at most {_WIDEST}")
    return to_text(value).rjust(wide, letter)


def _replace(value: Any, old: Any, new: Any) -> str:
    if not text(old):
        raise TemplateError("the text to replace must not be empty")
    given, put = text(value), text(new)
    _require_room(given.count(old) * len(put))
    return given.replace(old, put)


def _split(value: Any, delimiters: Any) -> list[str]:
    parts = [text(value)]
    for delimiter in delimiters if isinstance(delimiters, list) else [delimiters]:
        if mark := text(delimiter, "a delimiter"):
            parts = [piece for part in parts for piece in part.split(mark)]
    return parts


def _substring(value: Any, start: Any, length: Any = None) -> str:
    given, first = text(value), integer(start, "the start")
    count = len(given) - first if length is None else integer(length, "the length")
    if first < 0 or count < 0 or first + count > len(given):
        raise TemplateError(
            f"the start {first} and the length {count} are not within the {len(given)} characters"
        )
    return given[first : first + count]


def _trim(value: Any) -> str:
    return text(value).strip()


def _found(search: Callable[[str, str], Any]) -> Callable[[Any, Any], Any]:
    """A function that looks for a text in another in any case."""
    return lambda value, wanted: search(text(value).lower(), text(wanted).lower())


def _uri(base: Any, relative: Any) -> str:
    try:
        return urljoin(text(base), text(relative))
    except ValueError:
        pass
    raise TemplateError("the arguments are not parts of a URI")


def _uri_component(value: Any) -> str:
    return quote(text(value), safe="!'()*-._~")


def _data_uri(value: Any) -> str:
    return f"data:text/plain;charset=utf8;base64,{_base64(value)}"


def _from_data_uri(value: Any) -> str:
    head, comma, body = text(value).partition(",")
    if not comma or not head.lower().startswith("data:"):
        raise TemplateError("the argument is not a data URI")
    return _from_base64(body) if head.lower().endswith(";base64") else unquote(body)


def _join(values: Any, delimiter: Any) -> str:
    if not isinstance(values, list):
        raise TemplateError(f"the values to join must be an array, are {kind_of(values)}")
    mark = text(delimiter, "the delimiter")
    _require_room(len(values) * len(mark))
    return mark.join(to_text(value) for value in values)


def _base64_to_json(value: Any) -> Any:
    return _json(_from_base64(value))


TEXT_FUNCTIONS: Mapping[str, tuple[Callable[..., Any], int, int]] = {
    "base64": (_base64, 1, 1),
    "base64tojson": (_base64_to_json, 1, 1),
    "base64tostring": (_from_base64, 1, 1),
    "datauri": (_data_uri, 1, 1),
    "datauritostring": (_from_data_uri, 1, 1),
    "endswith": (_found(str.endswith), 2, 2),
    "format": (_format, 1, 64),
    "join": (_join, 2, 2),
    "json": (_json, 1, 1),
    "padleft": (_pad_left, 2, 3),
    "replace": (_replace, 3, 3),
    "split": (_split, 2, 2),
    "startswith": (_found(str.startswith), 2, 2),
    "string": (_string, 1, 1),
    "substring": (_substring, 2, 3),
    "tolower": (lambda value: text(value).lower(), 1, 1),
    "toupper": (lambda value: text(value).upper(), 1, 1),
    "trim": (_trim, 1, 1),
    "uri": (_uri, 2, 2),
    "uricomponent": (_uri_component, 1, 1),
    "uricomponenttostring": (lambda value: unquote(text(value)), 1, 1),
}
