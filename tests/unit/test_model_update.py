"""C5, azure-arm.md 6.7 and Q1: what a change leaves, and what may not change."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_vmss.errors import ModelError
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


def with_settings(settings: dict[str, Any], name: str = "agent") -> dict[str, Any]:
    """A stored body whose extension has settings, and protected ones."""
    body = web_model()
    (entry,) = body["properties"]["virtualMachineProfile"]["extensionProfile"]["extensions"]
    entry["name"] = name
    entry["properties"] |= {"settings": settings, "protectedSettings": {"pin": "s3cret"}}
    return load_document(body, load_balancer=LOAD_BALANCER).model.full()


def extension_of(body: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = body["virtualMachineProfile"]["extensionProfile"]["extensions"][0]
    return entry


def shown(body: dict[str, Any]) -> dict[str, Any]:
    """The body as `vmss show --json` prints it, read again."""
    wire = load_document(body, load_balancer=LOAD_BALANCER).model.wire()
    return read_part(json.loads(json.dumps(wire)))


def plain(body: Any) -> Any:
    return json.loads(json.dumps(body))


_URIS = ["https://x/a?sig=A", "https://x/b?sig=B"]
_SAME_NAMES = [{"name": "p", "password": "1"}, {"name": "p", "password": "2"}]
_PAIRS = [{"key": "DB_PASSWORD", "value": "db"}, {"key": "API_TOKEN", "value": "api"}]
_HOSTS = [{"host": "a", "password": "pA"}, {"host": "b", "password": "pB"}]
_WRITE_ONLY = {
    "customData": "abc",
    "nested": {"adminPassword": "pw", "protectedSettings": {"z": 1}},
}


@pytest.mark.parametrize(
    "settings",
    [
        {"note": "k: v\n" * 14_000},
        {"notes": ["k: v\n" * 14_000, "l: v\n" * 14_000]},
        _WRITE_ONLY,
        {"l": [{"adminPassword": "pw"}, {"adminPassword": "pw2"}]},
        {"l": _SAME_NAMES},
        {"l": [{"name": "A", "token": "1"}, {"name": "a", "token": "2"}]},
        {"fileUris": ["https://x/a?sig=1", "https://x/a?sig=2"]},
        {"apiKey": 12345678, "ratio": {"key": 1.5}, "flag": {"password": True}},
        {"commandToExecute": "echo *** --token abc", "keys": [["a", "b"], ["c"], None]},
        {"text": "login --token ***", "stars": "**********"},
        {"p": {"type": "securestring", "value": "abc"}},
    ],
    ids=str,
)
@pytest.mark.parametrize("put", [keep_secrets, merge])
def test_what_is_shown_and_not_edited_is_what_was_stored(put: Any, settings: Any) -> None:
    """M5."""
    body = with_settings(settings)
    body["tags"] = {"adminPassword": "s3cret", "costKey": "cc"}
    body["virtualMachineProfile"]["osProfile"]["windows"] = {"adminPassword": "s3cret"}
    assert plain(put(body, shown(body))) == plain(body)


@pytest.mark.parametrize(
    ("settings", "edit", "expected"),
    [
        ({"l": _PAIRS}, lambda s: s["l"].pop(0), {"l": _PAIRS[1:]}),
        ({"l": _HOSTS}, lambda s: s["l"].pop(0), {"l": _HOSTS[1:]}),
        ({"l": _HOSTS}, lambda s: s["l"].reverse(), {"l": _HOSTS[::-1]}),
        ({"l": _URIS}, lambda s: s["l"].pop(0), {"l": _URIS[1:]}),
        ({"l": _URIS}, lambda s: s["l"].insert(0, "x"), {"l": ["x", *_URIS]}),
        ({"l": _PAIRS}, lambda s: s["l"][0].update(key="db_password"),
         {"l": [{"key": "db_password", "value": "db"}, _PAIRS[1]]}),
        ({"l": [{"host": "a", "token": "t", "pwd": "p"}]}, lambda s: s["l"][0].update(pwd="new"),
         {"l": [{"host": "a", "token": "t", "pwd": "new"}]}),
        ({"l": _URIS[:1]}, lambda s: s.update(l=["https://x/a?sig=NEW"]),
         {"l": ["https://x/a?sig=NEW"]}),
        ({"a": "b"}, lambda s: s.update(a="echo '*** done ***' # *** x; ls //a/***"),
         {"a": "echo '*** done ***' # *** x; ls //a/***"}),
        ({"a": "b"}, lambda s: s.update(a="k: *** \n" * 9_000), {"a": "k: *** \n" * 9_000}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("put", [keep_secrets, merge])
def test_items_keep_their_own_secrets(put: Any, settings: Any, edit: Any, expected: Any) -> None:
    """M5: whatever was removed, inserted, moved or changed beside them."""
    body = with_settings(settings)
    given = shown(body)
    edit(extension_of(given)["settings"])
    assert plain(extension_of(put(body, given))["settings"]) == expected


@pytest.mark.parametrize(
    ("settings", "edit", "path"),
    [
        ({"c": "run --token abc"}, lambda s: s.update(c=s["c"] + " -q"), ".c"),
        ({"c": "run --token abc"}, lambda s: s.update(d=s["c"]), ".d"),
        ({"c": "k: v\n" * 14_000}, lambda s: s.update(d=s["c"]), ".d"),
        ({"l": _SAME_NAMES}, lambda s: s["l"].pop(0), ".l[0].password"),
        ({"l": _HOSTS}, lambda s: s["l"][1].update(host="c"), ".l[1].password"),
        ({"l": ["https://x/a?sig=1", "https://x/a?sig=2"]}, lambda s: s["l"].pop(), ".l[0]"),
        ({"l": _URIS}, lambda s: s["l"].append("https://x/c?***"), ".l[2]"),
        ({"c": "u"}, lambda s: s.update(apiKey="**********"), ".apiKey"),
        ({"secret": {"x": "y"}}, lambda s: s["secret"].update(z="**********"), ".secret"),
        ({"c": "https://u:p@h/"}, lambda s: s.update(c="https://***@i/"), ".c"),
        ({"c": "https://h/#a=b"}, lambda s: s.update(c="see https://h/i#***"), ".c"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("put", [keep_secrets, merge])
def test_a_mask_is_never_stored(put: Any, settings: Any, edit: Any, path: str) -> None:
    """M5: a mask that stands for nothing, or for nobody knows which, is refused."""
    body = with_settings(settings)
    given = shown(body)
    edit(extension_of(given)["settings"])
    with pytest.raises(ModelError, match="holds a mask; give the value, or leave") as refused:
        put(body, given)
    (problem,) = refused.value.problems
    start = "$.virtualMachineProfile.extensionProfile.extensions[0].settings"
    assert problem.path == start + path


def test_an_extension_by_another_name_has_no_secrets_of_the_first() -> None:
    """M5: names are compared without case, as in Azure."""
    body = with_settings({"apiKey": "k"})
    given = shown(body)
    extension_of(given)["name"] = "AGENT"
    kept = extension_of(keep_secrets(body, given))
    assert (kept["settings"], kept["protectedSettings"]) == ({"apiKey": "k"}, {"pin": "s3cret"})
    extension_of(given)["name"] = "other"
    with pytest.raises(ModelError, match=r"\[0\]\.settings\.apiKey: holds a mask"):
        keep_secrets(body, given)
    extension_of(given)["settings"]["apiKey"] = "own"
    assert "protectedSettings" not in extension_of(keep_secrets(body, given))


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
