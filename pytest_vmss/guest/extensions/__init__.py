"""VM extensions: a registry by publisher and type, and the built-in handlers (H2)."""

from __future__ import annotations

from pytest_vmss.guest.extensions.application_health import ApplicationHealthLinux
from pytest_vmss.guest.extensions.custom_script import CustomScript
from pytest_vmss.guest.extensions.registry import (
    Handler,
    check_settings,
    find_handler,
    handler_versions,
    known_types,
    register,
)

__all__ = [
    "ApplicationHealthLinux",
    "CustomScript",
    "Handler",
    "check_settings",
    "find_handler",
    "handler_versions",
    "known_types",
    "register",
]

register(CustomScript())
register(ApplicationHealthLinux())
