"""Documents as Azure's users have them: any case, old names, kinds of sets (A1, A6, P4)."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from pytest_vmss.checkpoints.key import obstacle_to
from pytest_vmss.engine.preflight import file_uris
from pytest_vmss.errors import ModelError
from pytest_vmss.guest.extensions import check_settings
from pytest_vmss.model import (
    check_model,
    check_update,
    find_size,
    load_document,
    merge,
    read_part,
)
from pytest_vmss.model.decoding import without_comments
from tests.models import LOAD_BALANCER, web_model, with_application_health


def loaded(body: dict[str, Any], **arguments: Any) -> Any:
    return load_document(body, load_balancer=LOAD_BALANCER, **arguments).model


def respelled(value: Any, change: Any, *, opaque: bool = False) -> Any:
    """The same document with its names, and texts that are enumerated, in another case."""
    if isinstance(value, list):
        return [respelled(item, change, opaque=opaque) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key if opaque else change(key): (
            change(item) if key in _ENUMERATED and isinstance(item, str)
            else respelled(item, change, opaque=opaque or key in ("settings", "tags"))
        )
        for key, item in value.items()
    }  # fmt: skip


_ENUMERATED = ("mode", "createOption", "orchestrationMode", "osType", "caching", "deleteOption")


def _mixed(text: str) -> str:
    pick = random.Random(text)
    return "".join(pick.choice((letter.lower(), letter.upper())) for letter in text)


@pytest.mark.parametrize("change", [str.lower, str.upper, _mixed])
def test_names_and_enumerated_values_count_in_any_case(change: Any) -> None:
    """A1: ARM takes them so, and Azure's spelling is given back."""
    body = with_application_health(web_model(), probe=False)
    storage = body["properties"]["virtualMachineProfile"]["storageProfile"]
    storage["osDisk"].update(caching="ReadWrite", osType="Linux", diskSizeGB=30)
    body["tags"] = {"Team": "Shop"}
    other = load_document(respelled(body, change)).model
    assert other == load_document(body).model
    assert other.wire() == load_document(body).model.wire()
    assert other.not_modelled() == load_document(body).model.not_modelled()


@pytest.mark.parametrize(
    "part",
    [
        {"properties": {"upgradePolicy": {"automaticOsUpgradePolicy": {"enableAutomaticOsUpgrade": False}}}},
        {"PROPERTIES": {"UPGRADEPOLICY": {"AUTOMATICOSUPGRADEPOLICY": {"ENABLEAUTOMATICOSUPGRADE": False}}}},
        {"upgradePolicy": {"automaticOSUpgradePolicy": {"enableautomaticosupgrade": False}}},
    ],
)  # fmt: skip
def test_an_update_counts_however_it_is_spelt(part: dict[str, Any]) -> None:
    """A1: automatic upgrades are really off afterwards."""
    stored = loaded(web_model()).full()
    merged = loaded(merge(stored, read_part(part)), is_stored=True)
    assert not merged.automatic_os_upgrade.enable_automatic_os_upgrade
    extra = loaded({**web_model(), "hostGroup": {"Id": "a"}}).full()
    assert merge(extra, read_part({"HOSTGROUP": {"iD": "b"}}))["hostGroup"] == {"Id": "b"}


def test_what_was_not_given_is_not_given_back() -> None:
    """A6: a default that nothing reads is neither stored nor listed as the user's."""
    given = load_document(web_model(), load_balancer=LOAD_BALANCER)
    stored = loaded(given.model.full(), is_stored=True)
    assert stored == given.model
    assert stored.not_modelled() == given.not_modelled() == []
    body = web_model()
    policy = body["properties"]["upgradePolicy"]["automaticOSUpgradePolicy"]
    policy["useRollingUpgradePolicy"] = False
    path = "$.upgradePolicy.automaticOSUpgradePolicy.useRollingUpgradePolicy"
    again = loaded(loaded(body).full(), is_stored=True)
    assert again.not_modelled() == [path]
    assert (
        again.wire()["upgradePolicy"]["automaticOSUpgradePolicy"]["useRollingUpgradePolicy"]
        is False
    )


