"""C5-C7: what automatic OS upgrade and Rolling mode need, each with Azure's code and words."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_vmss.errors import ModelProblem
from pytest_vmss.guest.extensions import known_types
from pytest_vmss.model import check_model, load_document, model_warnings, review
from tests.models import LOAD_BALANCER, service_fabric, web_model

PROFILE = "$.virtualMachineProfile"
AUTOMATIC = "$.upgradePolicy.automaticOSUpgradePolicy.enableAutomaticOSUpgrade"
HEALTH = {
    "name": "health",
    "publisher": "Microsoft.ManagedServices",
    "type": "ApplicationHealthLinux",
    "typeHandlerVersion": "1.0",
    "settings": {"protocol": "http", "port": 80, "requestPath": "/"},
}


def all_problems(body: dict[str, Any]) -> list[ModelProblem]:
    document = load_document(body, load_balancer=LOAD_BALANCER)
    return check_model(
        document.model,
        probe=document.probe,
        sizes={},
        extension_types=known_types(),
        clusters=list(document.clusters),
    )


def problems(body: dict[str, Any]) -> list[ModelProblem]:
    """Without the one of Windows guests, which hides no other."""
    return [problem for problem in all_problems(body) if problem.code != "OSTypeNotSupported"]


def profile(body: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = body["properties"]["virtualMachineProfile"]
    return found


def no_probe(body: dict[str, Any]) -> None:
    profile(body).pop("networkProfile")


def add(*extensions: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    return lambda body: profile(body)["extensionProfile"]["extensions"].extend(extensions)


def windows(**configuration: Any) -> Callable[[dict[str, Any]], None]:
    return lambda body: profile(body)["osProfile"].update(windowsConfiguration=configuration)


def both(*changes: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    def change(body: dict[str, Any]) -> None:
        for each in changes:
            each(body)

    return change


@pytest.mark.parametrize(
    ("change", "path", "words"),
    [
        (no_probe, AUTOMATIC, "because a health probe or health extension was not specified."),
        (add(HEALTH), AUTOMATIC, "because both a health probe and a health extension were"),
        (
            lambda b: profile(b)["storageProfile"]["imageReference"].update(
                id="/galleries/gallery/images/web/versions/1.0.0"
            ),
            f"{PROFILE}.storageProfile.imageReference",
            "needs the image version 'latest'",
        ),
        (
            lambda b: profile(b)["storageProfile"].update(
                imageReference={
                    "publisher": "Debian", "offer": "debian-12", "sku": "12", "version": "1.0.0",
                }
            ),
            f"{PROFILE}.storageProfile.imageReference",
            "needs the image version 'latest'",
        ),
        (lambda b: b.update(apiVersion="2018-06-01"), "$.apiVersion", "2018-10-01 or later"),
        (
            windows(enableAutomaticUpdates=True),
            f"{PROFILE}.osProfile.windowsConfiguration.enableAutomaticUpdates",
            "must be false",
        ),
        (
            windows(),
            f"{PROFILE}.osProfile.windowsConfiguration.enableAutomaticUpdates",
            "absent means true",
        ),
        (
            windows(enableAutomaticUpdates=False, patchSettings={"patchMode": "AutomaticByPlatform"}),
            f"{PROFILE}.osProfile.windowsConfiguration.patchSettings.patchMode",
            "must not be AutomaticByPlatform",
        ),
        (
            lambda b: profile(b)["osProfile"].update(
                linuxConfiguration={"patchSettings": {"patchMode": "AutomaticByPlatform"}}
            ),
            f"{PROFILE}.osProfile.linuxConfiguration.patchSettings.patchMode",
            "must not be AutomaticByPlatform",
        ),
        (
            add(service_fabric("Gold")),
            f"{PROFILE}.networkProfile.healthProbe",
            "a health probe was provided beside the Service Fabric extension",
        ),
        (
            add(service_fabric("Bronze")),
            f"{PROFILE}.extensionProfile.extensions[1].settings.durabilityLevel",
            "needs the durability level Silver or Gold",
        ),
        (
            both(no_probe, add(service_fabric("Silver", "1.0"))),
            f"{PROFILE}.extensionProfile.extensions[1].typeHandlerVersion",
            "version 1.1 or later",
        ),
        (
            add(service_fabric("Platinum")),
            f"{PROFILE}.extensionProfile.extensions[1].settings.durabilityLevel",
            "must be Bronze, Silver or Gold",
        ),
    ],
)  # fmt: skip
def test_what_keeps_a_set_from_automatic_upgrades(
    change: Callable[[dict[str, Any]], None], path: str, words: str
) -> None:
    body = web_model()
    change(body)
    (problem,) = problems(body)
    assert problem.path == path
    assert problem.code in ("BadRequest", "InvalidParameter")
    assert words in problem.message
    # None of it matters where automatic upgrades are off.
    body["properties"]["upgradePolicy"]["automaticOSUpgradePolicy"] = {}
    assert problems(body) == []


@pytest.mark.parametrize(
    "change",
    [
        both(no_probe, add(HEALTH)),
        windows(enableAutomaticUpdates=False),
        both(windows(enableAutomaticUpdates=True), lambda b: b.update(apiVersion="2018-10-01")),
        lambda b: b.update(apiVersion="2024-11-01"),
        both(no_probe, add(service_fabric("Silver"))),
        both(no_probe, add(service_fabric("Gold", "1.10"))),
        both(no_probe, add(service_fabric("gold", type="Node"))),
    ],
)
def test_what_does_not(change: Callable[[dict[str, Any]], None]) -> None:
    """Service Fabric of Silver and Gold needs no health source of its own."""
    body = web_model()
    change(body)
    assert problems(body) == []


def template(body: dict[str, Any], **node_type: Any) -> dict[str, Any]:
    """An ARM template with the set, its load balancer and its cluster."""
    cluster = {
        "type": "Microsoft.ServiceFabric/clusters",
        "name": "cluster",
        "properties": {"nodeTypes": [{"name": "NT0", **node_type}]},
    }
    scale_set = {"type": "Microsoft.Compute/virtualMachineScaleSets", **body}
    return {"resources": [scale_set, cluster]}


def test_the_cluster_and_the_extension_say_the_same() -> None:
    """C7; Bronze is enough for a stateless-only node type."""
    body = web_model()
    both(no_probe, add(service_fabric("Silver")))(body)
    assert problems(template(body, durabilityLevel="Silver")) == []
    (problem,) = problems(template(body, durabilityLevel="Gold"))
    assert "must be the same in the extension and in the cluster" in problem.message

    body = web_model()
    add(service_fabric("Bronze"))(body)
    assert problems(template(body, durabilityLevel="Bronze", isStateless=True)) == []
    (problem,) = problems(template(body, durabilityLevel="Bronze"))
    assert "stateless-only" in problem.message


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (windows(enableAutomaticUpdates=False), "osProfile.windowsConfiguration"),
        (
            lambda b: profile(b)["storageProfile"]["osDisk"].update(osType="Windows"),
            "storageProfile.osDisk.osType",
        ),
        (
            lambda b: profile(b)["storageProfile"].update(
                imageReference={
                    "publisher": "MicrosoftWindowsServer", "offer": "WindowsServer",
                    "sku": "2022-datacenter", "version": "latest",
                }
            ),
            "storageProfile.imageReference.publisher",
        ),
        (
            both(
                windows(enableAutomaticUpdates=False),
                lambda b: profile(b)["storageProfile"]["osDisk"].update(osType="Windows"),
            ),
            "storageProfile.osDisk.osType",
        ),
    ],
)  # fmt: skip
def test_windows_guests_are_refused_with_the_reason(
    change: Callable[[dict[str, Any]], None], path: str
) -> None:
    """A8: once, whatever tells of them, and whether upgrades are automatic or not."""
    for automatic in (True, False):
        body = web_model(automatic=automatic)
        change(body)
        (problem,) = all_problems(body)
        assert (problem.path, problem.code) == (f"{PROFILE}.{path}", "OSTypeNotSupported")
        assert "only Linux guests can be run here" in problem.message


def test_application_health_for_windows_is_refused_by_name() -> None:
    """A8, F3: not as an extension that nobody knows."""
    body = web_model()
    no_probe(body)
    add({**HEALTH, "type": "ApplicationHealthWindows"})(body)
    (problem,) = all_problems(body)
    assert problem.path == f"{PROFILE}.extensionProfile.extensions[1].type"
    assert problem.message.startswith("ApplicationHealthWindows is for Windows guests")
    assert "use ApplicationHealthLinux" in problem.message


def test_automatic_repairs_need_exactly_one_source_of_health() -> None:
    """K1: as Azure's page on them says; without repairs and upgrades both may be there."""
    body = web_model(automatic=False)
    add(HEALTH)(body)
    assert problems(body) == []
    body["properties"]["automaticRepairsPolicy"] = {"enabled": True}
    (problem,) = problems(body)
    assert (problem.path, problem.code) == ("$.automaticRepairsPolicy.enabled", "BadRequest")
    assert "because both a health probe and a health extension were provided" in problem.message
    body["properties"]["automaticRepairsPolicy"]["enabled"] = False
    assert problems(body) == []
    body["properties"]["automaticRepairsPolicy"]["enabled"] = True
    no_probe(body)
    assert problems(body) == []
    profile(body)["extensionProfile"]["extensions"].pop()
    (problem,) = problems(body)
    assert "because a health probe or health extension was not provided" in problem.message


