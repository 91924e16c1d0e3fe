"""Describes an instance as the metadata service does (O3)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pytest_vmss.guest_platform.addresses import Lease
from pytest_vmss.model import DataDisk, ScaleSetModel
from pytest_vmss.model.resource_ids import (
    SUBSCRIPTION,
    image_reference_of,
    resource_group_id,
    scale_set_id,
)
from pytest_vmss.secrecy import SecretText
from pytest_vmss.store import GenerationRecord, InstanceRecord

__all__ = ["describe"]


def describe(
    model: ScaleSetModel,
    record: InstanceRecord,
    generation: GenerationRecord,
    *,
    lab: str,
    lab_key: str,
) -> str:
    """Returns the document of an instance, with ``compute`` and ``network``, as JSON.

    It holds user data and is thus never shown.

    Args:
        model: The model that is applied to the instance.
        record: The instance.
        generation: Its OS disk.
        lab: The lab's name, which is that of its resource group.
        lab_key: The public key with which the lab logs in.
    """
    lease = Lease.of(record.instance_id, record.mac)
    document = {
        "compute": _compute(model, record, generation, lab, lab_key),
        "network": {
            "interface": [
                {
                    "ipv4": {
                        "ipAddress": [
                            {"privateIpAddress": str(lease.address), "publicIpAddress": ""}
                        ],
                        "subnet": [
                            {
                                "address": str(lease.subnet.network_address),
                                "prefix": str(lease.subnet.prefixlen),
                            }
                        ],
                    },
                    "ipv6": {"ipAddress": []},
                    "macAddress": lease.mac.hex().upper(),
                }
            ]
        },
    }
    return SecretText(json.dumps(document))


def _compute(
    model: ScaleSetModel,
    record: InstanceRecord,
    generation: GenerationRecord,
    lab: str,
    lab_key: str,
) -> dict[str, Any]:
    profile = model.virtual_machine_profile
    reference = profile.storage_profile.image_reference
    set_id = scale_set_id(model, lab)
    tags = model.tags
    image = image_reference_of(
        reference,
        generation.image,
        lab=lab,
    )
    is_platform = reference.id is None
    linux = profile.os_profile.linux_configuration
    no_password = linux is None or linux.disable_password_authentication is not False
    user_data = "" if profile.user_data is None else profile.user_data.get_secret_value()
    return {
        # What does not apply is there too, and empty, as in Azure.
        "additionalCapabilities": {"hibernationEnabled": "false"},
        "azEnvironment": "AzurePublicCloud",
        "customData": "",  # Azure keeps the property, and never fills it
        "evictionPolicy": "",
        "extendedLocation": {"name": "", "type": ""},
        "host": {"id": ""},
        "hostGroup": {"id": ""},
        "isHostCompatibilityLayerVm": "false",
        "licenseType": "",
        "location": model.location,
        "name": record.name,
        "offer": reference.offer if is_platform else "",
        "osProfile": {
            "adminUsername": profile.os_profile.admin_username,
            "computerName": record.computer_name,
            "disablePasswordAuthentication": str(no_password).lower(),
        },
        "osType": "Linux",
        "physicalZone": "",
        "placementGroupId": _placement_group(record),
        "plan": {"name": "", "product": "", "publisher": ""},
        "platformFaultDomain": "0",
        "platformSubFaultDomain": "",
        "platformUpdateDomain": str(record.update_domain),
        "priority": "",
        "provider": "Microsoft.Compute",
        "publicKeys": _public_keys(model, lab_key),
        "publisher": reference.publisher if is_platform else "",
        "resourceGroupName": resource_group_id(lab).rpartition("/")[2],
        "resourceId": f"{set_id}/virtualMachines/{record.instance_id}",
        "securityProfile": {
            "encryptionAtHost": "false",
            "secureBootEnabled": "false",
            "securityType": "",
            "virtualTpmEnabled": "false",
        },
        "sku": reference.sku if is_platform else "",
        "storageProfile": {
            "dataDisks": _data_disks(profile.storage_profile.data_disks),
            "imageReference": _image_reference(image),
            "osDisk": {
                "caching": profile.storage_profile.os_disk.caching or "None",
                "createOption": "FromImage",
                "osType": "Linux",
                "writeAcceleratorEnabled": "false",
            },
            "resourceDisk": {"size": "0"},
        },
        "subscriptionId": SUBSCRIPTION,
        "tags": ";".join(f"{name}:{value}" for name, value in tags.items()),
        "tagsList": [{"name": name, "value": str(value)} for name, value in tags.items()],
        "userData": user_data,
        "version": generation.version,
        "virtualMachineScaleSet": {"id": ""},  # of Flexible orchestration alone
        "vmId": record.uuid,
        "vmScaleSetName": record.scale_set,
        "vmSize": model.sku.name,
        "zone": record.zone,
    }


def _placement_group(record: InstanceRecord) -> str:
    """A stable id of the instance's placement group, which has none but a number here."""
    return f"00000000-0000-0000-0000-{record.placement_group:012x}"


def _public_keys(model: ScaleSetModel, lab_key: str) -> list[dict[str, str]]:
    """The model's keys, and the lab's own; all are the administrator's."""
    profile = model.virtual_machine_profile.os_profile
    linux = profile.linux_configuration
    keys = [] if linux is None or linux.ssh is None else linux.ssh.public_keys
    path = f"/home/{profile.admin_username}/.ssh/authorized_keys"
    return [{"keyData": data, "path": path} for data in [*(key.key_data for key in keys), lab_key]]


def _image_reference(image: dict[str, Any]) -> dict[str, str]:
    names = (
        "communityGalleryImageId", "exactVersion", "id", "offer", "publisher",
        "sharedGalleryImageId", "sku", "version",
    )  # fmt: skip
    return {name: str(image.get(name) or "") for name in names}


def _data_disks(disks: Sequence[DataDisk]) -> list[dict[str, Any]]:
    return [
        {
            "caching": "None",
            "createOption": disk.create_option,
            "diskSizeGB": str(disk.disk_size_gb or 1),
            "lun": str(disk.lun),
            "name": disk.name or f"lun{disk.lun}",
            "writeAcceleratorEnabled": "false",
        }
        for disk in sorted(disks, key=lambda disk: disk.lun)
    ]