@pytest.mark.parametrize(("text", "value"), [("true", True), ("True", True), ("FALSE", False)])
def test_true_and_false_may_be_text(text: str, value: bool) -> None:
    """A1: as ARM takes them; other words are refused."""
    body = web_model()
    policy = body["properties"]["upgradePolicy"]["automaticOSUpgradePolicy"]
    policy["enableAutomaticOSUpgrade"] = text
    assert loaded(body).automatic_os_upgrade.enable_automatic_os_upgrade is value
    for other in ("yes", "1", "on", "t"):
        policy["enableAutomaticOSUpgrade"] = other
        with pytest.raises(ModelError, match="enableAutomaticOSUpgrade: must be true or false"):
            loaded(body)


@pytest.mark.parametrize("text", ["#cloud-config", "aGk", "aG k=", "aGk=\n", "aGk=!", "aGk-"])
def test_custom_data_is_strict_base64(text: str) -> None:
    """P5: nothing in it is skipped."""
    body = web_model()
    body["properties"]["virtualMachineProfile"]["osProfile"]["customData"] = text
    with pytest.raises(ModelError, match=r"osProfile\.customData: must be base64"):
        loaded(body)


def test_old_names_of_tools_are_known() -> None:
    """A1: what older versions of the command line print."""
    body = web_model()
    machine = body["properties"]["virtualMachineProfile"]
    machine["storageProfile"]["dataDisks"][0] = {"lun": 0, "createOption": "empty", "diskSizeGb": 4}
    extension = machine["extensionProfile"]["extensions"][0]["properties"]
    extension["typePropertiesType"] = extension.pop("type")
    machine["extensionProfile"]["extensions"][0]["type"] = "Microsoft.Compute/…/extensions"
    model = loaded(body)
    assert model.data_disks[0].disk_size_gb == 4
    assert model.extensions[0].type == "CustomScript"


def test_a_name_given_twice_is_refused() -> None:
    """A1, A6."""
    with pytest.raises(ModelError, match=r"\$\.Properties: is given twice"):
        loaded({**web_model(), "Properties": {}})
    body = {**web_model(), "SKU": {"name": "Standard_B1s"}}
    with pytest.raises(ModelError, match=r"\$\.sku: is given twice, in different spellings"):
        loaded(body)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"name": "a", "sku": {}, "name": "b"}'),
        ("a.json", '{"sku": {"name": "a", "name": ["a"]}}'),
        ("a.yaml", "name: a\nname: b\n"),
        ("a.yaml", "sku: [{tier: x, name: a, 'name': b}]\n"),
        ("a.json", '{"name": 1, "name": true}'),
        ("a.json", '{"name": [{"a": 1}], "name": [{"a": 1.0}]}'),
        ("a.yaml", "name: 1\nname: '1'\n"),
        ("a.yaml", "name: &a {<<: {b: 1}}\nname: {<<: *a, b: 2}\n"),
    ],
)
def test_a_name_given_twice_in_a_file_is_refused(tmp_path: Path, name: str, text: str) -> None:
    """A6: parsers take the last of them, and nobody would be told."""
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ModelError, match=r"\$: gives 'name' twice in one object"):
        load_document(path)


@pytest.mark.parametrize("name", ["a.json", "a.yaml"])
def test_a_value_given_twice_is_no_guess(tmp_path: Path, name: str) -> None:
    """P1: templates that people keep have such, and Azure takes them."""
    path = tmp_path / name
    path.write_text('{"tags": {"a": "b", "a": "b"}}')
    assert read_part(path) == {"tags": {"a": "b"}}
    path.write_text('{"tags": {"a": {"b": [null]}, "a": {"b": [null]}}}')
    assert read_part(path) == {"tags": {"a": {"b": [None]}}}


