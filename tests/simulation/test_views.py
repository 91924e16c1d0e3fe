"""J1-J3: what is shown of sets and instances has Azure's names, nested as Azure nests them."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.host.process import run
from pytest_vmss.simulation.guest import Behaviour
from tests.models import IMAGE_ID, LOAD_BALANCER, web_model
from tests.simulation.conftest import SimulatedLab
from tests.simulation.test_rollout import web_id


def start(lab: SimulatedLab, **changes: Any) -> ScaleSet:
    return lab.start({**web_model(capacity=2), **changes}, LOAD_BALANCER)


def test_an_instance_as_azures_virtual_machine(lab: SimulatedLab) -> None:
    """J3: with the instance view in its properties, as `$expand=instanceView` gives it."""
    web = start(lab, zones=["1", "2"], tags={"team": "shop"})
    web[1].protect(from_scale_in=True)
    first, second = web.virtual_machines()
    assert first == web[0].resource()
    assert first["id"] == f"{web_id(lab)}/virtualMachines/0"
    assert (first["name"], first["instanceId"]) == ("web_0", "0")
    assert first["type"] == "Microsoft.Compute/virtualMachineScaleSets/virtualMachines"
    assert (first["location"], first["tags"]) == ("westeurope", {"team": "shop"})
    assert first["sku"] == {"name": "Standard_B2ts_v2", "tier": "Standard"}
    assert [one["zones"] for one in (first, second)] == [["1"], ["2"]]
    properties = first["properties"]
    assert properties["latestModelApplied"] is True
    assert properties["provisioningState"] == "Succeeded"
    assert properties["vmId"] == web[0].record.uuid
    assert properties["timeCreated"].endswith("Z")
    assert properties["hardwareProfile"] == {"vmSize": "Standard_B2ts_v2"}
    assert properties["osProfile"] == {"computerName": "web000000", "adminUsername": "azureuser"}
    assert properties["storageProfile"]["imageReference"] == {
        "id": f"{IMAGE_ID.format(definition='web')}/versions/1.0.0",
        "exactVersion": "1.0.0",
    }
    assert properties["storageProfile"]["osDisk"]["osType"] == "Linux"
    assert properties["storageProfile"]["dataDisks"] == [
        {"lun": 0, "name": "lun0.qcow2", "createOption": "Empty", "diskSizeGB": 1}
    ]
    assert second["properties"]["protectionPolicy"] == {
        "protectFromScaleIn": True, "protectFromScaleSetActions": False,
    }  # fmt: skip
    view = properties["instanceView"]
    assert view == web[0].instance_view()
    assert set(view) == {
        "platformUpdateDomain", "placementGroupId", "computerName", "hyperVGeneration", "disks",
        "vmAgent", "extensions", "statuses",
    }  # fmt: skip
    assert view["hyperVGeneration"] == "V1"
    assert [disk["statuses"][0]["code"] for disk in view["disks"]] == [
        "ProvisioningState/succeeded"
    ] * 2
    # What is the lab's own is beside.
    own = first["lab"]
    assert (own["powerState"], own["unproven"], own["osDiskGeneration"]) == ("running", False, 1)
    assert (own["imageVersionFound"], own["bootId"]) == ("1.0.0", "boot-1")


def test_a_set_says_how_many_are_in_which_state(lab: SimulatedLab) -> None:
    """J3: `statusesSummary`."""
    web = start(lab)
    lab.environment.store.amend(web[1].record, provisioning="Failed")
    assert web.instance_view() == {
        "virtualMachine": {
            "statusesSummary": [
                {"code": "ProvisioningState/failed", "count": 1},
                {"code": "ProvisioningState/succeeded", "count": 1},
            ]
        },
        "extensions": [
            {
                "name": "register",
                "statusesSummary": [{"code": "ProvisioningState/succeeded", "count": 2}],
            }
        ],
        "statuses": [
            {
                "code": "ProvisioningState/succeeded",
                "level": "Info",
                "displayStatus": "Provisioning succeeded",
            }
        ],
        "orchestrationServices": web.orchestration_services,
    }


def test_one_that_never_came_up_has_a_view_too(lab: SimulatedLab) -> None:
    lab.publish("1.0.0", Behaviour.PANICS)
    lab.simulated.fail_os_disks = True
    with pytest.raises(Exception, match="no space left"):
        start(lab)
    web = lab.scale_set("web")
    (first, _) = web.virtual_machines()
    assert "storageProfile" not in first["properties"]
    assert first["properties"]["provisioningState"] == "Creating"
    assert web.instance_view()["extensions"] == []


def test_ids_that_a_model_brings_along_are_kept(lab: SimulatedLab) -> None:
    """`az vmss show` prints the set's."""
    own = (
        "/subscriptions/1/resourceGroups/rg/providers/Microsoft.Compute/virtualMachineScaleSets/web"
    )
    web = start(lab, id=own)
    assert web.virtual_machines()[1]["id"] == f"{own}/virtualMachines/1"


