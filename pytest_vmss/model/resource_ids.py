"""ARM ids of what a lab holds, in Azure's form (J2, J3).

A lab has no subscription; its resource group has the lab's name. Ids that a model brings along
are kept.
"""

from __future__ import annotations

from typing import Any

from pytest_vmss.model.image_version import ImageVersionRef
from pytest_vmss.model.scale_set import ImageReference, ScaleSetModel

__all__ = ["SUBSCRIPTION", "image_reference_of", "resource_group_id", "scale_set_id"]

SUBSCRIPTION = "00000000-0000-0000-0000-000000000000"
_SCALE_SET = "/providers/microsoft.compute/virtualmachinescalesets/"
_VERSIONS = "/versions/"


def resource_group_id(lab: str) -> str:
    """The id of a lab's resource group."""
    return f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{lab}"


def scale_set_id(model: ScaleSetModel, lab: str) -> str:
    """A scale set's id: the model's own if it has one, as ``az vmss show`` prints it.

    Args:
        model: The set's model.
        lab: The lab's name.
    """
    own = (model.model_extra or {}).get("id")
    if isinstance(own, str) and own.lower().endswith(f"{_SCALE_SET}{model.name}".lower()):
        return own
    group = resource_group_id(lab)
    return f"{group}/providers/Microsoft.Compute/virtualMachineScaleSets/{model.name}"


def image_reference_of(
    reference: ImageReference, image: ImageVersionRef, *, lab: str
) -> dict[str, Any]:
    """The ``imageReference`` of an exact version of the image that a model refers to.

    Args:
        reference: The model's.
        image: The version.
        lab: The lab's name.

    Returns:
        Publisher, offer, sku and version of a platform image; the version's ARM id of one in a
        gallery; and ``exactVersion`` of both.
    """
    version = image.version
    if reference.id is None:
        return {
            "publisher": reference.publisher,
            "offer": reference.offer,
            "sku": reference.sku,
            "version": version,
            "exactVersion": version,
        }
    end = reference.id.lower().find(_VERSIONS)
    definition_id = (reference.id if end < 0 else reference.id[:end]).rstrip("/")
    if not definition_id.lower().startswith("/subscriptions/"):
        definition_id = (
            f"{resource_group_id(lab)}/providers/Microsoft.Compute/galleries/{image.gallery}"
            f"/images/{image.definition}"
        )
    return {"id": f"{definition_id}{_VERSIONS}{version}", "exactVersion": version}
