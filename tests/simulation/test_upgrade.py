"""Upgrades in simulation: what the engine decides and what it leaves behind."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import pytest

from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.engine.engine import Engine
from pytest_vmss.environment.environment import InstanceContext
from pytest_vmss.errors import (
    ConflictError,
    HostError,
    HypervisorError,
    InterruptedOperationError,
    ProvisioningError,
    UpgradeError,
)
from pytest_vmss.health import Observation
from pytest_vmss.host.process import run
from pytest_vmss.hypervisor import Machine
from pytest_vmss.simulation.guest import Behaviour
from pytest_vmss.steps import CreateDataDisks, Start
from pytest_vmss.store import (
    GenerationRecord,
    InstanceRecord,
    OperationRecord,
    Outcome,
    OutcomeRecord,
    Store,
)
from tests.models import IMAGE_ID, LOAD_BALANCER, web_model
from tests.simulation.conftest import SimulatedLab

BREACH = "MaxUnhealthyUpgradedInstancePercentExceededInRollingUpgrade"


def check_accounts(lab: SimulatedLab, web: ScaleSet, dead: frozenset[str] = frozenset()) -> None:
    """G2, L5: nothing half done, no disk that the records do not know.

    Args:
        lab: The lab.
        web: The set.
        dead: Machines that a test has killed, which need not run.
    """
    for instance in web:
        record = instance.record
        name = f"vmss-{lab.identity.id}-{instance.name}"
        running = lab.simulated.running_generation(name)
        assert running == record.generation or (running is None and name in dead)
        folder = lab.paths.instance(web.name, record.instance_id)
        disks = {path.name for path in folder.iterdir() if path.suffix in (".qcow2", ".iso")}
        assert disks == {
            f"os-{record.generation}.qcow2",
            f"seed-{record.generation}.iso",
            "lun0.qcow2",
        }
        assert [g.number for g in instance._context.generations() if g.state == "current"] == [
            record.generation
        ]


def test_a_good_version_rolls_through(lab: SimulatedLab) -> None:
    """C1, D2, E4: every instance once, custom data and extension once for each OS disk."""
    web = lab.start_web(5)
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.completed, upgrade.explain()
    assert upgrade.record.started_by == "Platform"
    assert upgrade.batches == [(0,), (1,), (2,), (3,), (4,)]
    assert set(upgrade.outcomes.values()) == {Outcome.SUCCEEDED}
    assert {instance.image_version for instance in web} == {"1.1.0"}
    assert set(lab.runs.values()) == {1}
    assert {key[1:] for key in lab.runs} == {
        (generation, what) for generation in (1, 2) for what in ("custom data", "register")
    }
    check_accounts(lab, web)


def variables(web: ScaleSet) -> dict[str, int]:
    """The files of UEFI variables of a set's instances, with their inodes."""
    return {
        f"{instance.name}/{path.name}": path.stat().st_ino
        for instance in web
        for path in instance.os_disk.parent.glob("nvram*")
    }


def test_uefi_variables_follow_the_os_disk(lab: SimulatedLab) -> None:
    """O5, G1: fresh ones with each new OS disk, the old ones with the old disk; none is left."""
    lab.gallery().define("web", hyper_v_generation="V2")
    web = lab.start_web(2)
    first = variables(web)
    assert set(first) == {"web_0/nvram-1.fd", "web_1/nvram-1.fd"}
    assert lab.roll(web, "1.1.0", Behaviour.PANICS).outcomes["web_0"] is Outcome.ROLLED_BACK
    assert variables(web) == first
    assert lab.roll(web, "1.2.0").completed
    assert len(variables(web)) == 2
    for instance in web:
        number = instance.record.generation
        assert instance._context.machine(number).nvram == (
            instance.os_disk.parent / f"nvram-{number}.fd"
        )
    folder = web[0].os_disk.parent
    web.delete()
    assert not folder.exists()


