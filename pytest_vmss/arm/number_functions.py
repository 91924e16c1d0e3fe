"""Functions of numbers and truth values, and comparisons."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from pytest_vmss.arm.limits import TemplateError
from pytest_vmss.arm.values import boolean, integer, is_integer, kind_of, text

__all__ = ["NUMBER_FUNCTIONS", "is_equal"]

_DIGITS = 20
_WHOLE = re.compile(r"[+-]?[0-9]+")
_MOST_NUMBERS = 10_000


def _int(value: Any) -> int:
    if isinstance(value, str):
        given = value.strip()
        if len(given) > _DIGITS or not _WHOLE.fullmatch(given):
            raise TemplateError("the argument is not a whole number")
        value = int(given)
    elif isinstance(value, float):
        value = int(value)
    return integer(value)


def _float(value: Any) -> float:
    if isinstance(value, str) and len(value) <= 64:
        try:
            value = float(value)
        except ValueError:
            raise TemplateError("the argument is not a number") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TemplateError(f"the argument must be a finite number, is {kind_of(value)}")
    return float(value)


def _div(left: Any, right: Any) -> int:
    dividend, divisor = integer(left), integer(right)
    if not divisor:
        raise TemplateError("divides by zero")
    quotient = abs(dividend) // abs(divisor)
    return integer(quotient if (dividend < 0) == (divisor < 0) else -quotient)


def _mod(left: Any, right: Any) -> int:
    return integer(left) - _div(left, right) * integer(right)


def _extreme(pick: Callable[..., int]) -> Callable[..., int]:
    def chosen(*values: Any) -> int:
        given = values[0] if len(values) == 1 and isinstance(values[0], list) else values
        if not given:
            raise TemplateError("needs at least one number")
        return pick(integer(value) for value in given)

    return chosen


def _range(start: Any, count: Any) -> list[int]:
    first, many = integer(start), integer(count)
    if not 0 <= many <= _MOST_NUMBERS:
        raise TemplateError(f"the count must be from 0 to {_MOST_NUMBERS}")
    return list(range(first, first + many))


def is_equal(left: Any, right: Any) -> bool:
    """Whether two values are equal; true is not 1, and property names count in any case."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        ours = {key.lower(): item for key, item in left.items()}
        theirs = {key.lower(): item for key, item in right.items()}
        return ours.keys() == theirs.keys() and all(
            is_equal(item, theirs[key]) for key, item in ours.items()
        )
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(
            is_equal(one, other) for one, other in zip(left, right, strict=True)
        )
    return kind_of(left) == kind_of(right) and bool(left == right)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def compared(left: Any, right: Any) -> bool:
        if isinstance(left, str) and isinstance(right, str):
            return compare(text(left), text(right))
        if is_integer(left) and is_integer(right):
            return compare(left, right)
        raise TemplateError(
            f"compares two numbers or two strings; given {kind_of(left)} and {kind_of(right)}"
        )

    return compared


def _bool(value: Any) -> bool:
    return value != 0 if is_integer(value) else boolean(value)


NUMBER_FUNCTIONS: Mapping[str, tuple[Callable[..., Any], int, int]] = {
    "add": (lambda left, right: integer(integer(left) + integer(right), "the sum"), 2, 2),
    "bool": (_bool, 1, 1),
    "div": (_div, 2, 2),
    "equals": (is_equal, 2, 2),
    "false": (lambda: False, 0, 0),
    "float": (_float, 1, 1),
    "greater": (_ordered(lambda left, right: left > right), 2, 2),
    "greaterorequals": (_ordered(lambda left, right: left >= right), 2, 2),
    "int": (_int, 1, 1),
    "less": (_ordered(lambda left, right: left < right), 2, 2),
    "lessorequals": (_ordered(lambda left, right: left <= right), 2, 2),
    "max": (_extreme(max), 1, 1000),
    "min": (_extreme(min), 1, 1000),
    "mod": (_mod, 2, 2),
    "mul": (lambda left, right: integer(integer(left) * integer(right), "the product"), 2, 2),
    "not": (lambda value: not boolean(value), 1, 1),
    "null": (lambda: None, 0, 0),
    "range": (_range, 2, 2),
    "sub": (lambda left, right: integer(integer(left) - integer(right), "the difference"), 2, 2),
    "true": (lambda: True, 0, 0),
}
