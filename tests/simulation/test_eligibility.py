"""C1, C2: when a version that was tried already is due again, and opting out and in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.environment.environment import InstanceContext
from pytest_vmss.errors import ConflictError, ProvisioningError, UpgradeError
from pytest_vmss.health import RollingUpgradeMetrics
from pytest_vmss.settings import Settings, Timeouts
from pytest_vmss.simulation.guest import Behaviour
from pytest_vmss.store import InstanceRecord, Outcome, VersionRecord
from tests.models import LOAD_BALANCER, custom_script, web_model
from tests.simulation.conftest import SimulatedLab
from tests.simulation.kills import Killed
from tests.simulation.test_upgrade import check_accounts, when_upgraded

BEFORE = "MaxUnhealthyInstancePercentExceededBeforeRollingUpgrade"


def statuses(web: ScaleSet) -> list[tuple[str, str]]:
    return [(upgrade.target, upgrade.status) for upgrade in reversed(web.history())]


def state(web: ScaleSet) -> str:
    return web.record.state


def automatic(enabled: bool) -> dict[str, Any]:
    policy = {"enableAutomaticOSUpgrade": enabled}
    return {"upgradePolicy": {"automaticOSUpgradePolicy": policy}}


def opt_out_and_in(web: ScaleSet) -> None:
    web.update(automatic(False))
    web.update(automatic(True))


@pytest.mark.parametrize(
    "change",
    [
        lambda web: web.update({"tags": {"token": "new"}}),
        lambda web: web.update({}),
        lambda web: web.scale(4),
        opt_out_and_in,
        lambda web: web[2].protect(from_scale_set_actions=True),
    ],
    ids=["model", "model as it was", "capacity", "opting out and in", "protection"],
)
def test_a_change_makes_a_failed_version_due_again(
    lab: SimulatedLab, change: Callable[[ScaleSet], object]
) -> None:
    """C1: Azure evaluates a set again after any update of its model."""
    web = lab.start_web()
    assert lab.roll(web, "1.1.0", Behaviour.PANICS).faulted
    assert "nothing has changed since" in lab.rollouts.why_not("web")
    lab.behaviours["1.1.0"] = Behaviour.GOOD
    lab.run_due()
    assert len(web.history()) == 1
    change(web)
    assert lab.rollouts.why_not("web") == ""
    lab.run_due()
    assert statuses(web) == [("1.1.0", "Faulted"), ("1.1.0", "Completed")]
    lab.run_due()
    assert len(web.history()) == 2


def test_each_change_is_one_more_try(lab: SimulatedLab) -> None:
    """C1: a version that fails again waits for the next change."""
    web = lab.start_web()
    lab.roll(web, "1.1.0", Behaviour.PANICS)
    for tries in (2, 3):
        web.update({"tags": {"try": str(tries)}})
        lab.run_due()
        lab.run_due()
        assert len(web.history()) == tries
        assert web.history()[0].faulted


def test_the_whole_story_of_an_expired_token(lab: SimulatedLab) -> None:
    """H5, C1: fail and stop; a new token; deployed everywhere; then the automatic upgrade completes."""
    script = {"commandToExecute": "download with the old token"}
    body = web_model()
    profile = body["properties"]["virtualMachineProfile"]["extensionProfile"]
    profile["extensions"] = [custom_script("app", settings=script)]
    web = lab.start(body, LOAD_BALANCER)
    first = lab.roll(web, "1.1.0", Behaviour.EXTENSION_FAILS)
    assert first.faulted
    assert first.errors["web_0"].code == "VMExtensionProvisioningError"
    lab.behaviours["1.1.0"] = Behaviour.GOOD  # with the new token, from here on
    script = {"commandToExecute": "download with the new token"}
    web.update(
        {
            "virtualMachineProfile": {
                "extensionProfile": {"extensions": [custom_script("app", settings=script)]}
            }
        }
    )
    assert web.update_instances().completed
    assert all(instance.latest_model_applied for instance in web)
    assert {instance.image_version for instance in web} == {"1.0.0"}
    lab.run_due()
    assert statuses(web) == [("1.1.0", "Faulted"), ("1.1.0", "Completed")]
    assert {instance.image_version for instance in web} == {"1.1.0"}
    assert web.is_healthy()
    check_accounts(lab, web)


def test_a_protected_instance_follows_once_it_is_free(lab: SimulatedLab) -> None:
    """C1, D9: the upgrade completed without it; while it is protected nothing is due."""
    web = lab.start_web()
    web[1].protect(from_scale_set_actions=True)
    assert lab.roll(web, "1.1.0").outcomes["web_1"] is Outcome.SKIPPED
    lab.run_due()
    assert len(web.history()) == 1
    web[0].protect(from_scale_set_actions=True)  # it is upgraded already
    lab.run_due()
    assert len(web.history()) == 1
    assert "are protected" in lab.rollouts.why_not("web")
    web[1].protect(from_scale_in=True)  # says nothing of upgrades
    lab.run_due()
    assert len(web.history()) == 1
    web[1].protect(from_scale_set_actions=False, from_scale_in=False)
    lab.run_due()
    assert web.history()[0].outcomes == {"web_1": Outcome.SUCCEEDED}
    assert {instance.image_version for instance in web} == {"1.1.0"}


def test_a_set_that_recovers_is_upgraded(lab: SimulatedLab) -> None:
    """C1, D1: the upgrade stopped before its first batch; cured, it begins."""
    web = lab.start_web()
    lab.sick.add("web_1")
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.error is not None
    assert upgrade.error.code == BEFORE
    lab.run_due()
    assert len(web.history()) == 1
    told = lab.rollouts.why_not("web")
    assert "stopped before its first batch" in told
    assert "1 of 3 instances are unhealthy (1)" in told
    lab.sick.clear()
    lab.run_due()
    assert statuses(web) == [("1.1.0", "Faulted"), ("1.1.0", "Completed")]


def test_a_look_at_a_set_compares_no_two_instances(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D1: the watcher looks every second, and a set may have a thousand instances."""
    web = lab.start_web()
    lab.sick.add("web_1")
    assert lab.roll(web, "1.1.0").faulted
    compared = []
    monkeypatch.setattr(InstanceRecord, "__eq__", lambda *two: compared.append(two))
    assert "1 of 3 instances are unhealthy (1)" in lab.rollouts.why_not("web")
    assert not compared