def test_a_set_of_generation_2_needs_firmware(lab: SimulatedLab) -> None:
    """O5, A6: it is refused before anything is made."""
    lab.gallery().define("web", hyper_v_generation="V2")
    lab.simulated.lacks_uefi = True
    with pytest.raises(HostError, match="UEFI firmware"):
        lab.start_web(1)
    assert not list(lab.paths.sets.glob("*/*"))
    assert lab.scale_sets() == []
    lab.simulated.lacks_uefi = False
    assert lab.start_web(1).is_healthy()


def test_a_machine_of_generation_1_has_no_variables(lab: SimulatedLab) -> None:
    """O5."""
    web = lab.start_web(1)
    assert variables(web) == {}
    assert web[0]._context.machine(1).nvram is None


def test_an_os_disk_whose_variables_are_gone_is_not_committed(lab: SimulatedLab) -> None:
    """O5, Q1: it would start with others, and boot otherwise or not at all."""
    lab.gallery().define("web", hyper_v_generation="V2")
    web = lab.start_web(1)
    old = web[0].os_disk
    lab.publish("1.1.0")
    real = lab.simulated.start

    def start(machine: Machine) -> None:
        real(machine)
        assert machine.nvram is not None
        machine.nvram.unlink()

    lab.simulated.start = start  # type: ignore[method-assign]
    with pytest.raises(InterruptedOperationError, match=r"nvram-2\.fd.*is not there"):
        web.upgrade()
    assert old.exists()


def test_an_instance_that_stays_sick_is_told_apart_and_nothing_is_left(lab: SimulatedLab) -> None:
    """G3: its rollback fails too; it is on its previous disk, and the new one is gone."""
    web = lab.start_web(5)
    lab.sick.add("web_0")
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.outcomes["web_0"] is Outcome.ROLLBACK_FAILED
    assert web[0].record.provisioning == "Failed"
    assert web[0].image_version == "1.0.0"
    check_accounts(lab, web)


def test_twenty_percent_of_fifteen_are_three_in_one_update_domain(lab: SimulatedLab) -> None:
    """D2, D3."""
    web = lab.start_web(15)
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.completed
    assert upgrade.batches == [tuple(range(domain, 15, 5)) for domain in range(5)]


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        (Behaviour.PANICS, "OSProvisioningKernelPanic"),
        (Behaviour.CLOUD_INIT_FAILS, "OSProvisioningClientError"),
        (Behaviour.EXTENSION_FAILS, "VMExtensionProvisioningError"),
        (Behaviour.UNHEALTHY, "InstanceUnhealthy"),
    ],
)
def test_a_bad_version_is_stopped_and_undone(
    lab: SimulatedLab, behaviour: Behaviour, code: str
) -> None:
    """D7, G1, G2, G3, E5."""
    web = lab.start_web()
    before = {instance.name: (instance.os_disk, instance.boot_id) for instance in web}
    inode = web[0].os_disk.stat().st_ino
    upgrade = lab.roll(web, "1.1.0", behaviour)
    assert upgrade.faulted
    assert upgrade.error is not None
    assert upgrade.error.code == BREACH
    assert upgrade.outcomes == {
        "web_0": Outcome.ROLLED_BACK,
        "web_1": Outcome.NOT_STARTED,
        "web_2": Outcome.NOT_STARTED,
    }
    assert upgrade.errors["web_0"].code == code
    assert web[0].os_disk == before["web_0"][0]
    assert web[0].os_disk.stat().st_ino == inode
    for instance in web[1], web[2]:
        assert (instance.os_disk, instance.boot_id) == before[instance.name]
    assert web.is_healthy()
    check_accounts(lab, web)


def test_an_image_larger_than_the_os_disk_is_not_begun(lab: SimulatedLab) -> None:
    """B4, C1: as at creation; a larger disk in the model makes the version due."""
    body = web_model(capacity=2)
    disk = body["properties"]["virtualMachineProfile"]["storageProfile"]["osDisk"]
    disk["diskSizeGB"] = 1
    web = lab.start(body, LOAD_BALANCER)
    upgrade = lab.roll(web, "1.1.25")  # of 1.1 GiB
    assert upgrade.faulted
    assert upgrade.error is not None
    assert upgrade.error.code == "InvalidParameter"
    assert "osDisk.diskSizeGB is 1 GiB, smaller than the 1.1 GiB" in upgrade.error.message
    assert set(upgrade.outcomes.values()) == {Outcome.NOT_STARTED}
    assert [instance.image_version for instance in web] == ["1.0.0", "1.0.0"]
    lab.run_due()
    assert len(web.history()) == 1
    web.update({"virtualMachineProfile": {"storageProfile": {"osDisk": {"diskSizeGB": 2}}}})
    lab.run_due()
    assert [instance.image_version for instance in web] == ["1.1.25", "1.1.25"]


