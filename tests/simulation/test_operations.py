"""K1, A2, E3: what is done to instances besides upgrading them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.errors import (
    CapacityError,
    ConflictError,
    HypervisorError,
    ModelError,
    NotFoundError,
    ProvisioningError,
    UpgradeError,
)
from pytest_vmss.hypervisor import PowerState
from pytest_vmss.operations import Restart
from pytest_vmss.report.timeline.words import action_words
from pytest_vmss.simulation.guest import Behaviour
from pytest_vmss.store import DetachedDiskRecord, InstanceRecord, Outcome
from tests.models import LOAD_BALANCER, web_model
from tests.simulation.conftest import SimulatedLab
from tests.simulation.test_upgrade import check_accounts


def inodes(web: ScaleSet) -> dict[str, int]:
    return {i.name: i.data_disks[0].stat().st_ino for i in web}


def powers(web: ScaleSet) -> list[str]:
    return [i.record.power for i in web]


def states(web: ScaleSet) -> list[str]:
    return [i.record.provisioning for i in web]


def test_stop_start_and_restart(lab: SimulatedLab) -> None:
    """The same OS disk, another boot; the records tell what was asked for."""
    web = lab.start_web(2)
    boots = [i.boot_id for i in web]
    assert web.stop([0]).completed
    assert web[0].power_state is PowerState.STOPPED
    assert powers(web) == ["stopped", "running"]
    assert [i.health() for i in web] == ["Unhealthy", "Healthy"]
    assert web.deallocate(["0"]).completed
    assert powers(web) == ["deallocated", "running"]
    assert web.start().outcomes == {"web_0": Outcome.SUCCEEDED, "web_1": Outcome.SUCCEEDED}
    assert web.is_healthy()
    assert [i.boot_id for i in web] != boots
    assert web[1].boot_id == boots[1]  # it ran already
    web.restart()
    assert web[1].boot_id != boots[1]
    assert [i.record.generation for i in web] == [1, 1]
    assert set(lab.runs.values()) == {1}
    check_accounts(lab, web)


def test_redeploy_boots_anew_on_the_same_disks(lab: SimulatedLab) -> None:
    """The demonstration of a kind of operation in one module; stopped instances run again."""
    web = lab.start_web(3)
    boots, disks, data = [i.boot_id for i in web], [i.os_disk for i in web], inodes(web)
    web.stop([0])
    web[1].protect(from_scale_set_actions=True)
    done = web.redeploy()
    assert done.outcomes == {
        "web_0": Outcome.SUCCEEDED,
        "web_1": Outcome.SKIPPED,
        "web_2": Outcome.SUCCEEDED,
    }
    assert (done.action, done.completed) == ("redeploy", True)
    assert [old == i.boot_id for old, i in zip(boots, web, strict=True)] == [False, True, False]
    assert ([i.os_disk for i in web], inodes(web)) == (disks, data)
    assert powers(web) == ["running"] * 3
    assert set(lab.runs.values()) == {1}
    check_accounts(lab, web)


def test_redeploy_awaits_health(lab: SimulatedLab) -> None:
    web = lab.start_web(2)
    lab.sick.add("web_1")
    with pytest.raises(ProvisioningError, match=r"1 of 2 instances.*failed to redeploy"):
        web.redeploy()
    assert states(web) == ["Succeeded", "Failed"]
    lab.sick.clear()
    web.redeploy([1]).raise_for_status()
    assert web.is_healthy()


def test_an_instance_is_had_by_its_id(lab: SimulatedLab) -> None:
    web = lab.start_web(3)
    web.delete_instances([0])
    assert web.instance("1") is web[0]
    assert web.restart(str(n) for n in [1, "02"]).outcomes == {
        "web_1": Outcome.SUCCEEDED,
        "web_2": Outcome.SUCCEEDED,
    }
    assert (web[0].zone, web[0].update_domain) == ("", 1)
    with pytest.raises(ModelError, match="instanceId 0 is not an active"):
        web.instance(0)


def test_a_deaf_guest_is_stopped_by_its_power_at_once_with_skip_shutdown(
    lab: SimulatedLab,
) -> None:
    web = lab.start_web(1)
    lab.simulated.deaf.add(f"vmss-{lab.identity.id}-web_0")
    start = lab.virtual.monotonic()
    web.stop(skip_shutdown=True)
    assert lab.virtual.monotonic() == start
    assert web[0].power_state is PowerState.STOPPED


def test_reimage_keeps_image_model_and_data_disks(lab: SimulatedLab) -> None:
    """E3, E4: the version that the instance has, not the latest; everything run again, once."""
    web = lab.start_web(2, automatic=False)
    lab.publish("1.1.0")
    disks = inodes(web)
    assert web.reimage([1]).outcomes == {"web_1": Outcome.SUCCEEDED}
    assert [i.record.generation for i in web] == [1, 2]
    assert [i.image_version for i in web] == ["1.0.0", "1.0.0"]
    assert inodes(web) == disks
    assert lab.runs["web_1", 2, "custom data"] == 1
    check_accounts(lab, web)


def test_reimage_all_takes_the_data_disks_too(lab: SimulatedLab) -> None:
    """E3: and only when it is asked for by that name."""
    web = lab.start_web(2)
    disks = {i.name: i.data_disks[0] for i in web}
    for path in disks.values():
        path.write_text("written by the guest")
    web.reimage_all(["0"])
    assert disks["web_0"].read_text() == "1 GiB"
    assert disks["web_1"].read_text() == "written by the guest"
    check_accounts(lab, web)


def test_a_failed_reimage_says_so_with_evidence(lab: SimulatedLab) -> None:
    web = lab.start_web(2, automatic=False)
    lab.behaviours["1.0.0"] = Behaviour.PANICS
    with pytest.raises(ProvisioningError, match="Kernel panic - not syncing") as failed:
        web.reimage([1])
    assert failed.value.code == "OSProvisioningKernelPanic"
    assert states(web) == ["Succeeded", "Failed"]
    lab.behaviours["1.0.0"] = Behaviour.GOOD
    web.reimage([1])
    assert states(web) == ["Succeeded", "Succeeded"]
    check_accounts(lab, web)


def test_scale_out_and_in(lab: SimulatedLab) -> None:
    """A2: new ids and the current model; the highest go first, with their disks."""
    web = lab.start_web(2)
    lab.roll(web, "1.1.0")
    web.scale(4)
    assert [i.instance_id for i in web] == ["0", "1", "2", "3"]
    assert {i.image_version for i in web} == {"1.1.0"}
    assert web.model.sku.capacity == 4
    assert web.is_healthy()
    (scaled,) = (one for one in web._engine.journal.operations() if one.action == "scale-out")
    assert action_words(scaled) == "Scale-out of web with image version 1.1.0"
    folders = [i.os_disk.parent for i in web]
    web.scale(1)
    assert [i.instance_id for i in web] == ["0"]
    assert [folder.exists() for folder in folders] == [True, False, False, False]
    web.scale(2)
    assert [i.instance_id for i in web] == ["0", "4"]  # never an old id again
    assert len(lab.simulated.defined) == 2
    check_accounts(lab, web)
    web.scale(0)
    assert web.instances == []
    assert web.capacity == 0


def test_what_does_not_fit_is_refused_before_anything_changes(lab: SimulatedLab) -> None:
    """M7."""
    web = lab.start_web(2)
    lab.room = 3
    with pytest.raises(CapacityError):
        web.scale(4)
    assert web.model.sku.capacity == 2
    assert len(web) == 2
    lab.room = 10_000
    with pytest.raises(ModelError, match="must be a whole number from 0 to 1000"):
        web.scale(1001)
    assert web.model.sku.capacity == 2


def test_new_instances_that_fail_are_there_to_be_looked_at(lab: SimulatedLab) -> None:
    """E5; and the rest of the set is as it was."""
    web = lab.start_web(1, automatic=False)
    lab.publish("1.1.0", Behaviour.CLOUD_INIT_FAILS)
    with pytest.raises(ProvisioningError, match="1 of 1 instances of the scale set 'web'"):
        web.scale(2)
    assert web[1].record.provisioning == "Failed"
    assert web[1].image_version == "1.1.0"
    assert web[0].health() == "Healthy"
    web.delete_instances([1])
    assert [i.instance_id for i in web] == ["0"]
    check_accounts(lab, web)


def test_protection_from_scale_in(lab: SimulatedLab) -> None:
    """A2, D9: protected ones stay; too many of them are an error before anything goes."""
    web = lab.start_web(3)
    web[2].protect(from_scale_in=True)
    web.scale(2)
    assert [i.instance_id for i in web] == ["0", "2"]
    web[0].protect(from_scale_set_actions=True)
    assert web[0].record.protect_from_scale_in
    with pytest.raises(ConflictError, match="protected"):
        web.scale(1)
    assert len(web) == 2
    with pytest.raises(ModelError, match="cannot be false"):
        web[0].protect(from_scale_in=False)
    web[0].protect(from_scale_in=False, from_scale_set_actions=False)
    web.scale(1)
    assert [i.instance_id for i in web] == ["2"]
    web.delete_instances(["2"])  # protection is no help against being named
    assert len(web) == 0


def test_set_wide_actions_leave_protected_instances_out(lab: SimulatedLab) -> None:
    """D9: skipped and reported; by name they are done."""
    web = lab.start_web(3)
    web[1].protect(from_scale_set_actions=True)
    done = web.reimage()
    assert done.outcomes == {
        "web_0": Outcome.SUCCEEDED,
        "web_1": Outcome.SKIPPED,
        "web_2": Outcome.SUCCEEDED,
    }
    assert [i.record.generation for i in web] == [2, 1, 2]
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.completed
    assert upgrade.outcomes["web_1"] is Outcome.SKIPPED
    assert "protectFromScaleSetActions" in upgrade.explain()
    web.reimage([1])
    assert web[1].record.generation == 2
    assert web[1].image_version == "1.0.0"


def test_an_unknown_instance_is_azures_error_and_nothing_is_done(lab: SimulatedLab) -> None:
    web = lab.start_web(1)
    starts = len(lab.simulated.starts)
    with pytest.raises(ModelError, match="The provided instanceId 9 is not an active"):
        web.restart([0, 9])
    assert len(lab.simulated.starts) == starts


def test_detached_data_disks_outlive_their_instance(lab: SimulatedLab) -> None:
    """A2: deleteOption Detach; also a set of the same name later does not touch them."""
    body: dict[str, Any] = web_model(capacity=1)
    storage = body["properties"]["virtualMachineProfile"]["storageProfile"]
    storage["dataDisks"][0]["deleteOption"] = "Detach"
    for _ in range(2):
        web = lab.start(body, LOAD_BALANCER)
        inode = web[0].data_disks[0].stat().st_ino
        web.delete()
        kept = lab.store.select(DetachedDiskRecord)
        assert inode in {(lab.paths.folder / entry.path).stat().st_ino for entry in kept}
    assert len(kept) == 2


def test_scale_in_policy(lab: SimulatedLab) -> None:
    """A2: scaleInPolicy and zones."""
    body = web_model(capacity=5)
    body["zones"] = ["1", "2"]
    body["properties"]["scaleInPolicy"] = {"rules": ["OldestVM"]}
    web = lab.start(body, LOAD_BALANCER)
    assert [i.record.zone for i in web] == ["1", "2", "1", "2", "1"]
    assert [i.record.update_domain for i in web] == [0, 0, 1, 1, 2]
    web.scale(3)
    assert [i.instance_id for i in web] == ["2", "3", "4"]  # zone 1 had more, then the older


def test_more_instances_than_a_network_has_addresses(lab: SimulatedLab) -> None:
    """Another loopback network is claimed, and given back at the end."""
    body = web_model(capacity=300)
    body["properties"]["singlePlacementGroup"] = False
    lab.start(body, LOAD_BALANCER)
    records = lab.store.select(InstanceRecord)
    assert len({record.address for record in records}) == 300
    assert [sum(1 for r in records if r.placement_group == n) for n in range(4)] == [100] * 3 + [0]
    assert len(lab.networks.all()) == 2
    claims = lab.settings.state_dir / "networks"
    assert len(list(claims.iterdir())) == 2
    lab.destroy()
    assert list(claims.iterdir()) == []


def test_no_operation_while_another_is_interrupted(lab: SimulatedLab) -> None:
    """M4, C4."""
    web = lab.start_web(1)
    engine = web._engine
    engine.open(Restart([0]))
    acts: list[Callable[[], object]] = [
        web.restart,
        web.reimage,
        lambda: web.scale(2),
        lambda: web.update({"tags": {}}),
    ]
    for act in acts:
        with pytest.raises(UpgradeError, match="resume web") as refused:
            act()
        assert refused.value.code == "OperationNotAllowed"
    resumed = web.resume()
    assert resumed is not None
    assert resumed.completed
    web.restart()


def test_an_interrupted_set_can_be_deleted(lab: SimulatedLab) -> None:
    web = lab.start_web(1)
    web._engine.open(Restart([0]))
    web.delete()
    assert lab.scale_sets() == []
    assert lab.simulated.defined == {}


@pytest.mark.parametrize(
    "argument",
    [
        {"health": 5},
        {"health": ["true"]},
        {"health_timeout": -5},
        {"health_timeout": 0},
        {"health_timeout": "x"},
        {"ports": 80},
        {"ports": [0]},
        {"capacity": "2"},
        {"name": 7},
        {"custom_data": "!!"},
        {"custom_data": 7},
    ],
)
def test_what_create_cannot_take_makes_nothing(lab: SimulatedLab, argument: dict[str, Any]) -> None:
    """A6."""
    lab.publish("1.0.0")
    with pytest.raises(ModelError, match=next(iter(argument))):
        lab.create(web_model(), load_balancer=LOAD_BALANCER, **argument)
    assert lab.scale_sets() == []
    assert lab.simulated.defined == {}


def test_what_a_set_cannot_take_changes_nothing(lab: SimulatedLab) -> None:
    """A6."""
    web: Any = lab.start_web(2)
    acts: list[Callable[[], object]] = [
        lambda: web.scale("3"),
        lambda: web.scale(None),
        lambda: web.start(5),
        lambda: web.restart(["x"]),
        lambda: web.delete_instances(None),
        lambda: web.stop(skip_shutdown="yes"),
        lambda: web.update({}, custom_data="!!"),
        lambda: web.update({}, replace="no"),
        lambda: web.set_health_check(5),
        lambda: web.set_orchestration_service_state("Stop"),
        lambda: web.always("true"),
        lambda: web.always(lambda: True, every="a"),
        lambda: web.wait_for_upgrade(timeout=-1),
        lambda: web.upgrade(wait="x"),
        lambda: web.history(limit=-1),
        lambda: web.update({"name": "other"}),
        lambda: web.update({"name": 5}),
        lambda: web.update({"sku": {"capacity": True}}),
        lambda: lab.scale_set(None),  # type: ignore[arg-type]
        lambda: web[0].protect(from_scale_in="x"),
        lambda: web[0].address("http"),
        lambda: web[0].run_command(7),
    ]
    before = len(lab.store.events())
    for act in acts:
        with pytest.raises(ModelError):
            act()
    assert len(lab.store.events()) == before
    assert powers(web) == ["running"] * 2


def test_what_was_not_opened_leaves_no_model_behind(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q1: a revision that was rolled back is forgotten; the next one has its number."""
    web = lab.start_web(2, automatic=False)
    web.update({"upgradePolicy": {"mode": "Automatic"}})
    with monkeypatch.context() as patch:
        patch.setattr(lab.environment, "free_addresses", _no_room)
        with pytest.raises(CapacityError):
            web.scale(5)
    assert web.model.sku.capacity == 2
    done = web.update({"tags": {"owner": "us"}})
    assert done is None
    assert web.model.sku.capacity == 2
    assert web.model.tags == {"owner": "us"}
    profile = web.model.full()["virtualMachineProfile"]
    extension: dict[str, Any] = {"name": "second", "publisher": "Microsoft.Azure.Extensions"}
    extension |= {"type": "CustomScript", "typeHandlerVersion": "2.1"}
    extension |= {"settings": {"commandToExecute": "true"}}
    with monkeypatch.context() as patch:
        patch.setattr(lab.environment, "free_addresses", _no_room)
        with pytest.raises(CapacityError):
            web.scale(4)
    extensions = [*profile["extensionProfile"]["extensions"], extension]
    web.update({"virtualMachineProfile": {"extensionProfile": {"extensions": extensions}}})
    assert "second" in [entry.name for entry in web[0].extensions]
    assert "second" in [entry.name for entry in web.model.extensions]