def test_yaml_may_write_one_value_in_two_ways(tmp_path: Path) -> None:
    """P1: what counts is what it means."""
    path = tmp_path / "a.yaml"
    path.write_text("a: {<<: &b {x: 0x10}}\na: *b\nc: yes\nc: true\n")
    assert read_part(path) == {"a": {"x": 16}, "c": True}


@pytest.mark.parametrize("levels", [1, 10])
def test_values_given_twice_are_not_compared_without_end(tmp_path: Path, levels: int) -> None:
    """R3: each level that holds them compares them again."""
    text = f"[{'0,' * (2_000_000 >> levels)}0]"
    for _ in range(levels):
        text = f'{{"a":{text},"a":{text}}}'
    path = tmp_path / "a.json"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(ModelError, match="values that are given twice"):
        read_part(path)
    assert time.process_time() - start < 2


def test_only_blanks_of_json_follow_a_trailing_comma() -> None:
    """P1: what is no blank to JSON stays where it is, and so does the comma before it."""
    assert without_comments("[1, \r\n\t]") == "[1  \r\n\t]"
    assert without_comments("[1,\u2028]") == "[1,\u2028]"


def test_yaml_may_override_what_it_merges(tmp_path: Path) -> None:
    """A1: that is no name given twice."""
    path = tmp_path / "a.yaml"
    path.write_text(
        "deep: {er: [&a {<<: &b {name: x}, name: y}, {<<: [*a, *b], name: z}]}\nsku: *a\n"
    )
    assert read_part(path)["sku"] == {"name": "y"}


def test_locations_ids_and_images_are_compared_as_azure_does() -> None:
    """A1, C5."""
    old, new = loaded(web_model()), loaded({**web_model(), "location": "West Europe"})
    assert check_update(old, new) == []
    machine = new.virtual_machine_profile
    machine.storage_profile.os_disk.model_extra.update(manageddisk={"STORAGEACCOUNTTYPE": "X"})
    assert len(check_update(old, new)) == 1


@pytest.mark.parametrize(
    ("change", "path", "told"),
    [
        (lambda b, _: b.update(orchestrationMode="flexible"), "$.orchestrationMode", "to Uniform"),
        (lambda _, m: m["storageProfile"].update(imageReference={"id": "/x/images/y"}),
         "$.virtualMachineProfile.storageProfile.imageReference.id", "a managed image"),
        (lambda _, m: m["storageProfile"].update(imageReference={"communityGalleryImageId": "x"}),
         "$.virtualMachineProfile.storageProfile.imageReference.communityGalleryImageId", "publish"),
        (lambda _, m: m["storageProfile"]["osDisk"].update(image={"uri": "http://x/a.vhd"}),
         "$.virtualMachineProfile.storageProfile.osDisk.image", "unmanaged VHD"),
        (lambda _, m: m.pop("osProfile"), "$.virtualMachineProfile.osProfile", "specialized"),
        (lambda b, _: b.pop("virtualMachineProfile"), "$.virtualMachineProfile", "vmss update"),
    ],
)  # fmt: skip
def test_what_cannot_be_here_is_refused_with_the_way_out(change: Any, path: str, told: str) -> None:
    """P4: and nothing else is said about it."""
    body = web_model()
    flat = {
        **{key: item for key, item in body.items() if key != "properties"},
        **body["properties"],
    }
    change(flat, flat["virtualMachineProfile"])
    with pytest.raises(ModelError, match=told) as refused:
        loaded(flat)
    assert [problem.path for problem in refused.value.problems] == [path]


@pytest.mark.parametrize("name", ["AzureUser", "a.b-c_1", "x" * 64])
def test_administrators_as_azure_takes_them(name: str) -> None:
    """A6."""
    body = web_model()
    body["properties"]["virtualMachineProfile"]["osProfile"]["adminUsername"] = name
    assert loaded(body).virtual_machine_profile.os_profile.admin_username == name


@pytest.mark.parametrize("name", ["root", "Admin", "user1", "a b", "-x", "x" * 65, ""])
def test_administrators_that_azure_refuses(name: str) -> None:
    """A6: forbidden names and shapes."""
    body = web_model()
    body["properties"]["virtualMachineProfile"]["osProfile"]["adminUsername"] = name
    with pytest.raises(ModelError, match="adminUsername"):
        loaded(body)