def test_platform_images_are_named_by_publisher_offer_and_sku(lab: SimulatedLab) -> None:
    """J2: a gallery's image has an ARM id, a platform image has none."""
    path = lab.paths.folder / "debian.qcow2"
    for number, version in enumerate(("12.0.1", "12.0.2"), 1):
        run(["qemu-img", "create", "-q", "-f", "qcow2", path, f"{number}M"], what="an image")
        lab.behaviours[version] = Behaviour.GOOD
        identifier = ("Debian", "debian-12", "12-gen2")
        record = lab.gallery().publish("debian", version, path, identifier=identifier)
        lab.simulated.images[record.digest] = version
        if number == 1:
            body = web_model(capacity=1)
            profile = body["properties"]["virtualMachineProfile"]["storageProfile"]
            profile["imageReference"] = {
                "publisher": "Debian", "offer": "debian-12", "sku": "12-gen2", "version": "latest",
            }  # fmt: skip
            web = lab.create(body, load_balancer=LOAD_BALANCER)
    lab.run_due()
    (entry,) = web.os_upgrade_history()
    wanted = {
        "publisher": "Debian", "offer": "debian-12", "sku": "12-gen2", "version": "12.0.2",
        "exactVersion": "12.0.2",
    }  # fmt: skip
    assert entry["properties"]["targetImageReference"] == wanted
    storage = web[0].resource()["properties"]["storageProfile"]
    assert storage["imageReference"] == wanted


def test_a_gallery_image_without_an_arm_id_gets_one(lab: SimulatedLab) -> None:
    body = web_model(capacity=1)
    profile = body["properties"]["virtualMachineProfile"]["storageProfile"]
    profile["imageReference"] = {"id": "/galleries/gallery/images/web"}
    web = lab.start(body, LOAD_BALANCER)
    lab.roll(web, "1.1.0")
    (entry,) = web.os_upgrade_history()
    group = web_id(lab).partition("/providers/")[0]
    assert entry["properties"]["targetImageReference"]["id"] == (
        f"{group}/providers/Microsoft.Compute/galleries/gallery/images/web/versions/1.1.0"
    )


def test_a_failed_rollback_is_told_with_its_error(lab: SimulatedLab) -> None:
    """J2: `rollbackError` with its details."""
    web = start(lab)
    lab.publish("1.1.0", Behaviour.EXTENSION_FAILS)
    commit = lab.environment.make_guest

    def sick(context: Any, generation: Any) -> Any:
        if generation.number == 2:
            lab.behaviours["1.0.0"] = Behaviour.PANICS
        return commit(context, generation)

    lab.environment.make_guest = sick
    lab.run_due()
    (entry,) = web.os_upgrade_history()
    told = entry["properties"]["rollbackInfo"]
    assert told["failedRolledbackInstanceCount"] == 1
    error = told["rollbackError"]
    assert (error["code"], error["target"]) == ("VMExtensionProvisioningError", "0")
    assert error["details"][0]["target"] == "0"
    assert error["innererror"]["exceptiontype"] == "VMExtensionProvisioningError"