def test_the_same_bad_version_is_not_tried_again(lab: SimulatedLab) -> None:
    """C1: nothing has changed; a higher version is another upgrade."""
    web = lab.start_web()
    lab.roll(web, "1.1.0", Behaviour.PANICS)
    lab.run_due()
    assert len(web.history()) == 1
    assert "was tried already" in lab.rollouts.why_not("web")
    assert lab.roll(web, "1.2.0").completed


def test_started_by_hand_there_is_no_rollback(lab: SimulatedLab) -> None:
    """C3, G1: the failed instance stays on the new disk, and its old disk is kept."""
    web = lab.start_web(automatic=False)
    lab.publish("1.1.0", Behaviour.UNHEALTHY)
    old = web[0].os_disk
    upgrade = web.upgrade()
    assert upgrade.faulted
    assert upgrade.outcomes["web_0"] is Outcome.FAILED
    assert web[0].image_version == "1.1.0"
    assert web[0].record.provisioning == "Failed"
    assert old.exists()


def test_instances_on_the_target_are_not_touched(lab: SimulatedLab) -> None:
    """C3."""
    web = lab.start_web(automatic=False)
    starts = len(lab.simulated.starts)
    upgrade = web.upgrade()
    assert upgrade.completed
    assert upgrade.batches == []
    assert len(lab.simulated.starts) == starts


def test_disabled_automatic_rollback_leaves_the_instance(lab: SimulatedLab) -> None:
    """G1."""
    web = lab.start_web(disable_rollback=True)
    upgrade = lab.roll(web, "1.1.0", Behaviour.UNHEALTHY)
    assert upgrade.outcomes["web_0"] is Outcome.FAILED
    assert web[0].image_version == "1.1.0"


