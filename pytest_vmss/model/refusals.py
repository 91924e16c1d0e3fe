"""Scale sets that Azure has and this lab does not: refused by name, with the way out (P4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pytest_vmss.errors import ModelProblem

__all__ = ["check_kind"]

_PROFILE = "$.virtualMachineProfile"
_STORAGE = f"{_PROFILE}.storageProfile"


def check_kind(body: Any) -> Iterator[ModelProblem]:
    """Yields why a set of this kind cannot be made here.

    Args:
        body: The set's body, flattened and in Azure's spelling, not validated yet.
    """
    if not isinstance(body, Mapping):
        return
    if str(body.get("orchestrationMode", "")).lower() == "flexible":
        yield ModelProblem(
            "$.orchestrationMode",
            "OperationNotAllowed",
            "Flexible orchestration is not modelled here; set it to Uniform to rehearse the image",
        )
    machine = body.get("virtualMachineProfile")
    if machine is None:
        yield ModelProblem(
            "$.virtualMachineProfile",
            "InvalidParameter",
            "is missing: this is a part of a set, or a set of Flexible orchestration; a change of "
            "an existing set is for `vmss update` (scale_set.update)",
        )
    if isinstance(machine, Mapping):
        yield from _check_images(machine)


def _check_images(machine: Mapping[str, Any]) -> Iterator[ModelProblem]:
    storage = machine.get("storageProfile")
    if not isinstance(storage, Mapping):
        return
    disk, reference = storage.get("osDisk"), storage.get("imageReference")
    if isinstance(disk, Mapping) and any(key.lower() == "image" for key in disk):
        yield ModelProblem(
            f"{_STORAGE}.osDisk.image",
            "OperationNotAllowed",
            "an unmanaged VHD is not taken here; publish the file into a gallery "
            "(vmss image publish), and name that image by imageReference.id",
        )
        return
    if not isinstance(reference, Mapping):
        return
    for name in ("communityGalleryImageId", "sharedGalleryImageId"):
        if any(key.lower() == name.lower() for key in reference):
            yield ModelProblem(
                f"{_STORAGE}.imageReference.{name}",
                "OperationNotAllowed",
                "images that others share are not here; publish the image into a gallery of the "
                "lab (vmss image publish), and name it by imageReference.id",
            )
    identifier = reference.get("id")
    if not isinstance(identifier, str):
        return
    if "/galleries/" not in identifier.lower():
        kind = "a managed image" if "/images/" in identifier.lower() else "this"
        yield ModelProblem(
            f"{_STORAGE}.imageReference.id",
            "OperationNotAllowed",
            f"{kind} is not an image of a gallery; publish the file into one (vmss image publish), "
            "and name it: …/Microsoft.Compute/galleries/{gallery}/images/{definition}"
            "[/versions/{version}]",
        )
    elif machine.get("osProfile") is None:
        yield ModelProblem(
            f"{_PROFILE}.osProfile",
            "OperationNotAllowed",
            "is missing: without it Azure takes the image as a specialized one, which is not "
            "modelled here; generalize the image, and give an osProfile",
        )