def _no_room(_: int) -> list[str]:
    raise CapacityError("no addresses are left")


def test_a_handle_acts_on_no_later_set_of_its_name(lab: SimulatedLab) -> None:
    """A4, M4: also where no lock is taken."""
    old = lab.start_web(2)
    first = old[0]
    old.delete()
    new = lab.start_web(2)
    acts: list[Callable[[], object]] = [
        old.cancel,
        lambda: old.set_health_check("exit 1"),
        lambda: old.set_orchestration_service_state("Suspend"),
        lambda: first.protect(from_scale_in=True),
        lambda: first.os_disk,
        lambda: first.power_state,
        lambda: first.faults,
        first.health,
        first.instance_view,
        lambda: old.instances,
        lambda: old.model,
        lambda: old.record,
        old.is_healthy,
        old.history,
        old.delete,
        old.upgrade,
        lambda: old.unfinished,
    ]
    before = len(lab.store.events())
    for act in acts:
        with pytest.raises(NotFoundError, match="that was meant is gone"):
            act()
    assert len(lab.store.events()) == before
    assert new.is_healthy()
    assert new.orchestration_services[0]["serviceState"] == "NotRunning"
    assert not new[0].record.protect_from_scale_in
    assert lab.scale_set("web") is new


def test_a_health_function_is_its_sets_alone(lab: SimulatedLab) -> None:
    """F4: not a later set's of that name, and no longer once another process has taken it away."""
    lab.publish("1.0.0")
    balancer = LOAD_BALANCER
    well = [True]
    web = lab.create(web_model(capacity=1), load_balancer=balancer, health=lambda _: well[0])
    well[0] = False
    assert not web.is_healthy()
    lab.store.amend(web.record, health_function=False, health_command=None)  # as another would
    assert web.is_healthy()
    functions = dict(lab.environment.checks)
    web.delete()
    lab.environment.checks.update(functions)  # this process did not see the deletion
    assert lab.create(web_model(capacity=1), load_balancer=balancer).is_healthy()


