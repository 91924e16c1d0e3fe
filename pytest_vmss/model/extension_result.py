"""Results of extensions, as handlers return them and as they are recorded."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from pytest_vmss.model.scale_set import Extension

__all__ = ["ExtensionResult", "Substatus"]


class Substatus(BaseModel):
    """An entry of an extension's detailed status (Azure's ``substatus``)."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    name: str
    status: str
    message: str = ""


class ExtensionResult(BaseModel):
    """The result of running an extension on one OS disk; never contains a secret.

    A handler creates it with :meth:`of` and returns it. The lab fills in the rest.

    Attributes:
        name: Name of the extension.
        type: Its handler, ``Publisher.Type``.
        version: Version of the handler that ran it.
        revision: Revision of the model that it was run from.
        operation: Id of the operation that ran it.
        status: Azure's status; ``transitioning`` only while the extension is being polled.
        exit_code: Exit status of its command; None if it did not finish.
        timed_out: Whether it timed out.
        skipped: Whether it was not run because one that it depends on failed.
        left_out: Whether it was not run because nobody registered its handler, by choice (P4).
        message: The message it reported, or the end of its output.
        substatuses: The substatuses it reported.
        handler: The state of its handler, ``Ready`` if nothing is wrong with it.
        handler_message: The handler's message.
        seconds: How long it ran.
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
    left_out: bool = False
    message: str = ""
    substatuses: tuple[Substatus, ...] = ()
    handler: str = "Ready"
    handler_message: str = ""
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    @classmethod
    def of(
        cls,
        extension: Extension,
        status: Literal["success", "warning", "error"] = "success",
        message: str = "",
        **details: Any,
    ) -> Self:
        """Creates the result of an extension, for a handler to return.

        Args:
            extension: The extension that was run.
            status: Azure's status.
            message: Shown if the extension failed, so it must not contain secrets.
            details: Other fields.
        """
        return cls(
            name=extension.name,
            type=extension.handler_name,
            status=status,
            message=message,
            **details,
        )