def test_what_may_be_left_out_or_is_a_number() -> None:
    """A1: zones and tags as ARM takes them."""
    body = {**web_model("my-web.set"), "zones": [1, "2"], "tags": {"n": 3, "on": True}}
    del body["properties"]["virtualMachineProfile"]["osProfile"]["computerNamePrefix"]
    model = loaded(body)
    assert model.zones == ["1", "2"]
    assert loaded({**body, "zones": ""}).zones == []
    assert model.tags == {"n": "3", "on": "true"}
    assert model.computer_name_prefix == "mywebset"


@pytest.mark.parametrize(
    ("name", "vcpus", "gib"),
    [
        ("Standard_D8s_v5", 8, 32), ("standard_d2_V2", 2, 7), ("Standard_A1", 1, 1.75),
        ("Basic_A0", 1, 0.75), ("Standard_DS14_v2", 16, 112), ("Standard_E64s_v3", 64, 432),
        ("Standard_E4-2s_v5", 2, 32), ("Standard_F8s_v2", 8, 16), ("Standard_F4ams_v6", 4, 32),
        ("Standard_DC8as_v5", 8, 32), ("Standard_L8s_v3", 8, 64), ("Standard_NC6s_v3", 6, 112),
        ("Standard_M8ms", 8, 218.75), ("Standard_B16ls_v2", 16, 32), ("Standard_A8m_v2", 8, 64),
        ("Standard_GS5", 32, 448), ("Standard_H16mr", 16, 224), ("Standard_D4ps_v6", 4, 16),
    ],
)  # fmt: skip
def test_sizes_of_all_common_families(name: str, vcpus: int, gib: float) -> None:
    """A3."""
    size = find_size(name)
    assert size is not None
    assert (size.vcpus, size.memory_mib) == (vcpus, round(gib * 1024))


@pytest.mark.parametrize(
    ("name", "near"), [("Standard_D8s_v", "Standard_D8s_v5"), ("Standard_D3s_v5", "Standard_D2s_v5"),
                       ("Standard_E4-9s_v5", "Standard_E4s_v5")]
)  # fmt: skip
def test_an_unknown_size_names_the_nearest(name: str, near: str) -> None:
    """A3, A6."""
    assert find_size(name) is None
    body = web_model()
    body["sku"]["name"] = name
    document = load_document(body, load_balancer=LOAD_BALANCER)
    (problem,) = [
        problem
        for problem in check_model(
            document.model, probe=document.probe, sizes={"Own": (1, 1)}, extension_types=frozenset()
        )
        if problem.path == "$.sku.name"
    ]
    assert near in problem.message
    assert "Own" in problem.message


def test_settings_of_extensions_count_in_any_case() -> None:
    """A1, C8: Azure's handlers take them so."""
    body = web_model()
    extension = body["properties"]["virtualMachineProfile"]["extensionProfile"]["extensions"][0]
    extension["properties"]["settings"] = {"COMMANDTOEXECUTE": "x", "fileuris": ["https://a/b"]}
    model = loaded(body)
    assert check_settings(model.extensions) == []
    assert [uri for _, uri in file_uris(model)] == ["https://a/b"]
    assert "downloads files" in obstacle_to(model)


def test_sets_of_generation_2_are_booted() -> None:
    """L1, O5: a checkpoint has no UEFI variables, and says so."""
    model = loaded(web_model())
    assert obstacle_to(model) == ""
    assert "UEFI variables" in obstacle_to(model, "V2")


_DURATIONS = {
    "upgradePolicy.rollingUpgradePolicy.pauseTimeBetweenBatches": ("PT0S", "P1D"),
    "automaticRepairsPolicy.gracePeriod": ("PT10M", "PT90M"),
    "virtualMachineProfile.extensionProfile.extensionsTimeBudget": ("PT15M", "PT2H"),
    "virtualMachineProfile.scheduledEventsProfile.terminateNotificationProfile.notBeforeTimeout": (
        "PT5M", "PT15M",
    ),
    "virtualMachineProfile.scheduledEventsProfile.osImageNotificationProfile.notBeforeTimeout": (
        "PT1S", "PT15M",
    ),
}  # fmt: skip


