"""Where a template is deployed: stand-ins for what only a subscription has."""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_vmss.arm.limits import TemplateError
from pytest_vmss.arm.values import integer, text, to_text
from pytest_vmss.secrecy import quote

__all__ = ["IDENTITY_FUNCTIONS", "Site"]

#: The namespace of the name-based UUIDs that ``guid`` makes.
_GUID_NAMESPACE = uuid.UUID("11fb06fb-712d-4ddd-98c7-e71bbd588830")
_NO_ID = "00000000-0000-0000-0000-000000000000"
_ZONES = ("1", "2", "3")


@dataclass(frozen=True)
class Site:
    """The subscription and resource group that a template sees.

    Attributes:
        location: The resource group's location.
        resource_group: Its name.
        subscription: The subscription's id.
    """

    location: str = "local"
    resource_group: str = "lab"
    subscription: str = _NO_ID

    @property
    def group_id(self) -> str:
        """The resource group's id."""
        return f"/subscriptions/{self.subscription}/resourceGroups/{self.resource_group}"

    def group(self) -> dict[str, Any]:
        """What ``resourceGroup()`` returns."""
        return {
            "id": self.group_id,
            "name": self.resource_group,
            "type": "Microsoft.Resources/resourceGroups",
            "location": self.location,
            "tags": {},
            "properties": {"provisioningState": "Succeeded"},
        }

    def subscription_view(self) -> dict[str, Any]:
        """What ``subscription()`` returns."""
        return {
            "id": f"/subscriptions/{self.subscription}",
            "subscriptionId": self.subscription,
            "tenantId": _NO_ID,
            "displayName": "lab",
        }

    def resource_id(self, *arguments: Any) -> str:
        """``resourceId([subscription], [resource group], type, name, …)``.

        Raises:
            TemplateError: The type is missing, or it has not as many names as segments.
        """
        given = [text(argument) for argument in arguments]
        at = next((index for index, part in enumerate(given) if "/" in part), None)
        if at is None or at > 2:
            raise TemplateError("needs a resource type such as Microsoft.Network/loadBalancers")
        group = given[at - 1] if at else self.resource_group
        subscription = given[0] if at == 2 else self.subscription
        scope = f"/subscriptions/{subscription}/resourceGroups/{group}"
        return f"{scope}/providers/{_typed(given[at], given[at + 1 :])}"

    def subscription_resource_id(self, *arguments: Any) -> str:
        """``subscriptionResourceId([subscription], type, name, …)``."""
        given = [text(argument) for argument in arguments]
        if not any("/" in part for part in given[:2]):
            raise TemplateError("needs a resource type such as Microsoft.Network/loadBalancers")
        own = self.subscription if "/" in given[0] else given.pop(0)
        return f"/subscriptions/{own}/providers/{_typed(given[0], given[1:])}"


def _typed(kind: str, names: list[str]) -> str:
    provider, *segments = kind.rstrip("/").split("/")
    # A name may hold several: 'lb/probe'.
    parts = [part for name in names for part in name.split("/")]
    if len(segments) != len(parts):
        raise TemplateError(
            f"the resource type {quote(kind)} needs {len(segments)} names; given {len(parts)}"
        )
    pairs = zip(segments, parts, strict=True)
    return "/".join([provider, *(f"{segment}/{name}" for segment, name in pairs)])


def _tenant_resource_id(kind: Any, *names: Any) -> str:
    return f"/providers/{_typed(text(kind), [text(name) for name in names])}"


def _extension_resource_id(scope: Any, kind: Any, *names: Any) -> str:
    return f"{text(scope)}{_tenant_resource_id(kind, *names)}"


def _unique_string(*values: Any) -> str:
    """Thirteen letters and digits that depend on the values; not those that Azure makes."""
    digest = hashlib.sha256("\0".join(to_text(value) for value in values).encode()).digest()
    return base64.b32encode(digest).decode().lower()[:13]


def _guid(*values: Any) -> str:
    return str(uuid.uuid5(_GUID_NAMESPACE, "-".join(to_text(value) for value in values)))


def _environment() -> dict[str, Any]:
    """The names of Azure's public cloud."""
    return {
        "name": "AzureCloud",
        "gallery": "https://gallery.azure.com/",
        "graph": "https://graph.windows.net/",
        "portal": "https://portal.azure.com",
        "resourceManager": "https://management.azure.com/",
        "authentication": {
            "loginEndpoint": "https://login.microsoftonline.com/",
            "audiences": ["https://management.core.windows.net/", "https://management.azure.com/"],
            "tenant": "common",
        },
        "suffixes": {
            "acrLoginServer": ".azurecr.io",
            "keyvaultDns": ".vault.azure.net",
            "sqlServerHostname": ".database.windows.net",
            "storage": "core.windows.net",
        },
    }


def _pick_zones(_provider: Any, _kind: Any, _location: Any, count: Any = 1, offset: Any = 0) -> Any:
    first = integer(offset)
    return list(_ZONES[first : first + integer(count)])


IDENTITY_FUNCTIONS: Mapping[str, tuple[Callable[..., Any], int, int]] = {
    "environment": (_environment, 0, 0),
    "extensionresourceid": (_extension_resource_id, 3, 20),
    "guid": (_guid, 1, 100),
    "pickzones": (_pick_zones, 3, 5),
    "tenantresourceid": (_tenant_resource_id, 2, 20),
    "uniquestring": (_unique_string, 1, 100),
}