def test_too_many_down_in_mid_upgrade(lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """D6, G2: another instance dies; the batch is finished, then Azure's code stops it all.

    On real VMs nightly (tests/vm/test_command_line.py).
    """
    web, apply = lab.start_web(4), Start.apply

    def start(self: Start, context: InstanceContext) -> None:
        apply(self, context)
        lab.simulated.power_off(f"vmss-{lab.identity.id}-web_3")

    with monkeypatch.context() as patch:
        patch.setattr(Start, "apply", start)
        upgrade = lab.roll(web, "1.1.0")
    assert upgrade.faulted
    assert upgrade.error is not None
    assert upgrade.error.code == "MaxUnhealthyInstancePercentExceededInRollingUpgrade"
    assert upgrade.outcomes == {
        "web_0": Outcome.SUCCEEDED,
        **dict.fromkeys(("web_1", "web_2", "web_3"), Outcome.NOT_STARTED),
    }
    assert [instance.image_version for instance in web] == ["1.1.0", "1.0.0", "1.0.0", "1.0.0"]


def when_upgraded(
    lab: SimulatedLab, web: ScaleSet, number: int, act: Callable[[], object]
) -> Callable[[], None]:
    """Calls a function once, as soon as an instance was upgraded and a probe is made."""
    probe, done = lab.probe, False

    def check() -> None:
        nonlocal done
        history = web.history()
        if not done and history and not history[0].ended:
            done = history[0].outcomes[f"{web.name}_{number}"] is Outcome.SUCCEEDED
            if done:
                act()

    def probing(name: str) -> Observation:
        check()
        return probe(name)

    lab.probe = probing  # type: ignore[method-assign]
    return check


@pytest.mark.parametrize("surge", [False, True])
def test_an_upgraded_instance_that_sickens_stops_the_upgrade(
    lab: SimulatedLab, surge: bool
) -> None:
    """D7, G2: no second batch begins; with ``maxSurge`` its replacement is the upgraded one."""
    web = lab.start_web(10, policy={"maxSurge": surge})
    when_upgraded(lab, web, 5, lambda: lab.sick.add("web_10" if surge else "web_0"))
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.faulted, upgrade.explain()
    assert upgrade.error is not None
    assert upgrade.error.code == BREACH
    assert upgrade.batches == [(0, 5)]
    assert "of 2 upgraded, 1 are unhealthy now" in upgrade.explain()
    assert upgrade.outcomes["web_0"] is Outcome.SUCCEEDED
    assert upgrade.outcomes["web_9"] is Outcome.NOT_STARTED


def test_an_upgraded_instance_that_sickens_in_the_pause_stops_the_upgrade(
    lab: SimulatedLab,
) -> None:
    """D7, D8: the health is read again after the pause."""
    web = lab.start_web(10, policy={"pauseTimeBetweenBatches": "PT10M"})
    sleep = lab.virtual.sleep

    def sleeping(seconds: float) -> None:
        if any(event.kind == "pause" for event in lab.store.events()):
            lab.sick.add("web_0")
        sleep(seconds)

    lab.virtual.sleep = sleeping  # type: ignore[method-assign]
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.error is not None
    assert upgrade.error.code == BREACH
    assert upgrade.batches == [(0, 5)]


def test_one_that_sickens_in_the_last_batch_is_noticed(lab: SimulatedLab) -> None:
    """D7: the health of those upgraded is read after every batch, the last one too."""
    web = lab.start_web(2)
    when_upgraded(lab, web, 1, lambda: lab.sick.add("web_1"))
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.faulted, upgrade.explain()
    assert {instance.image_version for instance in web} == {"1.1.0"}


def test_too_many_sick_before_the_first_batch(lab: SimulatedLab) -> None:
    """D1: nothing is touched."""
    web = lab.start_web()
    lab.sick.add("web_2")
    starts = len(lab.simulated.starts)
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.error is not None
    assert upgrade.error.code == "MaxUnhealthyInstancePercentExceededBeforeRollingUpgrade"
    assert len(lab.simulated.starts) == starts
    assert set(upgrade.outcomes.values()) == {Outcome.NOT_STARTED}


def test_a_set_that_does_not_opt_in_is_left_alone(lab: SimulatedLab) -> None:
    """C1."""
    web = lab.start_web(automatic=False)
    lab.publish("1.1.0")
    lab.run_due()
    assert web.history() == []
    assert "enableAutomaticOSUpgrade" in lab.rollouts.why_not("web")
    with pytest.raises(UpgradeError, match="enableAutomaticOSUpgrade"):
        web.wait_for_upgrade()


def test_the_watcher_upgrades_on_publication(lab: SimulatedLab) -> None:
    """C1: in a thread of its own, and wait_for_upgrade returns each upgrade once."""
    web = lab.start_web()
    lab.watch()
    lab.publish("1.1.0")
    assert web.wait_for_upgrade().completed
    lab.publish("1.2.0", Behaviour.PANICS)
    assert web.wait_for_upgrade().faulted
    with pytest.raises(UpgradeError, match="was tried already"):
        web.wait_for_upgrade()


def test_an_automatic_upgrade_waits_for_another_operation(lab: SimulatedLab) -> None:
    """C4: it is not lost, and it is no error; it runs when the other has ended."""
    web = lab.start_web(1)
    lab.watch()
    with Engine(lab.environment, "web").lock():
        lab.publish("1.1.0")
        deadline = time.monotonic() + 30
        while not any("the upgrade to 1.1.0 waits" in e.message for e in lab.store.events()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    web.restart()
    assert web.wait_for_upgrade().completed


def test_a_second_upgrade_is_refused(lab: SimulatedLab) -> None:
    """C4, M4: 409 OperationNotAllowed, and nothing changes."""
    web = lab.start_web(automatic=False)
    lab.publish("1.1.0")
    with Engine(lab.environment, "web").lock():
        with pytest.raises(ConflictError) as refused:
            web.upgrade()
        assert refused.value.code == "OperationNotAllowed"
        with pytest.raises(ConflictError):
            web.delete()
    assert web.history() == []


def test_a_guest_that_ignores_the_shutdown_loses_its_power(lab: SimulatedLab) -> None:
    """E1: after the limit."""
    web = lab.start_web(1)
    lab.simulated.deaf.add(f"vmss-{lab.identity.id}-web_0")
    start = lab.virtual.monotonic()
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.completed
    assert lab.virtual.monotonic() - start >= lab.environment.timeouts.stop
    assert any("cutting its power" in event.message for event in upgrade.events)


@pytest.mark.parametrize("automatic", [True, False])
def test_a_full_disk_leaves_the_instance_as_it_was(lab: SimulatedLab, automatic: bool) -> None:
    """M3, Q1: the new disk is made before the old one is given up; with room it goes on."""
    web = lab.start_web(automatic=automatic)
    boot = web[0].boot_id
    lab.publish("1.1.0")
    lab.simulated.fail_os_disks = True
    with pytest.raises(InterruptedOperationError, match=r"(?s)no space left.* resume web"):
        lab.scale_set("web").upgrade()
    assert not web.history()[0].ended
    assert web[0].record.provisioning == "Succeeded"
    assert web[0].image_version == "1.0.0"
    assert web[0].boot_id == boot
    lab.simulated.fail_os_disks = False
    upgrade = web.resume()
    assert upgrade is not None
    assert upgrade.completed
    assert {instance.image_version for instance in web} == {"1.1.0"}
    check_accounts(lab, web)


@pytest.mark.parametrize("automatic", [True, False])
def test_data_disks_that_cannot_be_made_leave_the_instance_on_its_disk(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch, automatic: bool
) -> None:
    """G2: it was stopped already, so it is started again; with rollback or without."""
    web = lab.start_web(automatic=automatic)
    lab.publish("1.1.0")

    def full(*_: object) -> None:
        raise HypervisorError("no space left on device")

    monkeypatch.setattr(CreateDataDisks, "apply", full)
    if automatic:
        lab.run_due()
    else:
        web.upgrade()
    upgrade = web.history()[0]
    assert upgrade.outcomes["web_0"] is (Outcome.ROLLED_BACK if automatic else Outcome.FAILED)
    assert "no space left" in upgrade.errors["web_0"].message
    assert web[0].image_version == "1.0.0"
    assert web.is_healthy()
    check_accounts(lab, web)


def test_a_way_back_that_fails_too_is_gone_on_with(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q1, G4: nothing can be started any more; once it can, the way back ends."""
    web = lab.start_web(automatic=False)
    lab.publish("1.1.0")

    def broken(*_: object) -> None:
        raise HypervisorError("no more machines today")

    with monkeypatch.context() as patch:
        patch.setattr(lab.simulated, "start", broken)
        patch.setattr(CreateDataDisks, "apply", broken)
        for act in (web.upgrade, web.resume):
            with pytest.raises(InterruptedOperationError, match="no more machines"):
                act()
        assert [i.image_version for i in web] == ["1.0.0"] * 3
    upgrade = web.resume()
    assert upgrade is not None
    assert upgrade.faulted
    assert upgrade.outcomes["web_0"] is Outcome.FAILED
    assert "no more machines" in upgrade.errors["web_0"].message
    assert web[0].record.provisioning == "Failed"
    assert web.is_healthy()
    check_accounts(lab, web)


def test_instances_that_do_not_come_up_are_an_error_with_evidence(lab: SimulatedLab) -> None:
    """E5."""
    lab.publish("1.0.0", Behaviour.PANICS)
    with pytest.raises(ProvisioningError, match="Kernel panic - not syncing") as failed:
        lab.start_web()
    assert failed.value.code == "OSProvisioningKernelPanic"
    lab.scale_set("web").delete()
    assert lab.simulated.defined == {}


def test_cancel_takes_effect_after_the_current_batch(lab: SimulatedLab) -> None:
    """D8: what is upgraded stays upgraded, the rest stays."""
    web = lab.start_web()
    lab.publish("1.1.0")
    cancelled = False
    probe = lab.environment.probe

    def cancelling(*arguments: object) -> object:
        nonlocal cancelled
        if not cancelled and web.history() and web.history()[0].batches == [(0,)]:
            cancelled = True
            web.cancel()
        return probe(*arguments)  # type: ignore[arg-type]

    lab.environment.probe = cancelling  # type: ignore[assignment]
    lab.run_due()
    upgrade = web.history()[0]
    assert upgrade.cancelled
    assert [instance.image_version for instance in web] == ["1.1.0", "1.0.0", "1.0.0"]
    with pytest.raises(ConflictError, match="no ongoing Rolling Upgrade"):
        web.cancel()
    check_accounts(lab, web)


@pytest.mark.parametrize("number", ["1.0.0", "0.9.0"])
def test_a_model_of_another_image_is_upgraded_by_itself(lab: SimulatedLab, number: str) -> None:
    """C3, C5: another definition's version is newer, whatever its number."""
    web = lab.start_web(2)
    path = lab.paths.folder / "other.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", path, "77M"], what="an image")
    record = lab.gallery().publish("other", number, path)
    lab.simulated.images[record.digest] = "1.0.0"
    reference = {"id": IMAGE_ID.format(definition="other")}
    web.update({"virtualMachineProfile": {"storageProfile": {"imageReference": reference}}})
    assert lab.rollouts.why_not("web") == ""
    lab.run_due()
    assert {instance.generation.definition for instance in web} == {"other"}
    assert {instance.generation.version for instance in web} == {number}
    lab.run_due()
    assert len(web.history()) == 1


def test_the_same_number_of_another_image_is_another_target(lab: SimulatedLab) -> None:
    """C3, C5: gallery, definition and version are compared, never the number alone."""
    web = lab.start_web(2, automatic=False)
    path = lab.paths.folder / "other.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", path, "77M"], what="an image")
    record = lab.gallery().publish("other", "1.0.0", path)
    lab.simulated.images[record.digest] = "1.0.0"
    reference = {"id": IMAGE_ID.format(definition="other")}
    web.update({"virtualMachineProfile": {"storageProfile": {"imageReference": reference}}})
    upgrade = web.upgrade()
    assert upgrade.outcomes == {"web_0": Outcome.SUCCEEDED, "web_1": Outcome.SUCCEEDED}
    assert {instance.generation.definition for instance in web} == {"other"}
    assert all(instance.latest_model_applied for instance in web)


