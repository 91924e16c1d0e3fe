"""Converts extensions' reported status to the lab's records (H4)."""

from __future__ import annotations

from pytest_vmss.guest.extensions.command import told_by
from pytest_vmss.model import Extension, ExtensionStatus, read_status_file
from pytest_vmss.model.extension_result import ExtensionResult, Substatus
from pytest_vmss.untrusted import UnreadableError, one_line

__all__ = ["described", "with_status"]

_SUBSTATUSES = 20
_KNOWN = frozenset({"success", "warning", "error", "transitioning"})


def described(last: ExtensionResult, text: str | bytes, extension: Extension) -> ExtensionResult:
    """Updates an extension's result from its status file.

    Args:
        last: The result of its last run; returned unchanged if the file is unreadable.
        text: The file's content.
        extension: The extension, whose secrets are redacted.
    """
    try:
        status, _ = read_status_file(text)
    except UnreadableError:
        return last
    return with_status(last, status, extension)


def with_status(
    last: ExtensionResult, status: ExtensionStatus, extension: Extension
) -> ExtensionResult:
    """Updates an extension's result with the status that it reports."""
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