def with_a_file_that_is_gone(lab: SimulatedLab) -> ScaleSet:
    """A set whose extension downloads a file that is not there any more."""
    uri = "https://example.com/app.tgz"
    body = web_model()
    profile = body["properties"]["virtualMachineProfile"]["extensionProfile"]
    profile["extensions"] = [
        custom_script("app", settings={"fileUris": [uri], "commandToExecute": "true"})
    ]
    web = lab.start(body, LOAD_BALANCER)
    lab.unreachable[uri] = f"{uri} answers with HTTP status 404"
    return web


def test_a_resource_that_comes_back_lets_the_upgrade_begin(lab: SimulatedLab) -> None:
    """C1, C8."""
    web = with_a_file_that_is_gone(lab)
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.error is not None
    assert upgrade.error.code == "ExternalResourceUnreachable"
    lab.run_due()
    assert len(web.history()) == 1
    assert "404" in lab.rollouts.why_not("web")
    lab.unreachable.clear()
    lab.run_due()
    assert web.history()[0].completed


def test_the_loop_asks_a_foreign_server_once_a_minute(lab: SimulatedLab) -> None:
    """C1, C8: and by hand at once."""
    web = with_a_file_that_is_gone(lab)
    lab.roll(web, "1.1.0")
    asked = 0
    reach = lab.environment.reach

    def counting(wanted: str) -> str:
        nonlocal asked
        asked += 1
        return reach(wanted)

    lab.environment.reach = counting
    for _ in range(3):
        lab.controller.run_all()
    assert asked == 0
    lab.virtual.sleep(61)
    lab.controller.run_all()
    assert asked == 1
    lab.run_due()
    assert asked == 2


def test_an_upgrade_that_ran_out_of_time_is_not_begun_again_by_itself(settings: Settings) -> None:
    """C1, G4: before its first batch too; nothing has changed, so it would only run out again."""
    limited = dataclasses.replace(settings, timeouts=Timeouts(upgrade=1.0))
    lab = SimulatedLab.session(limited)
    web = lab.start_web()
    metrics = lab.environment.metrics

    def slow(context: InstanceContext) -> RollingUpgradeMetrics:
        assert len(web.history()) < 3, "it is begun again and again"
        lab.virtual.sleep(2)
        return metrics(context)

    lab.environment.metrics = slow
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.error is not None
    assert upgrade.error.code == "RollingUpgradeTimeoutError"
    assert upgrade.batches == []
    lab.run_due()
    assert statuses(web) == [("1.1.0", "Faulted")]
    assert "nothing has changed since" in lab.rollouts.why_not("web")
    web.update({})
    lab.run_due()
    assert len(web.history()) == 2
    lab.destroy()


