"""VM extensions: a registry by publisher and type (H2)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from pytest_vmss.clock import Interrupted
from pytest_vmss.errors import (
    HostError,
    HypervisorError,
    InstanceError,
    ModelProblem,
    NotFoundError,
    is_host_trouble,
)
from pytest_vmss.guest.extensions.handler import Handler
from pytest_vmss.model import Extension
from pytest_vmss.model.extension_result import ExtensionResult

__all__ = [
    "check_settings",
    "find_handler",
    "guarded",
    "handler_versions",
    "is_known",
    "known_types",
    "register",
    "timed_out",
]

_T = TypeVar("_T")

_handlers: dict[tuple[str, str], Handler] = {}


def register(handler: Handler) -> None:
    """Registers a handler, replacing any of the same publisher and type."""
    _handlers[handler.publisher.lower(), handler.type.lower()] = handler


def known_types() -> frozenset[tuple[str, str]]:
    """Returns publisher and type of every registered handler, in lower case."""
    return frozenset(_handlers)


def is_known(extension: Extension) -> bool:
    """Whether a handler for an extension is registered in this process."""
    return (extension.publisher.lower(), extension.type.lower()) in _handlers


def find_handler(publisher: str, type: str) -> Handler:
    """Returns the handler of an extension.

    Raises:
        NotFoundError: None is registered.
    """
    handler = _handlers.get((publisher.lower(), type.lower()))
    if handler is None:
        raise NotFoundError(f"no handler for the extension {publisher}/{type}")
    return handler


def handler_versions() -> dict[tuple[str, str], str]:
    """Returns the version of every registered handler, by publisher and type in lower case."""
    return {key: handler.version for key, handler in _handlers.items()}


def check_settings(extensions: list[Extension]) -> list[ModelProblem]:
    """Returns the problems in the settings of those extensions whose handlers are registered."""
    problems: list[ModelProblem] = []
    for index, extension in enumerate(extensions):
        handler = _handlers.get((extension.publisher.lower(), extension.type.lower()))
        path = f"$.virtualMachineProfile.extensionProfile.extensions[{index}].settings"
        problems += [
            ModelProblem(path, "VMExtensionManagementInputError", wrong)
            for wrong in (handler.check(extension) if handler else ())
        ]
    return problems


def timed_out(extension: Extension, *, seconds: float = 0.0) -> ExtensionResult:
    """Returns the result of an extension that timed out, with Azure's message."""
    return ExtensionResult.of(
        extension,
        version=find_handler(extension.publisher, extension.type).version,
        status="error",
        timed_out=True,
        message=(
            f"Provisioning of VM extension {extension.name} has timed out. Extension provisioning "
            "has taken too long to complete. The extension did not report a message."
        ),
        seconds=seconds,
    )


def guarded(call: Callable[[], _T], broken: Callable[[BaseException], _T]) -> _T:
    """Calls a handler, possibly a suite's own: any exception counts as the handler's failure (Q3).

    Args:
        call: What to call.
        broken: Converts an exception to the result.

    Returns:
        What ``call`` or ``broken`` returned.

    Raises:
        InstanceError: The guest failed.
        HostError: The host failed; also HypervisorError, and any error that means that the host is
            out of memory, threads, files or disk space, which is no verdict on the extension (Q1).
        Interrupted: The lab is being closed.
        KeyboardInterrupt: Ctrl-C in the main thread.
    """
    try:
        return call()
    except (Interrupted, InstanceError, HostError, HypervisorError):
        raise
    except KeyboardInterrupt as error:
        if threading.current_thread() is threading.main_thread():
            raise
        return broken(error)
    except BaseException as error:
        if is_host_trouble(error):
            raise
        return broken(error)
