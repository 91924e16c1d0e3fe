"""C5, azure-arm.md 6.7 and Q1: what a change leaves, and what may not change."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_vmss.model import (
    ScaleSetModel,
    check_update,
    keep_secrets,
    load_document,
    merge,
    profile_of,
    read_part,
)
from tests.models import LOAD_BALANCER, web_model


def model(**changes: Any) -> ScaleSetModel:
    body = merge(stored(), changes)
    return load_document(body, load_balancer=LOAD_BALANCER).model


def stored() -> dict[str, Any]:
    return load_document(web_model(), load_balancer=LOAD_BALANCER).model.full()


def test_objects_are_merged_arrays_replaced_and_absence_keeps() -> None:
    part = read_part({"sku": {"capacity": 9}, "properties": {"zones": None}, "tags": {"a": "b"}})
    merged = merge(stored(), part)
    assert merged["sku"] == {**stored()["sku"], "capacity": 9}
    assert merged["tags"] == {"a": "b"}
    assert merged["virtualMachineProfile"] == stored()["virtualMachineProfile"]
    disks = [{"lun": 5, "createOption": "Empty", "diskSizeGB": 1}]
    part = {"virtualMachineProfile": {"storageProfile": {"dataDisks": disks}}}
    assert merge(stored(), part)["virtualMachineProfile"]["storageProfile"]["dataDisks"] == disks


def test_an_image_by_id_takes_the_place_of_one_by_publisher_and_back() -> None:
    def reference(given: dict[str, str], body: dict[str, Any]) -> dict[str, str]:
        part = {"virtualMachineProfile": {"storageProfile": {"imageReference": given}}}
        found: dict[str, str] = merge(body, part)["virtualMachineProfile"]["storageProfile"][
            "imageReference"
        ]
        return found

    platform = {"publisher": "p", "offer": "o", "sku": "s", "version": "latest"}
    body = stored()
    assert reference(platform, body) == platform
    body["virtualMachineProfile"]["storageProfile"]["imageReference"] = platform
    assert reference({"id": "/x"}, body) == {"id": "/x"}
    assert reference({"version": "1.0.1"}, body) == {**platform, "version": "1.0.1"}


def test_secrets_are_kept_by_the_extensions_name() -> None:
    body = stored()
    extension = body["virtualMachineProfile"]["extensionProfile"]["extensions"][0]
    extension["protectedSettings"] = {"key": "s3cret"}
    given = load_document(web_model(), load_balancer=LOAD_BALANCER).model.wire()
    given["virtualMachineProfile"]["extensionProfile"]["extensions"].append(
        {**extension, "name": "other", "protectedSettings": {"key": "own"}}
    )
    kept = keep_secrets(body, given)["virtualMachineProfile"]
    assert [e["protectedSettings"] for e in kept["extensionProfile"]["extensions"]] == [
        {"key": "s3cret"},
        {"key": "own"},
    ]
    assert (
        kept["osProfile"]["customData"] == body["virtualMachineProfile"]["osProfile"]["customData"]
    )
    assert "customData" not in given["virtualMachineProfile"]["osProfile"]  # a copy was changed


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"location": "moon"}, "$.location"),
        (
            {"virtualMachineProfile": {"osProfile": {"computerNamePrefix": "other"}}},
            "$.virtualMachineProfile.osProfile.computerNamePrefix",
        ),
        (
            {"virtualMachineProfile": {"storageProfile": {"osDisk": {
                "managedDisk": {"storageAccountType": "Premium_LRS"}}}}},
            "$.virtualMachineProfile.storageProfile.osDisk.managedDisk.storageAccountType",
        ),
        (
            {"virtualMachineProfile": {"storageProfile": {"imageReference": {
                "publisher": "p", "offer": "o", "sku": "s", "version": "latest"}}}},
            "$.virtualMachineProfile.storageProfile.imageReference.publisher",
        ),
    ],
)  # fmt: skip
def test_what_may_not_change(change: dict[str, Any], path: str) -> None:
    problem = check_update(model(), model(**change))[0]
    assert (problem.path, problem.code) == (path, "PropertyChangeNotAllowed")
    assert problem.message.startswith("Changing property")


def test_zones_are_only_added_and_one_group_never_comes_back() -> None:
    two = model(zones=["1", "2"])
    assert check_update(model(zones=["1"]), two) == []
    assert "zones can only be added; 1 would go" in check_update(two, model(zones=["2"]))[0].message
    many, one = model(singlePlacementGroup=False), model(singlePlacementGroup=True)
    assert check_update(one, many) == []
    assert check_update(many, one)[0].path == "$.singlePlacementGroup"


def test_another_sku_of_the_same_offer_is_a_model_change() -> None:
    """C5."""
    reference = {"publisher": "p", "offer": "o", "sku": "12", "version": "latest"}
    before = {"virtualMachineProfile": {"storageProfile": {"imageReference": reference}}}
    after = {
        "virtualMachineProfile": {"storageProfile": {"imageReference": {**reference, "sku": "13"}}}
    }
    assert check_update(model(**before), model(**after)) == []
    assert profile_of(model(**before)) != profile_of(model(**after))


def test_what_instances_are_made_of() -> None:
    assert profile_of(model()) == profile_of(model(tags={"a": "b"}, sku={"capacity": 9}))
    assert profile_of(model()) != profile_of(model(sku={"name": "Standard_B2s"}))


_ODD: tuple[Any, ...] = (5, "x", {"a": 1}, [1], [[]], [{"name": []}], [{"name": {}}], None)


@pytest.mark.parametrize(
    "part",
    [
        *({"extensionProfile": {"extensions": value}} for value in _ODD),
        {"extensionProfile": 5},
        {"extensionProfile": "x"},
        {"osProfile": "x"},
        [],
    ],
    ids=str,
)
def test_parts_of_any_shape_can_be_laid_over(part: Any) -> None:
    """R3: what comes of them is refused where it is checked."""
    stored = load_document(web_model(), load_balancer=LOAD_BALANCER).model.full()
    merged = merge(stored, {"virtualMachineProfile": part, "tags": {"a": "b"}})
    assert merged["tags"] == {"a": "b"}