def test_a_change_of_power_that_succeeds_makes_up_for_one_that_failed(lab: SimulatedLab) -> None:
    """K1: and for nothing else: a failed update stays to be repeated."""
    web = lab.start_web(2, automatic=False)
    lab.sick.add("web_0")
    web.stop([0])
    with pytest.raises(ProvisioningError):
        web.redeploy()
    assert (states(web), powers(web)) == (["Failed", "Succeeded"], ["running"] * 2)
    lab.sick.clear()
    web.restart([0])
    assert states(web) == ["Succeeded"] * 2
    lab.publish("1.1.0", Behaviour.UNHEALTHY)
    assert web.upgrade().faulted
    (failed,) = [i.instance_id for i in web if i.record.provisioning == "Failed"]
    lab.behaviours["1.1.0"] = Behaviour.GOOD
    web.restart([failed])
    assert [i.instance_id for i in web if i.record.provisioning == "Failed"] == [failed]


@pytest.mark.parametrize("call", ["reimage", "reimage_all"])
def test_what_cannot_be_reimaged_is_refused_before_anything_is_begun(
    lab: SimulatedLab, call: str
) -> None:
    """E3, K1: an operation that could never be resumed would hold the set for good."""
    web = lab.start_web()
    lab.publish("1.1.0")
    lab.gallery().delete("web", "1.0.0")
    with pytest.raises(NotFoundError, match=r"web_0 cannot be reimaged.*no version 1\.0\.0"):
        getattr(web, call)()
    assert web.unfinished is None
    lab.run_due()
    assert getattr(web, call)().completed


def test_an_instance_without_an_os_disk_is_not_reimaged(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E3: it never had one; an update makes it one."""
    lab.publish("1.0.0")

    def refusing(*_: object) -> None:
        raise HypervisorError("no")

    with monkeypatch.context() as patch:
        patch.setattr(lab.simulated, "create_os_disk", refusing)
        with pytest.raises(ProvisioningError):
            lab.start_web(1)
    web = lab.scale_set("web")
    with pytest.raises(ConflictError, match=r"web_0 cannot be reimaged.*no OS disk yet"):
        web.reimage()
    assert web.unfinished is None
    assert web.update_instances().completed
    assert web.reimage().completed
