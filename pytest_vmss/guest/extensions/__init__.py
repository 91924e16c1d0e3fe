"""VM extensions: a registry by publisher and type, and the built-in handlers (H2)."""

from __future__ import annotations

from pytest_vmss.guest.extensions.application_health import ApplicationHealthLinux
from pytest_vmss.guest.extensions.command import Command, broken_handler, redact, run_command
from pytest_vmss.guest.extensions.custom_script import CustomScript
from pytest_vmss.guest.extensions.handler import Handler, Target
from pytest_vmss.guest.extensions.package import PackagedHandler, register_package
from pytest_vmss.guest.extensions.registry import (
    check_settings,
    find_handler,
    guarded,
    handler_versions,
    is_known,
    known_types,
    register,
    timed_out,
)
from pytest_vmss.guest.extensions.run_command_linux import RunCommandLinux
from pytest_vmss.guest.extensions.service_fabric import ServiceFabricLinuxNode, ServiceFabricNode

__all__ = [
    "ApplicationHealthLinux",
    "Command",
    "CustomScript",
    "Handler",
    "PackagedHandler",
    "RunCommandLinux",
    "ServiceFabricLinuxNode",
    "ServiceFabricNode",
    "Target",
    "broken_handler",
    "check_settings",
    "find_handler",
    "guarded",
    "handler_versions",
    "is_known",
    "known_types",
    "redact",
    "register",
    "register_package",
    "run_command",
    "timed_out",
]

register(CustomScript())
register(ApplicationHealthLinux())
register(RunCommandLinux())
register(ServiceFabricLinuxNode())
register(ServiceFabricNode())
