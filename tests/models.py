"""Models that tests share."""

from __future__ import annotations

import base64
from typing import Any

IMAGE_ID = (
    "/subscriptions/0/resourceGroups/lab/providers/Microsoft.Compute"
    "/galleries/gallery/images/{definition}"
)

CUSTOM_DATA = """\
#cloud-config
fs_setup:
  - device: /dev/disk/by-id/virtio-lun0
    partition: auto
    filesystem: ext4
    label: data
    overwrite: false
mounts:
  - [LABEL=data, /data, ext4, "defaults,nofail"]
runcmd:
  - [sh, -c, "echo $(cat /var/lib/cloud/data/instance-id) >> /data/custom-data-runs"]
"""


def encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def web_model(
    name: str = "web",
    *,
    capacity: int = 3,
    definition: str = "web",
    automatic: bool = True,
    policy: dict[str, Any] | None = None,
    extensions: bool = True,
    disable_rollback: bool = False,
) -> dict[str, Any]:
    """ARM's body of a scale set with a data disk, a probe and an extension."""
    record = "echo $(cat /var/lib/cloud/data/instance-id) >> /data/extension-runs"
    extension = custom_script("register", settings={"commandToExecute": record})
    return {
        "name": name,
        "location": "westeurope",
        "sku": {"name": "Standard_B2ts_v2", "tier": "Standard", "capacity": capacity},
        "properties": {
            "orchestrationMode": "Uniform",
            "upgradePolicy": {
                "mode": "Manual",
                "rollingUpgradePolicy": policy or {},
                "automaticOSUpgradePolicy": {
                    "enableAutomaticOSUpgrade": automatic,
                    "disableAutomaticRollback": disable_rollback,
                },
            },
            "virtualMachineProfile": {
                "osProfile": {
                    "computerNamePrefix": name,
                    "adminUsername": "azureuser",
                    "customData": encode(CUSTOM_DATA),
                },
                "storageProfile": {
                    "imageReference": {"id": IMAGE_ID.format(definition=definition)},
                    "osDisk": {"createOption": "FromImage"},
                    "dataDisks": [{"lun": 0, "createOption": "Empty", "diskSizeGB": 1}],
                },
                "networkProfile": {"healthProbe": {"id": "/…/loadBalancers/web-lb/probes/healthz"}},
                "extensionProfile": {"extensions": [extension] if extensions else []},
            },
        },
    }


def custom_script(name: str, *after: str, **fields: Any) -> dict[str, Any]:
    """A CustomScript extension, after others."""
    order = {"provisionAfterExtensions": list(after)} if after else {}
    return {
        "name": name,
        "properties": {
            "publisher": "Microsoft.Azure.Extensions",
            "type": "CustomScript",
            "typeHandlerVersion": "2.1",
            **order,
            **fields,
        },
    }


def application_health(version: str = "2.0", **settings: Any) -> dict[str, Any]:
    """The Application Health extension."""
    return {
        "name": "health",
        "properties": {
            "publisher": "Microsoft.ManagedServices",
            "type": "ApplicationHealthLinux",
            "typeHandlerVersion": version,
            "settings": {"protocol": "http", "port": 80, "requestPath": "/health", **settings},
        },
    }


def service_fabric(
    level: str = "Silver", version: str = "1.1", node: str = "nt0", type: str = "LinuxNode"
) -> dict[str, Any]:
    """The Service Fabric extension."""
    return {
        "name": "fabric",
        "properties": {
            "publisher": "Microsoft.Azure.ServiceFabric",
            "type": f"ServiceFabric{type}",
            "typeHandlerVersion": version,
            "settings": {"durabilityLevel": level, "nodeTypeRef": node},
        },
    }


def node_type(capacity: int = 5, level: str = "Silver", **options: Any) -> dict[str, Any]:
    """A Service Fabric node type: no probe decides on its health."""
    body = web_model(capacity=capacity, **options)
    profile = body["properties"]["virtualMachineProfile"]
    del profile["networkProfile"]
    profile["extensionProfile"]["extensions"].append(service_fabric(level))
    return body


def with_application_health(
    body: dict[str, Any], version: str = "2.0", *, probe: bool = False, **settings: Any
) -> dict[str, Any]:
    """The same model with the Application Health extension, in place of the probe unless asked."""
    profile = body["properties"]["virtualMachineProfile"]
    if not probe:
        del profile["networkProfile"]
    profile["extensionProfile"]["extensions"].append(application_health(version, **settings))
    return body


def with_subnet(body: dict[str, Any]) -> dict[str, Any]:
    """The same model with a network interface in a subnet."""
    profile = body["properties"]["virtualMachineProfile"]
    subnet = {"id": "/…/virtualNetworks/net/subnets/default"}
    profile.setdefault("networkProfile", {})["networkInterfaceConfigurations"] = [
        {
            "name": "nic",
            "properties": {
                "primary": True,
                "ipConfigurations": [{"name": "ip", "properties": {"subnet": subnet}}],
            },
        }
    ]
    return body


LOAD_BALANCER: dict[str, Any] = {
    "name": "web-lb",
    "properties": {
        "loadBalancingRules": [
            {
                "name": "http",
                "properties": {
                    "protocol": "Tcp",
                    "frontendPort": 80,
                    "backendPort": 80,
                    "probe": {"id": "/…/loadBalancers/web-lb/probes/healthz"},
                },
            }
        ],
        "probes": [
            {
                "name": "healthz",
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
}
