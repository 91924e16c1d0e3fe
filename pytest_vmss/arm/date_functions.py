"""Functions of dates and times."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pytest_vmss.arm.limits import TemplateError
from pytest_vmss.arm.values import integer, text

__all__ = ["DATE_FUNCTIONS", "formatted_time"]

_DURATION = re.compile(
    r"(-)?P(?:(\d{1,6})Y)?(?:(\d{1,6})M)?(?:(\d{1,6})W)?(?:(\d{1,6})D)?"
    r"(?:T(?:(\d{1,6})H)?(?:(\d{1,6})M)?(?:(\d{1,6})S)?)?"
)
_TOKENS = re.compile(r"y{1,4}|M{1,4}|d{1,4}|H{1,2}|h{1,2}|m{1,2}|s{1,2}|f{1,6}|tt|z{1,3}|'[^']*+'")
_STANDARD = {
    "d": "MM/dd/yyyy",
    "u": "yyyy-MM-dd HH:mm:ssZ",
    "s": "yyyy-MM-ddTHH:mm:ss",
    "o": "yyyy-MM-ddTHH:mm:ss.ffffffZ",
    "r": "ddd, dd MMM yyyy HH:mm:ss GMT",
}


def _moment(value: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(text(value))
    except ValueError:
        raise TemplateError("the argument is not a date and time such as 2024-01-31Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def formatted_time(moment: datetime, pattern: Any = None) -> str:
    """Formats a time as .NET does, with its custom formats and the commonest standard ones."""
    given = "yyyyMMddTHHmmssZ" if pattern is None else text(pattern, "the format")
    given = _STANDARD.get(given if given in "dus" else given.lower(), given)

    def token(match: re.Match[str]) -> str:
        return _token(moment, match[0])

    return _TOKENS.sub(token, given)


def _token(moment: datetime, token: str) -> str:
    letter, count = token[0], len(token)
    numbers = {
        "H": moment.hour, "h": moment.hour % 12 or 12, "m": moment.minute, "s": moment.second,
        "M": moment.month, "d": moment.day,
    }  # fmt: skip
    if letter == "'":
        return token[1:-1]
    if letter == "y":
        return f"{moment.year:04d}" if count > 2 else f"{moment.year % 100:02d}"
    if letter == "f":
        return f"{moment.microsecond:06d}"[:count]
    if letter == "t":
        return "PM" if moment.hour >= 12 else "AM"
    if letter == "z":
        return "+00:00"
    if count > 2:
        names = {("M", 3): "%b", ("M", 4): "%B", ("d", 3): "%a", ("d", 4): "%A"}
        return moment.strftime(names[letter, count])
    return f"{numbers[letter]:0{count}d}"


def _add(base: Any, duration: Any, pattern: Any = None) -> str:
    found = _DURATION.fullmatch(text(duration, "the duration"))
    if found is None:
        raise TemplateError("the duration is not one of ISO 8601, such as P3D or PT9M")
    years, months, weeks, days, hours, minutes, seconds = (
        int(part or 0) for part in found.groups()[1:]
    )
    sign = -1 if found[1] else 1
    moment = _moment(base)
    try:
        month = moment.month - 1 + sign * (years * 12 + months)
        year, month = moment.year + month // 12, month % 12 + 1
        last = (datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC) - timedelta(days=1)).day
        moment = moment.replace(year=year, month=month, day=min(moment.day, last))
        moment += sign * timedelta(
            weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds
        )
    except (ValueError, OverflowError):
        raise TemplateError("the time is beyond what a calendar has") from None
    return formatted_time(moment, "yyyy-MM-ddTHH:mm:ssZ" if pattern is None else pattern)


def _from_epoch(value: Any) -> str:
    try:
        moment = datetime.fromtimestamp(integer(value), UTC)
    except (ValueError, OverflowError, OSError):
        raise TemplateError("the time is beyond what a calendar has") from None
    return formatted_time(moment, "yyyy-MM-ddTHH:mm:ssZ")


DATE_FUNCTIONS: Mapping[str, tuple[Callable[..., Any], int, int]] = {
    "datetimeadd": (_add, 2, 3),
    "datetimefromepoch": (_from_epoch, 1, 1),
    "datetimetoepoch": (lambda value: int(_moment(value).timestamp()), 1, 1),
}
