"""The status that extensions report in Azure's ``.status`` files."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from pytest_vmss.model.scale_set import AzureModel
from pytest_vmss.untrusted import UnreadableError, read_json

__all__ = ["ExtensionStatus", "Substatus", "read_status", "read_status_file"]


class FormattedMessage(AzureModel):
    """A message and its language."""

    lang: str = "en-US"
    message: str = ""


class _Told(AzureModel):
    """A status and its message.

    Attributes:
        status: ``transitioning``, ``success``, ``warning`` or ``error``.
    """

    status: str
    formatted_message: FormattedMessage | None = None

    @property
    def message(self) -> str:
        """The message; empty if there is none."""
        return self.formatted_message.message if self.formatted_message else ""


class Substatus(_Told):
    """A named part of a status."""

    name: str


class ExtensionStatus(_Told):
    """The ``status`` of a status file."""

    operation: str = ""
    substatus: list[Substatus] | None = None


def read_status_file(text: str | bytes) -> tuple[ExtensionStatus, dict[str, Any]]:
    """Parses a status file: a list with one entry.

    Returns:
        Its status, and the whole entry.

    Raises:
        UnreadableError: It is not a valid status file.
    """
    entries = read_json(text)
    if not (isinstance(entries, list) and len(entries) == 1 and isinstance(entries[0], dict)):
        raise UnreadableError("it is no list with one entry")
    (entry,) = entries
    return read_status(entry.get("status")), entry


def read_status(value: object) -> ExtensionStatus:
    """Validates the ``status`` of a status file.

    Raises:
        UnreadableError: It is invalid; the message names the first problem.
    """
    try:
        return ExtensionStatus.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(["status", *map(str, first["loc"])])
        raise UnreadableError(f"{where}: {first['msg']}") from None
