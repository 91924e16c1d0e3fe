"""What came of an extension: what a handler returns, and what is recorded of it."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from pytest_vmss.model.scale_set import Extension

__all__ = ["ExtensionResult", "Substatus"]


class Substatus(BaseModel):
    """A part of what an extension says of itself (Azure's ``substatus``)."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    name: str
    status: str
    message: str = ""


class ExtensionResult(BaseModel):
    """What came of an extension on one OS disk; never holds a secret.

    A handler returns it; see :meth:`of`. The lab fills in the rest.

    Attributes:
        status: Azure's; it is ``transitioning`` only while it is looked at.
        exit_code: Of its command; None where it did not end.
        timed_out: It did not end in time.
        skipped: It was not run, because one that it depends on failed.
        message: What it says, or the end of its output.
        substatuses: The parts of what it says.
        handler: Its handler's own state, ``Ready`` where nothing is wrong with it.
        handler_message: What the handler says.
        seconds: How long it ran.
        version: Of the handler that ran it.
        revision: Of the model that it was run from.
        operation: The operation that ran it.
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    name: str
    type: str
    version: str = ""
    revision: int = 0
    operation: str = ""
    status: Literal["success", "warning", "error", "transitioning"]
    exit_code: int | None = None
    timed_out: bool = False
    skipped: bool = False
    message: str = ""
    substatuses: tuple[Substatus, ...] = ()
    handler: str = "Ready"
    handler_message: str = ""
    seconds: float = 0.0

    @classmethod
    def of(
        cls,
        extension: Extension,
        status: Literal["success", "warning", "error"] = "success",
        message: str = "",
        **details: Any,
    ) -> Self:
        """The result of an extension, for a handler to return.

        Args:
            extension: The extension that was run.
            status: Azure's.
            message: What it says; shown in failures, so without secrets.
            details: Other fields.
        """
        return cls(
            name=extension.name,
            type=extension.handler_name,
            status=status,
            message=message,
            **details,
        )
