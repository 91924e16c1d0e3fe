"""C1, Q1: what fails in the background is told where it belongs, and nothing else suffers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pytest_vmss.api.operation import Upgrade
from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.controller import loop
from pytest_vmss.controller.rollouts import Rollouts
from pytest_vmss.engine.engine import Engine
from pytest_vmss.errors import BalancerError, InterruptedOperationError, LabError, UpgradeError
from pytest_vmss.operations import Kind, Reimage, Restart
from pytest_vmss.store import OperationRecord
from tests.models import LOAD_BALANCER, web_model
from tests.simulation.conftest import SimulatedLab


def start(lab: SimulatedLab, name: str) -> ScaleSet:
    return lab.start(web_model(name, capacity=2), LOAD_BALANCER)


def until(what: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def no_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_EVERY_S", 3600.0)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, BaseException]]:
    """What fails before anything is opened, by set, once."""
    errors: dict[str, BaseException] = {}
    real = Engine.open

    def opens(self: Engine, kind: Kind) -> str:
        if self.name in errors:
            raise errors.pop(self.name)
        return real(self, kind)

    monkeypatch.setattr(Engine, "open", opens)
    yield errors
    assert not errors, "it never came to pass"


@pytest.mark.parametrize(
    "error", [BalancerError("HAProxy was slow, once"), OSError(28, "No space left"), SystemExit(2)]
)
@pytest.mark.usefixtures("no_retry")
def test_one_failed_start_is_told_once_to_whoever_waits_for_that_set(
    lab: SimulatedLab, failing: dict[str, BaseException], error: BaseException
) -> None:
    one, other = start(lab, "aaa"), start(lab, "bbb")
    failing["aaa"] = error
    lab.watch()
    until(lambda: lab.controller.idle)  # else its first turn may fail, and the next succeed
    lab.publish("1.1.0")
    assert other.wait_for_upgrade(timeout=1e6).completed
    until(lambda: not failing)
    with pytest.raises(UpgradeError, match=f"of 'aaa' failed: {type(error).__name__}") as told:
        one.wait_for_upgrade(timeout=1e6)
    assert told.value.__cause__ is error
    assert [
        event.message for event in lab.store.events(scale_set="aaa") if "failed in" in event.message
    ]
    lab.publish("1.2.0")
    upgrades = [one.wait_for_upgrade(timeout=1e6), other.wait_for_upgrade(timeout=1e6)]
    if upgrades[0].target == "1.1.0":  # something woke the loop, and its second try went well
        upgrades[0] = one.wait_for_upgrade(timeout=1e6)
    assert [(upgrade.target, upgrade.completed) for upgrade in upgrades] == [("1.2.0", True)] * 2


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Restart([0]), "the restart of 'aaa' failed: OSError"),
        (Reimage([0], started_by="Platform"), "the automatic reimage of 'aaa' failed: OSError"),
        (None, "an automatic upgrade or repair of 'aaa' failed: OSError"),
    ],
)
def test_a_failure_is_told_by_what_failed(lab: SimulatedLab, kind: Kind | None, told: str) -> None:
    """Q1: not every failure in the background is an automatic upgrade's."""
    start(lab, "aaa")
    operation = None if kind is None else Engine(lab.environment, "aaa").open(kind)
    lab.controller.failures.add("aaa", OSError(5, "Input/output error"), operation)
    with pytest.raises(UpgradeError, match=told):
        lab.controller.failures.check("aaa")


@pytest.mark.usefixtures("no_retry")
def test_a_later_success_makes_a_failure_old(
    lab: SimulatedLab, failing: dict[str, BaseException]
) -> None:
    web = start(lab, "aaa")
    failing["aaa"] = BalancerError("HAProxy was slow, once")
    lab.watch()
    lab.publish("1.1.0")
    until(lambda: not failing and lab.controller.idle)
    for version in ("1.2.0", "1.3.0"):
        lab.publish(version)
        assert web.wait_for_upgrade(timeout=1e6).completed


