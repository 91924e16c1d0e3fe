"""What an extension says of itself, as the lab keeps it (H4)."""

from __future__ import annotations

from pytest_vmss.guest.extensions.command import told_by
from pytest_vmss.model import Extension, ExtensionStatus, read_status_file
from pytest_vmss.model.extension_result import ExtensionResult, Substatus
from pytest_vmss.untrusted import UnreadableError, one_line

__all__ = ["described", "with_status"]

_SUBSTATUSES = 20
_KNOWN = frozenset({"success", "warning", "error", "transitioning"})


def described(last: ExtensionResult, text: str | bytes, extension: Extension) -> ExtensionResult:
    """What an extension's status file says of it now.

    Args:
        last: What came of its last run; returned as it is where the file says nothing.
        text: What the file holds.
        extension: The extension, whose secrets are left out.
    """
    try:
        status, _ = read_status_file(text)
    except UnreadableError:
        return last
    return with_status(last, status, extension)


def with_status(
    last: ExtensionResult, status: ExtensionStatus, extension: Extension
) -> ExtensionResult:
    """A record with what the extension says of itself, in place of what was known."""
    told = status.status.lower()
    parts = tuple(
        Substatus(
            name=told_by(part.name, extension),
            status=one_line(part.status.lower()),
            message=told_by(part.message, extension),
        )
        for part in (status.substatus or [])[:_SUBSTATUSES]
    )
    return last.model_copy(
        update={
            "status": told if told in _KNOWN else "transitioning",
            "message": told_by(status.message, extension),
            "substatuses": parts,
        }
    )
