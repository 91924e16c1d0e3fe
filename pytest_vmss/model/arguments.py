"""Validates arguments of the public API other than documents, before anything is done (A6).

Each validator returns the value to use from then on, or raises ModelError with the argument's
name as its path and a message that says what was expected.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import functools
import inspect
import ipaddress
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, ParamSpec, TypeVar
from urllib.parse import urlsplit

from pytest_vmss.errors import ModelError, ModelProblem
from pytest_vmss.model.ports import LAST_PORT
from pytest_vmss.secrecy import quote

__all__ = [
    "argument_names",
    "check_approver",
    "check_argument_names",
    "check_choice",
    "check_choices",
    "check_custom_data",
    "check_flag",
    "check_folder",
    "check_function",
    "check_health",
    "check_instance_count",
    "check_instance_ids",
    "check_name",
    "check_port",
    "check_ports",
    "check_script",
    "check_seconds",
    "check_share",
    "check_siblings",
    "check_text",
    "check_unit",
    "known_arguments",
]

_P = ParamSpec("_P")
_R = TypeVar("_R")

#: The limit of Azure's Uniform sets.
_MOST_INSTANCES = 1000
#: Maximum size of custom data in bytes, decoded.
_CUSTOM_DATA_BYTES = 65536
#: Maximum number of forwarded ports of one set; each takes up a host port on every address.
_MOST_PORTS = 64
_COMMAND_CHARS, _SCRIPT_CHARS = 16384, 1024 * 1024
_NAME_CHARS = 260
_URL_CHARS = 2000
#: A century: longer times are mistakes, and clocks cannot represent them.
_LONGEST_S = 100 * 365 * 86400.0
_LAST_ID = 2**31
_UNIT = re.compile(r"[A-Za-z0-9:_.@\\-]{1,255}")


def _refuse(path: str, expected: str, given: object, *, secret: bool = False) -> NoReturn:
    """Raises ModelError for an argument.

    Args:
        path: The argument's name.
        expected: What it must be.
        given: The value given.
        secret: Whether the message may name only the value's type.
    """
    told = f"given a {type(given).__name__}" if secret or not _is_plain(given) else (
        f"given {quote(given)}"
    )  # fmt: skip
    problem = ModelProblem(path, "InvalidParameter", f"{expected}; {told}")
    raise ModelError([problem], source="what was asked for", expected="possible")


def _is_plain(value: object) -> bool:
    """Whether a value can be quoted in a message: short, and harmless to print."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value.bit_length() <= 64
    return value is None or isinstance(value, (str, bool, float))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    """Whether it is a string that can be encoded, stored and passed to a shell."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def argument_names(function: Callable[..., object]) -> list[str]:
    """Returns the names of a function's arguments that are given by name."""
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]


def check_argument_names(given: Iterable[str], known: Iterable[str], owner: str) -> None:
    """Validates the names of arguments.

    Args:
        given: The names given.
        known: Those that there are.
        owner: What takes the arguments, for messages.

    Raises:
        ModelError: There is no argument of such a name.
    """
    names = list(known)
    problems = []
    for name in given:
        if name in names:
            continue
        shown = quote(name)
        near = difflib.get_close_matches(name.lower()[:_NAME_CHARS], names, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(names)}"
        problems.append(ModelProblem(owner, "InvalidParameter", f"has no argument {shown}; {hint}"))
    if problems:
        raise ModelError(problems, source="what was asked for", expected="possible")


