"""Rules between the parts of a model, each with Azure's code and words (A6, C5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from pytest_vmss.errors import ModelProblem
from pytest_vmss.model.load_balancer import Probe
from pytest_vmss.model.scale_set import ImageReference, ScaleSetModel
from pytest_vmss.model.sizes import SIZES, find_size

__all__ = ["APPLICATION_HEALTH", "check_model"]

APPLICATION_HEALTH = ("microsoft.managedservices", "applicationhealthlinux")

_PROFILE = "$.virtualMachineProfile"
_AUTOMATIC = "$.upgradePolicy.automaticOSUpgradePolicy.enableAutomaticOSUpgrade"


def check_model(
    model: ScaleSetModel,
    *,
    probe: Probe | None,
    sizes: Mapping[str, tuple[int, int]],
    extension_types: frozenset[tuple[str, str]],
) -> list[ModelProblem]:
    """Everything that is wrong with a model whose values are each valid.

    Args:
        model: The scale set.
        probe: The load balancer's probe that it names.
        sizes: The user's own VM sizes.
        extension_types: Known extensions: (publisher, type) in lower case.
    """
    return [
        *_check_size(model, sizes),
        *_check_image(model),
        *_check_disks(model),
        *_check_probe(probe),
        *_check_extensions(model, extension_types),
        *_check_automatic_upgrade(model),
    ]


def _check_size(
    model: ScaleSetModel, sizes: Mapping[str, tuple[int, int]]
) -> Iterator[ModelProblem]:
    if find_size(model.sku.name, sizes) is None:
        known = ", ".join([*sizes, *(size.name for size in SIZES.values())])
        yield ModelProblem(
            "$.sku.name",
            "InvalidParameter",
            f"the size {model.sku.name!r} is not known here; known are: {known}; "
            "add your own with the ini option vmss_sizes or Settings.sizes",
        )


def _check_image(model: ScaleSetModel) -> Iterator[ModelProblem]:
    reference = model.virtual_machine_profile.storage_profile.image_reference
    path = f"{_PROFILE}.storageProfile.imageReference"
    if reference.id is not None:
        if reference.version is not None:
            yield ModelProblem(
                path, "InvalidParameter", "has both an id and a version; Azure takes one of them"
            )
        if "/galleries/" not in reference.id.lower():
            yield ModelProblem(
                f"{path}.id",
                "InvalidParameter",
                "must name an image of a gallery: "
                "…/Microsoft.Compute/galleries/{gallery}/images/{definition}[/versions/{version}]",
            )
    elif not (reference.publisher and reference.offer and reference.sku and reference.version):
        yield ModelProblem(
            path, "InvalidParameter", "needs an id, or publisher, offer, sku and version"
        )


def _check_disks(model: ScaleSetModel) -> Iterator[ModelProblem]:
    disks = model.virtual_machine_profile.storage_profile.data_disks
    counts = Counter(disk.lun for disk in disks)
    for index, disk in enumerate(disks):
        path = f"{_PROFILE}.storageProfile.dataDisks[{index}]"
        if counts[disk.lun] > 1:
            yield ModelProblem(
                f"{path}.lun", "InvalidParameter", f"LUN {disk.lun} is used more than once"
            )
        if disk.create_option != "Empty":
            yield ModelProblem(
                f"{path}.createOption",
                "InvalidParameter",
                f"only Empty data disks can be made here; given {disk.create_option!r}",
            )
        elif disk.disk_size_gb is None:
            yield ModelProblem(
                f"{path}.diskSizeGB", "InvalidParameter", "is required for an Empty data disk"
            )


def _check_probe(probe: Probe | None) -> Iterator[ModelProblem]:
    if probe is None:
        return
    path = f"the probe {probe.name!r}"
    if probe.protocol == "Tcp" and probe.request_path:
        yield ModelProblem(
            f"{path}.requestPath", "InvalidParameter", "is not allowed for the protocol Tcp"
        )
    if probe.protocol != "Tcp" and not (probe.request_path or "").startswith("/"):
        yield ModelProblem(
            f"{path}.requestPath",
            "InvalidParameter",
            f"the protocol {probe.protocol} needs a path that starts with '/'; "
            f"given {probe.request_path!r}",
        )


def _check_extensions(
    model: ScaleSetModel, known: frozenset[tuple[str, str]]
) -> Iterator[ModelProblem]:
    counts = Counter(extension.name.lower() for extension in model.extensions)
    for index, extension in enumerate(model.extensions):
        path = f"{_PROFILE}.extensionProfile.extensions[{index}]"
        if counts[extension.name.lower()] > 1:
            yield ModelProblem(
                f"{path}.name", "InvalidParameter", f"{extension.name!r} is used more than once"
            )
        if (extension.publisher.lower(), extension.type.lower()) not in known:
            names = ", ".join(sorted("/".join(pair) for pair in known))
            yield ModelProblem(
                f"{path}.type",
                "ArtifactNotFound",
                f"no handler for the extension {extension.publisher}/{extension.type} here; "
                f"there are: {names}",
            )


def _is_latest(reference: ImageReference) -> bool:
    if reference.id is not None:
        return "/versions/" not in reference.id.lower()
    return (reference.version or "").lower() == "latest"


def _check_automatic_upgrade(model: ScaleSetModel) -> Iterator[ModelProblem]:
    if not model.automatic_os_upgrade.enable_automatic_os_upgrade:
        return
    profile = model.virtual_machine_profile
    network = profile.network_profile
    has_probe = network is not None and network.health_probe is not None
    has_extension = any(
        (extension.publisher.lower(), extension.type.lower()) == APPLICATION_HEALTH
        for extension in model.extensions
    )
    feature = "Automatic OS Upgrade is not supported for this Virtual Machine Scale Set because"
    if not has_probe and not has_extension:
        yield ModelProblem(
            _AUTOMATIC,
            "BadRequest",
            f"{feature} a health probe or health extension was not specified.",
        )
    if has_probe and has_extension:
        yield ModelProblem(
            _AUTOMATIC,
            "BadRequest",
            f"{feature} both a health probe and a health extension were provided. Remove the "
            "health probe or health extension prior to enabling automatic OS upgrade.",
        )
    if not _is_latest(profile.storage_profile.image_reference):
        yield ModelProblem(
            f"{_PROFILE}.storageProfile.imageReference",
            "BadRequest",
            "automatic OS upgrade needs the image version 'latest' "
            "(of a gallery: an image id without a version)",
        )
