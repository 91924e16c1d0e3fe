"""Merges PUT and PATCH bodies into a stored model, and checks what Azure lets change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pytest_vmss.errors import ModelError, ModelProblem
from pytest_vmss.model.scale_set import ScaleSetModel
from pytest_vmss.secrecy import is_secret_name, mask, quote, unmasked
from pytest_vmss.untrusted import one_line

__all__ = ["check_update", "keep_secrets", "merge", "overlaid", "profile_of"]

_REFERENCE = ("virtualMachineProfile", "storageProfile", "imageReference")


def merge(stored: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Merges a body into the stored one, as ARM does for an existing set.

    Objects are merged, arrays and values replaced, and what is absent is kept
    (azure-arm.md, Q1). An image reference by id replaces one by publisher, and vice versa.

    Args:
        stored: The whole stored body, with its secrets.
        given: The new body or part of it, with ``properties`` flattened.

    Raises:
        ModelError: It holds a mask for which nothing is stored.
    """
    merged = overlaid(stored, given)
    reference = _at(given, _REFERENCE)
    kept = _at(merged, _REFERENCE)
    if "id" in reference:
        for name in {"publisher", "offer", "sku", "version"} - reference.keys():
            kept.pop(name, None)
    elif {"publisher", "offer", "sku"} & reference.keys():
        kept.pop("id", None)
    return keep_secrets(stored, merged)


