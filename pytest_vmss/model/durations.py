"""Durations as Azure takes them: texts of ISO 8601."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pydantic import (
    GetCoreSchemaHandler,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
)
from pydantic_core import CoreSchema, core_schema

__all__ = ["Duration"]

#: XML Schema's ``duration``; pydantic would also take seconds, ``00:10:00`` and ``1 day``.
_ISO_8601 = re.compile(
    r"-?P(?=[\dT])(?:\d+Y)?(?:\d+M)?(?:\d+D)?(?:T(?=\d)(?:\d+H)?(?:\d+M)?(?:\d+(?:\.\d+)?S)?)?",
    re.ASCII,
)
_READER = TypeAdapter(timedelta)


@dataclass(frozen=True)
class Duration:
    """Marks a ``timedelta`` that is given as a duration of ISO 8601.

    Attributes:
        least: The shortest one that Azure takes, such as ``PT10M``.
        most: The longest one.
    """

    least: str
    most: str

    def __get_pydantic_core_schema__(
        self, source: type[timedelta], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._check, handler(source))

    def _check(self, value: Any, read: ValidatorFunctionWrapHandler) -> timedelta:
        if not isinstance(value, timedelta) and not (
            isinstance(value, str) and _ISO_8601.fullmatch(value)
        ):
            raise ValueError("must be a duration as ISO 8601 writes it, such as PT10M")
        try:
            found: timedelta | None = read(value)
        except ValidationError:  # it has too many digits
            found = None
        least, most = (_READER.validate_python(bound) for bound in (self.least, self.most))
        if found is None or not least <= found <= most:
            raise ValueError(f"must be a duration from {self.least} to {self.most}")
        return found
