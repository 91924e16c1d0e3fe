"""C2, D3-D5, D8, D9, G1, G4, J1, J2: how and when an upgrade goes through a set."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.errors import NotFoundError, UpgradeError
from pytest_vmss.health import RollingUpgradeMetrics
from pytest_vmss.host.process import run
from pytest_vmss.settings import Settings, Timeouts
from pytest_vmss.simulation.guest import Behaviour
from pytest_vmss.store import Outcome
from tests.models import IMAGE_ID, LOAD_BALANCER, web_model
from tests.simulation.conftest import SimulatedLab
from tests.simulation.kills import Killed
from tests.simulation.test_upgrade import BREACH, check_accounts


def start(lab: SimulatedLab, capacity: int, zones: int = 0, **policy: Any) -> ScaleSet:
    body = web_model(capacity=capacity, policy=policy)
    body["zones"] = [str(number + 1) for number in range(zones)]
    return lab.start(body, LOAD_BALANCER)


def test_zones_one_after_another_domains_inside(lab: SimulatedLab) -> None:
    """D3, D4, I2."""
    web = start(lab, 20, zones=2)
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.completed
    where = [
        {(web[n].record.zone, web[n].record.update_domain) for n in ids} for ids in upgrade.batches
    ]
    assert where == [{(zone, domain)} for zone in "12" for domain in range(5)]


def test_across_zones_when_asked(lab: SimulatedLab) -> None:
    """D4."""
    web = start(lab, 20, zones=2, enableCrossZoneUpgrade=True)
    upgrade = lab.roll(web, "1.1.0")
    assert [len(ids) for ids in upgrade.batches] == [4] * 5
    assert {web[n].record.zone for n in upgrade.batches[0]} == {"1", "2"}


def zoned(lab: SimulatedLab, name: str, *zones: str, capacity: int = 3, **more: Any) -> ScaleSet:
    body = web_model(name, capacity=capacity, **more)
    body["zones"] = list(zones)
    return lab.start(body, LOAD_BALANCER)


def zones_at_work(lab: SimulatedLab, *sets: ScaleSet) -> list[set[str]]:
    """The zones that were worked in at once while sets were upgraded, in order and each once."""
    places = {
        (web.name, record.instance_id): record.zone
        for web in sets
        for record in web._instances.records()
    }
    busy: set[tuple[str, int]] = set()
    seen: list[set[str]] = []
    for event in lab.store.events():
        if event.instance_id is None or (event.scale_set, event.instance_id) not in places:
            continue
        who = (event.scale_set, event.instance_id)
        if event.kind == "step" and event.message.startswith("swap"):
            busy.add(who)
        elif event.kind == "outcome":
            busy.discard(who)
        zones = {places[one] for one in busy}
        if zones and (not seen or seen[-1] != zones):
            seen.append(zones)
    return seen


def test_two_sets_in_two_zones_go_one_after_the_other(lab: SimulatedLab) -> None:
    """D4, I2: the same version is in one zone of a region at a time, whichever sets are there."""
    one, two = zoned(lab, "one", "1"), zoned(lab, "two", "2")
    lab.publish("1.1.0")
    lab.run_due()
    assert one.history()[0].completed
    assert two.history()[0].completed
    assert sorted(map(sorted, zones_at_work(lab, one, two))) == [["1"], ["2"]]
    waits = [event for event in lab.store.events() if "waits for the upgrade" in event.message]
    assert len(waits) == 1


def test_sets_that_share_their_zones_go_through_them_together(lab: SimulatedLab) -> None:
    """D4: at once in each zone, and the next one begins when the slower is through."""
    one, two = zoned(lab, "one", "1", "2", capacity=4), zoned(lab, "two", "1", "2", capacity=10)
    lab.publish("1.1.0")
    lab.run_due()
    assert one.history()[0].completed
    assert two.history()[0].completed
    assert zones_at_work(lab, one, two) == [{"1"}, {"2"}]


@pytest.mark.parametrize("how", ["across zones", "another region", "another version", "no zones"])
def test_what_does_not_wait_for_another_zone(lab: SimulatedLab, how: str) -> None:
    """D4: ``enableCrossZoneUpgrade``, other regions and other versions."""
    policy = {"enableCrossZoneUpgrade": True} if how == "across zones" else {}
    one = zoned(lab, "one", "1")
    body = web_model("two", policy=policy)
    body["zones"] = [] if how == "no zones" else ["2"]
    if how == "another region":
        body["location"] = "northeurope"
    if how == "another version":
        path = lab.paths.folder / "other.qcow2"
        run(["qemu-img", "create", "-q", "-f", "qcow2", path, "77M"], what="an image")
        record = lab.gallery().publish("other", "1.0.0", path)
        lab.simulated.images[record.digest] = "1.0.0"
        reference = {"id": IMAGE_ID.format(definition="other")}
        body["properties"]["virtualMachineProfile"]["storageProfile"]["imageReference"] = reference
    two = lab.start(body, LOAD_BALANCER)
    lab.publish("1.1.0")
    if how == "another version":
        path = lab.paths.folder / "newer.qcow2"
        run(["qemu-img", "create", "-q", "-f", "qcow2", path, "78M"], what="an image")
        record = lab.gallery().publish("other", "1.1.0", path)
        lab.simulated.images[record.digest] = "1.1.0"
    lab.run_due()
    assert one.history()[0].completed
    assert two.history()[0].completed
    waits = [event for event in lab.store.events() if "waits for the upgrade" in event.message]
    assert waits == []
    if how != "no zones":
        assert {"1", "2"} in zones_at_work(lab, one, two)


def test_an_interrupted_upgrade_holds_no_zone(lab: SimulatedLab) -> None:
    """D4, Q1: nobody waits for what nobody goes on with; its resume waits in its turn."""
    one, two = zoned(lab, "one", "1"), zoned(lab, "two", "2")
    read = lab.environment.metrics
    lab.publish("1.1.0")

    def killed(context: Any) -> RollingUpgradeMetrics:
        if context.scale_set == "one" and lab.virtual.monotonic() > 0:
            raise Killed
        return read(context)

    lab.environment.metrics = killed
    with pytest.raises(Killed):
        one.upgrade()
    lab.store.amend(one.history()[0].record, zone="1")
    lab.environment.metrics = read
    lab.run_due()
    assert two.history()[0].completed
    assert one.resume() is not None
    assert one.history()[0].completed


def test_a_cancellation_ends_the_wait_for_a_zone(lab: SimulatedLab) -> None:
    """D4, D8."""
    one, two = zoned(lab, "one", "1"), zoned(lab, "two", "2")
    sleep, cancelled = lab.virtual.sleep, False

    def sleeping(seconds: float) -> None:
        nonlocal cancelled
        waits = [event for event in lab.store.events() if "waits for the upgrade" in event.message]
        if waits and not cancelled:
            cancelled = True
            lab.scale_set(waits[0].scale_set).cancel()
        sleep(seconds)

    lab.virtual.sleep = sleeping  # type: ignore[method-assign]
    lab.publish("1.1.0")
    lab.run_due()
    assert sorted(web.history()[0].status for web in (one, two)) == ["Cancelled", "Completed"]


def test_phases_and_skips_are_read_once_at_the_start(lab: SimulatedLab) -> None:
    """D5."""
    web = start(lab, 4)
    lab.metrics = {
        "web_0": RollingUpgradeMetrics(phase=2),
        "web_1": RollingUpgradeMetrics(skip=True),
        "web_3": RollingUpgradeMetrics(phase=0),
    }
    probe = lab.environment.probe

    def changing(*arguments: Any) -> Any:
        lab.metrics["web_2"] = RollingUpgradeMetrics(skip=True)  # too late
        return probe(*arguments)

    lab.environment.probe = changing
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.completed
    assert upgrade.batches == [(3,), (0,), (2,)]
    assert upgrade.outcomes["web_1"] is Outcome.SKIPPED
    assert "SkipUpgrade" in upgrade.explain()
    assert web[1].image_version == "1.0.0"


def test_metrics_are_read_by_the_resume_of_an_upgrade_killed_before(lab: SimulatedLab) -> None:
    """D5, M1."""
    web = start(lab, 3)
    lab.metrics = {"web_0": RollingUpgradeMetrics(skip=True)}
    read = lab.environment.metrics

    def killed(_: object) -> RollingUpgradeMetrics:
        raise Killed

    lab.publish("1.1.0")
    lab.environment.metrics = killed
    with pytest.raises(Killed):
        lab.run_due()
    lab.environment.metrics = read
    upgrade = web.resume()
    assert upgrade is not None
    assert upgrade.completed
    assert upgrade.outcomes["web_0"] is Outcome.SKIPPED


def test_a_pause_between_batches(lab: SimulatedLab) -> None:
    """D8: between them only, on the lab's clock."""
    durations = []
    for pause in ("PT0S", "PT10M"):
        web = start(lab, 3, pauseTimeBetweenBatches=pause)
        begin = lab.virtual.monotonic()
        lab.roll(web, "1.1.0" if pause == "PT0S" else "1.2.0")
        durations.append(lab.virtual.monotonic() - begin)
        web.delete()
    assert 1200 <= durations[1] - durations[0] < 1210