def keep_secrets(stored: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Restores secrets that a body lacks because a GET omits or masks them.

    Items of lists match by name, otherwise by what is not secret in them.

    Raises:
        ModelError: It holds a mask for which nothing is stored.
    """
    left: list[tuple[str | int, ...]] = []
    result: dict[str, Any] = unmasked(overlaid({}, given), stored, left)
    if left:
        raise ModelError([_left_mask(path) for path in left], source="the change")
    old_os, new_os = (
        _at(body, ("virtualMachineProfile", "osProfile")) for body in (stored, result)
    )
    for name in ("customData", "adminPassword"):
        if name in old_os:
            new_os.setdefault(name, old_os[name])
    if "userData" in _at(stored, ("virtualMachineProfile",)):
        _at(result, ("virtualMachineProfile",)).setdefault(
            "userData", _at(stored, ("virtualMachineProfile",))["userData"]
        )
    where = ("virtualMachineProfile", "extensionProfile")
    protected = {
        str(entry.get("name", "")).lower(): entry["protectedSettings"]
        for entry in _extensions(_at(stored, where))
        if "protectedSettings" in entry
    }
    for entry in _extensions(_at(result, where)):
        name = str(entry.get("name", "")).lower()
        if name in protected:
            entry.setdefault("protectedSettings", protected[name])
    return result


def _left_mask(path: tuple[str | int, ...]) -> ModelProblem:
    told = "$"
    for part in path:
        told += f"[{part}]" if isinstance(part, int) else f".{one_line(mask(part))}"
        if isinstance(part, str) and is_secret_name(part):
            break  # what is in a secret is not even named
    message = "holds a mask; give the value, or leave the property out"
    return ModelProblem(told, "InvalidParameter", message)


def _extensions(profile: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns a profile's extensions that are objects; it may not be validated yet."""
    listed = profile.get("extensions")
    return (
        [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    )


def overlaid(old: Any, new: Any) -> Any:
    """Lays a value over another: objects are merged, all else is replaced.

    Names count in any case, and keep the spelling of the first value.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        stored = {key.lower(): key for key in old}
        given = {
            key if key in old else stored.get(key.lower(), key): value for key, value in new.items()
        }
        return {
            **{key: overlaid(value, {}) if isinstance(value, dict) else value
               for key, value in old.items() if key not in given},
            **{key: overlaid(old.get(key), value) for key, value in given.items()},
        }  # fmt: skip
    if isinstance(new, dict):
        return {key: overlaid(None, value) for key, value in new.items()}
    if isinstance(new, list):
        return [overlaid(None, item) for item in new]
    return new


def _at(body: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """Returns the object at a path; a new empty one if there is none."""
    value: Any = body
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def profile_of(model: ScaleSetModel) -> tuple[object, ...]:
    """What an instance is made from: if it changed, instances no longer have the latest model."""
    return (model.sku.name, model.virtual_machine_profile)


def check_update(old: ScaleSetModel, new: ScaleSetModel) -> list[ModelProblem]:
    """Returns the changes that Azure does not allow on an existing set (C5, azure-arm.md 6.7)."""
    return [
        *_check_fixed(old, new),
        *_check_zones(old, new),
        *_check_disks(old, new),
        *_check_repairs(old, new),
    ]


def _check_fixed(old: ScaleSetModel, new: ScaleSetModel) -> Iterator[ModelProblem]:
    fixed = {
        "name": (old.name.lower(), new.name.lower()),
        "location": (_place(old.location), _place(new.location)),
        "orchestrationMode": (old.orchestration_mode, new.orchestration_mode),
        "virtualMachineProfile.osProfile.computerNamePrefix": (
            old.computer_name_prefix.lower(), new.computer_name_prefix.lower(),
        ),
        "virtualMachineProfile.osProfile.adminUsername": (
            old.virtual_machine_profile.os_profile.admin_username,
            new.virtual_machine_profile.os_profile.admin_username,
        ),
        "virtualMachineProfile.storageProfile.imageReference.publisher": (
            (old.image_reference.publisher or "").lower(),
            (new.image_reference.publisher or "").lower(),
        ),
        "virtualMachineProfile.storageProfile.imageReference.offer": (
            (old.image_reference.offer or "").lower(),
            (new.image_reference.offer or "").lower(),
        ),
        "virtualMachineProfile.storageProfile.osDisk.managedDisk.storageAccountType": (
            _storage_type(old), _storage_type(new),
        ),
    }  # fmt: skip
    for path, (before, after) in fixed.items():
        if before != after:
            yield ModelProblem(
                f"$.{path}",
                "PropertyChangeNotAllowed",
                f"Changing property {path.removeprefix('virtualMachineProfile.')!r} is not "
                f"allowed; it is {quote(before)}, and {quote(after)} was given",
            )
    if old.has_subnet != new.has_subnet:
        yield ModelProblem(
            "$.virtualMachineProfile.networkProfile.networkInterfaceConfigurations",
            "PropertyChangeNotAllowed",
            f"the set was made with{'' if old.has_subnet else 'out'} a subnet, and its instances "
            "keep their network cards: make another set",
        )
    if old.single_placement_group is False and new.single_placement_group:
        yield ModelProblem(
            "$.singlePlacementGroup",
            "PropertyChangeNotAllowed",
            "Changing property 'singlePlacementGroup' from false to true is not allowed",
        )


def _place(location: str) -> str:
    """A location as Azure compares it: "West Europe" is "westeurope"."""
    return "".join(location.split()).lower()


def _storage_type(model: ScaleSetModel) -> object:
    extra = model.virtual_machine_profile.storage_profile.os_disk.model_extra or {}
    managed = _in_any_case(extra, "managedDisk")
    kind = _in_any_case(managed, "storageAccountType") if isinstance(managed, dict) else None
    return kind.lower() if isinstance(kind, str) else kind


def _in_any_case(body: dict[str, Any], name: str) -> Any:
    return next((item for key, item in body.items() if key.lower() == name.lower()), None)


def _check_zones(old: ScaleSetModel, new: ScaleSetModel) -> Iterator[ModelProblem]:
    gone = [zone for zone in old.zones if zone not in new.zones]
    if gone:
        yield ModelProblem(
            "$.zones",
            "PropertyChangeNotAllowed",
            f"zones can only be added; {', '.join(mask(zone) for zone in gone)} would go",
        )


def _check_disks(old: ScaleSetModel, new: ScaleSetModel) -> Iterator[ModelProblem]:
    before = {disk.lun: disk for disk in old.data_disks}
    for index, disk in enumerate(new.data_disks):
        earlier = before.get(disk.lun)
        if earlier is not None and earlier.disk_size_gb != disk.disk_size_gb:
            yield ModelProblem(
                f"$.virtualMachineProfile.storageProfile.dataDisks[{index}].diskSizeGB",
                "PropertyChangeNotAllowed",
                f"the data disk at LUN {disk.lun} has {earlier.disk_size_gb} GiB, and keeps them: "
                "add a disk at another LUN",
            )


def _check_repairs(old: ScaleSetModel, new: ScaleSetModel) -> Iterator[ModelProblem]:
    before, after = old.automatic_repairs_policy, new.automatic_repairs_policy
    if before is None or after is None or not before.enabled or not after.enabled:
        return
    if before.repair_action != after.repair_action:
        yield ModelProblem(
            "$.automaticRepairsPolicy.repairAction",
            "PropertyChangeNotAllowed",
            "Changing property 'repairAction' is not allowed while automatic repairs are enabled; "
            f"it is {before.repair_action!r}, and {after.repair_action!r} was given: disable them "
            "first, then enable them again",
        )