@pytest.mark.parametrize(
    ("meanwhile", "begun"),
    [
        (lambda _lab, web: web.update(automatic(False)), []),
        (lambda lab, _web: lab.run_due(), ["Platform"]),
        (lambda _lab, web: web.upgrade(), ["User"]),
    ],
    ids=["opted out", "another process", "by hand"],
)
def test_what_was_due_is_decided_again_once_the_set_is_locked(
    lab: SimulatedLab,
    monkeypatch: pytest.MonkeyPatch,
    meanwhile: Callable[[SimulatedLab, ScaleSet], object],
    begun: list[str],
) -> None:
    """C1: looking at many sets takes time; no upgrade begins that is not due any more."""
    web = lab.start_web()
    due = lab.rollouts.due

    def slow(*args: Any, **options: Any) -> dict[str, VersionRecord]:
        found = due(*args, **options)
        monkeypatch.undo()
        meanwhile(lab, web)
        return found

    lab.publish("1.1.0", Behaviour.PANICS)
    monkeypatch.setattr(lab.rollouts, "due", slow)
    lab.run_due()
    assert [upgrade.record.started_by for upgrade in web.history()] == begun


def test_the_watcher_notices_the_cure_and_the_protection(lab: SimulatedLab) -> None:
    """C1: nobody tells it."""
    web = lab.start_web()
    lab.watch()
    lab.sick.add("web_1")
    lab.publish("1.1.0")
    assert web.wait_for_upgrade().faulted
    with pytest.raises(UpgradeError, match="stopped before its first batch"):
        web.wait_for_upgrade()
    lab.sick.clear()
    assert web.wait_for_upgrade().completed
    web[0].protect(from_scale_set_actions=True)
    lab.publish("1.2.0")
    assert web.wait_for_upgrade().outcomes["web_0"] is Outcome.SKIPPED
    web[0].protect(from_scale_set_actions=False, from_scale_in=False)
    assert web.wait_for_upgrade().outcomes == {"web_0": Outcome.SUCCEEDED}


def test_due_where_nobody_watches_is_said(lab: SimulatedLab) -> None:
    """C1."""
    web = lab.start_web()
    lab.publish("1.1.0")
    with pytest.raises(UpgradeError, match=r"nothing in this process runs it; call run_due\(\)"):
        web.wait_for_upgrade()


# Opting out and in.


def test_opting_out_is_taken_in_mid_upgrade(lab: SimulatedLab) -> None:
    """C1: the upgrade ends as it began, and no new one begins."""
    web = lab.start_web()

    def opt_out() -> None:
        assert web.update(automatic(False)) is None
        lab.publish("1.2.0")

    when_upgraded(lab, web, 0, opt_out)
    assert lab.roll(web, "1.1.0").completed
    assert {instance.image_version for instance in web} == {"1.1.0"}
    assert all(instance.latest_model_applied for instance in web)
    assert not web.model.automatic_os_upgrade.enable_automatic_os_upgrade
    lab.run_due()
    assert len(web.history()) == 1
    assert "enableAutomaticOSUpgrade" in lab.rollouts.why_not("web")
    web.update(automatic(True))
    lab.run_due()
    assert {instance.image_version for instance in web} == {"1.2.0"}


@pytest.mark.parametrize(
    "change",
    [
        lambda web: web.scale(4),
        lambda web: web.scale(2),
        lambda web: web.update({"tags": {"a": "b"}}),
        lambda web: web.update({"sku": {"name": "Standard_B1s"}}),
    ],
    ids=["scale out", "scale in", "tags", "size"],
)
def test_an_opt_out_is_not_lost_to_a_change_that_is_being_checked(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch, change: Callable[[ScaleSet], object]
) -> None:
    """C1: it is taken beside any operation; the other change was made from the model before it."""
    web = lab.start_web()
    web.update({"upgradePolicy": {"mode": "Automatic"}})
    path_of = lab.images.path_of

    def opting_out(version: VersionRecord) -> Path:
        monkeypatch.undo()
        assert lab.scale_set("web").update(automatic(False)) is None
        return path_of(version)

    monkeypatch.setattr(lab.images, "path_of", opting_out)
    with pytest.raises(ConflictError, match="was changed while this change of it was checked"):
        change(web)
    assert not web.model.automatic_os_upgrade.enable_automatic_os_upgrade
    assert len(web) == 3
    assert web.unfinished is None
    assert all(instance.latest_model_applied for instance in web)
    change(web)
    assert not web.model.automatic_os_upgrade.enable_automatic_os_upgrade


