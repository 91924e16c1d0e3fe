"""VM extensions: a registry by publisher and type (H2)."""

from __future__ import annotations

from typing import Protocol

from pytest_vmss.clock import Clock
from pytest_vmss.errors import ModelProblem, NotFoundError
from pytest_vmss.guest.shell import Shell
from pytest_vmss.model import Extension
from pytest_vmss.store import ExtensionRecord

__all__ = [
    "Handler",
    "check_settings",
    "find_handler",
    "handler_versions",
    "known_types",
    "register",
    "timed_out",
]


class Handler(Protocol):
    """Runs the extensions of one type."""

    publisher: str
    type: str
    version: str
    """Of the handler itself; a higher one reaches instances by an extension upgrade."""

    def check(self, extension: Extension) -> list[str]:
        """What is wrong with its settings, before anything is created."""

    def run(
        self, shell: Shell, extension: Extension, *, run: str, limit: float, clock: Clock
    ) -> ExtensionRecord:
        """Runs it in the guest once for each run; an earlier result of it is returned as it is.

        Args:
            shell: Connection to the guest.
            extension: The extension with its settings.
            run: Names the run, the same after a crash.
            limit: Seconds that it may take.
            clock: The lab's.
        """


_handlers: dict[tuple[str, str], Handler] = {}


def register(handler: Handler) -> None:
    """Makes a handler known; one of the same publisher and type is replaced."""
    _handlers[handler.publisher.lower(), handler.type.lower()] = handler


def known_types() -> frozenset[tuple[str, str]]:
    """Publisher and type of every known handler, in lower case."""
    return frozenset(_handlers)


def find_handler(publisher: str, type: str) -> Handler:
    """The handler of an extension.

    Raises:
        NotFoundError: There is none.
    """
    handler = _handlers.get((publisher.lower(), type.lower()))
    if handler is None:
        raise NotFoundError(f"no handler for the extension {publisher}/{type}")
    return handler


def handler_versions() -> dict[tuple[str, str], str]:
    """The version of every known handler, by publisher and type in lower case."""
    return {key: handler.version for key, handler in _handlers.items()}


def check_settings(extensions: list[Extension]) -> list[ModelProblem]:
    """What is wrong with the settings of extensions whose types are known."""
    problems: list[ModelProblem] = []
    for index, extension in enumerate(extensions):
        handler = _handlers.get((extension.publisher.lower(), extension.type.lower()))
        path = f"$.virtualMachineProfile.extensionProfile.extensions[{index}].settings"
        problems += [
            ModelProblem(path, "VMExtensionManagementInputError", wrong)
            for wrong in (handler.check(extension) if handler else ())
        ]
    return problems


def timed_out(extension: Extension, *, seconds: float = 0.0) -> ExtensionRecord:
    """What came of an extension that did not end in time; Azure's words."""
    return ExtensionRecord(
        name=extension.name,
        type=f"{extension.publisher}.{extension.type}",
        version=find_handler(extension.publisher, extension.type).version,
        status="error",
        timed_out=True,
        message=(
            f"Provisioning of VM extension {extension.name} has timed out. Extension provisioning "
            "has taken too long to complete. The extension did not report a message."
        ),
        seconds=seconds,
    )
