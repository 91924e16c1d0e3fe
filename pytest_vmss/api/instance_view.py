"""Azure's instance view of one instance (H4, J3)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pytest_vmss.environment.environment import InstanceContext
from pytest_vmss.errors import HostError, HypervisorError, InstanceError
from pytest_vmss.guest.extensions import is_known
from pytest_vmss.model import Health
from pytest_vmss.model.extension_result import ExtensionResult, Substatus
from pytest_vmss.store import GenerationRecord, InstanceRecord

__all__ = ["instance_view", "status_of"]

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
        status["time"] = time.isoformat()
    return status


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
    data = [{"name": disk.path.name, "lun": disk.lun} for disk in machine.data_disks]
    return [{"name": machine.os_disk.name}, *data]


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


def instance_view(context: InstanceContext, *, latest_model_applied: bool) -> dict[str, Any]:
    """Builds the instance view.

    Extensions that keep reporting, such as Application Health, are queried now.

    Args:
        context: The instance.
        latest_model_applied: Azure's ``latestModelApplied``.
    """
    record = context.record
    view: dict[str, Any] = {
        "instanceId": str(record.instance_id),
        "name": record.name,
        "computerName": record.computer_name,
        "provisioningState": record.provisioning,
        "latestModelApplied": latest_model_applied,
        "platformUpdateDomain": record.update_domain,
        "placementGroupId": str(record.placement_group),
        "zones": [record.zone] if record.zone else [],
        "protectionPolicy": {
            "protectFromScaleIn": record.protect_from_scale_in,
            "protectFromScaleSetActions": record.protected,
        },
        "powerState": record.power,
        **_vm_health(record),
        "statuses": _statuses(record),
        "address": record.address,
        "forwards": {str(guest): host for guest, host in record.forwards.items()},
    }
    generation = context.generation(record.generation)
    if generation is None:
        return view
    extensions = _reported(context, generation)
    handlers = {result.type: _handler(result) for result in extensions if not result.skipped}
    return {
        **view,
        "osDisk": {"generation": generation.number, "image": generation.version},
        "disks": _disks(context, generation),
        "imageVersionFound": generation.found_version,
        "kernel": generation.kernel,
        "bootId": generation.boot_id,
        "cloudInit": generation.cloud_init,
        "vmAgent": {"extensionHandlers": list(handlers.values())},
        "extensions": [_extension(result) for result in extensions],
    }