def test_anything_else_is_refused_in_mid_upgrade(lab: SimulatedLab) -> None:
    """C4: and changes nothing."""
    web = lab.start_web()
    body = {**automatic(False), "tags": {"a": "b"}}
    refused: list[Exception] = []

    def change() -> None:
        for part in (body, {"tags": {"a": "b"}}, {"sku": {"capacity": 4}}):
            with pytest.raises(ConflictError) as error:
                web.update(part)
            refused.append(error.value)

    when_upgraded(lab, web, 0, change)
    before = web.record.revision
    assert lab.roll(web, "1.1.0").completed
    assert len(refused) == 3
    assert web.record.revision == before


def test_opting_out_is_taken_while_an_upgrade_is_interrupted(lab: SimulatedLab) -> None:
    """C1, M1: its resume ends it."""
    web = lab.start_web()

    def kill() -> None:
        raise Killed

    when_upgraded(lab, web, 0, kill)
    lab.publish("1.1.0")
    with pytest.raises(Killed):
        lab.run_due()
    web.update(automatic(False))
    with pytest.raises(UpgradeError, match="was interrupted"):
        web.update({"tags": {"a": "b"}})
    upgrade = web.resume()
    assert upgrade is not None
    assert upgrade.completed
    assert not web.model.automatic_os_upgrade.enable_automatic_os_upgrade


def test_the_first_delay_is_once_in_a_sets_life(settings: Settings) -> None:
    """C2: opting out and in is no first time, and neither is a repair a rollout."""
    slow = SimulatedLab.session(
        Settings(
            settings.state_dir, settings.cache_dir, first_rollout_delay=10800.0, repair_grace=0.0
        )
    )
    body = web_model(capacity=2)
    body["properties"]["automaticRepairsPolicy"] = {"enabled": True, "repairAction": "Restart"}
    web = slow.start(body, LOAD_BALANCER)
    slow.sick.add("web_0")
    slow.virtual.sleep(1)
    slow.run_repairs()
    slow.sick.clear()
    slow.publish("1.1.0")
    slow.run_due()
    assert web.history() == []
    slow.virtual.sleep(10800 - 120)
    opt_out_and_in(web)
    slow.virtual.sleep(120)
    slow.run_due()
    assert web.history()[0].completed
    opt_out_and_in(web)
    slow.publish("1.2.0")
    slow.run_due()
    assert {instance.image_version for instance in web} == {"1.2.0"}
    slow.destroy()


# A set whose creation failed.


def test_a_set_whose_creation_failed_is_upgraded_once_it_is_mended(lab: SimulatedLab) -> None:
    """C1, K1: Succeeded once all its instances are; then it is upgraded and repaired."""
    lab.publish("1.0.0")
    lab.sick.add("web_1")
    body = web_model()
    body["properties"]["automaticRepairsPolicy"] = {"enabled": True}
    with pytest.raises(ProvisioningError):
        lab.create(body, load_balancer=LOAD_BALANCER)
    web = lab.scale_set("web")
    lab.sick.clear()
    assert state(web) == "Failed"
    lab.publish("1.1.0")
    lab.run_due()
    assert web.history() == []
    assert "it is Succeeded once every instance is" in lab.rollouts.why_not("web")
    assert not lab.controller.repairs("web").running
    web.update_instances()
    assert state(web) == "Succeeded"
    assert lab.controller.repairs("web").running
    lab.run_due()
    assert {instance.image_version for instance in web} == {"1.1.0"}


def test_without_its_failed_instance_a_set_is_well(lab: SimulatedLab) -> None:
    """C1: deleting it mends the set too; what is still failed does not."""
    lab.publish("1.0.0")
    lab.sick |= {"web_1", "web_2"}
    with pytest.raises(ProvisioningError):
        lab.create(web_model(), load_balancer=LOAD_BALANCER)
    web = lab.scale_set("web")
    web.delete_instances([1])
    assert state(web) == "Failed"
    web.delete_instances([2])
    assert state(web) == "Succeeded"


def test_a_version_that_is_published_anew_is_due_again(lab: SimulatedLab) -> None:
    """C1: its earlier upgrade was to another image, although of the same number."""
    web = lab.start_web()
    assert lab.roll(web, "1.1.0", Behaviour.UNHEALTHY).faulted
    lab.run_due()
    assert len(web.history()) == 1
    lab.gallery().delete("web", "1.1.0")
    assert lab.roll(web, "1.1.0").completed
    lab.run_due()
    assert len(web.history()) == 2
