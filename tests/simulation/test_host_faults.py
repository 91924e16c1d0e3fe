"""Q1: whatever the host cannot do just now, no disk is lost and nothing untrue is told.

Each test is a defect that was found by review; `benchmarks.fault_points` looks for more.
"""

from __future__ import annotations

import datetime
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.engine import rollout
from pytest_vmss.engine.engine import Engine
from pytest_vmss.environment.environment import InstanceContext
from pytest_vmss.environment.set_health import observe_instances
from pytest_vmss.errors import (
    BalancerError,
    ConflictError,
    HostError,
    HypervisorError,
    InterruptedOperationError,
    LabError,
    NotFoundError,
    ProvisioningError,
    UpgradeError,
)
from pytest_vmss.health import Observation
from pytest_vmss.journal.journal import Journal
from pytest_vmss.model import Health
from pytest_vmss.operations import Kind
from pytest_vmss.settings import Settings
from pytest_vmss.simulation.guest import Behaviour, SimulatedGuest
from pytest_vmss.steps import (
    Commit,
    CreateDataDisks,
    Discard,
    PrepareDisk,
    Start,
    Step,
)
from pytest_vmss.steps.step import Conclusion
from pytest_vmss.store import InstanceRecord, Outcome, Store
from tests.models import LOAD_BALANCER, web_model
from tests.simulation.conftest import SimulatedLab
from tests.simulation.test_upgrade import check_accounts


def interrupted(act: Callable[[], object], reason: str) -> None:
    """It cannot be ended just now, and says how to go on."""
    with pytest.raises(InterruptedOperationError, match=rf"(?s){reason}.* resume web"):
        act()


def ends_completed(lab: SimulatedLab, web: ScaleSet, version: str = "1.1.0") -> None:
    """A resume ends where an undisturbed run would have."""
    upgrade = web.resume()
    assert upgrade is not None
    assert upgrade.completed, upgrade.explain()
    assert set(upgrade.outcomes.values()) == {Outcome.SUCCEEDED}
    assert {instance.image_version for instance in web} == {version}
    assert all(instance.record.in_service for instance in web)
    assert set(lab.runs.values()) == {1}
    check_accounts(lab, web)


def upgrading(lab: SimulatedLab, capacity: int = 1, **options: Any) -> ScaleSet:
    web = lab.start_web(capacity, **options)
    lab.publish("1.1.0")
    return web


# After the commit.


