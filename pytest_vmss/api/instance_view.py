"""Azure's instance views: of an instance, of its resource, and of a whole set (H4, J3).

The names and their nesting are those of Azure's responses. What Azure does not have is in an
object named ``lab``; extensions have their exit code and seconds beside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from pytest_vmss.environment.environment import InstanceContext
from pytest_vmss.errors import HostError, HypervisorError, InstanceError
from pytest_vmss.guest.extensions import is_known
from pytest_vmss.model import Health, ScaleSetModel
from pytest_vmss.model.extension_result import ExtensionResult, Substatus
from pytest_vmss.model.resource_ids import image_reference_of, scale_set_id
from pytest_vmss.store import GenerationRecord, InstanceRecord, ScaleSetRecord

__all__ = [
    "azure_time",
    "instance_view",
    "set_instance_view",
    "shown_tags",
    "status_of",
    "virtual_machine",
]

#: Azure's status code and level for each status that an extension reports.
_STATUSES = {
    "success": ("succeeded", "Info"),
    "warning": ("succeeded", "Warning"),
    "error": ("failed", "Error"),
    "transitioning": ("transitioning", "Info"),
}

#: Azure's level for each health state.
_LEVELS = {
    Health.HEALTHY: "Info",
    Health.INITIALIZING: "Info",
    Health.UNHEALTHY: "Error",
    Health.UNKNOWN: "Warning",
}
_READY = "Ready"


def _status(
    code: str, level: str, shown: str, message: str = "", time: datetime | None = None
) -> dict[str, Any]:
    """Azure's ``InstanceViewStatus``."""
    status: dict[str, Any] = {"code": code, "level": level, "displayStatus": shown}
    if message:
        status["message"] = message
    if time is not None:
        status["time"] = azure_time(time)
    return status


def azure_time(moment: datetime) -> str:
    """A time as Azure writes it."""
    return moment.isoformat().replace("+00:00", "Z")


def status_of(result: ExtensionResult) -> dict[str, Any]:
    """Azure's ``InstanceViewStatus`` for an extension's result."""
    state, level = _STATUSES[result.status]
    return _status(f"ProvisioningState/{state}", level, f"Provisioning {state}", result.message)


def _substatus(part: Substatus) -> dict[str, Any]:
    state, level = _STATUSES.get(part.status, ("transitioning", "Info"))
    code = f"ComponentStatus/{part.name}/{state}"
    return _status(code, level, f"Provisioning {state}", part.message)


def _extension(result: ExtensionResult) -> dict[str, Any]:
    """Azure's ``VirtualMachineExtensionInstanceView``, with exit code and seconds added."""
    return {
        "name": result.name,
        "type": result.type,
        "typeHandlerVersion": result.version,
        "substatuses": [_substatus(part) for part in result.substatuses],
        "statuses": [status_of(result)],
        "exitCode": result.exit_code,
        "seconds": result.seconds,
    }


def _handler(result: ExtensionResult) -> dict[str, Any]:
    """Azure's ``VirtualMachineExtensionHandlerInstanceView``: the state of the handler itself."""
    ready = result.handler == _READY
    state = "succeeded" if ready else "failed"
    return {
        "type": result.type,
        "typeHandlerVersion": result.version,
        "status": _status(
            f"ProvisioningState/{state}",
            "Info" if ready else "Error",
            _READY if ready else "Not Ready",
            result.handler_message if ready else result.handler_message or result.handler,
        ),
    }


def _vm_health(record: InstanceRecord) -> dict[str, Any]:
    """Azure's ``vmHealth``, as last observed."""
    if record.health is None:
        return {}
    status = _status(
        f"HealthState/{record.health.lower()}",
        _LEVELS[record.health],
        f"The VM is reporting itself as {record.health.lower()}",
        record.health_detail,
    )
    return {"vmHealth": {"status": status}}


def _statuses(record: InstanceRecord) -> list[dict[str, Any]]:
    state = record.provisioning.lower()
    level = "Error" if record.provisioning == "Failed" else "Info"
    return [
        _status(f"ProvisioningState/{state}", level, f"Provisioning {state}", time=record.changed),
        _status(f"PowerState/{record.power}", "Info", f"VM {record.power}"),
    ]


def _disks(context: InstanceContext, generation: GenerationRecord) -> list[dict[str, Any]]:
    machine = context.machine(generation.number)
    paths = [machine.os_disk, *(disk.path for disk in machine.data_disks)]
    made = _status("ProvisioningState/succeeded", "Info", "Provisioning succeeded")
    made["time"] = azure_time(generation.created)
    return [{"name": path.name, "statuses": [made]} for path in paths]


def _reported(context: InstanceContext, generation: GenerationRecord) -> list[ExtensionResult]:
    """The extensions' current reports, or their last ones if the guest cannot be queried."""
    last = list(generation.extensions)
    if context.record.power != "running":
        return last
    try:
        return [_asked(context, generation, result) for result in last]
    except (InstanceError, HostError, HypervisorError):
        return last
    finally:
        context.leave()


def _asked(
    context: InstanceContext, generation: GenerationRecord, result: ExtensionResult
) -> ExtensionResult:
    extension = None if result.skipped else context.as_run(result)
    if extension is None or not is_known(extension):
        return result
    return context.guest(generation).report_extension(extension, result)


