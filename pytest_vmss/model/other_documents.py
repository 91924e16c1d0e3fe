"""Documents of Azure's users that are no scale set: recognized, with the one to give instead (P4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_vmss.errors import ModelError, ModelProblem

__all__ = ["refuse_other_documents"]

_SHOW = "give what `az vmss show` prints, or the template"


def refuse_other_documents(raw: Mapping[str, Any], label: str) -> None:
    """Refuses a document that is known to be another one than a scale set or a template.

    Args:
        raw: The document, read and checked.
        label: Its name, for messages.

    Raises:
        ModelError: It is another one; the message says which, and what to give.
    """
    told = _other({key.lower(): value for key, value in raw.items()})
    if told:
        problem = ModelProblem("$", "InvalidRequestContent", told)
        raise ModelError([problem], source=label)


def _other(body: Mapping[str, Any]) -> str:
    """Says what a document is, by its properties in lower case; empty if it may be a set's."""
    properties = body.get("properties")
    if "deploymentparameters.json" in str(body.get("$schema", "")).lower():
        return "is a parameters file; give it by --parameters (parameters=), beside its template"
    if "terraform_version" in body or "format_version" in body or _is_terraform(body):
        return f"is Terraform's, and Azure's own documents are read here; {_SHOW}"
    if _are_changes(body) or (isinstance(properties, Mapping) and _are_changes(properties)):
        return f"is a result of what-if, which tells changes; {_SHOW}"
    if isinstance(body.get("value"), list) and body.keys() <= {"value", "nextlink"}:
        return "is a list of resources; give one of its `value`, as `az vmss show` prints it"
    if body.keys() == {"vmss"}:
        return f"is what `az vmss create` prints, which leaves out name, sku and location; {_SHOW}"
    if isinstance(body.get("body"), Mapping) and "@" in str(body.get("type", "")):
        return "is a resource as AzAPI writes it; give its `body`, with its name and location"
    return ""


def _is_terraform(body: Mapping[str, Any]) -> bool:
    resources = body.get("resource")
    return isinstance(resources, Mapping) and any(
        str(kind).startswith(("azurerm_", "azapi_")) for kind in resources
    )


def _are_changes(part: Mapping[str, Any]) -> bool:
    changes = part.get("changes")
    return isinstance(changes, list) and all(
        isinstance(change, Mapping) and "changeType" in change for change in changes
    )
