"""A6: what has no effect here is listed, declared or not; what is not listed has one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from pytest_vmss.model import (
    AutomaticOSUpgradePolicy,
    AzureModel,
    DataDisk,
    Extension,
    ImageReference,
    ScaleSetModel,
    load_document,
    why_not_modelled,
)
from pytest_vmss.model.scale_set import (
    IPConfiguration,
    LinuxConfiguration,
    NetworkInterfaceConfiguration,
    OSDisk,
    OSProfile,
    Sku,
    SshPublicKey,
    SubnetReference,
    WindowsConfiguration,
)
from pytest_vmss.simulation.guest import Behaviour
from tests.models import LOAD_BALANCER, custom_script, encode, web_model, with_subnet
from tests.simulation.conftest import SimulatedLab

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHVrZXkgdWtleSB1a2V5IHVrZXkgdWtleSB1a2V5"

#: Functions that go through all fields alike, which is no use of one.
ALIKE = ("unknown", "_serialize", "full", "__repr_args__", "_keep_masks", "traced")
#: What this life has no use for, and why that needs no telling.
NEEDLESS = {
    (ImageReference, "sku"): "read of platform images",
    (Extension, "type_handler_version"): "read of those whose versions differ",
    (ImageReference, "exact_version"): "Azure's own, in answers alone",
    (ScaleSetModel, "tags"): "shown with all the model is shown with",
    (Extension, "force_update_tag"): "compared with all of its extension",
    (Sku, "tier"): "shown",
    (NetworkInterfaceConfiguration, "name"): "names nothing that is made",
    (NetworkInterfaceConfiguration, "primary"): "there is one network",
    (IPConfiguration, "name"): "names nothing that is made",
    (SubnetReference, "id"): "that there is one counts, whichever it is",
    (WindowsConfiguration, "enable_automatic_updates"): "refused with all of Windows",
    (WindowsConfiguration, "patch_settings"): "refused with all of Windows",
}


def whole_body() -> dict[str, Any]:
    """A body that gives every declared property."""
    body = with_subnet(web_model(capacity=2))
    body |= {"apiVersion": "2024-11-01", "tags": {"a": "b"}, "zones": ["1"]}
    properties = body["properties"]
    properties |= {
        "singlePlacementGroup": True,
        "scaleInPolicy": {"rules": ["OldestVM"], "prioritizeUnhealthyVMs": True},
        "automaticRepairsPolicy": {
            "enabled": True, "gracePeriod": "PT10M", "repairAction": "Restart",
        },
    }  # fmt: skip
    properties["upgradePolicy"] |= {
        "mode": "Rolling",
        "rollingUpgradePolicy": {
            "maxBatchInstancePercent": 50, "maxUnhealthyInstancePercent": 50,
            "maxUnhealthyUpgradedInstancePercent": 50, "pauseTimeBetweenBatches": "PT1S",
            "enableCrossZoneUpgrade": True, "prioritizeUnhealthyInstances": True,
            "rollbackFailedInstancesOnPolicyBreach": True, "maxSurge": False,
        },
    }  # fmt: skip
    properties["upgradePolicy"]["automaticOSUpgradePolicy"]["useRollingUpgradePolicy"] = False
    profile = properties["virtualMachineProfile"]
    profile["userData"] = encode("data")
    profile["scheduledEventsProfile"] = {
        "osImageNotificationProfile": {"enable": True, "notBeforeTimeout": "PT1M"},
        "terminateNotificationProfile": {"enable": True, "notBeforeTimeout": "PT5M"},
    }
    profile["osProfile"] |= {
        "adminPassword": "S3cret-pass",
        "linuxConfiguration": {
            "disablePasswordAuthentication": False,
            "ssh": {"publicKeys": [{"path": "/elsewhere", "keyData": KEY}]},
            "patchSettings": {"patchMode": "ImageDefault"},
        },
    }
    profile["storageProfile"]["osDisk"] |= {
        "caching": "ReadWrite", "osType": "Linux", "diskSizeGB": 30, "createOption": "Copy",
    }  # fmt: skip
    profile["storageProfile"]["dataDisks"][0] |= {"name": "data", "deleteOption": "Detach"}
    settings = {"commandToExecute": "true"}
    profile["extensionProfile"] = {
        "extensionsTimeBudget": "PT30M",
        "extensions": [
            custom_script("one", settings=settings),
            custom_script(
                "two", "one", protectedSettings=settings, forceUpdateTag="1",
                suppressFailures=True, protectedSettingsFromKeyVault={"secretUrl": "https://x/"},
            ),
        ],
    }  # fmt: skip
    return body


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> set[tuple[type, str]]:
    """The declared properties that the package has read, with their classes."""
    seen: set[tuple[type, str]] = set()

    def traced(self: AzureModel, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name in type(self).model_fields:
            caller = sys._getframe(1)
            module = str(caller.f_globals.get("__name__", ""))
            if module.startswith("pytest_vmss.") and caller.f_code.co_name not in ALIKE:
                seen.add((type(self), name))
        return value

    monkeypatch.setattr(AzureModel, "__getattribute__", traced, raising=False)
    return seen


def test_every_declared_property_has_an_effect_or_is_listed(
    lab: SimulatedLab, reads: set[tuple[type, str]]
) -> None:
    """A life in which every property is given; none of the rest is read by nobody."""
    web = lab.start(whole_body(), LOAD_BALANCER)
    lab.roll(web, "1.1.0")
    web.virtual_machines()
    web.rolling_upgrade_status()
    web.repair()
    web.update({"tags": {"c": "d"}, "sku": {"capacity": 3}})
    web.scale(2)
    lab.roll(web, "1.2.0", Behaviour.UNHEALTHY)
    listed = web.model.not_modelled()
    web.delete()
    declared = {
        (kind, name)
        for kind in subclasses(AzureModel)
        if kind.__module__ == ScaleSetModel.__module__
        for name in kind.model_fields
    }
    unread = declared - reads - NEEDLESS.keys()
    told = {(kind, name) for kind, name in declared if name in kind.NOT_READ}
    assert unread == told - reads
    assert not told & NEEDLESS.keys()
    profile = "$.virtualMachineProfile"
    assert listed == sorted(
        [
            "$.upgradePolicy.automaticOSUpgradePolicy.useRollingUpgradePolicy",
            f"{profile}.extensionProfile.extensions[1].protectedSettingsFromKeyVault",
            f"{profile}.osProfile.adminPassword",
            f"{profile}.osProfile.linuxConfiguration.disablePasswordAuthentication",
            f"{profile}.osProfile.linuxConfiguration.ssh.publicKeys[0].path",
            f"{profile}.storageProfile.dataDisks[0].name",
            f"{profile}.storageProfile.osDisk.caching",
            f"{profile}.storageProfile.osDisk.createOption",
        ]
    )


def subclasses(kind: type[AzureModel]) -> Iterator[type[AzureModel]]:
    for below in kind.__subclasses__():
        yield below
        yield from subclasses(below)


def test_what_is_done_here_anyway_is_not_listed() -> None:
    body = web_model()
    body["overprovision"] = False
    profile = body["properties"]["virtualMachineProfile"]
    profile["priority"] = "Regular"
    profile["osProfile"]["linuxConfiguration"] = {
        "disablePasswordAuthentication": True,
        "ssh": {"publicKeys": [{"path": "/home/azureuser/.ssh/authorized_keys", "keyData": KEY}]},
    }
    automatic = body["properties"]["upgradePolicy"]["automaticOSUpgradePolicy"]
    automatic |= {"useRollingUpgradePolicy": True, "osRollingUpgradeDeferral": False}
    assert load_document(body, load_balancer=LOAD_BALANCER).not_modelled() == []


def test_what_azure_has_and_the_lab_has_not_is_listed_with_the_reason() -> None:
    """A6: deferral, lifecycle hooks, Spot, standby pools, and a policy switched off."""
    body = web_model()
    properties = body["properties"]
    automatic = properties["upgradePolicy"]["automaticOSUpgradePolicy"]
    automatic |= {"osRollingUpgradeDeferral": True, "useRollingUpgradePolicy": False}
    hook = {"type": "UpgradeAutoOSScheduling", "waitDuration": "PT10M", "defaultAction": "Approve"}
    properties["lifecycleHooksProfile"] = {"lifecycleHooks": [hook]}
    properties["spotRestorePolicy"] = {"enabled": True}
    properties["priorityMixPolicy"] = {"baseRegularPriorityCount": 1}
    profile = properties["virtualMachineProfile"]
    profile |= {"priority": "Spot", "evictionPolicy": "Delete", "billingProfile": {"maxPrice": -1}}
    template = {
        "resources": [
            {"type": "Microsoft.Compute/virtualMachineScaleSets", **body},
            {"type": "Microsoft.StandbyPool/standbyVirtualMachinePools", "name": "pool"},
        ]
    }
    found = load_document(template, load_balancer=LOAD_BALANCER).not_modelled()
    reasons = {path: why_not_modelled(path) for path in found}
    spot = "instances are never evicted: each is an ordinary one"
    assert reasons == {
        "$.upgradePolicy.automaticOSUpgradePolicy.osRollingUpgradeDeferral": (
            "upgrades wait for no instance's approval (approveRollingUpgrade)"
        ),
        "$.upgradePolicy.automaticOSUpgradePolicy.useRollingUpgradePolicy": (
            "rollingUpgradePolicy counts in every automatic upgrade"
        ),
        "$.lifecycleHooksProfile": "no hook is called, and upgrades wait for none",
        "$.spotRestorePolicy": spot,
        "$.priorityMixPolicy": spot,
        "$.virtualMachineProfile.priority": spot,
        "$.virtualMachineProfile.evictionPolicy": spot,
        "$.virtualMachineProfile.billingProfile": spot,
        "Microsoft.StandbyPool/standbyVirtualMachinePools[pool]": (
            "every instance is made when the set scales out"
        ),
    }
    assert why_not_modelled("$.hostGroup") == ""


def test_the_classes_that_tell_are_those_that_have_such_fields() -> None:
    """A misspelt name in NOT_READ would list nothing."""
    kinds = [kind for kind in subclasses(AzureModel) if kind.NOT_READ]
    assert {kind for kind in kinds if kind.__module__ == ScaleSetModel.__module__} == {
        AutomaticOSUpgradePolicy, SshPublicKey, LinuxConfiguration, OSProfile, OSDisk, DataDisk,
        Extension,
    }  # fmt: skip
    for kind in kinds:
        assert kind.NOT_READ.keys() <= kind.model_fields.keys()
