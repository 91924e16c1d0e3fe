"""What an extension says of itself, as the lab keeps it (H4)."""

from __future__ import annotations

from pytest_vmss.guest.extensions.command import redact
from pytest_vmss.model import Extension, ExtensionStatus, read_status_file
from pytest_vmss.store import ExtensionRecord, SubstatusRecord

__all__ = ["described", "with_status"]

_MESSAGE_CHARS = 4096
_SUBSTATUSES = 20
_KNOWN = frozenset({"success", "warning", "error", "transitioning"})


def described(last: ExtensionRecord, text: str | bytes, extension: Extension) -> ExtensionRecord:
    """What an extension's status file says of it now.

    Args:
        last: What came of its last run; returned as it is where the file says nothing.
        text: What the file holds.
        extension: The extension, whose secrets are left out.
    """
    try:
        status, _ = read_status_file(text)
    except ValueError:
        return last
    return with_status(last, status, extension)


def with_status(
    last: ExtensionRecord, status: ExtensionStatus, extension: Extension
) -> ExtensionRecord:
    """A record with what the extension says of itself, in place of what was known."""

    def shown(text: str) -> str:
        return redact(text, extension)[:_MESSAGE_CHARS]

    told = status.status.lower()
    parts = tuple(
        SubstatusRecord(
            name=shown(part.name), status=part.status.lower(), message=shown(part.message)
        )
        for part in (status.substatus or [])[:_SUBSTATUSES]
    )
    return last.model_copy(
        update={
            "status": told if told in _KNOWN else "transitioning",
            "message": shown(status.message),
            "substatuses": parts,
        }
    )
