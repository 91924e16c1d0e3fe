"""A6, P3: mistakes in models, markers and calls are told in the words of who made them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from pytest_vmss.errors import ModelError
from pytest_vmss.model import load_document, read_change, review
from pytest_vmss.model.arguments import known_arguments
from tests.models import LOAD_BALANCER, web_model


def problems_of(body: Any, **arguments: Any) -> dict[str, str]:
    """What is wrong with a document: messages by path."""
    with pytest.raises(ModelError) as refused:
        load_document(body, **{"load_balancer": LOAD_BALANCER, **arguments})
    return {problem.path: problem.message for problem in refused.value.problems}


def misspelt(name: str, wrong: str) -> dict[str, Any]:
    body = web_model()
    body["properties"][wrong] = body["properties"].pop(name)
    return body


@pytest.mark.parametrize("wrong", ["upgradPolicy", "upgradePolicies", "UpgradePolcy"])
def test_a_misspelling_of_what_is_missing_is_refused(wrong: str) -> None:
    told = problems_of(misspelt("upgradePolicy", wrong))
    assert told == {f"$.{wrong}": "is no property that Azure has; did you mean upgradePolicy?"}


def test_a_misspelling_deep_inside_is_refused() -> None:
    body = web_model()
    disk = body["properties"]["virtualMachineProfile"]["storageProfile"]["dataDisks"][0]
    disk["diskSizeGb2"] = disk.pop("diskSizeGB")
    (path,) = told = problems_of(body)
    assert path == "$.virtualMachineProfile.storageProfile.dataDisks[0].diskSizeGb2"
    assert told[path].endswith("did you mean diskSizeGB?")


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("rollingUpgradePolicy", "maxBatchInstanceCount"),
        ("rollingUpgradePolicy", "maxUnhealthyUpgradedInstanceCount"),
        ("rollingUpgradePolicy", "pauseTimeBetweenZones"),
        ("rollingUpgradePolicy", "enableCrossRegionUpgrade"),
        ("virtualMachineProfile", "userDataUri"),
        ("osProfile", "linuxConfigurationProfile"),
        ("dataDisks", "deletionOption"),
        ("properties", "scaleOutPolicy"),
        ("properties", "automaticRepairsProfile"),
    ],
)
def test_a_newer_property_that_is_near_to_another_is_taken(where: str, name: str) -> None:
    """A6: Azure gets properties that no list here can know; they differ by a word, not by a slip."""
    body = web_model()
    properties = body["properties"]
    profile = properties["virtualMachineProfile"]
    objects = {
        "properties": properties,
        "rollingUpgradePolicy": properties["upgradePolicy"]["rollingUpgradePolicy"],
        "virtualMachineProfile": profile,
        "osProfile": profile["osProfile"],
        "dataDisks": profile["storageProfile"]["dataDisks"][0],
    }
    objects[where][name] = 1
    (told,) = review(load_document(body, load_balancer=LOAD_BALANCER)).lines()
    assert name in told
    assert "did you mean" in told


@pytest.mark.parametrize("wrong", ["maxBatchInstnacePrecent", "max-batch-instance-percent"])
def test_a_slip_in_a_long_name_is_refused(wrong: str) -> None:
    """A6."""
    body = web_model(policy={wrong: 20})
    (told,) = problems_of(body).values()
    assert told.endswith("did you mean maxBatchInstancePercent?")


def test_a_misspelling_beside_the_right_name_is_told() -> None:
    body = web_model()
    body["properties"]["upgradPolicy"] = {"mode": "Manual"}
    found = review(load_document(body, load_balancer=LOAD_BALANCER))
    assert list(found.lines()) == [
        "no property that Azure has: $.upgradPolicy; did you mean upgradePolicy?"
    ]


def test_what_nothing_is_near_to_is_told_and_kept() -> None:
    body = web_model()
    body["properties"]["ourOwnNote"] = "x"
    document = load_document(body, load_balancer=LOAD_BALANCER)
    assert list(review(document).lines()) == [
        "no property that Azure has: $.ourOwnNote; it is kept and has no effect"
    ]
    assert document.model.wire()["ourOwnNote"] == "x"


def test_a_set_that_was_taken_before_stays_as_it_is() -> None:
    """A name that an earlier version took does not lock a set against changes."""
    body = misspelt("upgradePolicy", "upgradPolicy")
    load_document(body, load_balancer=LOAD_BALANCER, is_stored=True)
    with pytest.raises(ModelError, match="did you mean upgradePolicy"):
        read_change({"upgradPolicy": {"mode": "Manual"}})


def test_no_name_of_azure_is_taken_for_a_misspelling() -> None:
    """Some are near to each other: what Azure has and nothing reads here is never refused."""
    body = web_model()
    del body["properties"]["upgradePolicy"]["automaticOSUpgradePolicy"]["enableAutomaticOSUpgrade"]
    profile = body["properties"]["virtualMachineProfile"]
    profile["osProfile"]["linuxConfiguration"] = {"enableVMAgentPlatformUpdates": True}
    profile["securityProfile"] = {"securityType": "TrustedLaunch"}
    profile["extensionProfile"]["extensions"] = [
        {
            "name": "script",
            "properties": {
                "publisher": "Microsoft.Azure.Extensions", "type": "CustomScript",
                "typeHandlerVersion": "2.1", "autoUpgradeMinorVersion": True,
                "enableAutomaticUpgrade": True, "settings": {"commandToExecute": "true"},
            },
        }
    ]  # fmt: skip
    load_document(body, load_balancer=LOAD_BALANCER)


def test_what_has_no_effect_is_one_line_with_a_count() -> None:
    body = web_model()
    body["properties"] |= {
        "overprovision": True,
        "platformFaultDomainCount": 2,
        "hostGroup": {"id": "x"},
    }
    found = review(load_document(body, load_balancer=LOAD_BALANCER))
    (told,) = found.lines()
    assert told == (
        "not modelled here: 3 properties, which have no effect (`vmss validate` lists them): "
        "hostGroup, overprovision, platformFaultDomainCount"
    )
    assert len(found.not_modelled) == 3


def test_the_load_balancers_own_file_is_named(tmp_path: Path) -> None:
    wrong: dict[str, Any] = copy.deepcopy(LOAD_BALANCER)
    wrong["properties"]["probes"][0]["properties"]["port"] = 0
    (tmp_path / "lb.json").write_text(json.dumps(wrong))
    (tmp_path / "web.json").write_text(json.dumps(web_model()))
    for name, told in (
        ("lb.json", "lb.json is not a valid load balancer:"),
        ("none.json", "none.json is not a valid load balancer:\n  $: cannot be read"),
    ):
        with pytest.raises(ModelError) as refused:
            load_document(tmp_path / "web.json", load_balancer=tmp_path / name)
        assert f"{tmp_path}/{told}" in str(refused.value)
        assert "web.json" not in str(refused.value)
        assert "https://" not in str(refused.value)


def test_the_parameters_own_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "values.json").write_text("[]")
    template = {"resources": [{"type": "Microsoft.Compute/virtualMachineScaleSets", **web_model()}]}
    with pytest.raises(ModelError, match=r"values\.json is not a valid file of parameters"):
        load_document(template, parameters=tmp_path / "values.json")


def test_an_argument_that_there_is_not_names_the_one_meant() -> None:
    @known_arguments
    def create(source: str, *, capacity: int = 1, health_timeout: float = 0) -> tuple[str, float]:
        return source, capacity + health_timeout

    assert create("a", capacity=3) == ("a", 3)
    assert create(source="a") == ("a", 1)
    with pytest.raises(
        ModelError, match="create: has no argument 'capcity'; did you mean capacity"
    ):
        create("a", capcity=3)  # type: ignore[call-arg]
    with pytest.raises(ModelError, match="there are: capacity, health_timeout"):
        create("a", xyz=3)  # type: ignore[call-arg]


SUITE = """
    import pytest

    @pytest.mark.vmss(model="nothing.json")
    def test_file(scale_set): pass

    @pytest.mark.vmss(model="web.json", capcity=3)
    def test_argument(scale_set): pass

    @pytest.mark.vmss("web.json", 3)
    def test_position(scale_set): pass

    def test_create(vmss):
        vmss.create("web.json", load_balancr="lb.json")

    def test_image(gallery):
        gallery.publish("web", "1.0.0", "nothing.qcow2")
    """


def test_a_mistake_of_the_suite_shows_no_line_of_the_plugin(pytester: pytest.Pytester) -> None:
    """A missing model file gave 106 lines."""
    pytester.makepyfile(SUITE)
    result = pytester.runpytest_subprocess("--vmss-state-dir", "state")
    result.assert_outcomes(errors=3, failed=2)
    result.stdout.fnmatch_lines(
        [
            f"*{pytester.path}/nothing.json is not a valid scale set:",
            "*cannot be read: No such file*",
            "*@pytest.mark.vmss: has no argument 'capcity'; did you mean capacity?*",
            "*@pytest.mark.vmss: takes the model alone without a name*",
            '>       vmss.create("web.json", load_balancr="lb.json")',
            "*create: has no argument 'load_balancr'; did you mean load_balancer?*",
            '>       gallery.publish("web", "1.0.0", "nothing.qcow2")',
            f"*nothing.qcow2 cannot be read: No such file or directory, in {pytester.path}",
        ]
    )
    text = result.stdout.str()
    assert "pytest_vmss/" not in text
    assert "contextlib.py" not in text
    assert len(result.outlines) < 75
    whole = pytester.runpytest_subprocess("--vmss-state-dir", "state", "--full-trace")
    assert "pytest_vmss/model/reading.py" in whole.stdout.str()


def test_a_wrong_option_shows_no_line_of_the_plugin(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nvmss_sizes = Tiny\n")
    pytester.makepyfile("def test_it(vmss): pass")
    result = pytester.runpytest_subprocess("--vmss-state-dir", "state")
    result.stdout.fnmatch_lines(["E   *UsageError: vmss_sizes: 'Tiny' is not of the form*"])
    assert "pytest_vmss/" not in result.stdout.str()


def test_a_folder_that_cannot_be_made_shows_no_line_of_pythons(pytester: pytest.Pytester) -> None:
    """Those of pathlib were left, for a cause of the package's error lies in there."""
    pytester.makepyfile("def test_it(vmss): pass")
    pytester.path.joinpath("taken").write_text("")
    result = pytester.runpytest_subprocess("--vmss-state-dir", "taken/state")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E *LabError: the lab's folder * cannot be used: *"])
    assert "pathlib.py" not in result.stdout.str()
