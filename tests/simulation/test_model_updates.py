"""C9: a changed model, and how it reaches instances."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.errors import ModelError, ProvisioningError
from pytest_vmss.guest import extensions
from pytest_vmss.simulation.guest import Behaviour
from pytest_vmss.store import Outcome
from tests.models import IMAGE_ID, LOAD_BALANCER, web_model
from tests.simulation.conftest import SimulatedLab
from tests.simulation.test_upgrade import check_accounts


def start(lab: SimulatedLab, mode: str, capacity: int = 3, **policy: Any) -> ScaleSet:
    body = web_model(capacity=capacity, policy=policy, automatic=False)
    body["properties"]["upgradePolicy"]["mode"] = mode
    return lab.start(body, LOAD_BALANCER)


def extension(command: str) -> dict[str, Any]:
    body = web_model()
    profile = body["properties"]["virtualMachineProfile"]["extensionProfile"]
    profile["extensions"][0]["properties"]["settings"] = {"commandToExecute": command}
    return {"properties": {"virtualMachineProfile": {"extensionProfile": profile}}}


SIZE = {"sku": {"name": "Standard_B1s"}}


def test_manual_changes_nothing_until_it_is_asked(lab: SimulatedLab) -> None:
    web = start(lab, "Manual")
    assert web.update(extension("echo new")) is None
    assert [i.latest_model_applied for i in web] == [False] * 3
    assert [one["properties"]["latestModelApplied"] for one in web.virtual_machines()] == [
        False
    ] * 3
    done = web.update_instances([1])
    assert done.outcomes == {"web_1": Outcome.SUCCEEDED}
    assert [i.latest_model_applied for i in web] == [False, True, False]
    assert set(web.update_instances().outcomes) == {
        "web_0",
        "web_2",
    }  # who has it already is left alone
    assert all(i.latest_model_applied for i in web)
    # The changed extension was run again on the same OS disk; custom data was not.
    assert [i.record.generation for i in web] == [1, 1, 1]
    runs = [what for name, _, what in lab.runs if name == "web_0"]
    assert len(runs) == 3
    assert sum(what.startswith("register") for what in runs) == 2
    check_accounts(lab, web)


def test_what_instances_are_not_made_of_leaves_them_up_to_date(lab: SimulatedLab) -> None:
    web = start(lab, "Manual")
    web.update({"tags": {"team": "shop"}})
    assert all(i.latest_model_applied for i in web)
    assert web.model.tags == {"team": "shop"}


def test_rolling_goes_batch_after_batch(lab: SimulatedLab) -> None:
    """D2; another size is a restart on the same OS disk."""
    web = start(lab, "Rolling")
    boots = [i.boot_id for i in web]
    upgrade = web.update(SIZE)
    assert upgrade is not None
    assert upgrade.completed, upgrade.explain()
    assert upgrade.batches == [(0,), (1,), (2,)]
    assert all(i.boot_id != boot for i, boot in zip(web, boots, strict=True))
    assert {lab.simulated.defined[i._context.domain].memory_mib for i in web} == {1024}
    assert [i.record.generation for i in web] == [1, 1, 1]
    assert web.history() == []  # the history of OS upgrades


def test_automatic_takes_all_at_once_but_protected_ones(lab: SimulatedLab) -> None:
    web = start(lab, "Automatic")
    web[1].protect(from_scale_set_actions=True)
    done = web.update(SIZE)
    assert done is not None
    assert done.batches == []
    assert done.outcomes == {
        "web_0": Outcome.SUCCEEDED,
        "web_1": Outcome.SKIPPED,
        "web_2": Outcome.SUCCEEDED,
    }
    assert [i.latest_model_applied for i in web] == [True, False, True]


def test_another_image_gives_a_new_os_disk(lab: SimulatedLab) -> None:
    """C5: what an automatic upgrade never reaches: another definition, an exact version."""
    web = start(lab, "Rolling")
    lab.publish("1.1.0")
    image = {"id": IMAGE_ID.format(definition="web") + "/versions/1.1.0"}
    upgrade = web.update(
        {"properties": {"virtualMachineProfile": {"storageProfile": {"imageReference": image}}}}
    )
    assert upgrade is not None
    assert upgrade.completed, upgrade.explain()
    assert [i.image_version for i in web] == ["1.1.0"] * 3
    assert [i.record.generation for i in web] == [2, 2, 2]
    check_accounts(lab, web)


def test_changed_custom_data_waits_for_the_next_os_disk(lab: SimulatedLab) -> None:
    """As in Azure: manualupgrade takes the model over, reimage runs it."""
    web = start(lab, "Manual", 1)
    web.update({}, custom_data="#!/bin/sh\ntrue\n")
    assert [i.latest_model_applied for i in web] == [False]
    web.update_instances()
    assert [i.latest_model_applied for i in web] == [True]
    assert lab.runs == {("web_0", 1, "custom data"): 1, ("web_0", 1, "register"): 1}
    web.reimage()
    assert lab.runs["web_0", 2, "custom data"] == 1


@pytest.mark.parametrize("behaviour", [Behaviour.CLOUD_INIT_FAILS, Behaviour.PANICS])
@pytest.mark.parametrize("created", [True, False])
def test_what_never_came_up_is_mended_by_a_fresh_os_disk(
    lab: SimulatedLab, behaviour: Behaviour, created: bool
) -> None:
    """H5, E4: custom data runs once for each disk, so it can only run again on another one."""
    version = "1.0.0" if created else "1.1.0"
    if created:
        lab.publish(version, behaviour)
        with pytest.raises(ProvisioningError):
            start(lab, "Manual", 1)
        web = lab.scale_set("web")
    else:
        web = start(lab, "Manual", 1)
        lab.publish(version, behaviour)
        assert web.upgrade().faulted
    failed = web[0].record.generation
    lab.behaviours[version] = Behaviour.GOOD
    assert web.update_instances().completed
    assert web[0].record.provisioning == "Succeeded"
    assert web[0].record.generation == failed + 1
    assert web[0].generation.cloud_init == "done"
    assert lab.runs["web_0", failed + 1, "custom data"] == 1
    assert lab.runs["web_0", failed + 1, "register"] == 1
    check_accounts(lab, web)


def test_a_new_data_disk_is_made_and_the_old_one_kept(lab: SimulatedLab) -> None:
    """A5."""
    web = start(lab, "Rolling", 2)
    disks = {i.name: i.data_disks[0].stat().st_ino for i in web}
    two = [{"lun": n, "createOption": "Empty", "diskSizeGB": 1} for n in (0, 3)]
    web.update({"virtualMachineProfile": {"storageProfile": {"dataDisks": two}}})
    for instance in web:
        assert set(instance.data_disks) == {0, 3}
        assert instance.data_disks[0].stat().st_ino == disks[instance.name]
        assert instance.data_disks[3].exists()


def test_a_failed_rolling_update_leaves_or_rolls_back(lab: SimulatedLab) -> None:
    """rollbackFailedInstancesOnPolicyBreach: the previous model on the same OS disk."""
    web = start(lab, "Rolling")
    lab.behaviours["1.0.0"] = Behaviour.EXTENSION_FAILS
    upgrade = web.update(extension("false"))
    assert upgrade is not None
    assert upgrade.faulted
    assert upgrade.outcomes == {
        "web_0": Outcome.FAILED,
        "web_1": Outcome.NOT_STARTED,
        "web_2": Outcome.NOT_STARTED,
    }
    assert [i.record.provisioning for i in web] == ["Failed", "Succeeded", "Succeeded"]
    # A later update mends it too.
    lab.behaviours["1.0.0"] = Behaviour.GOOD
    mended = web.update(extension("true"))
    assert mended is not None
    assert mended.completed
    assert [i.record.provisioning for i in web] == ["Succeeded"] * 3

    policy = {"rollingUpgradePolicy": {"rollbackFailedInstancesOnPolicyBreach": True}}
    web.update({"upgradePolicy": policy})
    undone = web.update(extension("exit 3"))
    assert undone is not None
    assert undone.faulted
    assert undone.outcomes["web_0"] is Outcome.ROLLED_BACK
    assert web.is_healthy()
    assert [i.latest_model_applied for i in web] == [False] * 3
    assert [i.record.provisioning for i in web] == ["Succeeded"] * 3
    check_accounts(lab, web)


def test_a_stored_secret_is_kept_when_a_change_lacks_it(lab: SimulatedLab) -> None:
    """azure-arm.md Q1: write-only values are not in what a GET returns."""
    web = start(lab, "Manual", 1)
    shown = web.model.wire()
    assert "customData" not in shown["virtualMachineProfile"]["osProfile"]
    shown["tags"] = {"a": "b"}
    web.update(shown, replace=True)
    assert web.model.virtual_machine_profile.os_profile.custom_data is not None
    assert web[0].latest_model_applied


def test_a_wrong_change_changes_nothing(lab: SimulatedLab) -> None:
    web = start(lab, "Manual", 1)
    before = web.record
    for change, code in (
        ({"location": "elsewhere"}, "PropertyChangeNotAllowed"),
        ({"sku": {"name": "Standard_Z9"}}, "InvalidParameter"),
        ({"sku": {"capacity": -1}}, "InvalidParameter"),
        (
            {"virtualMachineProfile": {"osProfile": {"adminUsername": "other"}}},
            "PropertyChangeNotAllowed",
        ),
        (
            {"virtualMachineProfile": {"storageProfile": {"dataDisks": [
                {"lun": 0, "createOption": "Empty", "diskSizeGB": 2}]}}},
            "PropertyChangeNotAllowed",
        ),
    ):  # fmt: skip
        with pytest.raises(ModelError) as wrong:
            web.update(change)
        assert wrong.value.code == code
        assert web.record == before


def test_an_update_may_scale_too(lab: SimulatedLab) -> None:
    web = start(lab, "Rolling", 1)
    upgrade = web.update({"sku": {"name": "Standard_B1s", "capacity": 2}})
    assert upgrade is not None
    assert upgrade.completed
    assert len(web) == 2
    assert all(i.latest_model_applied for i in web)
    web.update({"sku": {"capacity": 1}})
    assert len(web) == 1


def test_extensions_of_a_higher_version_roll_through(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """extensionRollingUpgrade: instances that ran the latest are not touched."""
    web = start(lab, "Manual")
    assert web.upgrade_extensions().batches == []
    monkeypatch.setattr(extensions.CustomScript, "version", "2.1.1")
    web.reimage([1])
    upgrade = web.upgrade_extensions()
    assert upgrade.completed, upgrade.explain()
    assert upgrade.batches == [(0,), (2,)]
    assert {entry.version for i in web for entry in i.extensions} == {"2.1.1"}
    assert [i.record.generation for i in web] == [1, 2, 1]
    assert web.history() == []
    status = web.rolling_upgrade_status()
    assert status["properties"]["progress"]["successfulInstanceCount"] == 2
