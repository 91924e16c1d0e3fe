"""The table of the functions that have a value here, by their names in lower case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pytest_vmss.arm.array_functions import ARRAY_FUNCTIONS
from pytest_vmss.arm.date_functions import DATE_FUNCTIONS
from pytest_vmss.arm.network_functions import NETWORK_FUNCTIONS
from pytest_vmss.arm.number_functions import NUMBER_FUNCTIONS
from pytest_vmss.arm.site import IDENTITY_FUNCTIONS
from pytest_vmss.arm.text_functions import TEXT_FUNCTIONS

__all__ = ["FUNCTIONS", "unavailable_reason"]

#: A function, and the least and largest number of its arguments.
FUNCTIONS: Mapping[str, tuple[Callable[..., Any], int, int]] = {
    **ARRAY_FUNCTIONS,
    **DATE_FUNCTIONS,
    **IDENTITY_FUNCTIONS,
    **NETWORK_FUNCTIONS,
    **NUMBER_FUNCTIONS,
    **TEXT_FUNCTIONS,
}

#: Functions that ask Azure for what exists there.
_AZURE = frozenset({"reference", "references", "providers", "getsecret", "toresourceid", "deployer",
                    "managementgroup", "externalinput", "loadfilecontent"})  # fmt: skip


def unavailable_reason(name: str) -> str | None:
    """Returns why a function has no value here; None if there is no such function in Azure.

    Args:
        name: Its name in lower case.
    """
    if name in _AZURE or name.startswith("list"):
        return f"{name}() asks Azure for what exists there"
    return None