def known_arguments(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorates a function so that an argument's misspelt name is refused with the one meant."""
    names = argument_names(function)

    @functools.wraps(function)
    def call(*arguments: _P.args, **named: _P.kwargs) -> _R:
        positional = inspect.signature(function).parameters
        check_argument_names(
            (name for name in named if name not in positional), names, function.__name__
        )
        return function(*arguments, **named)

    return call


def check_instance_count(value: Any, path: str = "capacity", *, none: bool = False) -> int | None:
    """Validates a number of instances.

    Args:
        value: The number.
        path: The argument's name.
        none: Whether None is allowed, which leaves it to the model.

    Raises:
        ModelError: Not a whole number from 0 to 1000.
    """
    if value is None and none:
        return None
    if not _is_whole(value) or not 0 <= value <= _MOST_INSTANCES:
        _refuse(path, f"must be a whole number from 0 to {_MOST_INSTANCES}", value)
    return int(value)


def check_name(value: Any, path: str = "name") -> str | None:
    """Validates a name's length; None leaves it to the model, which also checks the characters.

    Raises:
        ModelError: Not a string, or empty, or longer than any name may be.
    """
    if value is None:
        return None
    if not _is_text(value) or not 0 < len(value) <= _NAME_CHARS:
        _refuse(path, f"must be a text of 1 to {_NAME_CHARS} characters", value)
    return str(value)


def check_port(value: Any, path: str = "port") -> int:
    """Validates a guest's port.

    Raises:
        ModelError: Not a whole number from 1 to 65535.
    """
    if not _is_whole(value) or not 1 <= value <= LAST_PORT:
        _refuse(path, f"must be a whole number from 1 to {LAST_PORT}", value)
    return int(value)


def check_ports(value: Any, path: str = "ports") -> tuple[int, ...]:
    """Validates a guest's ports, and drops duplicates.

    Raises:
        ModelError: Not a list of at most 64 whole numbers from 1 to 65535.
    """
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence | set | frozenset):
        _refuse(path, "must be a list of ports, e.g. [8080]", value)
    if len(value) > _MOST_PORTS:
        _refuse(path, f"must be at most {_MOST_PORTS} ports", len(value))
    ports = [check_port(port, f"{path}[{index}]") for index, port in enumerate(value)]
    return tuple(dict.fromkeys(ports))


def check_seconds(value: Any, path: str, *, none: bool = False, zero: bool = False) -> float | None:
    """Validates a time in seconds, such as ``health_timeout`` or ``every``.

    Args:
        value: The seconds.
        path: The argument's name.
        none: Whether None is allowed, which is returned as it is.
        zero: Whether 0 is allowed.

    Raises:
        ModelError: Not a finite number above 0, or more than a century.
    """
    if value is None and none:
        return None
    seconds = _number(value)
    if seconds is None or not 0 <= seconds <= _LONGEST_S or (seconds == 0 and not zero):
        _refuse(path, f"must be a finite number of seconds{' above 0' * (not zero)}", value)
    return seconds


def _number(value: Any) -> float | None:
    """Converts a value to a finite number; None if it is not one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def check_custom_data(value: Any, path: str = "custom_data") -> str | None:
    """Validates custom data, in strict base64; None leaves it to the model (P5).

    Raises:
        ModelError: Not base64, or more than 64 KiB when decoded; the message quotes none of it.
    """
    if value is None:
        return None
    expected = (
        "must be a text in base64, without line breaks: "
        "base64.b64encode(content).decode() of what the guest is to get"
    )
    if not isinstance(value, str):
        _refuse(path, expected, value, secret=True)
    try:
        size = len(base64.b64decode(value, validate=True))
    except (binascii.Error, ValueError):
        size = -1
    if size < 0:
        _refuse(path, expected, "another text", secret=True)
    if size > _CUSTOM_DATA_BYTES:
        _refuse(path, f"must be at most {_CUSTOM_DATA_BYTES} bytes, decoded", size)
    return value


def check_health(value: Any, path: str = "health") -> Any:
    """Validates a health source: a command to run over SSH, or a function; None means no source.

    Raises:
        ModelError: It is neither.
    """
    if value is None or (callable(value) and not isinstance(value, type)):
        return value
    if not _is_text(value) or not value.strip() or len(value) > _COMMAND_CHARS:
        expected = (
            f"must be a command of 1 to {_COMMAND_CHARS} characters, or a function of a "
            "testinfra host"
        )
        _refuse(path, expected, value, secret=True)
    return value


def check_approver(value: Any, path: str = "approver") -> Any:
    """Validates who approves update domains: a function, or a URL on loopback; None for nobody.

    Raises:
        ModelError: It is neither; the message does not quote it.
    """
    if value is None or (callable(value) and not isinstance(value, type)):
        return value
    if not _is_text(value) or len(value) > _URL_CHARS or not _is_local_url(value):
        expected = (
            "must be a function of a RepairTask, or the URL of an endpoint on loopback, such as "
            "http://127.0.0.1:8080/approve"
        )
        _refuse(path, expected, value, secret=True)
    return value


def _is_local_url(text: str) -> bool:
    """Whether a text is an ``http`` URL of this host's loopback, without a user's name in it."""
    if not text.isascii() or not text.isprintable() or " " in text:
        return False
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
    return parts.scheme == "http" and local and port != 0 and "@" not in parts.netloc


def check_function(value: Any, path: str) -> Callable[..., object]:
    """Validates a function that is called later.

    Raises:
        ModelError: It is not callable.
    """
    if not callable(value):
        _refuse(path, "must be a function", value)
    function: Callable[..., object] = value
    return function


def check_script(value: Any, path: str = "script") -> str:
    """Validates a script for a guest's shell.

    Raises:
        ModelError: Not a string of at most 1 Mi characters without NUL; the message quotes none of
            it.
    """
    if not _is_text(value) or len(value) > _SCRIPT_CHARS:
        expected = f"must be a text of at most {_SCRIPT_CHARS >> 10} Ki characters, without NUL"
        _refuse(path, expected, value, secret=True)
    return str(value)


def check_flag(value: Any, path: str, *, none: bool = False) -> bool | None:
    """Validates a boolean.

    Args:
        value: The boolean.
        path: The argument's name.
        none: Whether None is allowed, which is returned as it is.

    Raises:
        ModelError: Neither True nor False.
    """
    if value is None and none:
        return None
    if not isinstance(value, bool):
        _refuse(path, f"must be True or False{' or None' if none else ''}", value)
    return value


def check_text(value: Any, path: str) -> str:
    """Validates a text, such as the name of what is asked for.

    Raises:
        ModelError: Not a string, or one that no file could hold.
    """
    if not _is_text(value):
        _refuse(path, "must be a text", value)
    return str(value)


def check_share(value: Any, path: str) -> float:
    """Validates a share of a whole.

    Raises:
        ModelError: Not a number between 0 and 1, both excluded.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        _refuse(path, "must be a number between 0 and 1, both excluded, e.g. 0.25", value)
    return float(value)


