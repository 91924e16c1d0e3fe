"""K1: automatic repairs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.controller.repairs import Repairs
from pytest_vmss.engine.engine import Engine
from pytest_vmss.errors import ConflictError, HypervisorError, ModelError
from pytest_vmss.health import Observation
from pytest_vmss.model import Health
from pytest_vmss.simulation.guest import Behaviour
from pytest_vmss.store import Outcome
from tests.models import LOAD_BALANCER, web_model, with_application_health
from tests.simulation.conftest import SimulatedLab
from tests.simulation.test_upgrade import check_accounts

GRACE = 600.0


def start(
    lab: SimulatedLab, action: str = "Reimage", capacity: int = 3, name: str = "web", **policy: Any
) -> ScaleSet:
    body = web_model(name, capacity=capacity)
    body["properties"]["automaticRepairsPolicy"] = {
        "enabled": True, "gracePeriod": "PT10M", "repairAction": action, **policy,
    }  # fmt: skip
    return lab.start(body, LOAD_BALANCER)


def mend_at_start(lab: SimulatedLab, name: str) -> None:
    """An application that is well again after a new start."""
    started = lab.simulated.start

    def start_machine(machine: Any) -> None:
        if machine.name.endswith(name):
            lab.sick.discard(name)
        started(machine)

    lab.simulated.start = start_machine  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("action", "names", "generation"),
    [("Restart", [0, 1, 2], 1), ("Reimage", [0, 1, 2], 2), ("Replace", [0, 2, 3], 1)],
)
def test_an_unhealthy_instance_is_repaired(
    lab: SimulatedLab, action: str, names: list[int], generation: int
) -> None:
    web = start(lab, action)
    disks = {i.name: i.data_disks[0].stat().st_ino for i in web}
    lab.virtual.sleep(GRACE)
    assert web.repair() is None
    lab.sick.add("web_1")
    mend_at_start(lab, "web_1")
    done = web.repair()
    assert done is not None
    assert done.completed, done.explain()
    assert done.record.started_by == "Platform"
    assert [int(i.instance_id) for i in web] == names
    assert web.is_healthy()
    repaired = web[1] if action != "Replace" else web[2]
    assert repaired.record.generation == generation
    if action != "Replace":  # its data stays
        assert repaired.data_disks[0].stat().st_ino == disks["web_1"]
    assert lab.balancers[web.record.unique_id].members == {f"web_{n}": True for n in names}
    assert web.orchestration_services[0]["serviceState"] == "Running"
    lab.virtual.sleep(GRACE)
    assert web.repair() is None
    assert repaired.record.repairs == 0
    check_accounts(lab, web)


def test_the_grace_period_counts_from_the_last_change(lab: SimulatedLab) -> None:
    web = start(lab, "Restart", gracePeriod="PT20M")
    lab.sick.add("web_1")
    lab.virtual.sleep(1190)
    assert web.repair() is None
    lab.virtual.sleep(20)
    assert web.repair() is not None
    assert web.repair() is None  # it was restarted just now


def test_whoever_is_protected_stopped_failed_or_still_starting_is_left_alone(
    lab: SimulatedLab,
) -> None:
    web = start(lab, "Restart", capacity=4)
    web[0].protect(from_scale_in=True)
    web[1].protect(from_scale_set_actions=True)
    web.stop([2])
    lab.store.amend(web[3].record, provisioning="Failed")
    lab.sick |= {f"web_{n}" for n in range(4)}
    lab.virtual.sleep(GRACE)
    assert web.repair() is None


def test_initializing_is_left_alone_and_unknown_is_not(lab: SimulatedLab) -> None:
    body = with_application_health(web_model(capacity=1), gracePeriod=100)
    body["properties"]["automaticRepairsPolicy"] = {"enabled": True, "repairAction": "Restart"}
    web = lab.start(body, {})
    lab.virtual.sleep(GRACE)
    repairs = lab.controller.repairs("web")
    assert repairs.due({0: Observation(Health.INITIALIZING, "it starts")}) == []
    assert repairs.due({0: Observation(Health.UNKNOWN, "silent")}) == [web[0].record]
    lab.applications["web_0"] = Health.UNKNOWN
    lab.virtual.sleep(60)
    done = web.repair()
    assert done is not None
    assert done.completed


def test_five_percent_at_a_time(lab: SimulatedLab) -> None:
    web = start(lab, "Restart", capacity=40)
    lab.sick |= {"web_3", "web_7", "web_9"}
    lab.virtual.sleep(GRACE)
    sizes = []
    while (done := web.repair()) is not None:
        sizes.append(len(done.outcomes))
    assert sizes == [2, 1]


def test_repairs_that_do_not_help_are_suspended(lab: SimulatedLab) -> None:
    web = start(lab, "Restart")
    lab.sick.add("web_1")
    for _ in range(3):
        lab.virtual.sleep(GRACE)
        assert web.repair() is not None
    lab.virtual.sleep(GRACE)
    assert web.repair() is None
    (service,) = web.orchestration_services
    assert service["serviceState"] == "Suspended"
    told = [event.message for event in lab.store.events(scale_set="web")]
    assert "automatic repairs are suspended: 3 repairs in a row of web_1 did not help" in told
    web.set_orchestration_service_state("Resume")
    assert web.repair() is not None


def test_the_service_can_be_suspended_by_hand(lab: SimulatedLab) -> None:
    web = start(lab, "Restart")
    lab.sick.add("web_1")
    lab.virtual.sleep(GRACE)
    web.set_orchestration_service_state("Suspend")
    lab.run_repairs()
    assert web.orchestration_services[0]["serviceState"] == "Suspended"
    assert web[1].record.repairs == 0
    web.set_orchestration_service_state("Resume")
    lab.run_repairs()
    assert web[1].record.repairs == 1


def test_a_replacement_that_does_not_come_up_leaves_the_old_one(lab: SimulatedLab) -> None:
    web = start(lab, "Replace")
    lab.sick.add("web_1")
    lab.behaviours["1.0.0"] = Behaviour.PANICS
    lab.virtual.sleep(GRACE)
    done = web.repair()
    assert done is not None
    assert done.outcomes == {"web_1": Outcome.FAILED}
    assert [i.name for i in web] == ["web_0", "web_1", "web_2"]
    assert web[1].record.repairs == 1


def test_without_room_an_instance_is_reimaged(lab: SimulatedLab) -> None:
    web = start(lab, "Replace")
    lab.room = 3
    lab.sick.add("web_1")
    mend_at_start(lab, "web_1")
    lab.virtual.sleep(GRACE)
    done = web.repair()
    assert done is not None
    assert done.record.action == "reimage"
    assert web.is_healthy()


def test_a_setting_replaces_the_grace_period(lab: SimulatedLab) -> None:
    lab.controller._grace = 5.0
    web = start(lab, "Restart")
    lab.sick.add("web_1")
    lab.virtual.sleep(6)
    assert web.repair() is not None


def test_nothing_is_repaired_while_something_else_is_done(lab: SimulatedLab) -> None:
    web = start(lab, "Restart")
    lab.sick.add("web_1")
    lab.virtual.sleep(GRACE)
    with web._engine.lock():
        with pytest.raises(ConflictError):
            web.repair()
        lab.run_repairs()  # waits for another time
    assert web[1].record.repairs == 0


@pytest.mark.parametrize(
    ("policy", "path"),
    [
        ({"enabled": True, "gracePeriod": "PT9M"}, "gracePeriod"),
        ({"enabled": True, "gracePeriod": "PT91M"}, "gracePeriod"),
        ({"enabled": True, "repairAction": "Reboot"}, "repairAction"),
    ],
)
def test_wrong_policies_are_refused(lab: SimulatedLab, policy: dict[str, Any], path: str) -> None:
    lab.publish("1.0.0")
    body = web_model()
    body["properties"]["automaticRepairsPolicy"] = policy
    with pytest.raises(ModelError, match=rf"\$\.automaticRepairsPolicy\.{path}"):
        lab.create(body, load_balancer=LOAD_BALANCER)


def test_repairs_need_a_health_source_and_a_fixed_action(lab: SimulatedLab) -> None:
    lab.publish("1.0.0")
    body = web_model(automatic=False)
    body["properties"]["automaticRepairsPolicy"] = {"enabled": True}
    network = body["properties"]["virtualMachineProfile"].pop("networkProfile")
    with pytest.raises(ModelError, match="Automatic repairs not supported for this Virtual"):
        lab.create(body)
    body["properties"]["virtualMachineProfile"]["networkProfile"] = network
    web = lab.create(body, load_balancer=LOAD_BALANCER)
    with pytest.raises(ModelError, match="disable them first"):
        web.update({"automaticRepairsPolicy": {"repairAction": "Restart"}})
    web.update({"automaticRepairsPolicy": {"enabled": False}})
    web.update({"automaticRepairsPolicy": {"enabled": True, "repairAction": "Restart"}})
    assert web.orchestration_services[0]["serviceState"] == "Running"


def test_a_look_disturbs_nobody_and_a_broken_one_is_told(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A healthy set is looked at without being locked."""
    web = start(lab, "Restart")

    def lock(*_: object) -> None:
        raise AssertionError("nothing is due")

    monkeypatch.setattr(Engine, "lock", lock)
    lab.run_repairs()

    def broken(name: str) -> None:
        raise HypervisorError(f"{name}: libvirt has gone")

    monkeypatch.setattr(lab.simulated, "state", broken)
    lab.run_repairs()
    told = [event.message for event in lab.store.events(scale_set=web.name)]
    assert any("automatic repairs cannot look: " in message for message in told)