def _with_duration(path: str, value: object) -> Any:
    body = web_model()
    part = body["properties"]
    *parents, name = path.split(".")
    for parent in parents:
        part = part.setdefault(parent, {})
    part[name] = value
    return body


@pytest.mark.parametrize("path", _DURATIONS)
@pytest.mark.parametrize(
    "value",
    [10, 600, 900.5, "600", "00:10:00", "1 day", "pt10m", "PT10", "PT0,25H", "PT0.25H", " PT10M",
     "P", "PT", "", True, []],
)  # fmt: skip
def test_durations_are_texts_of_iso_8601(path: str, value: object) -> None:
    """A6: Azure takes nothing else, so 10 is neither seconds nor minutes here."""
    with pytest.raises(ModelError) as refused:
        loaded(_with_duration(path, value))
    (problem,) = refused.value.problems
    assert problem.path == f"$.{path}"
    assert "must be a duration as ISO 8601 writes it, such as PT10M" in problem.message


@pytest.mark.parametrize("path", _DURATIONS)
def test_a_duration_that_azure_does_not_take_is_told_both_bounds(path: str) -> None:
    """A6: the allowed range is told, as Azure writes it."""
    least, most = _DURATIONS[path]
    for value in (least, most):
        loaded(_with_duration(path, value))
    for value in ("-PT1S", "P3D", f"PT{'9' * 30}H"):
        with pytest.raises(ModelError) as refused:
            loaded(_with_duration(path, value))
        (problem,) = refused.value.problems
        assert f"must be a duration from {least} to {most}" in problem.message


_SHOWN = {
    "id": "/…/virtualMachineScaleSets/web", "name": "web", "location": "westeurope",
    "sku": {"name": "Standard_B1s"}, "virtualMachineProfile": {},
}  # fmt: skip
_OTHERS: dict[str, tuple[Any, str]] = {
    "az vmss list": ([_SHOWN], "; give one of its items"),
    "az rest": ({"value": [_SHOWN], "nextLink": None}, "is a list of resources"),
    "az vmss create": ({"vmss": _SHOWN}, "is what `az vmss create` prints"),
    "what-if": ({"changes": [{"changeType": "Create", "after": _SHOWN}]}, "is a result of what-if"),
    "what-if of the API": (
        {"properties": {"changes": [{"changeType": "Create", "after": _SHOWN}]}},
        "is a result of what-if",
    ),
    "parameters": (
        {
            "$schema": "https://schema.management.azure.com/schemas/2019-04-01/"
            "deploymentParameters.json#",
            "parameters": {},
        },
        "is a parameters file",
    ),
    "terraform show": ({"format_version": "1.0", "values": {}}, "is Terraform's"),
    "terraform.tfstate": ({"terraform_version": "1.5.0", "resources": []}, "is Terraform's"),
    "main.tf.json": (
        {"resource": {"azurerm_linux_virtual_machine_scale_set": {}}}, "is Terraform's",
    ),
    "AzAPI": (
        {"type": "Microsoft.Compute/virtualMachineScaleSets@2024-07-01", "body": _SHOWN},
        "is a resource as AzAPI writes it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", _OTHERS)
def test_another_document_is_told_by_what_it_is(tmp_path: Path, kind: str) -> None:
    """P4: not as a set that lacks almost everything; for a change too."""
    body, words = _OTHERS[kind]
    path = tmp_path / "document.json"
    path.write_text(json.dumps(body))
    for load in (load_document, read_part):
        with pytest.raises(ModelError) as refused:
            load(path)
        (problem,) = refused.value.problems
        assert (problem.path, problem.code) == ("$", "InvalidRequestContent")
        assert words in problem.message