def test_what_failed_to_start_is_tried_again_by_itself(
    lab: SimulatedLab, failing: dict[str, BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_EVERY_S", 0.2)
    web = start(lab, "aaa")
    failing["aaa"] = BalancerError("HAProxy was slow, once")
    lab.watch()
    lab.publish("1.1.0")
    until(lambda: not failing and web.history() and web.history()[0].ended)
    assert web.wait_for_upgrade(timeout=1e6).completed


def test_a_set_that_is_deleted_while_the_watcher_looks_is_no_error(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = start(lab, "aaa"), start(lab, "bbb")
    real, deleted = Rollouts._look, threading.Event()

    def look(self: Rollouts, name: str, unmet: Callable[..., str]) -> object:
        if name == "aaa" and not deleted.is_set():
            deleted.set()
            other.delete()
        return real(self, name, unmet)

    monkeypatch.setattr(Rollouts, "_look", look)
    lab.watch()
    until(lambda: deleted.is_set() and lab.controller.idle)
    lab.publish("1.1.0")
    assert one.wait_for_upgrade(timeout=1e6).completed


def test_a_set_that_cannot_be_looked_at_keeps_no_other_from_its_upgrade(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = start(lab, "aaa"), start(lab, "bbb")
    real, broken = Rollouts._look, [1]

    def look(self: Rollouts, name: str, unmet: Callable[..., str]) -> object:
        if name == "aaa" and broken:
            raise ValueError("a record that nobody understands")
        return real(self, name, unmet)

    monkeypatch.setattr(loop, "_EVERY_S", 0.2)
    monkeypatch.setattr(Rollouts, "_look", look)
    lab.watch()
    lab.publish("1.1.0")
    assert other.wait_for_upgrade(timeout=1e6).completed
    with pytest.raises(UpgradeError, match="of 'aaa' failed: ValueError: a record that nobody"):
        one.wait_for_upgrade(timeout=1e6)
    broken.clear()
    until(lambda: one.history() and one.history()[0].ended)


def test_the_watcher_survives_a_store_that_cannot_be_read(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits is told, whichever set they wait for."""
    web = start(lab, "aaa")
    real = Rollouts._coming

    def coming(*_: object) -> object:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(loop, "_EVERY_S", 0.2)
    monkeypatch.setattr(Rollouts, "_coming", coming)
    lab.watch()
    lab.publish("1.1.0")
    with pytest.raises(UpgradeError, match="of this lab failed: OSError"):
        web.wait_for_upgrade(timeout=1e6)
    monkeypatch.setattr(Rollouts, "_coming", real)
    until(lambda: web.history() and web.history()[0].ended)
    assert web[0].image_version == "1.1.0"


def interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the host cannot go on with any upgrade once it is open."""

    def run(self: Engine, operation_id: str) -> None:
        raise InterruptedOperationError(
            "libvirt has gone; go on with: vmss resume",
            scale_set=self.name,
            operation=operation_id,
        )

    monkeypatch.setattr(Engine, "run", run)


def test_an_interrupted_upgrade_is_told_and_gone_on_with(lab: SimulatedLab) -> None:
    """Q1: waits end at once, other sets go on, and the next publication takes it up again."""
    one, other = start(lab, "aaa"), start(lab, "bbb")
    with pytest.MonkeyPatch.context() as patched:
        interrupt(patched)
        off = {"automaticOSUpgradePolicy": {"enableAutomaticOSUpgrade": False}}
        other.update({"upgradePolicy": off})
        lab.watch()
        lab.publish("1.1.0")
        for _ in range(2):
            with pytest.raises(InterruptedOperationError, match="libvirt has gone") as told:
                one.wait_for_upgrade(timeout=1e6)
            assert told.value.scale_set == "aaa"
    with pytest.raises(UpgradeError, match=r"no upgrade of 'bbb' is due"):
        other.wait_for_upgrade(timeout=1e6)
    lab.publish("1.2.0")
    assert one.wait_for_upgrade(timeout=1e6).target == "1.1.0"
    assert one.wait_for_upgrade(timeout=1e6).target == "1.2.0"
    assert all(upgrade.completed for upgrade in one.history())


def test_an_interrupted_upgrade_can_be_resumed_by_hand(lab: SimulatedLab) -> None:
    web = start(lab, "aaa")
    with pytest.MonkeyPatch.context() as patched:
        interrupt(patched)
        lab.watch()
        lab.publish("1.1.0")
        with pytest.raises(InterruptedOperationError):
            web.wait_for_upgrade(timeout=1e6)
    resumed = web.resume()
    assert isinstance(resumed, Upgrade)
    assert (resumed.target, resumed.completed) == ("1.1.0", True)


def test_a_failure_does_not_outlive_its_set(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = start(lab, "aaa")
    with pytest.MonkeyPatch.context() as patched:
        interrupt(patched)
        lab.watch()
        lab.publish("1.1.0")
        with pytest.raises(InterruptedOperationError):
            web.wait_for_upgrade(timeout=1e6)
    web.delete()
    again = start(lab, "aaa")
    assert [i.image_version for i in again] == ["1.1.0"] * 2
    with pytest.raises(UpgradeError, match="no upgrade of 'aaa' is due: all its instances are on"):
        again.wait_for_upgrade(timeout=1e6)
    monkeypatch.undo()


def test_what_keeps_an_upgrade_by_hand_from_beginning_is_raised(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is: there is no upgrade to hand out."""
    web = start(lab, "aaa")
    lab.publish("1.1.0")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("pytest_vmss.engine.engine.wait_for_lock", full)
        with pytest.raises(LabError, match="No space left on device"):
            web.upgrade(wait=False)
    assert web.upgrade(wait=True).completed


def test_what_fails_later_is_told_to_whoever_waits(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = start(lab, "aaa")
    lab.publish("1.1.0")
    with monkeypatch.context() as patched:
        interrupt(patched)
        upgrade = web.upgrade(wait=False)
        until(lambda: not any(t.is_alive() for t in lab.controller._threads))
    assert not upgrade.ended
    with pytest.raises(InterruptedOperationError, match="libvirt has gone"):
        web.wait_for_upgrade(timeout=1e6)
    assert web.resume() is not None
    assert upgrade.completed


def test_a_health_function_that_fails_in_any_way_is_a_failed_check(lab: SimulatedLab) -> None:
    """Q3: the set is unhealthy with its message; the upgrade ends, and the watcher lives."""
    web = start(lab, "aaa")
    web.set_health_check(lambda _: pytest.fail("redis is down"))
    lab.watch()
    lab.publish("1.1.0")
    upgrade = web.wait_for_upgrade(timeout=1e6)
    assert upgrade.error is not None
    assert upgrade.error.code == "MaxUnhealthyInstancePercentExceededBeforeRollingUpgrade"
    assert web[0].record.health == "Unhealthy"
    assert "Failed: redis is down" in web[0].record.health_detail
    web.set_health_check(None)
    lab.publish("1.2.0")
    assert web.wait_for_upgrade(timeout=1e6).completed


def test_another_image_of_the_same_number_is_not_what_the_model_asks_for(
    lab: SimulatedLab,
) -> None:
    """C3: gallery, definition and version are compared, never the number alone."""
    web = start(lab, "aaa")
    lab.publish("1.1.0")
    lab.run_due()
    assert lab.rollouts.why_not("aaa").startswith("all its instances are on 1.1.0")
    disk = web[0].generation
    lab.store.put(disk.model_copy(update={"definition": "other"}))
    assert "was tried already" in lab.rollouts.why_not("aaa")
    (operation,) = [o for o in lab.store.select(OperationRecord) if o.action == "upgrade"]
    lab.store.put(operation.model_copy(update={"definition": "other"}))
    assert lab.rollouts.why_not("aaa") == ""