@pytest.mark.parametrize(
    ("publisher", "offer", "sku", "is_listed"),
    [
        ("Canonical", "0001-com-ubuntu-server-jammy", "22_04-LTS-Gen2", True),
        ("canonical", "0001-COM-ubuntu-server-jammy", "22_04-lts", True),
        ("MicrosoftCblMariner", "Azure-Linux", "azure-linux-3", True),
        ("Canonical", "0001-com-ubuntu-server-jammy", "server", False),
        ("Canonical", "azure-linux", "azure-linux-3", False),
        ("Debian", "debian-12", "12-gen2", False),
    ],
)
def test_a_platform_image_that_azure_does_not_upgrade_is_said(
    publisher: str, offer: str, sku: str, is_listed: bool
) -> None:
    """B7: where it would upgrade by itself; in any case of letters."""
    body = web_model()
    profile(body)["storageProfile"]["imageReference"] = {
        "publisher": publisher, "offer": offer, "sku": sku, "version": "latest",
    }  # fmt: skip
    notes = review(load_document(body, load_balancer=LOAD_BALANCER)).notes
    assert len(notes) == (not is_listed)
    assert all(f"{publisher}/{offer}/{sku}" in note for note in notes)
    policy = body["properties"]["upgradePolicy"]["automaticOSUpgradePolicy"]
    policy["enableAutomaticOSUpgrade"] = False
    assert review(load_document(body, load_balancer=LOAD_BALANCER)).notes == []