@pytest.mark.parametrize("by_hand", [False, True], ids=["automatic", "by hand"])
def test_a_version_that_is_deleted_in_mid_upgrade_ends_it(lab: SimulatedLab, by_hand: bool) -> None:
    """Q1, G3: the next instance fails and stays on its disk; nothing waits for the version."""
    web = lab.start_web()
    when_upgraded(lab, web, 0, lambda: lab.gallery().delete("web", "1.1.0"))
    if by_hand:
        lab.publish("1.1.0")
        upgrade = web.upgrade()
    else:
        upgrade = lab.roll(web, "1.1.0")
    assert upgrade.faulted
    assert upgrade.errors["web_1"].code == "GalleryImageNotFound"
    assert upgrade.outcomes["web_1"] is (Outcome.FAILED if by_hand else Outcome.ROLLED_BACK)
    assert upgrade.outcomes["web_2"] is Outcome.NOT_STARTED
    assert [instance.image_version for instance in web] == ["1.1.0", "1.0.0", "1.0.0"]
    check_accounts(lab, web)
    web.update_instances()
    assert lab.roll(web, "1.2.0").completed
    assert {instance.image_version for instance in web} == {"1.2.0"}


def test_what_a_lab_remembers_is_what_it_wrote(lab: SimulatedLab) -> None:
    """M1: each record that is not read again is as another process reads it."""
    web = lab.start_web(3)
    lab.roll(web, "1.1.0", Behaviour.UNHEALTHY)
    lab.roll(web, "1.2.0")
    with contextlib.closing(Store(lab.paths.database, lab.virtual)) as fresh:
        for kind in (GenerationRecord, InstanceRecord, OperationRecord, OutcomeRecord):
            read = fresh.select(kind)
            assert read
            assert lab.store.select(kind) == read
