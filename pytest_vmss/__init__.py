"""Azure's automatic OS image upgrade for VM Scale Sets, rehearsed on a laptop.

The public names are exported here and imported on first use, so a suite that uses none of
them pays nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_vmss.api.instance import Instance
    from pytest_vmss.api.lab import Lab
    from pytest_vmss.api.operation import Operation, Upgrade
    from pytest_vmss.api.scale_set import ScaleSet
    from pytest_vmss.errors import NotModelledWarning, VmssError
    from pytest_vmss.gallery import Gallery
    from pytest_vmss.guest.extensions import (
        Command,
        Handler,
        register,
        register_package,
        run_command,
    )
    from pytest_vmss.image_builder import ImageBuilder
    from pytest_vmss.model.extension_result import ExtensionResult
    from pytest_vmss.model.repair_task import RepairTask
    from pytest_vmss.settings import Settings
    from pytest_vmss.simulation.guest import Behaviour
    from pytest_vmss.simulation.lab import SimulatedLab

__version__ = "0.1.0"

#: Where each public name is defined.
_PUBLIC = {
    "Behaviour": "pytest_vmss.simulation.guest",
    "Command": "pytest_vmss.guest.extensions",
    "ExtensionResult": "pytest_vmss.model.extension_result",
    "Gallery": "pytest_vmss.gallery",
    "Handler": "pytest_vmss.guest.extensions",
    "ImageBuilder": "pytest_vmss.image_builder",
    "Instance": "pytest_vmss.api.instance",
    "Lab": "pytest_vmss.api.lab",
    "NotModelledWarning": "pytest_vmss.errors",
    "Operation": "pytest_vmss.api.operation",
    "RepairTask": "pytest_vmss.model.repair_task",
    "ScaleSet": "pytest_vmss.api.scale_set",
    "Settings": "pytest_vmss.settings",
    "SimulatedLab": "pytest_vmss.simulation.lab",
    "Upgrade": "pytest_vmss.api.operation",
    "VmssError": "pytest_vmss.errors",
    "register": "pytest_vmss.guest.extensions",
    "register_package": "pytest_vmss.guest.extensions",
    "run_command": "pytest_vmss.guest.extensions",
}

__all__ = [
    "Behaviour",
    "Command",
    "ExtensionResult",
    "Gallery",
    "Handler",
    "ImageBuilder",
    "Instance",
    "Lab",
    "NotModelledWarning",
    "Operation",
    "RepairTask",
    "ScaleSet",
    "Settings",
    "SimulatedLab",
    "Upgrade",
    "VmssError",
    "register",
    "register_package",
    "run_command",
]


def __getattr__(name: str) -> object:
    """Imports a public name on first use.

    Raises:
        AttributeError: There is no such name.
    """
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