def check_folder(value: Any, path: str) -> str:
    """Validates the path of a guest's folder.

    Raises:
        ModelError: Not a text that begins with a slash.
    """
    if not _is_text(value) or not value.startswith("/"):
        _refuse(path, "must be the path of a folder in the guest, e.g. '/data'", value)
    return str(value)


def check_unit(value: Any, path: str) -> str:
    """Validates the name of a systemd unit.

    Raises:
        ModelError: No unit can have it.
    """
    if not isinstance(value, str) or not _UNIT.fullmatch(value):
        _refuse(path, "must be the name of a systemd unit, e.g. 'nginx'", value)
    return value


def check_siblings(
    value: Sequence[Any], path: str, scale_set: str, number_of: Callable[[Any], int | None]
) -> tuple[int, ...]:
    """Validates instances of a set; returns their numbers.

    Args:
        value: The instances.
        path: The argument's name.
        scale_set: The set's name.
        number_of: The number of an instance of the set; None for anything else.

    Raises:
        ModelError: One is no instance, or one of another set.
    """
    numbers = []
    for index, other in enumerate(value):
        number = number_of(other)
        if number is None:
            _refuse(
                f"{path}[{index}]",
                f"must be an instance of {scale_set!r}, e.g. {scale_set}[1]",
                other,
            )
        numbers.append(number)
    return tuple(numbers)


def check_choice(value: Any, path: str, choices: Sequence[str]) -> str:
    """Validates a choice between several words.

    Raises:
        ModelError: It is not one of them.
    """
    if not isinstance(value, str) or value not in choices:
        _refuse(path, f"must be {' or '.join(choices)}", value)
    return value


def check_choices(value: Any, path: str, choices: Sequence[str]) -> tuple[str, ...]:
    """Validates several of a few texts, and drops duplicates.

    Raises:
        ModelError: Not a list, or one that holds anything else.
    """
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        _refuse(path, f"must be a list of {', '.join(choices)}", value)
    chosen = [check_choice(one, f"{path}[{index}]", choices) for index, one in enumerate(value)]
    return tuple(dict.fromkeys(chosen))


def check_instance_ids(
    value: Any, path: str = "ids", *, none: bool = True
) -> tuple[int, ...] | None:
    """Validates instance ids, given as numbers or strings of digits, and drops duplicates.

    Args:
        value: The ids; None means all.
        path: The argument's name.
        none: Whether None is allowed.

    Raises:
        ModelError: Not a list of ids, or an empty one, which could be taken for none or for all.
    """
    if value is None and none:
        return None
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        _refuse(path, f"must be a list of instance ids, e.g. [0, 2]{', or None' * none}", value)
    listed = list(value)
    if not listed:
        _refuse(path, "must name at least one instance", "none")
    return tuple(
        dict.fromkeys(_instance_id(entry, f"{path}[{n}]") for n, entry in enumerate(listed))
    )


def _instance_id(value: Any, path: str) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 10:
        value = int(value)
    if not _is_whole(value) or not 0 <= value < _LAST_ID:
        _refuse(path, "must be an instance's id: a whole number from 0 on, or its digits", value)
    return int(value)
