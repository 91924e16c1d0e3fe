"""Template values, which are JSON's, and what Azure's functions expect of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_vmss.arm.limits import TemplateError, UnavailableError
from pytest_vmss.secrecy import SecretText

__all__ = [
    "Unevaluated",
    "boolean",
    "integer",
    "is_integer",
    "kind_of",
    "look_up",
    "property_name",
    "read_json",
    "text",
    "to_text",
]


@dataclass(frozen=True)
class Unevaluated:
    """Stands for a value that an expression asks of Azure, and that nobody has here.

    Attributes:
        reason: Which function has no value, and why.
        is_kept: Whether it stands for a value that is stored already, and stays.
    """

    reason: str
    is_kept: bool = False


def kind_of(value: object) -> str:
    """Returns Azure's name of a value's type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int"
    if isinstance(value, float):
        return "float"
    if isinstance(value, str):
        return "string"
    return "object" if isinstance(value, Mapping) else "array"


def is_integer(value: object) -> bool:
    """Whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def text(value: Any, what: str = "an argument") -> str:
    """Returns a string.

    Raises:
        TemplateError: It is something else.
    """
    if isinstance(value, str):
        return value
    raise TemplateError(f"{what} must be a string, is {kind_of(value)}")


def property_name(value: Any) -> str:
    """Returns the name of a property, which is shown wherever its object is.

    Raises:
        TemplateError: It is no string, or is made of a secure parameter.
    """
    if isinstance(value, SecretText):
        raise TemplateError(
            "a property's name is made of a secure parameter, and names are shown everywhere; use "
            "a parameter that is no secret"
        )
    return text(value, "a property's name")


def integer(value: Any, what: str = "an argument") -> int:
    """Returns a whole number of 64 bits.

    Raises:
        TemplateError: It is something else.
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if not is_integer(value):
        raise TemplateError(f"{what} must be an integer, is {kind_of(value)}")
    if int(value).bit_length() > 63:
        raise TemplateError(f"{what} must be an integer of 64 bits")
    return int(value)


def boolean(value: Any, what: str = "an argument") -> bool:
    """Returns a truth value.

    Raises:
        TemplateError: It is something else.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise TemplateError(f"{what} must be a bool, is {kind_of(value)}")


def to_text(value: Any) -> str:
    """Converts a value to a string, as the function ``string`` and ``concat`` do."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "True" if value else "False"
    if value is None:
        return ""
    if isinstance(value, (list, Mapping)):
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=_no_text)
    return str(int(value)) if isinstance(value, int) else repr(float(value))


def read_json(given: str) -> Any:
    """Reads a JSON text.

    Raises:
        ValueError: It is not JSON, or holds what JSON cannot: NaN, infinity, half a surrogate pair.
    """
    found = json.loads(given, parse_constant=_finite, parse_float=_finite)
    if "\\u" in given:  # escaped, a half may be anywhere
        json.dumps(found, ensure_ascii=False).encode()
    return found


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number


def _no_text(value: object) -> Any:
    raise UnavailableError(value.reason if isinstance(value, Unevaluated) else "no text")


def look_up(value: Mapping[str, Any], name: str) -> str | None:
    """Returns a property's name as it is written in an object; names count in any case."""
    if name in value:
        return name
    lowered = name.lower()
    return next((key for key in value if key.lower() == lowered), None)
