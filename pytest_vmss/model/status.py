"""What extensions say of themselves: the status that they write into Azure's ``.status`` files."""

from __future__ import annotations

import json
from typing import Any

from pytest_vmss.model.scale_set import AzureModel

__all__ = ["ExtensionStatus", "Substatus", "read_status_file"]


class FormattedMessage(AzureModel):
    """A text and its language."""

    lang: str = "en-US"
    message: str = ""


class _Told(AzureModel):
    """A status and its text.

    Attributes:
        status: ``transitioning``, ``success``, ``warning`` or ``error``.
    """

    status: str
    formatted_message: FormattedMessage | None = None

    @property
    def message(self) -> str:
        """Its text."""
        return self.formatted_message.message if self.formatted_message else ""


class Substatus(_Told):
    """A part of a status, with a name of its own."""

    name: str


class ExtensionStatus(_Told):
    """``status`` of a status file."""

    operation: str = ""
    substatus: list[Substatus] | None = None


def read_status_file(text: str | bytes) -> tuple[ExtensionStatus, dict[str, Any]]:
    """Reads a status file: a list with one entry.

    Returns:
        Its status, and the whole entry.

    Raises:
        ValueError: It is no such file.
    """
    entries = json.loads(text)
    if not (isinstance(entries, list) and len(entries) == 1 and isinstance(entries[0], dict)):
        raise ValueError("it is no list with one entry")
    (entry,) = entries
    return ExtensionStatus.model_validate(entry.get("status")), entry
