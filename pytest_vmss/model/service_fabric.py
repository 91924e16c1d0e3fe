"""Service Fabric node types and what automatic OS upgrade requires of them (C7)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from pytest_vmss.errors import ModelProblem
from pytest_vmss.model.scale_set import AzureModel, Extension, ScaleSetModel
from pytest_vmss.secrecy import mask, quote

__all__ = [
    "Cluster",
    "check_service_fabric",
    "durability",
    "find_extension",
    "is_durable",
    "reads_setting",
]

_PUBLISHER = "microsoft.azure.servicefabric"
_TYPES = ("servicefabricnode", "servicefabriclinuxnode")
_LEVELS = ("bronze", "silver", "gold")
#: Levels whose clusters approve what is done to their nodes.
_APPROVING = ("silver", "gold")


class NodeType(AzureModel):
    """A cluster's node type: the scale set of that name."""

    name: str
    durability_level: Literal["Bronze", "Silver", "Gold"] = "Bronze"
    is_stateless: bool = False


class Cluster(AzureModel):
    """The modelled part of a ``Microsoft.ServiceFabric/clusters`` resource."""

    name: str = "cluster"
    node_types: list[NodeType] = Field(default_factory=list)


def find_extension(model: ScaleSetModel) -> tuple[int, Extension] | None:
    """Returns a set's Service Fabric extension and its index; None if it has none."""
    for index, extension in enumerate(model.extensions):
        if extension.publisher.lower() == _PUBLISHER and extension.type.lower() in _TYPES:
            return index, extension
    return None


def durability(extension: Extension) -> str:
    """Returns a Service Fabric extension's ``durabilityLevel`` in lower case; Bronze by default."""
    return str((extension.settings or {}).get("durabilityLevel", "Bronze")).lower()


def reads_setting(extension: Extension, name: str) -> bool:
    """Whether a setting of an extension counts here; of a Service Fabric node, few do.

    Args:
        extension: The extension.
        name: The setting's name.
    """
    is_node = (extension.publisher.lower(), extension.type.lower()) in {
        (_PUBLISHER, kind) for kind in _TYPES
    }
    return not is_node or name.lower() in ("durabilitylevel", "nodetyperef")


def is_durable(model: ScaleSetModel) -> bool:
    """Whether a set is a node type of durability Silver or Gold.

    Its cluster approves the upgrade of each update domain (I3), and needs no other health
    source (C7).
    """
    found = find_extension(model)
    return found is not None and durability(found[1]) in _APPROVING


def check_service_fabric(model: ScaleSetModel, clusters: list[Cluster]) -> Iterator[ModelProblem]:
    """Yields the problems that rule out automatic OS upgrade of a Service Fabric node type.

    Args:
        model: A scale set with automatic OS upgrade enabled.
        clusters: The clusters in the same template, if any.
    """
    found = find_extension(model)
    if found is None:
        return
    index, extension = found
    path = f"$.virtualMachineProfile.extensionProfile.extensions[{index}]"
    node_type = _node_type(extension, clusters)
    level = durability(extension)
    stateless = node_type is not None and node_type.is_stateless
    if level not in _LEVELS:
        yield ModelProblem(
            f"{path}.settings.durabilityLevel",
            "InvalidParameter",
            f"must be Bronze, Silver or Gold; given {quote(level)}",
        )
    elif level == "bronze" and not stateless:
        yield ModelProblem(
            f"{path}.settings.durabilityLevel",
            "BadRequest",
            "automatic OS upgrade of a Service Fabric node type needs the durability level "
            "Silver or Gold; Bronze is enough only for a stateless-only node type "
            "(isStateless in the cluster's nodeTypes)",
        )
    version = tuple(int(part) for part in extension.type_handler_version.split("."))
    if version < (1, 1):
        yield ModelProblem(
            f"{path}.typeHandlerVersion",
            "BadRequest",
            "automatic OS upgrade needs the Service Fabric extension in version 1.1 or later; "
            f"given {extension.type_handler_version}",
        )
    if node_type is not None and node_type.durability_level.lower() != level:
        yield ModelProblem(
            f"{path}.settings.durabilityLevel",
            "BadRequest",
            "must be the same in the extension and in the cluster: the extension says "
            f"{mask(level).capitalize()}, the node type {quote(node_type.name)} {node_type.durability_level}",
        )


def _node_type(extension: Extension, clusters: list[Cluster]) -> NodeType | None:
    name = str((extension.settings or {}).get("nodeTypeRef", "")).lower()
    for cluster in clusters:
        for node_type in cluster.node_types:
            if node_type.name.lower() == name:
                return node_type
    return None
