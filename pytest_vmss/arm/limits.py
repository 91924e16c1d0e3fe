"""Limits of evaluating a template, which may be hostile (R3), and its errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_vmss.untrusted import one_line

__all__ = ["MAX_COPIES", "MAX_DEPTH", "Budget", "TemplateError", "UnavailableError"]

#: Azure's limit for the copies of one loop.
MAX_COPIES = 800
#: Of expressions, of values, and of what they refer to.
MAX_DEPTH = 64
_MAX_RECURSION = 250
_MAX_STEPS = 200_000
_MAX_VALUES = 100_000
_MAX_WORK = 1_000_000
#: Azure's limit for a template, and so for what one makes.
_MAX_CHARS = 4 * 1024 * 1024
#: Of all expressions together, each counted once: reading them takes far longer than other text.
_MAX_PARSED = 256 * 1024


class TemplateError(Exception):
    """A template is wrong, or exceeds a limit; the message quotes no values.

    Attributes:
        message: What is wrong.
        path: Its JSON path, once known.
    """

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.message, self.path = message, path

    def at(self, path: str) -> TemplateError:
        """Returns the error with a path, unless it has one already."""
        return self if self.path else TemplateError(self.message, path)


class UnavailableError(Exception):
    """An expression has no value here: it asks for what only Azure knows."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = one_line(reason)


class Budget:
    """Counts the work of evaluating a template and the size of its results."""

    def __init__(self) -> None:
        self._steps = self._values = self._chars = self._work = self._parsed = 0
        self._known: set[str] = set()

    def step(self, depth: int = 0) -> None:
        """Counts one evaluation.

        Args:
            depth: How many others contain it.

        Raises:
            TemplateError: There are too many, or they are nested too deep.
        """
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise TemplateError(f"takes more than {_MAX_STEPS} evaluations")
        if depth > _MAX_RECURSION:
            raise TemplateError(
                f"is nested deeper than {_MAX_RECURSION} levels, or refers to itself"
            )

    def read(self, expression: str) -> None:
        """Counts an expression before it is parsed, the first time.

        Raises:
            TemplateError: They are too long together.
        """
        if expression in self._known:
            return
        self._known.add(expression)
        self._parsed += len(expression)
        if self._parsed > _MAX_PARSED:
            raise TemplateError(f"holds more than {_MAX_PARSED >> 10} KiB of expressions")

    def take(self, value: Any) -> None:
        """Counts a function's result.

        Raises:
            TemplateError: The results are too large together.
        """
        if isinstance(value, str):
            self._chars += len(value)
        elif isinstance(value, (list, Mapping)):
            self._values += len(value)
        if self._chars > _MAX_CHARS:
            raise TemplateError(f"makes more than {_MAX_CHARS >> 20} MiB of text")
        if self._values > _MAX_VALUES:
            raise TemplateError(f"makes more than {_MAX_VALUES} values")

    def spend(self, values: int) -> None:
        """Counts values that are looked at.

        Raises:
            TemplateError: There are too many.
        """
        self._work += values
        if self._work > _MAX_WORK:
            raise TemplateError(f"looks at more than {_MAX_WORK} values")

    def weigh(self, value: Any) -> None:
        """Counts a function's arguments, with all that they contain.

        Values are shared, so that a small template can refer to a huge value.

        Raises:
            TemplateError: The functions are given too much together.
        """
        open_values = [value]
        chars = 0
        while open_values:
            part = open_values.pop()
            self.spend(1 + (len(part) >> 6 if isinstance(part, str) else 0))
            if isinstance(part, str):
                chars += len(part)
                if chars > _MAX_CHARS:
                    raise TemplateError(f"reads more than {_MAX_CHARS >> 20} MiB of text at once")
            elif isinstance(part, Mapping):
                open_values += part.values()
            elif isinstance(part, list):
                open_values += part