def test_a_write_that_fails_after_the_commit_costs_no_disk(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old disk has gone; the write that says so fails, once."""
    web, commit, apply = upgrading(lab), Store._commit, Discard.apply
    discarded: list[int] = []

    def discard(self: Discard, context: Any) -> Any:
        conclusion = apply(self, context)
        discarded.append(self.keep)
        return conclusion

    def failing(self: Store) -> None:
        if discarded == [2]:
            discarded.append(0)
            raise sqlite3.OperationalError("disk I/O error")
        commit(self)

    monkeypatch.setattr(Discard, "apply", discard)
    monkeypatch.setattr(Store, "_commit", failing)
    interrupted(lab.run_due, "disk I/O error")
    assert web[0].os_disk.name == "os-2.qcow2"
    assert web[0].os_disk.exists()
    assert web.is_healthy()
    ends_completed(lab, web)


@pytest.mark.parametrize("name", ["os-1.qcow2", "seed-1.iso"])
def test_a_file_that_cannot_be_removed_after_the_commit_costs_no_disk(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    web, unlink = upgrading(lab), Path.unlink

    def failing(self: Path, missing_ok: bool = False) -> None:
        if self.name == name:
            raise OSError(5, "Input/output error", str(self))
        unlink(self, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", failing)
        interrupted(lab.run_due, "Input/output error")
        interrupted(web.resume, "Input/output error")
    assert web.is_healthy()
    ends_completed(lab, web)


def test_a_deadline_that_passes_at_the_commit_takes_nothing_back(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    web, apply = upgrading(lab), Commit.apply

    def slow(self: Commit, context: Any) -> Any:
        if self.generation == 2:
            lab.virtual.sleep(20_000)  # a laptop that was suspended
        return apply(self, context)

    monkeypatch.setattr(Commit, "apply", slow)
    lab.run_due()
    assert web.history()[0].completed, web.history()[0].explain()
    check_accounts(lab, web)


def test_no_disk_is_removed_while_the_one_to_keep_is_not_there(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody removed the new disk behind the lab's back."""
    upgrading(lab)
    apply = Discard.apply

    def vanish(self: Discard, context: Any) -> Any:
        lab.paths.os_disk("web", 0, self.keep).unlink()
        return apply(self, context)

    monkeypatch.setattr(Discard, "apply", vanish)
    interrupted(lab.run_due, "is not there")
    assert lab.paths.os_disk("web", 0, 1).exists()


def test_only_the_instances_own_disk_is_kept(lab: SimulatedLab) -> None:
    """Q1: a discard that came before its commit removes nothing."""
    web = lab.start_web(1)
    with pytest.raises(LabError, match="not on 7"):
        Discard(7).apply(web[0]._context)
    assert web[0].os_disk.exists()


# Resumable.


def test_libvirt_away_in_mid_upgrade_judges_nobody(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = upgrading(lab, 3)

    def away(*_: object) -> None:
        raise HostError("libvirt's daemon at qemu:///session went away")

    def start(_: object) -> None:
        for name in ("state", "running_generation", "request_stop", "power_off", "remove"):
            patch.setattr(lab.simulated, name, away)
        away()

    with monkeypatch.context() as patch:
        patch.setattr(lab.simulated, "start", start)
        interrupted(lab.run_due, "went away")
        interrupted(web.resume, "went away")
    upgrade = web.history()[0]
    assert not upgrade.ended
    assert upgrade.errors == {}
    assert "interrupted: libvirt's daemon at qemu:///session went away" in upgrade.explain()
    assert f"go on with: vmss --lab {lab.paths.folder.name} resume web" in upgrade.explain()
    ends_completed(lab, web)
    assert "interrupted" not in upgrade.explain()


def test_a_step_that_is_taken_again_is_not_done_meanwhile(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M1: what the journal said of the failed attempt is not said of the next."""
    web = upgrading(lab)
    lab.simulated.fail_os_disks = True
    interrupted(lab.run_due, "no space left")
    lab.simulated.fail_os_disks = False
    seen: list[object] = []
    make = lab.simulated.create_os_disk

    def look(*arguments: Any) -> None:
        (step,) = lab.store.steps(web.history()[0].id)
        seen.append((step.done, step.error))
        make(*arguments)

    monkeypatch.setattr(lab.simulated, "create_os_disk", look)
    ends_completed(lab, web)
    assert seen == [(None, None)]


def test_a_load_balancer_that_fails_after_an_update_is_gone_on_with(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q1: between two operations too: the scaling that belongs to the update is not forgotten."""
    web = lab.start_web(2, automatic=False)

    def bad(*_: object) -> None:
        raise BalancerError("HAProxy does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(lab.environment.traffic, "serve", bad)
        interrupted(lambda: web.update({"sku": {"capacity": 3}}), "HAProxy does not answer")
    web.resume()
    assert len(web) == 3
    assert web.is_healthy()


def test_a_deletion_that_cannot_end_is_gone_on_with(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = lab.start_web(1)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(16, "Device or resource busy")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", refuse)
        interrupted(web.delete, "resource busy")
    lab.scale_set("web").resume()
    assert lab.scale_sets() == []
    assert lab.simulated.defined == {}


@pytest.mark.parametrize("behaviour", [Behaviour.GOOD, Behaviour.UNHEALTHY])
@pytest.mark.parametrize("broken", ["serve", "serve_files"])
def test_a_resume_that_cannot_begin_leaves_it_to_the_next(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch, broken: str, behaviour: Behaviour
) -> None:
    """The load balancer, or the port that files are served at, is not to be had."""
    web = lab.start_web(3)
    lab.publish("1.1.0", behaviour)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def bad(*_: object) -> None:
        raise BalancerError("HAProxy does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(lab.simulated, "start", refuse)
        interrupted(lab.run_due, "No space left")
    with monkeypatch.context() as patch:
        where = lab.environment.traffic if broken == "serve" else lab.environment
        patch.setattr(where, broken, bad)
        interrupted(web.resume, "HAProxy does not answer")
    if behaviour is Behaviour.GOOD:
        ends_completed(lab, web)
        return
    upgrade = web.resume()
    assert upgrade is not None
    assert upgrade.faulted
    assert upgrade.outcomes["web_0"] is Outcome.ROLLED_BACK
    assert web.is_healthy()
    check_accounts(lab, web)


def test_the_healthy_replacement_is_never_the_one_to_go(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D9: the old instance cannot be removed just now."""
    web, remove = upgrading(lab, 2, policy={"maxSurge": True}), lab.simulated.remove

    def refuse(name: str) -> None:
        if name.endswith("web_0"):
            raise HypervisorError("libvirt refused: device or resource busy")
        remove(name)

    with monkeypatch.context() as patch:
        patch.setattr(lab.simulated, "remove", refuse)
        interrupted(lab.run_due, "resource busy")
        interrupted(web.resume, "resource busy")
    assert web.instances[2].image_version == "1.1.0"
    assert web.instances[2].record.provisioning == "Succeeded"
    ends_completed(lab, web)
    assert [instance.instance_id for instance in web] == ["2", "3"]


def test_a_rollback_waits_for_the_host(lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """G1: what failed was the image; what cannot be done now is the way back."""
    web = lab.start_web(3)
    lab.publish("1.1.0", Behaviour.UNHEALTHY)
    apply = Start.apply

    def start(self: Start, context: Any) -> None:
        if self.generation == 1:
            raise HypervisorError("cannot fork child process: Resource temporarily unavailable")
        apply(self, context)

    with monkeypatch.context() as patch:
        patch.setattr(Start, "apply", start)
        interrupted(lab.run_due, "temporarily unavailable")
        assert web.history()[0].rolling_back
        assert web.history()[0].status == "RollingForward"
    upgrade = web.resume()
    assert upgrade is not None
    assert upgrade.faulted
    assert upgrade.outcomes == {
        "web_0": Outcome.ROLLED_BACK,
        "web_1": Outcome.NOT_STARTED,
        "web_2": Outcome.NOT_STARTED,
    }
    assert web.is_healthy()
    check_accounts(lab, web)


def test_another_versions_journal_is_not_gone_on_with(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M1: a step's name counts on resume, not its number alone."""
    web = upgrading(lab)
    lab.simulated.fail_os_disks = True
    interrupted(lab.run_due, "no space left")
    lab.simulated.fail_os_disks = False
    with monkeypatch.context() as patch:
        patch.setattr("pytest_vmss.steps.PrepareDisk.name", "prepare something else")
        interrupted(web.resume, "takes other steps")
    ends_completed(lab, web)


def test_the_status_while_several_go_back(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """J1: no code of Azure's tells of it; how many go back is told beside."""
    policy = {"maxBatchInstancePercent": 50, "maxUnhealthyInstancePercent": 50}
    web = lab.start_web(10, policy=policy)
    lab.publish("1.1.0", Behaviour.UNHEALTHY)
    seen: list[tuple[int, int, str]] = []
    event = Store.event

    def told(self: Store, scale_set: str, kind: str, message: str, **more: Any) -> None:
        event(self, scale_set, kind, message, **more)
        if kind == "outcome":
            (upgrade,) = web.history()
            back = sum(entry.going_back for entry in upgrade.report.results.values())
            status = web.rolling_upgrade_status()
            told = status["lab"]["rollingBackInstanceCount"]
            seen.append((back, told, status["properties"]["runningStatus"]["code"]))

    monkeypatch.setattr(Store, "event", told)
    lab.run_due()
    assert len(seen) > 1
    assert max(back for back, _, _ in seen) > 0
    assert all(back == told and code == "RollingForward" for back, told, code in seen), seen


# Time.


def test_a_pause_is_as_long_as_it_is_with_a_clock_set_back(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D8."""
    lab.start_web(2, policy={"pauseTimeBetweenBatches": "PT1M"})
    lab.publish("1.1.0")
    clock, sleep, now = lab.virtual, lab.virtual.sleep, lab.virtual.now
    elapsed: list[float] = []

    def slept(seconds: float) -> None:
        if any(event.kind == "pause" for event in lab.store.events()):
            monkeypatch.setattr(clock, "now", lambda: now() - datetime.timedelta(hours=1))
            if seconds == 1.0 or elapsed:
                elapsed.append(seconds)
        sleep(seconds)
        if sum(elapsed) > 120:
            raise AssertionError("the pause of a minute takes longer than two")

    monkeypatch.setattr(clock, "sleep", slept)
    before = clock.monotonic()
    lab.run_due()
    web = lab.scale_set("web")
    assert web.history()[0].completed
    assert clock.monotonic() - before < 300


def test_operations_stay_in_order_with_a_clock_set_back(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """J1: the latest is the latest."""
    web, now = upgrading(lab), lab.virtual.now
    lab.run_due()
    monkeypatch.setattr(lab.virtual, "now", lambda: now() - datetime.timedelta(hours=1))
    lab.roll(web, "1.2.0")
    assert [upgrade.target for upgrade in web.history()] == ["1.2.0", "1.1.0"]


def test_an_instance_that_is_protected_during_the_pause_is_left_out(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D9."""
    web = upgrading(lab, 2, policy={"pauseTimeBetweenBatches": "PT1M"})
    sleep = lab.virtual.sleep

    def slept(seconds: float) -> None:
        if any(event.kind == "pause" for event in lab.store.events()):
            web[1].protect(from_scale_set_actions=True)
        sleep(seconds)

    monkeypatch.setattr(lab.virtual, "sleep", slept)
    lab.run_due()
    assert web.history()[0].outcomes == {"web_0": Outcome.SUCCEEDED, "web_1": Outcome.SKIPPED}
    assert web[1].image_version == "1.0.0"


def test_a_probe_that_flaps_is_unknown_after_a_while(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F5: no look lasts for ever."""
    web = lab.start_web(1)
    answers = [0]

    def flap(*_: object) -> Observation:
        answers[0] += 1
        return Observation.of(answers[0] % 2 == 0, f"answer {answers[0]}")

    monkeypatch.setattr(lab.environment, "probe", flap)
    monkeypatch.setattr(lab.balancers[web.record.unique_id], "healthy", lambda _: None)
    monkeypatch.setattr("pytest_vmss.model.Probe.threshold", property(lambda _: 2))
    (seen,) = web[0].observations().values()
    assert seen.health is Health.UNKNOWN
    assert "flaps" in seen.detail


# One at a time, under one name.


def test_a_name_in_another_case_is_the_same_set(lab: SimulatedLab) -> None:
    """M4, A1."""
    web = upgrading(lab, 2)
    with web._engine.lock(), pytest.raises(ConflictError):
        lab.scale_set("WEB").upgrade()
    lab.scale_set("WEB").upgrade()
    assert lab.scale_set("wEb").history()[0].completed
    assert {record.scale_set for record in lab.store.select(InstanceRecord)} == {"web"}
    assert [path.name for path in (lab.paths.folder / "sets").iterdir()] == ["web"]
    check_accounts(lab, web)


def test_a_deleted_sets_lock_still_locks(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M4: whoever waited for it and whoever comes later meet at one file."""
    web, unlink = lab.start_web(1), Path.unlink
    removed: list[str] = []

    def noted(self: Path, missing_ok: bool = False) -> None:
        removed.append(self.name)
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", noted)
    web.delete()
    assert not [name for name in removed if name.endswith(".lock")]
    other = Engine(lab.environment, "web")
    with other.lock(), pytest.raises(ConflictError), Engine(lab.environment, "WEB").lock():
        pass


def test_a_set_can_be_deleted_whatever_this_process_does_on_it(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test that failed in mid-upgrade leaves the next one a free name."""
    web = lab.start_web(2)
    inside, go, wait = threading.Event(), threading.Event(), SimulatedGuest.wait_boot

    def slow(self: SimulatedGuest, previous: str | None) -> Any:
        inside.set()
        assert go.wait(20)
        return wait(self, previous)

    monkeypatch.setattr(SimulatedGuest, "wait_boot", slow)
    lab.watch()
    lab.publish("1.1.0")
    assert inside.wait(5)
    upgrade = web.history()[0]
    threading.Timer(0.3, go.set).start()
    web.delete()
    assert lab.simulated.defined == {}
    assert upgrade.cancelled
    assert upgrade.outcomes["web_0"] is Outcome.FAILED
    assert upgrade.errors["web_0"].code == "OperationPreempted"
    again = lab.create(web_model(capacity=2), load_balancer=LOAD_BALANCER)
    assert again.is_healthy()


def test_records_are_checked_when_they_are_changed(lab: SimulatedLab) -> None:
    """Nothing that could not be read again is written."""
    web = lab.start_web(1)
    with pytest.raises(ValueError, match="provisioning"):
        lab.store.amend(web[0].record, provisioning="Sometimes")
    with pytest.raises(TypeError, match="provisionning"):
        lab.store.amend(web[0].record, provisionning="Failed")
    assert web[0].record.provisioning == "Succeeded"


def test_the_way_back_at_a_policy_breach_waits_for_the_host(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q1: an operation does not end while an instance is on its way back, either."""
    web = lab.start_web(2, automatic=False, policy={"rollbackFailedInstancesOnPolicyBreach": True})
    lab.publish("1.1.0", Behaviour.EXTENSION_FAILS)
    apply = Start.apply

    def start(self: Start, context: Any) -> None:
        if self.generation == 1:
            raise HypervisorError("cannot fork child process: Resource temporarily unavailable")
        apply(self, context)

    with monkeypatch.context() as patch:
        patch.setattr(Start, "apply", start)
        interrupted(web.upgrade, "temporarily unavailable")
    upgrade = web.resume()
    assert upgrade is not None
    assert upgrade.error is not None
    assert upgrade.error.code == "MaxUnhealthyUpgradedInstancePercentExceededInRollingUpgrade"
    assert upgrade.outcomes == {"web_0": Outcome.ROLLED_BACK, "web_1": Outcome.NOT_STARTED}
    assert web.is_healthy()
    check_accounts(lab, web)


def test_no_more_go_back_at_once_than_are_in_a_batch(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M2: instances that failed by an extension may serve all the while."""
    policy = {
        "rollbackFailedInstancesOnPolicyBreach": True,
        "maxUnhealthyUpgradedInstancePercent": 50,
        "maxUnhealthyInstancePercent": 100,
    }
    web = lab.start_web(15, automatic=False, policy=policy)
    lab.publish("1.1.0", Behaviour.EXTENSION_FAILS)
    out: list[int] = []
    off, stop = lab.simulated.power_off, lab.simulated.request_stop

    def count() -> None:
        out.append(len(lab.simulated.defined) - len(lab.simulated.running))

    def power_off(name: str) -> None:
        off(name)
        count()

    def request_stop(name: str) -> None:
        stop(name)
        count()

    monkeypatch.setattr(lab.simulated, "power_off", power_off)
    monkeypatch.setattr(lab.simulated, "request_stop", request_stop)
    upgrade = web.upgrade()
    assert upgrade.faulted
    assert Outcome.ROLLED_BACK in upgrade.outcomes.values()
    assert 0 < max(out) <= 3


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("can't start new thread"), KeyError("a mistake of ours")],
    ids=lambda error: type(error).__name__,
)
def test_what_says_nothing_of_an_image_judges_nobody(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Q1: on an instance, and between two batches."""
    web, apply, raised = upgrading(lab, 2), Start.apply, [False]

    def start(self: Start, context: Any) -> None:
        if not raised[0]:
            raised[0] = True
            raise error
        apply(self, context)

    monkeypatch.setattr(Start, "apply", start)
    interrupted(lab.run_due, type(error).__name__)
    monkeypatch.setattr(rollout, "observe_instances", _raises(error, observe_instances))
    interrupted(web.resume, type(error).__name__)
    assert web.history()[0].errors == {}
    ends_completed(lab, web)


def _raises(error: Exception, real: Callable[..., Any]) -> Callable[..., Any]:
    """Raises an error, once."""
    raised: list[bool] = []

    def call(*arguments: Any) -> Any:
        if not raised:
            raised.append(True)
            raise error
        return real(*arguments)

    return call


def test_an_open_operation_that_cannot_be_read_says_how_to_go_on(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q1: from the moment that it is open, whatever its kind."""
    web = lab.start_web(2)
    opened = Engine.open

    def opens(self: Engine, kind: Kind) -> str:
        operation = opened(self, kind)
        patch.setattr(Journal, "operation", _raises(LabError("disk I/O error"), Journal.operation))
        return operation

    lab.publish("1.1.0")
    for act in (web.restart, lab.run_due):
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "open", opens)
            interrupted(act, "disk I/O error")
        resumed = web.resume()
        assert resumed is not None
        assert resumed.completed


def test_an_interrupted_upgrade_can_be_cancelled(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D8, G4: between two batches at once, in the middle of an instance after it."""
    web = upgrading(lab, 2)
    with monkeypatch.context() as patch:
        raising = _raises(MemoryError(), observe_instances)
        patch.setattr(rollout, "observe_instances", raising)
        interrupted(lab.run_due, "MemoryError")
        web.cancel()
    (upgrade,) = web.history()
    assert upgrade.cancelled
    lab.publish("1.2.0")
    lab.simulated.fail_os_disks = True
    interrupted(lab.run_due, "no space left")
    web.cancel()
    assert not web.history()[0].ended
    lab.simulated.fail_os_disks = False
    ended = web.resume()
    assert ended is not None
    assert ended.cancelled
    assert ended.outcomes == {"web_0": Outcome.SUCCEEDED, "web_1": Outcome.NOT_STARTED}
    check_accounts(lab, web)


def test_a_replacement_that_died_before_a_resume_does_not_take_the_place(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D9: the old instance runs, and is the one that stays then."""
    web, remove = upgrading(lab, 2, policy={"maxSurge": True}), lab.simulated.remove

    def refuse(name: str) -> None:
        if name.endswith("web_0"):
            raise HypervisorError("libvirt refused: device or resource busy")
        remove(name)

    with monkeypatch.context() as patch:
        patch.setattr(lab.simulated, "remove", refuse)
        interrupted(lab.run_due, "resource busy")
    lab.simulated.power_off(f"vmss-{lab.identity.id}-web_2")
    upgrade = web.resume()
    assert upgrade is not None
    assert upgrade.outcomes["web_0"] is Outcome.ROLLED_BACK
    assert "no longer healthy" in upgrade.errors["web_0"].message
    assert [instance.instance_id for instance in web] == ["0", "1"]
    assert web[0].record.provisioning == "Succeeded"
    assert web[0].record.in_service
    assert web.is_healthy()
    check_accounts(lab, web)


def test_a_data_disk_that_has_gone_is_never_replaced_by_an_empty_one(lab: SimulatedLab) -> None:
    """E3: whoever asks whether data survives is told."""
    web = upgrading(lab)
    (disk,) = web[0].data_disks.values()
    elsewhere = disk.rename(lab.paths.folder / "elsewhere")
    interrupted(lab.run_due, "no empty one was put in its place")
    assert not disk.exists()
    elsewhere.rename(disk)
    ends_completed(lab, web)


def test_a_file_in_the_place_of_a_disk_is_no_disk(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    web, apply = upgrading(lab), Discard.apply
    new = lab.paths.os_disk("web", 0, 2)

    def replaced(self: Discard, context: Any) -> Any:
        new.rename(lab.paths.folder / "elsewhere")
        new.mkdir()
        return apply(self, context)

    with monkeypatch.context() as patch:
        patch.setattr(Discard, "apply", replaced)
        interrupted(lab.run_due, "is not there")
    assert lab.paths.os_disk("web", 0, 1).exists()
    new.rmdir()
    (lab.paths.folder / "elsewhere").rename(new)
    ends_completed(lab, web)


@pytest.mark.parametrize("step", [CreateDataDisks, PrepareDisk, Start])
def test_a_creation_that_failed_before_it_started_leaves_nothing_and_is_mended_later(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch, step: type[Step]
) -> None:
    """Q1: no OS disk that no record keeps; an upgrade makes what is missing."""
    web, apply = lab.start_web(1), step.apply

    def refuse(self: Step, context: InstanceContext) -> Conclusion | None:
        if context.instance_id == 1:
            if step is PrepareDisk:
                apply(self, context)
            raise HypervisorError("libvirt refused: no space left on device")
        return apply(self, context)

    with monkeypatch.context() as patch:
        patch.setattr(step, "apply", refuse)
        with pytest.raises(ProvisioningError, match="no space left"):
            web.scale(2)
    folder = lab.paths.instance("web", 1)
    assert web[1].record.provisioning == "Failed"
    assert [path.name for path in folder.rglob("*") if path.name.startswith(("os-", "seed-"))] == []
    web.update({"upgradePolicy": {"rollingUpgradePolicy": {"maxUnhealthyInstancePercent": 100}}})
    lab.publish("1.1.0")
    upgrade = web.upgrade()
    assert upgrade.completed, upgrade.explain()
    assert web.is_healthy()
    assert web[1].data_disks[0].is_file()


def test_a_deletion_whose_beginning_fails_changes_nothing(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The set is deleted or it is not."""
    web = lab.start_web(2)
    for number in (1, 2):
        with monkeypatch.context() as patch:
            patch.setattr(Store, "_commit", _failing_commit(number))
            with pytest.raises((LabError, InterruptedOperationError)):
                web.delete()
        if web.record.state == "Succeeded":
            assert web.is_healthy()
            continue
        for act in (web.upgrade, lambda: web.scale(3)):
            with pytest.raises(UpgradeError, match="is being deleted") as refused:
                act()
            assert refused.value.code == "OperationNotAllowed"
        lab.scale_set("web").resume()
        break
    assert lab.scale_sets() == []
    assert lab.simulated.defined == {}


def _failing_commit(number: int) -> Callable[[Store], None]:
    commit, count = Store._commit, [0]

    def failing(self: Store) -> None:
        count[0] += 1
        if count[0] == number:
            raise sqlite3.OperationalError("disk I/O error")
        commit(self)

    return failing


def test_the_handle_of_a_set_that_is_gone_acts_on_no_other(lab: SimulatedLab) -> None:
    """M4: a set of the same name in another case is another set."""
    old = lab.start_web(1)
    old.delete()
    new = lab.create({**web_model(capacity=1), "name": "WEB"}, load_balancer=LOAD_BALANCER)
    for act in (lambda: old.scale(2), old.reimage, old.upgrade, old.resume, old.delete):
        with pytest.raises(NotFoundError, match="is gone"):
            act()
    assert len(new) == 1
    new.delete()
    assert lab.simulated.defined == {}


def test_the_check_of_a_creation_that_failed_judges_no_other_set(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F4."""
    lab.publish("1.0.0")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "_commit", _failing_commit(1))
        with pytest.raises(LabError):
            lab.create(web_model(capacity=1), load_balancer=LOAD_BALANCER, health=lambda _: False)
    assert lab.start_web(1).is_healthy()


def test_what_is_no_longer_known_stops_no_instance(lab: SimulatedLab) -> None:
    """Q1: another process's settings lack the size."""
    web = upgrading(lab)
    lab.simulated.fail_os_disks = True
    interrupted(lab.run_due, "no space left")
    lab.simulated.fail_os_disks = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pytest_vmss.environment.environment.find_size", lambda *_: None)
        interrupted(web.resume, "is not known here")
        assert web[0].boot_id == "boot-1"
    assert web.is_healthy()
    ends_completed(lab, web)


def test_a_wait_for_what_nobody_goes_on_with_ends_at_once(lab: SimulatedLab) -> None:
    web = upgrading(lab)
    lab.simulated.fail_os_disks = True
    interrupted(lab.run_due, "no space left")
    with pytest.raises(InterruptedOperationError, match=r"no process is running it.* resume web"):
        web.wait_for_upgrade(timeout=1e9)


def test_a_lab_whose_database_has_gone_is_not_opened_as_an_empty_one(settings: Settings) -> None:
    """Q1: its machines and data are still there."""
    lab = SimulatedLab.open(settings, "lasting")
    lab.start_web(1)
    lab.close()
    (database,) = settings.state_dir.rglob("vmss.db")
    for path in settings.state_dir.rglob("vmss.db*"):
        path.rename(path.with_name("away-" + path.name))
    with pytest.raises(LabError, match="is gone; bring it back"):
        SimulatedLab.open(settings, "lasting")
    for path in database.parent.glob("away-vmss.db*"):
        path.rename(path.with_name(path.name.removeprefix("away-")))
    again = SimulatedLab.open(settings, "lasting")
    assert len(again.scale_set("web")) == 1
    again.destroy()


def test_a_health_function_that_is_not_here_is_missed_aloud(lab: SimulatedLab) -> None:
    """F4: another process has it; what is told of the instances is told without it."""
    web = upgrading(lab)
    web.set_health_check(lambda _: True)
    lab.environment.checks.clear()
    lab.run_due()
    (upgrade,) = web.history()
    assert any("health function is not known" in event.message for event in upgrade.events)
