"""A1, A3, A6, C5: Azure's documents in their shapes, and errors with path and code."""

from __future__ import annotations

import copy
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_vmss.errors import ModelError, ModelProblem
from pytest_vmss.guest.extensions import check_settings, known_types
from pytest_vmss.model import ScaleSetModel, check_model, load_document
from tests.models import LOAD_BALANCER, web_model

EXAMPLE = Path(__file__).parents[2] / "examples/web/template.yaml"
DATA = Path(__file__).parent / "data"


def problems(body: dict[str, Any]) -> list[ModelProblem]:
    document = load_document(body, load_balancer=LOAD_BALANCER)
    return [
        *check_model(document.model, probe=document.probe, sizes={}, extension_types=known_types()),
        *check_settings(document.model.extensions),
    ]


def profile(body: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = body["properties"]["virtualMachineProfile"]
    return found


def test_arm_body() -> None:
    document = load_document(web_model(), load_balancer=LOAD_BALANCER)
    model = document.model
    assert model.sku.capacity == 3
    assert model.virtual_machine_profile.storage_profile.data_disks[0].disk_size_gb == 1
    assert model.automatic_os_upgrade.enable_automatic_os_upgrade
    assert model.extensions[0].type_handler_version == "2.1"
    assert document.probe is not None
    assert document.probe.threshold == 2
    assert problems(web_model()) == []


def test_what_az_vmss_show_prints() -> None:
    """Flat, with nulls, ids and properties that mean nothing here."""
    document = load_document(DATA / "az-vmss-show.json", load_balancer=LOAD_BALANCER)
    model = document.model
    assert model.name == "shop"
    assert model.upgrade_policy.mode == "Rolling"
    assert model.rolling_policy.max_batch_instance_percent == 40
    assert model.rolling_policy.pause_time_between_batches == timedelta(seconds=30)
    assert model.extensions[0].settings == {"commandToExecute": "echo", "properties": None}
    unknown = model.not_modelled()
    assert "$.platformFaultDomainCount" in unknown
    assert "$.overprovision" not in unknown  # false: nothing is overprovisioned here
    assert not {"$.id", "$.etag", "$.provisioningState", "$.uniqueId"} & set(unknown)
    assert "$.virtualMachineProfile.diagnosticsProfile" in unknown
    assert "$.hostGroup" not in unknown  # null is absent
    wire = model.wire()
    assert wire["singlePlacementGroup"] is True
    assert wire["upgradePolicy"]["rollingUpgradePolicy"]["pauseTimeBetweenBatches"] == "PT30S"
    assert wire["tags"] == {"team": "shop"}


def test_template_with_load_balancer_and_parameters() -> None:
    document = load_document(EXAMPLE)
    assert document.probe is not None
    assert document.probe.request_path == "/healthz"
    template = yaml.safe_load(EXAMPLE.read_text())
    template["parameters"] = {"count": {"type": "int", "defaultValue": 7}}
    template["resources"][1]["sku"]["capacity"] = "[parameters('count')]"
    assert load_document(template).model.sku.capacity == 7
    assert load_document(template, capacity=2).model.sku.capacity == 2
    template["resources"][1]["name"] = "[concat('a', 'b')]"
    assert load_document(template).model.name == "ab"
    template["resources"][1]["name"] = "[concat('a', 'b']"
    with pytest.raises(ModelError, match=r"\$\.resources\[1\]\.name: is not a valid expression"):
        load_document(template)


def test_the_callers_document_is_not_changed() -> None:
    body = web_model()
    before = copy.deepcopy(body)
    load_document(body, load_balancer=LOAD_BALANCER, capacity=1, name="other")
    assert body == before


@pytest.mark.parametrize(
    ("change", "path", "words"),
    [
        (lambda b: b["sku"].update(capacity=-1), "$.sku.capacity", "greater than or equal to 0"),
        (lambda b: b["sku"].update(name="Standard_B1"), "$.sku.name", "Standard_B1s"),
        (
            lambda b: b["properties"]["upgradePolicy"]["automaticOSUpgradePolicy"].update(
                enableAutomaticOSUpgrade="yes"
            ),
            "$.upgradePolicy.automaticOSUpgradePolicy.enableAutomaticOSUpgrade",
            "must be true or false",
        ),
        (lambda b: b.update(name="a/b"), "$.name", "pattern"),
        (lambda b: b.update(name="../b"), "$.name", "pattern"),
        (
            lambda b: b["properties"]["upgradePolicy"].update(mode="Sometimes"),
            "$.upgradePolicy.mode",
            "'Automatic', 'Manual' or 'Rolling'",
        ),
        (
            lambda b: b["properties"]["upgradePolicy"]["rollingUpgradePolicy"].update(
                maxBatchInstancePercent=4
            ),
            "$.upgradePolicy.rollingUpgradePolicy.maxBatchInstancePercent",
            "greater than or equal to 5",
        ),
        (
            lambda b: profile(b).pop("osProfile"),
            "$.virtualMachineProfile.osProfile",
            "specialized",
        ),
        (
            lambda b: profile(b)["storageProfile"]["dataDisks"].append(
                {"lun": 0, "createOption": "Empty", "diskSizeGB": 1}
            ),
            "$.virtualMachineProfile.storageProfile.dataDisks[0].lun",
            "more than once",
        ),
        (
            lambda b: profile(b)["storageProfile"]["dataDisks"][0].pop("diskSizeGB"),
            "$.virtualMachineProfile.storageProfile.dataDisks[0].diskSizeGB",
            "required",
        ),
        (
            lambda b: profile(b)["networkProfile"].clear(),
            "$.upgradePolicy.automaticOSUpgradePolicy.enableAutomaticOSUpgrade",
            "health probe or health extension was not specified",
        ),
        (
            lambda b: profile(b)["storageProfile"]["imageReference"].update(
                id="/galleries/g/images/i/versions/1.0.0"
            ),
            "$.virtualMachineProfile.storageProfile.imageReference",
            "'latest'",
        ),
        (
            lambda b: profile(b)["storageProfile"]["imageReference"].update(id="/images/mine"),
            "$.virtualMachineProfile.storageProfile.imageReference.id",
            "gallery",
        ),
        (
            lambda b: profile(b)["extensionProfile"]["extensions"][0]["properties"].update(
                type="Nothing"
            ),
            "$.virtualMachineProfile.extensionProfile.extensions[0].type",
            "microsoft.azure.extensions/customscript",
        ),
        (
            lambda b: profile(b)["extensionProfile"]["extensions"][0]["properties"].update(
                protectedSettings={"commandToExecute": "x"}
            ),
            "$.virtualMachineProfile.extensionProfile.extensions[0].settings",
            "both in public and protected settings",
        ),
    ],
)
def test_a_wrong_value_names_its_path(change: Any, path: str, words: str) -> None:
    """A6."""
    body = web_model()
    change(body)
    try:
        found = problems(body)
    except ModelError as error:
        found = list(error.problems)
    assert path in [problem.path for problem in found]
    assert any(words in problem.message for problem in found)
    assert all(problem.code for problem in found)


def test_secrets_are_in_no_message_and_no_wire() -> None:
    """M5."""
    body = web_model()
    profile(body)["osProfile"]["customData"] = "hunter2 is not base64!"[:21]
    profile(body)["osProfile"]["adminPassword"] = "hunter2"
    extension = profile(body)["extensionProfile"]["extensions"][0]["properties"]
    extension["protectedSettings"] = {"commandToExecute": "hunter2"}
    extension.pop("settings")
    with pytest.raises(ModelError) as wrong:
        load_document(body, load_balancer=LOAD_BALANCER)
    assert "hunter2" not in str(wrong.value)
    assert "base64" in str(wrong.value)
    profile(body)["osProfile"].pop("customData")
    model = load_document(body, load_balancer=LOAD_BALANCER).model
    assert "hunter2" not in json.dumps(model.wire())
    assert "hunter2" not in repr(model)
    assert ScaleSetModel.model_validate(model.full()) == model
    kept = model.full()["virtualMachineProfile"]
    assert kept["osProfile"]["adminPassword"] == "hunter2"


def test_custom_data_of_more_than_64_kib_is_refused() -> None:
    """H1."""
    body = web_model()
    profile(body)["osProfile"]["customData"] = "A" * 4 * 30000
    with pytest.raises(ModelError, match="65536"):
        load_document(body, load_balancer=LOAD_BALANCER)


@pytest.mark.parametrize("text", ["", "[1]", "{", "a: b: c"])
def test_a_file_that_is_no_model(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.json"
    path.write_text(text)
    with pytest.raises(ModelError) as wrong:
        load_document(path)
    assert wrong.value.code == "InvalidRequestContent"
    with pytest.raises(ModelError, match="cannot be read"):
        load_document(tmp_path / "missing.json")


def test_a_probe_that_nobody_declares() -> None:
    with pytest.raises(ModelError, match="--load-balancer"):
        load_document(web_model())
    with pytest.raises(ModelError, match="there is only: loadBalancer/other"):
        load_document(
            web_model(),
            load_balancer={"probes": [{"name": "other", "protocol": "Tcp", "port": 1}]},
        )