def test_gallery_images_are_all_upgraded() -> None:
    """B7: Azure upgrades custom images of a gallery."""
    assert review(load_document(web_model(), load_balancer=LOAD_BALANCER)).notes == []


def test_rolling_mode_needs_health() -> None:
    body = web_model(automatic=False)
    body["properties"]["upgradePolicy"]["mode"] = "Rolling"
    assert problems(body) == []
    no_probe(body)
    (problem,) = problems(body)
    assert problem.code == "BadRequest"
    assert problem.message == (
        "Rolling Upgrade mode is not supported for this Virtual Machine Scale Set because a "
        "health probe or health extension was not provided."
    )


def test_a_single_placement_group_holds_a_hundred() -> None:
    body = web_model(capacity=101)
    assert problems(body) == []
    body["properties"]["singlePlacementGroup"] = True
    (problem,) = problems(body)
    assert problem.path == "$.sku.capacity"
    assert "100 instances at most" in problem.message


def with_balancer(body: dict[str, Any], **changes: Any) -> list[ModelProblem]:
    balancer = copy.deepcopy(LOAD_BALANCER)
    balancer.update({"sku": changes.pop("sku")} if "sku" in changes else {})
    balancer["properties"].update(changes)
    document = load_document(body, load_balancer=balancer)
    return check_model(
        document.model,
        probe=document.probe,
        sizes={},
        extension_types=known_types(),
        balancer=document.balancer,
    )


def test_several_placement_groups_need_a_standard_balancer() -> None:
    """F2."""
    body = web_model()
    assert with_balancer(body, sku={"name": "Basic"}) == []
    body["properties"]["singlePlacementGroup"] = False
    assert with_balancer(body, sku={"name": "Standard"}) == []
    (problem,) = with_balancer(body, sku={"name": "Basic"})
    assert "needs a Standard load balancer" in problem.message


def test_rules_of_a_balancer_that_do_not_fit_together() -> None:
    rule = LOAD_BALANCER["properties"]["loadBalancingRules"][0]
    other = {"name": "other", "properties": {**rule["properties"], "probe": {"id": "/probes/nix"}}}
    problems = with_balancer(web_model(), loadBalancingRules=[rule, other])
    assert [problem.code for problem in problems] == [
        "InvalidResourceReference", "InvalidParameter",
    ]  # fmt: skip
    assert "there are: healthz" in problems[0].message
    assert "2 rules have the frontend port 80" in problems[1].message


def test_a_long_probe_interval_is_warned_about() -> None:
    """F2: two minutes and more."""
    probe = load_document(web_model(), load_balancer=LOAD_BALANCER).probe
    assert probe is not None
    assert model_warnings(probe) == []
    assert model_warnings(probe.model_copy(update={"interval_in_seconds": 119})) == []
    (warning,) = model_warnings(probe.model_copy(update={"interval_in_seconds": 120}))
    assert "every 120 s" in warning


#: The rows of "Which combinations work" in the reference: automatic OS upgrade, automatic repairs.
COMBINATIONS: dict[str, Callable[[dict[str, Any]], None]] = {
    "`healthProbe`, and its load balancer": both(),
    "the Application Health extension": both(no_probe, add(HEALTH)),
    "the extension, behind a load balancer": both(no_probe, add(HEALTH)),
    "neither": no_probe,
    "neither, behind a load balancer": no_probe,
    "both `healthProbe` and the extension": add(HEALTH),
    "Service Fabric of Silver or Gold, neither": both(no_probe, add(service_fabric("Gold"))),
    "Service Fabric of Silver or Gold, `healthProbe`": add(service_fabric("Gold")),
}


@pytest.mark.parametrize("row", COMBINATIONS)
def test_the_documented_combinations(row: str) -> None:
    """C5, K1: what the reference says of each is so, and neither is needed to take the model."""
    text = (Path(__file__).parents[2] / "docs/reference.md").read_text()
    table = text.partition("### Which combinations work")[2].partition("\n## ")[0]
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {row} |")]
    upgrade, repairs = (cell.strip() for cell in line.split("|")[3:5])
    found = []
    for automatic, repaired in ((True, False), (False, True), (False, False)):
        body = web_model(automatic=automatic)
        COMBINATIONS[row](body)
        body["properties"]["automaticRepairsPolicy"] = {"enabled": repaired}
        found.append("refused" if problems(body) else "yes")
    assert found == [upgrade, repairs, "yes"]