@pytest.mark.parametrize("years", [-1, 1])
def test_a_clock_that_is_set_changes_no_grace_period(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch, years: int
) -> None:
    """K1: neither repaired at once, nor never again."""
    web = start(lab, "Restart")
    lab.sick.add("web_1")
    lab.run_repairs()
    now = lab.virtual.now
    monkeypatch.setattr(lab.virtual, "now", lambda: now() + timedelta(days=365 * years))
    lab.run_repairs()
    assert web[1].record.repairs == 0
    lab.virtual.sleep(GRACE)
    lab.run_repairs()
    assert web[1].record.repairs == 1


def test_a_broken_look_keeps_no_other_set_from_its_repair(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q1: it is told once, although looks are frequent."""
    one, other = start(lab, "Restart"), start(lab, "Restart", name="other")
    lab.sick.add("other_1")
    lab.virtual.sleep(GRACE)
    real = Repairs.needed

    def needed(self: Repairs) -> bool:
        if self._engine.name == one.name:
            raise SystemExit(3)
        return real(self)

    monkeypatch.setattr(Repairs, "needed", needed)
    for _ in range(3):
        lab.controller.run_all()
    assert other[1].record.repairs == 1
    told = [e.message for e in lab.store.events(scale_set=one.name) if e.kind == "warning"]
    assert told == ["failed in the background: SystemExit: 3"]
