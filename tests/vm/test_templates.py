"""P1, P2, A3, P4 on a real VM: a template like Azure's quickstarts, from its files to a healthy set."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_vmss.api.lab import Lab
from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.errors import NotModelledWarning
from tests.models import CUSTOM_DATA

IMAGE = {"publisher": "Debian", "offer": "debian-web", "sku": "12", "version": "latest"}
BALANCERS = "Microsoft.Network/loadBalancers"
#: With a comment, names in other cases than Azure's, and what has no meaning here.
TEMPLATE: dict[str, Any] = {
    "$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#",
    "contentVersion": "1.0.0.0",
    "parameters": {
        "vmssName": {"type": "string", "maxLength": 61},
        "vmSku": {"type": "string", "defaultValue": "Standard_D8s_v5"},
        "instanceCount": {"type": "int", "minValue": 1, "maxValue": 100},
        "dataDiskCount": {"type": "int", "defaultValue": 1},
        "adminUsername": {"type": "string"},
        "adminPasswordOrKey": {"type": "securestring"},
        "customData": {"type": "string", "defaultValue": ""},
        "location": {"type": "string", "defaultValue": "[resourceGroup().location]"},
    },
    "variables": {
        "namingInfix": "[toLower(substring(concat(parameters('vmssName'), 'xxxxxxxxx'), 0, 9))]",
        "balancer": "[concat(variables('namingInfix'), '-lb')]",
        "probe": "[resourceId('Microsoft.Network/loadBalancers/probes', variables('balancer'), 'web')]",
        "greeting": "[format('{0} of {1}', parameters('vmssName'), deployment().name)]",
    },
    "resources": [
        {
            "type": BALANCERS,
            "apiVersion": "2023-04-01",
            "name": "[variables('balancer')]",
            "location": "[parameters('location')]",
            "properties": {
                "loadBalancingRules": [
                    {
                        "name": "web",
                        "properties": {
                            "protocol": "tcp",
                            "frontendPort": 80,
                            "backendPort": 80,
                            "probe": {"id": "[variables('probe')]"},
                        },
                    }
                ],
                "probes": [
                    {
                        "name": "web",
                        "properties": {
                            "protocol": "Http",
                            "port": 80,
                            "requestPath": "/healthz",
                            "intervalInSeconds": 5,
                            "numberOfProbes": 2,
                        },
                    }
                ],
            },
        },
        {
            "type": "microsoft.compute/VirtualMachineScaleSets",
            "apiVersion": "2023-09-01",
            "name": "[parameters('vmssName')]",
            "location": "[parameters('location')]",
            "dependsOn": [f"[resourceId('{BALANCERS}', variables('balancer'))]"],
            "sku": {
                "name": "[parameters('vmSku')]",
                "tier": "Standard",
                "capacity": "[parameters('instanceCount')]",
            },
            "properties": {
                "overprovision": True,
                "upgradePolicy": {"mode": "manual"},
                "virtualMachineProfile": {
                    "storageProfile": {
                        "osDisk": {"createOption": "fromImage", "caching": "ReadWrite"},
                        "imageReference": IMAGE,
                        "copy": [
                            {
                                "name": "dataDisks",
                                "count": "[parameters('dataDiskCount')]",
                                "input": {
                                    "lun": "[copyIndex('dataDisks')]",
                                    "createOption": "Empty",
                                    "diskSizeGb": 1,
                                },
                            }
                        ],
                    },
                    "osProfile": {
                        "computerNamePrefix": "[variables('namingInfix')]",
                        "adminUsername": "[parameters('adminUsername')]",
                        "adminPassword": "[parameters('adminPasswordOrKey')]",
                        "customData": "[base64(parameters('customData'))]",
                    },
                    "networkProfile": {"HealthProbe": {"id": "[variables('probe')]"}},
                },
            },
        },
        {
            "type": "Microsoft.Compute/virtualMachineScaleSets/extensions",
            "apiVersion": "2023-09-01",
            "name": "[concat(parameters('vmssName'), '/greet')]",
            "properties": {
                "publisher": "Microsoft.Azure.Extensions",
                "type": "customScript",
                "typeHandlerVersion": "2.1",
                "settings": {
                    "commandToExecute": "[concat('echo ', variables('greeting'), ' > /root/greeting')]"
                },
            },
        },
        {
            "condition": "[greater(parameters('instanceCount'), 50)]",
            "type": BALANCERS,
            "apiVersion": "2023-04-01",
            "name": "never",
        },
    ],
    "outputs": {"fqdn": {"type": "string", "value": "[reference(variables('probe')).fqdn]"}},
}
PARAMETERS = {
    "$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentParameters.json#",
    "contentVersion": "1.0.0.0",
    "parameters": {
        "vmssName": {"value": "Quick"},
        "instanceCount": {"value": 3},
        "adminUsername": {"value": "azureuser"},
        "customData": {"value": CUSTOM_DATA},
    },
}


@pytest.fixture
def quick(vmss: Lab, built: Callable[[str], Path], tmp_path: Path) -> Iterator[ScaleSet]:
    """One instance of the template, in a size that this host has room for."""
    lab = Lab.session(replace(vmss.settings, size="Standard_B2ts_v2"))
    try:
        identifier = (IMAGE["publisher"], IMAGE["offer"], IMAGE["sku"])
        lab.gallery().publish("web", "1.0.0", built("1.0.0"), identifier=identifier)
        template, parameters = (
            tmp_path / "azuredeploy.json",
            tmp_path / "azuredeploy.parameters.json",
        )
        text = json.dumps(TEMPLATE, indent=2)
        template.write_text("\ufeff// as people keep it\n" + text, encoding="utf-8")
        parameters.write_text(json.dumps(PARAMETERS))
        with pytest.warns(NotModelledWarning, match="Standard_D8s_v5"):
            created = lab.create(template, parameters=[parameters, "instanceCount=1"])
        yield created
    finally:
        lab.destroy()


def test_from_the_files_to_a_healthy_set(quick: ScaleSet, vmss: Lab) -> None:
    """P1, P2, A1, A3: parameters, functions, loops, conditions and a child extension count."""
    assert quick.name == "Quick"
    assert quick.is_healthy()
    (instance,) = quick
    host = instance.host
    assert host.check_output("hostname") == "quickxxxx000000"
    assert host.check_output("cat /root/greeting").startswith("Quick of ")
    assert [entry.status for entry in instance.extensions] == ["success"]
    assert host.mount_point("/data").exists
    assert len(host.check_output("cat /data/custom-data-runs").split()) == 1
    assert int(host.check_output("nproc")) == (vmss.hypervisor.most_vcpus or 2)
