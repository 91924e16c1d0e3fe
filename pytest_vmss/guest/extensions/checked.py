"""What a handler returns, checked before anyone relies on it (Q3, M5, R2)."""

from __future__ import annotations

import inspect

from pytest_vmss.guest.extensions.command import told_by
from pytest_vmss.guest.extensions.registry import find_handler
from pytest_vmss.model import Extension
from pytest_vmss.model.extension_result import ExtensionResult, Substatus

__all__ = ["checked_result", "checked_words"]

#: Substatuses of one extension that are kept.
_MOST_SUBSTATUSES = 100


def checked_result(
    returned: object, extension: Extension, *, is_running: bool = False
) -> ExtensionResult:
    """Makes a result of what a handler, possibly a suite's own, returned.

    Args:
        returned: What it returned.
        extension: The extension that it was called for; the result is of no other.
        is_running: Whether the extension may be in transition still, as a report may say.

    Returns:
        The result, with words that are short, printable and free of the extension's secrets.

    Raises:
        TypeError: It is no result, or says that the run has not ended.
        ValueError: A value is invalid.
    """
    if not isinstance(returned, ExtensionResult):
        if inspect.iscoroutine(returned):
            returned.close()  # or Python warns that nobody awaited it
        raise TypeError(
            f"it returned a {type(returned).__name__}; expected an ExtensionResult, such as "
            "run_command returns, or ExtensionResult.of(extension, ...)"
        )
    if returned.status == "transitioning" and not is_running:
        raise TypeError("it returned the status 'transitioning'; expected how the run ended")
    return ExtensionResult.model_validate(
        {
            **dict(returned),
            "name": extension.name,
            "type": extension.handler_name,
            "version": find_handler(extension.publisher, extension.type).version,
            "message": told_by(returned.message, extension),
            "handler": told_by(returned.handler, extension),
            "handler_message": told_by(returned.handler_message, extension),
            "substatuses": tuple(
                Substatus(
                    name=told_by(part.name, extension),
                    status=told_by(part.status, extension),
                    message=told_by(part.message, extension),
                )
                for part in returned.substatuses[:_MOST_SUBSTATUSES]
            ),
        }
    )


def checked_words(returned: object, extension: Extension) -> str:
    """Makes words of what a handler's ``remove`` returned.

    Raises:
        TypeError: It is no string.
    """
    if not isinstance(returned, str):
        raise TypeError(f"it returned a {type(returned).__name__}; expected what went wrong, or ''")
    return told_by(returned, extension)