def instance_view(context: InstanceContext) -> dict[str, Any]:
    """Azure's ``VirtualMachineScaleSetVMInstanceView``.

    Extensions that keep reporting, such as Application Health, are queried now.

    Args:
        context: The instance.
    """
    record = context.record
    view: dict[str, Any] = {
        "platformUpdateDomain": record.update_domain,
        "placementGroupId": str(record.placement_group),
        "computerName": record.computer_name,
        **_vm_health(record),
        "statuses": _statuses(record),
    }
    generation = context.generation(record.generation)
    if generation is None:
        return view
    extensions = _reported(context, generation)
    handlers = {result.type: _handler(result) for result in extensions if not result.skipped}
    return {
        **view,
        "hyperVGeneration": generation.hyper_v_generation,
        "disks": _disks(context, generation),
        "vmAgent": {"extensionHandlers": list(handlers.values())},
        "extensions": [_extension(result) for result in extensions],
    }


def virtual_machine(context: InstanceContext, *, latest_model_applied: bool) -> dict[str, Any]:
    """Azure's ``VirtualMachineScaleSetVM`` with its instance view, as with ``$expand``.

    Args:
        context: The instance.
        latest_model_applied: Azure's ``latestModelApplied``.
    """
    record, environment = context.record, context.environment
    model = context.revision(record.revision).model
    lab = environment.paths.folder.name
    current = environment.revisions.current(record.scale_set).model
    return {
        "id": f"{scale_set_id(current, lab)}/virtualMachines/{record.instance_id}",
        "name": record.name,
        "type": "Microsoft.Compute/virtualMachineScaleSets/virtualMachines",
        "location": current.location,
        "tags": shown_tags(current),
        "instanceId": str(record.instance_id),
        "sku": {"name": model.sku.name, "tier": model.sku.tier or "Standard"},
        **({"zones": [record.zone]} if record.zone else {}),
        "properties": {
            "latestModelApplied": latest_model_applied,
            "modelDefinitionApplied": "VirtualMachineScaleSet",
            "vmId": record.uuid,
            "provisioningState": record.provisioning,
            "timeCreated": azure_time(record.created),
            "hardwareProfile": {"vmSize": model.sku.name},
            "osProfile": {
                "computerName": record.computer_name,
                "adminUsername": model.virtual_machine_profile.os_profile.admin_username,
            },
            "protectionPolicy": {
                "protectFromScaleIn": record.protect_from_scale_in,
                "protectFromScaleSetActions": record.protected,
            },
            **_storage_profile(context),
            "instanceView": instance_view(context),
        },
        "lab": _own(context),
    }


def shown_tags(model: ScaleSetModel) -> dict[str, str]:
    """A model's tags, with secrets masked (M5)."""
    tags: dict[str, str] = model.wire().get("tags", {})
    return tags


def _storage_profile(context: InstanceContext) -> dict[str, Any]:
    generation = context.generation(context.record.generation)
    if generation is None:
        return {}
    machine = context.machine(generation.number)
    model = context.revision(generation.revision).model
    reference = image_reference_of(
        model.image_reference,
        generation.image,
        lab=context.environment.paths.folder.name,
    )
    disks = {disk.lun: disk for disk in model.data_disks}
    return {
        "storageProfile": {
            "imageReference": reference,
            "osDisk": {
                "osType": "Linux", "name": machine.os_disk.name, "createOption": "FromImage",
            },
            "dataDisks": [
                {
                    "lun": disk.lun, "name": disk.path.name, "createOption": "Empty",
                    "diskSizeGB": disks[disk.lun].disk_size_gb,
                }
                for disk in machine.data_disks
            ],
        }
    }  # fmt: skip


def _own(context: InstanceContext) -> dict[str, Any]:
    """What the lab knows of an instance and Azure has no name for."""
    record = context.record
    own: dict[str, Any] = {
        "powerState": record.power,
        "unproven": record.unproven,
        "address": record.address,
        "forwards": {str(guest): host for guest, host in record.forwards.items()},
    }
    if context.network is not None:
        own["privateIPAddress"] = str(context.network.address)
    generation = context.generation(record.generation)
    if generation is None:
        return own
    return {
        **own,
        "osDiskGeneration": generation.number,
        "imageVersionFound": generation.found_version,
        "kernel": generation.kernel,
        "bootId": generation.boot_id,
        "cloudInit": generation.cloud_init,
    }


def set_instance_view(
    record: ScaleSetRecord,
    instances: Sequence[InstanceRecord],
    extensions: Mapping[str, Iterable[ExtensionResult]],
    services: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Azure's ``VirtualMachineScaleSetInstanceView``.

    Args:
        record: The set.
        instances: Its instances.
        extensions: The last results of each extension of its instances, by the extension's name.
        services: Its orchestration services.
    """
    state = record.state.lower()
    level = "Error" if record.state == "Failed" else "Info"
    return {
        "virtualMachine": {
            "statusesSummary": _summary(
                f"ProvisioningState/{instance.provisioning.lower()}" for instance in instances
            )
        },
        "extensions": [
            {
                "name": name,
                "statusesSummary": _summary(status_of(result)["code"] for result in results),
            }
            for name, results in extensions.items()
        ],
        "statuses": [_status(f"ProvisioningState/{state}", level, f"Provisioning {state}")],
        "orchestrationServices": list(services),
    }


def _summary(codes: Iterable[str]) -> list[dict[str, Any]]:
    return [{"code": code, "count": count} for code, count in sorted(Counter(codes).items())]