def test_a_pause_ends_when_the_upgrade_is_cancelled(lab: SimulatedLab) -> None:
    """D8."""
    web = start(lab, 3, pauseTimeBetweenBatches="PT1H")
    sleep = lab.virtual.sleep

    def cancelling(seconds: float) -> None:
        history = web.history()
        if history and len(history[0].batches) == 1 and history[0].outcomes["web_0"] == "succeeded":
            web.cancel()
        sleep(seconds)

    lab.virtual.sleep = cancelling  # type: ignore[method-assign]
    begin = lab.virtual.monotonic()
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.cancelled
    assert lab.virtual.monotonic() - begin < 600
    last = web.rolling_upgrade_status()["properties"]["runningStatus"]
    assert last["lastAction"] == "Cancel"
    assert last["code"] == "Cancelled"
    check_accounts(lab, web)


def test_a_clock_set_back_turns_no_times_round(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """J1, J2: nothing happens to an upgrade before it starts."""
    web = start(lab, 3, pauseTimeBetweenBatches="PT1H")
    sleep, now = lab.virtual.sleep, lab.virtual.now

    def cancelling(seconds: float) -> None:
        if any(event.kind == "pause" for event in lab.store.events()):
            monkeypatch.setattr(lab.virtual, "now", lambda: now() - timedelta(days=1))
            if web.unfinished and web.unfinished.record.cancel_requested is None:
                web.cancel()
        sleep(seconds)

    monkeypatch.setattr(lab.virtual, "sleep", cancelling)
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.cancelled
    running = web.rolling_upgrade_status()["properties"]["runningStatus"]
    assert running["lastAction"] == "Cancel"
    assert running["lastActionTime"] >= running["startTime"]
    assert upgrade.record.ended is not None
    assert upgrade.record.ended >= upgrade.record.started


def test_surge_creates_before_it_removes(lab: SimulatedLab) -> None:
    """D9: new ids; never fewer than the capacity serve."""
    web = start(lab, 3, maxSurge=True)
    least = 3
    stop = lab.simulated.remove

    def removing(name: str) -> None:
        nonlocal least
        stop(name)
        least = min(least, len(lab.simulated.running))

    lab.simulated.remove = removing  # type: ignore[method-assign]
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.completed, upgrade.explain()
    assert [i.instance_id for i in web] == ["3", "4", "5"]
    assert {i.image_version for i in web} == {"1.1.0"}
    assert least == 3
    assert "maxSurge" in upgrade.explain()
    assert web.model.sku.capacity == 3
    check_accounts(lab, web)


def test_a_replacement_takes_the_place_of_what_it_replaces(lab: SimulatedLab) -> None:
    """D9, D3: zone, placement group and update domain; the balance of the set stays."""
    web = start(lab, 12, zones=2, maxSurge=True)
    web.delete_instances([0, 2, 5])  # so that the emptiest places are others
    record = {
        r.instance_id: (r.zone, r.placement_group, r.update_domain)
        for r in web._instances.records()
    }
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.completed, upgrade.explain()
    after = {
        r.instance_id: (r.zone, r.placement_group, r.update_domain)
        for r in web._instances.records()
    }
    replaced = {n: result.replacement for n, result in upgrade.report.results.items()}
    assert replaced.keys() == record.keys()
    assert {n: after[new] for n, new in replaced.items() if new is not None} == record


def test_surge_falls_back_to_in_place_where_there_is_no_room(lab: SimulatedLab) -> None:
    """D9."""
    web = start(lab, 2, maxSurge=True)
    lab.room = 2
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.completed
    assert [i.instance_id for i in web] == ["0", "1"]
    assert "in place, for there is no room" in upgrade.explain()


def test_a_failed_surge_leaves_the_old_instance_in_service(lab: SimulatedLab) -> None:
    """D9, G2: it never went out."""
    web = start(lab, 3, maxSurge=True)
    boots = [i.boot_id for i in web]
    upgrade = lab.roll(web, "1.1.0", Behaviour.PANICS)
    assert upgrade.faulted
    assert upgrade.outcomes["web_0"] is Outcome.ROLLED_BACK
    assert upgrade.errors["web_0"].code == "OSProvisioningKernelPanic"
    assert [i.boot_id for i in web] == boots
    assert [i.instance_id for i in web] == ["0", "1", "2"]
    assert len(lab.simulated.defined) == 3
    check_accounts(lab, web)


def test_failed_instances_are_rolled_back_on_policy_breach(lab: SimulatedLab) -> None:
    """rollbackFailedInstancesOnPolicyBreach: only then, and onto the same disk file."""
    body = web_model(
        capacity=3, automatic=False, policy={"rollbackFailedInstancesOnPolicyBreach": True}
    )
    web = lab.start(body, LOAD_BALANCER)
    disk = (web[0].os_disk, web[0].os_disk.stat().st_ino)
    lab.publish("1.1.0", Behaviour.UNHEALTHY)
    upgrade = web.upgrade()  # by hand: without automatic rollback (C3)
    assert upgrade.faulted
    assert upgrade.error is not None
    assert upgrade.error.code == BREACH
    assert upgrade.outcomes["web_0"] is Outcome.ROLLED_BACK
    assert (web[0].os_disk, web[0].os_disk.stat().st_ino) == disk
    assert web.is_healthy()
    check_accounts(lab, web)


def test_a_limit_for_each_instance(tmp_path: Path) -> None:
    """G4: whatever it hangs in, it ends, and the rollback has time of its own."""
    timeouts = Timeouts(instance=2.0)  # 20 s without KVM; a simulated boot takes 30
    lab = SimulatedLab.session(Settings(tmp_path / "state", tmp_path / "cache"))
    web = lab.start_web(1)
    lab.environment.base_timeouts = timeouts
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.faulted
    assert upgrade.errors["web_0"].code == "RollingUpgradeTimeoutError"
    assert (
        "timed out after 20 s waiting for the swap of web_0 to end"
        in upgrade.errors["web_0"].message
    )
    # Its rollback took too long too; it is on the old disk, and says that it failed.
    assert upgrade.outcomes["web_0"] is Outcome.ROLLBACK_FAILED
    assert web[0].image_version == "1.0.0"
    lab.destroy()


def test_a_limit_for_the_whole(tmp_path: Path) -> None:
    """G4: what is upgraded stays, the rest is left as it was."""
    settings = Settings(tmp_path / "state", tmp_path / "cache", timeouts=Timeouts(upgrade=60.0))
    lab = SimulatedLab.session(settings)
    web = lab.start_web(5)
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.faulted
    assert upgrade.error is not None
    assert upgrade.error.code == "RollingUpgradeTimeoutError"
    assert [i.image_version for i in web] == ["1.1.0"] * 2 + ["1.0.0"] * 3
    check_accounts(lab, web)
    lab.destroy()


@pytest.fixture
def slow(tmp_path: Path) -> Any:
    """A lab with Azure's rollout delays."""
    settings = Settings(
        tmp_path / "state",
        tmp_path / "cache",
        first_rollout_delay=3 * 3600.0,
        rollout_delay=(1800.0, 3600.0),
    )
    lab = SimulatedLab.session(settings)
    yield lab
    lab.destroy()


def test_rollout_delays(slow: SimulatedLab) -> None:
    """C2: three hours after enabling for the first, half an hour to an hour for later ones."""
    web = slow.start_web(1)
    slow.publish("1.1.0")
    slow.run_due()
    assert web.history() == []
    assert "the rollout of 1.1.0 waits until 2026-01-01 03:0" in slow.rollouts.why_not("web")
    slow.virtual.sleep(3 * 3600)
    slow.run_due()
    assert web[0].image_version == "1.1.0"

    slow.publish("1.2.0")
    start = slow.rollouts.next_start()
    assert start is not None
    wait = start - slow.virtual.now()
    assert timedelta(minutes=30) <= wait <= timedelta(minutes=60)
    assert slow.rollouts.next_start() == start  # whoever asks, whenever
    slow.virtual.sleep(wait.total_seconds() - 1)
    slow.run_due()
    assert len(web.history()) == 1
    slow.virtual.sleep(1)
    slow.run_due()
    assert web[0].image_version == "1.2.0"
    assert slow.rollouts.next_start() is None


def test_the_watcher_waits_for_a_delayed_rollout(slow: SimulatedLab) -> None:
    """C2: and wait_for_upgrade waits with it."""
    web = slow.start_web(1)
    slow.watch()
    slow.publish("1.1.0")
    upgrade = web.wait_for_upgrade(timeout=4 * 3600.0)  # its looks push the virtual clock on
    assert upgrade.completed
    assert (upgrade.record.started - web.record.created) >= timedelta(hours=3)


def test_enabling_later_begins_the_first_delay_then(slow: SimulatedLab) -> None:
    """C1, C2; and switched off, nothing new starts."""
    web = slow.start_web(1, automatic=False)
    slow.publish("1.1.0")
    slow.virtual.sleep(24 * 3600)
    policy = {"automaticOSUpgradePolicy": {"enableAutomaticOSUpgrade": True}}
    web.update({"upgradePolicy": policy})
    slow.run_due()
    assert web.history() == []
    slow.virtual.sleep(3 * 3600)
    policy["automaticOSUpgradePolicy"]["enableAutomaticOSUpgrade"] = False
    web.update({"upgradePolicy": policy})
    slow.run_due()
    assert web.history() == []
    policy["automaticOSUpgradePolicy"]["enableAutomaticOSUpgrade"] = True
    web.update({"upgradePolicy": policy})
    slow.virtual.sleep(3 * 3600)
    slow.run_due()
    assert web.history()[0].completed


def test_the_target_is_fixed_when_the_upgrade_starts(lab: SimulatedLab) -> None:
    """C4: what is published meanwhile is a later upgrade, of the whole set."""
    web = lab.start_web(2)
    probe = lab.environment.probe

    def publishing(*arguments: Any) -> Any:
        if web.history() and "1.2.0" not in lab.behaviours:
            lab.publish("1.2.0")
        return probe(*arguments)

    lab.publish("1.1.0")
    lab.environment.probe = publishing
    lab.run_due()
    assert [upgrade.target for upgrade in web.history()] == ["1.2.0", "1.1.0"]
    assert all(upgrade.completed for upgrade in web.history())
    assert web.history()[1].record.source_versions == ("1.0.0",)


def web_id(lab: SimulatedLab) -> str:
    group = f"/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/{lab.paths.folder.name}"
    return f"{group}/providers/Microsoft.Compute/virtualMachineScaleSets/web"


def test_status_and_history_in_azures_words(lab: SimulatedLab) -> None:
    """J1, J2: wire names; the last five within two months."""
    web = lab.start_web(3)
    told = "no rolling upgrade of 'web' has run yet.* by: vmss --lab .* upgrade web"
    with pytest.raises(NotFoundError, match=f"not found in this Azure location: {told}") as none:
        web.rolling_upgrade_status()
    assert none.value.code == "NotFound"
    assert web.os_upgrade_history() == []
    lab.roll(web, "1.1.0")
    lab.roll(web, "1.2.0", Behaviour.UNHEALTHY)
    status = web.rolling_upgrade_status()
    assert status["type"] == "Microsoft.Compute/virtualMachineScaleSets/rollingUpgrades"
    properties = status["properties"]
    assert properties["policy"]["maxBatchInstancePercent"] == 20
    assert properties["runningStatus"]["code"] == "Faulted"
    assert properties["runningStatus"]["lastAction"] == "Start"
    assert properties["progress"] == {
        "successfulInstanceCount": 0,
        "failedInstanceCount": 1,
        "inProgressInstanceCount": 0,
        "pendingInstanceCount": 2,
    }
    assert properties["error"]["code"] == BREACH
    (detail,) = properties["error"]["details"]
    assert (detail["code"], detail["target"]) == ("InstanceUnhealthy", "0")
    assert properties["error"]["target"] == "0"
    assert properties["error"]["innererror"] == {
        "exceptiontype": "InstanceUnhealthy", "errordetail": detail["message"],
    }  # fmt: skip
    own = f"{web_id(lab)}/rollingUpgrades/latest"
    assert (status["id"], status["name"], status["tags"]) == (own, "latest", {})
    assert status["lab"] == {"rollingBackInstanceCount": 0}
    newest, oldest = web.os_upgrade_history()
    assert newest["properties"]["startedBy"] == "Platform"
    assert newest["properties"]["targetImageReference"] == {
        "id": f"{IMAGE_ID.format(definition='web')}/versions/1.2.0", "exactVersion": "1.2.0",
    }  # fmt: skip
    assert newest["properties"]["rollbackInfo"] == {
        "successfullyRolledbackInstanceCount": 1,
        "failedRolledbackInstanceCount": 0,
    }
    assert newest["properties"]["runningStatus"]["endTime"].endswith("Z")
    assert oldest["properties"]["runningStatus"]["code"] == "Completed"
    assert "error" not in oldest["properties"]
    assert oldest["properties"]["rollbackInfo"] == {
        "successfullyRolledbackInstanceCount": 0,
        "failedRolledbackInstanceCount": 0,
    }
    lab.virtual.sleep(70 * 24 * 3600)
    assert web.os_upgrade_history() == []
    assert web.history() == []
    assert len(web.history(limit=None)) == 2
    for number in range(3, 10):
        lab.roll(web, f"1.{number}.0")
    targets = [
        entry["properties"]["targetImageReference"]["exactVersion"]
        for entry in web.os_upgrade_history()
    ]
    assert targets == ["1.9.0", "1.8.0", "1.7.0", "1.6.0", "1.5.0"]


def test_a_history_begins_with_its_set(lab: SimulatedLab) -> None:
    """A later set of the same name has none of it; the session's summary has it all."""
    web = lab.start_web(1)
    lab.roll(web, "1.1.0")
    web.delete()
    web = lab.start_web(1)
    assert web.history() == []
    assert [report.record.target for report in lab.finished_upgrades()] == ["1.1.0"]


def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    """Simulations are deterministic."""
    runs = []
    for number in range(2):
        lab = SimulatedLab.session(Settings(tmp_path / f"s{number}", tmp_path / "cache"), seed=7)
        web = lab.start_web(15)
        lab.sick.add("web_4")
        lab.roll(web, "1.1.0")
        lab.roll(web, "1.2.0", Behaviour.UNHEALTHY)
        runs.append([(e.time, e.instance_id, e.kind) for e in lab.store.events()])
        lab.destroy()
    assert runs[0] == runs[1]


def test_waiting_for_nothing_says_why(lab: SimulatedLab) -> None:
    web = lab.start_web(1)
    with pytest.raises(UpgradeError, match=r"all its instances are on 1\.0\.0, the latest version"):
        web.wait_for_upgrade()


def test_the_same_content_under_a_higher_version_is_a_newer_version(lab: SimulatedLab) -> None:
    """B2, C1: versions are compared, not what is in them."""
    web = lab.start_web(1)
    lab.roll(web, "1.1.0")
    lab.gallery().publish("web", "1.2.0", lab.paths.folder / "source-1.1.0.qcow2")
    lab.run_due()
    assert web.history()[0].target == "1.2.0"
    assert web.history()[0].completed
    assert web[0].record.version == "1.2.0"
