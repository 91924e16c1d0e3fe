"""L1: a test puts its set back as it was, with model, instances, memory and disks."""

from __future__ import annotations

import errno
import itertools
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.checkpoints import CheckpointFiles
from pytest_vmss.errors import (
    CapacityError,
    CheckpointError,
    ConflictError,
    HostError,
    HypervisorError,
    InterruptedOperationError,
    ModelError,
    NotFoundError,
    ProvisioningError,
    UpgradeError,
)
from pytest_vmss.guest.cloud_init import CloudInitResult
from pytest_vmss.operations import Restart
from pytest_vmss.report.tables import upgrade_summary
from pytest_vmss.simulation.clock import VirtualClock
from pytest_vmss.simulation.guest import Behaviour, SimulatedGuest
from pytest_vmss.simulation.hypervisor import SimulatedHypervisor
from pytest_vmss.store import CheckpointRecord, DetachedDiskRecord, OperationRecord
from tests.models import LOAD_BALANCER, custom_script, web_model
from tests.simulation.conftest import SimulatedLab


@pytest.fixture
def web(lab: SimulatedLab) -> ScaleSet:
    lab.publish("1.0.0")
    return lab.create(web_model(automatic=False), load_balancer=LOAD_BALANCER)


def seen(web: ScaleSet) -> list[tuple[Any, ...]]:
    """What may not differ after a restore."""
    return [
        (
            i.name, i.record.uuid, i.record.mac, i.record.address, i.image_version, i.boot_id,
            i.generation.host_key, i.generation.extensions, i.latest_model_applied,
            {lun: path.read_text() for lun, path in i.data_disks.items()},
        )
        for i in web
    ]  # fmt: skip


def write_data(web: ScaleSet, text: str) -> None:
    """What guests write on their data disks."""
    for instance in web:
        for path in instance.data_disks.values():
            path.write_text(f"{text} of {instance.name}")


def serving(lab: SimulatedLab, web: ScaleSet) -> list[str]:
    members = lab.balancers[web.record.unique_id].members
    return sorted(name for name, in_service in members.items() if in_service)


def events(lab: SimulatedLab, kind: str) -> list[str]:
    return [event.message for event in lab.store.events() if event.kind == kind]


@pytest.mark.parametrize("behaviour", [Behaviour.GOOD, Behaviour.UNHEALTHY])
def test_as_it_was_before_the_bad_image(
    lab: SimulatedLab, web: ScaleSet, behaviour: Behaviour
) -> None:
    write_data(web, "before")
    web.checkpoint()
    assert web.is_healthy()
    before = seen(web)
    lab.publish("1.1.0", behaviour)
    web.upgrade()
    write_data(web, "after")
    web.restore()
    assert seen(web) == before
    assert web.is_healthy()
    assert serving(lab, web) == ["web_0", "web_1", "web_2"]
    assert set(lab.executions.values()) == {1}
    lab.publish("1.2.0")
    assert web.upgrade().completed
    assert [i.image_version for i in web] == ["1.2.0"] * 3
    web.restart()
    assert web.is_healthy()


def test_again_and_again_and_to_any_of_several(lab: SimulatedLab, web: ScaleSet) -> None:
    """A checkpoint of a restored set, whose disks are layers already, is as good."""
    write_data(web, "first")
    web.checkpoint("first")
    first = seen(web)
    lab.publish("1.1.0")
    web.upgrade()
    write_data(web, "second")
    web.checkpoint("second")
    second = seen(web)
    assert web.checkpoints == ["first", "second"]
    for name, state in (("first", first), ("second", second), ("second", second)):
        web.restore(name)
        assert seen(web) == state
        write_data(web, "else")
    web.restore("first")
    web.checkpoint("third")
    web.restore("second")
    web.restore("third")
    assert seen(web) == first
    for instance in web:
        folder = instance.os_disk.parent
        assert [path.name for path in folder.glob("os-*")] == [instance.os_disk.name]


def test_instances_come_back_and_go(lab: SimulatedLab, web: ScaleSet) -> None:
    """A2, D8: as after a repair or an upgrade by maxSurge, which replace instances."""
    write_data(web, "before")
    web.checkpoint()
    before, handle = seen(web), web[0]
    web.delete_instances([1])
    web.scale(4)
    other = lab.create(web_model("other"), load_balancer=LOAD_BALANCER)  # takes the address
    assert [i.instance_id for i in web] == ["0", "2", "3", "4"]
    web.restore()
    taken = {i.record.address for i in other}
    assert [(*row[:3], *row[4:]) for row in seen(web)] == [(*row[:3], *row[4:]) for row in before]
    assert not taken & {i.record.address for i in web}
    assert len(web) == web.model.sku.capacity == 3
    assert serving(lab, web) == ["web_0", "web_1", "web_2"]
    assert str(handle.health()) == "Healthy"
    assert web.resume() is None
    assert other.is_healthy()


def test_a_detached_data_disk_is_kept_also_if_its_instance_comes_back_and_goes(
    lab: SimulatedLab,
) -> None:
    """A2: each time that the instance is deleted, what was on the disk then is kept."""
    lab.publish("1.0.0")
    model = web_model(automatic=False)
    disk = model["properties"]["virtualMachineProfile"]["storageProfile"]["dataDisks"][0]
    disk["deleteOption"] = "Detach"
    web = lab.create(model, load_balancer=LOAD_BALANCER)
    web.checkpoint()
    for text in ("first", "second", "third"):
        write_data(web, text)
        web.delete_instances([1])
        web.restore()
    kept = [Path(record.path) for record in lab.store.select(DetachedDiskRecord)]
    assert sorted(path.read_text() for path in kept) == [
        "first of web_1", "second of web_1", "third of web_1",
    ]  # fmt: skip
    assert len(list(kept[0].parent.iterdir())) == 3


def test_the_model_goes_back_too(web: ScaleSet) -> None:
    """H3: and an extension that came later is not there any more."""
    web.checkpoint()
    before = seen(web)
    disks = web_model()["properties"]["virtualMachineProfile"]["storageProfile"]["dataDisks"]
    more = {
        "extensionProfile": {"extensions": [custom_script("more", settings={"commandToExecute": "true"})]},
        "storageProfile": {"dataDisks": [*disks, {"lun": 5, "createOption": "Empty", "diskSizeGB": 1}]},
    }  # fmt: skip
    web.update({"sku": {"name": "Standard_B1s"}, "virtualMachineProfile": more})
    web.update_instances()
    assert all(set(i.data_disks) == {0, 5} for i in web)
    late = [i.data_disks[5] for i in web]
    web.restore()
    assert seen(web) == before
    assert web.model.sku.name == web_model()["sku"]["name"]
    assert [i.latest_model_applied for i in web] == [True] * 3
    assert not any(path.exists() for path in late)
    web.update({"virtualMachineProfile": more})
    web.update_instances()
    assert all(set(i.data_disks) == {0, 5} for i in web)


def test_an_instance_that_was_behind_is_behind_again(web: ScaleSet) -> None:
    """C9."""
    more = {
        "extensionProfile": {
            "extensions": [custom_script("more", settings={"commandToExecute": "true"})]
        }
    }
    web.update({"upgradePolicy": {"mode": "Manual"}, "virtualMachineProfile": more})
    web.update_instances([1])
    web.checkpoint()
    web.update_instances()
    web.restore()
    assert [i.latest_model_applied for i in web] == [False, True, False]


def test_a_version_that_was_tried_is_not_tried_again_by_itself(lab: SimulatedLab) -> None:
    """C1: publications and the history are none of the set."""
    web = lab.start_web()
    web.checkpoint()
    lab.roll(web, "1.1.0")
    web.restore()
    lab.run_due()
    assert [i.image_version for i in web] == ["1.0.0"] * 3
    assert "was tried already" in lab.rollouts.why_not("web")
    assert lab.roll(web, "1.2.0").completed


def test_stopped_and_failed_instances_are_restored(lab: SimulatedLab, web: ScaleSet) -> None:
    web.checkpoint()
    before = seen(web)
    web.stop([0])
    lab.publish("1.1.0", Behaviour.PANICS)
    with pytest.raises(ConflictError, match=r"web_0 has none to save \(it is stopped\)"):
        web.checkpoint()
    web.upgrade()
    web.restore()
    assert seen(web) == before
    assert {i.record.power for i in web} == {"running"}
    assert {i.record.provisioning for i in web} == {"Succeeded"}
    assert web.is_healthy()


def test_what_cannot_be_is_refused_and_nothing_changes(
    lab: SimulatedLab, web: ScaleSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q1: in words."""
    operations = len(lab.store.select(OperationRecord))
    with pytest.raises(NotFoundError, match=r"has no checkpoint \(there are: none\)"):
        web.restore()
    with pytest.raises(ModelError, match="name: must be a text"):
        web.checkpoint(7)  # type: ignore[arg-type]
    with monkeypatch.context() as patched:
        usage = type("Usage", (), {"free": 2**20})()
        patched.setattr("pytest_vmss.api.set_checkpoints.shutil.disk_usage", lambda _: usage)
        with pytest.raises(CapacityError, match=r"needs .* MiB of disk"):
            web.checkpoint()
    empty = lab.create(web_model("empty", capacity=0), load_balancer=LOAD_BALANCER)
    with pytest.raises(ConflictError, match="no instances"):
        empty.checkpoint()
    assert len(lab.store.select(OperationRecord)) == operations + 1
    web.checkpoint("a")
    with pytest.raises(NotFoundError, match=r"no checkpoint 'b' \(there are: 'a'\)"):
        web.restore("b")
    before = seen(web)
    web.delete_instances([1])
    lab.room = len(lab.simulated.defined)
    with pytest.raises(CapacityError, match="do not fit"):
        web.restore("a")
    lab.room = 100
    (record,) = lab.store.select(CheckpointRecord)
    frozen = CheckpointFiles(lab.paths.checkpoint(record.name)).data_disk(2, 0)
    hidden = frozen.rename(frozen.with_suffix(".hidden"))
    with pytest.raises(HostError, match=r"nothing was changed: .* is not there"):
        web.restore("a")
    assert len(web) == 2
    assert web.unfinished is None
    hidden.rename(frozen)
    web.restore("a")
    assert seen(web) == before


def test_what_is_unfinished_ends_with_a_restore(web: ScaleSet) -> None:
    """Q1: of a set that is half done there is no checkpoint."""
    web.checkpoint()
    before = seen(web)
    web._engine.open(Restart([0]))
    with pytest.raises(UpgradeError, match="was interrupted"):
        web.checkpoint()
    web.restore()
    assert web.unfinished is None
    assert seen(web) == before


@pytest.mark.parametrize("surge", [False, True])
def test_an_upgrade_in_the_middle_is_stopped(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch, surge: bool
) -> None:
    """Wherever it is: with an instance on its new OS disk, or with a replacement."""
    lab.publish("1.0.0")
    web = lab.create(
        web_model(policy={"maxSurge": surge, "maxBatchInstancePercent": 50}),
        load_balancer=LOAD_BALANCER,
    )
    write_data(web, "before")
    web.checkpoint()
    before, inside = seen(web), threading.Event()
    real = SimulatedGuest.wait_cloud_init

    def slow(self: SimulatedGuest) -> CloudInitResult:
        inside.set()
        for _ in range(2000):
            self._clock.sleep(0.01)
            time.sleep(0.01)
        return real(self)

    lab.watch()
    with monkeypatch.context() as patched:
        patched.setattr(SimulatedGuest, "wait_cloud_init", slow)
        lab.publish("1.1.0")
        assert inside.wait(20)
        web.restore()
    assert seen(web) == before
    assert web.is_healthy()
    assert [i.name for i in web] == serving(lab, web)
    (upgrade,) = web.history()
    assert upgrade.record.status == "Cancelled"
    assert upgrade.record.reason == "the set is restored"
    lab.publish("1.2.0")
    assert web.wait_for_upgrade().record.reason == "the set is restored"
    assert web.wait_for_upgrade().completed


def overwrite(file: Path) -> None:
    """Damages the beginning of a file, which keeps its length."""
    file.chmod(0o600)
    with file.open("r+b") as opened:
        opened.write(b"\0" * 4)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [(Path.unlink, "is not there"), (overwrite, "is damaged")],
    ids=["gone", "damaged"],
)
def test_memory_that_cannot_be_restored_boots_on_the_restored_disks(
    lab: SimulatedLab, web: ScaleSet, spoil: Callable[[Path], None], why: str
) -> None:
    """Q1: QEMU would run whatever is there."""
    write_data(web, "before")
    web.checkpoint()
    disks = [row[-1] for row in seen(web)]
    (record,) = lab.store.select(CheckpointRecord)
    spoil(CheckpointFiles(lab.paths.checkpoint(record.name)).memory(1))
    lab.publish("1.1.0")
    web.upgrade()
    write_data(web, "after")
    web.restore()
    assert web.is_healthy()
    assert [i.image_version for i in web] == ["1.0.0"] * 3
    assert [row[-1] for row in seen(web)] == disks
    (told,) = [message for message in events(lab, "warning") if "boots instead" in message]
    assert why in told
    assert set(lab.executions.values()) == {1}


@pytest.mark.parametrize("file", ["1-os.qcow2", "1-lun0.qcow2", "1-seed.iso"])
@pytest.mark.parametrize("cut", [False, True])
def test_a_disk_that_was_damaged_since_is_not_restored(
    lab: SimulatedLab, web: ScaleSet, file: str, cut: bool
) -> None:
    """Q1: there is no other, so nothing is changed; once it is back, it is as good as ever."""
    web.checkpoint()
    before = seen(web)
    (record,) = lab.store.select(CheckpointRecord)
    frozen = lab.paths.checkpoint(record.name) / file
    content = frozen.read_bytes()
    overwrite(frozen)
    if cut:
        frozen.write_bytes(content[:3])
    told = "has 3 bytes, not" if cut else "is damaged: it begins otherwise"
    with pytest.raises(HostError, match=f"nothing was changed: .*{file} {told}"):
        web.restore()
    assert web.unfinished is None
    assert web.is_healthy()
    assert seen(web) == before
    frozen.write_bytes(content)
    web.restore()
    assert seen(web) == before


@pytest.mark.parametrize("failing", [1, 2, 4, 6])
def test_disks_that_are_half_put_back_are_put_back_before_it_boots(
    web: ScaleSet, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Q1: what libvirt refuses may leave any of an instance's files missing."""
    write_data(web, "before")
    web.checkpoint()
    before, calls, real = seen(web), itertools.count(1), SimulatedHypervisor.create_layer
    write_data(web, "after")

    def refuse(self: SimulatedHypervisor, path: Path, frozen: Path) -> None:
        if next(calls) == failing:
            raise HypervisorError("libvirt refuses")
        real(self, path, frozen)

    with monkeypatch.context() as patched:
        patched.setattr(SimulatedHypervisor, "create_layer", refuse)
        web.restore()
    assert web.unfinished is None
    assert web.is_healthy()
    assert [row[-1] for row in seen(web)] == [row[-1] for row in before]
    web.restore()
    assert seen(web) == before


def test_a_clock_that_is_set_back_reorders_no_checkpoints(
    web: ScaleSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q2: of two of one name, as a kill can leave them, the later one counts."""
    web.checkpoint("first")
    write_data(web, "one")
    web.checkpoint("again")
    real = VirtualClock.now
    monkeypatch.setattr(VirtualClock, "now", lambda self: real(self) - timedelta(days=1))
    drop = "pytest_vmss.api.set_checkpoints.drop_checkpoints"
    monkeypatch.setattr(drop, lambda *_: None)  # killed before it
    write_data(web, "two")
    web.checkpoint("again")
    web.checkpoint("last")
    before = seen(web)
    write_data(web, "three")
    web.restore("again")
    assert [row[-1] for row in seen(web)] == [row[-1] for row in before]
    assert web.checkpoints == ["first", "again", "last"]


def test_a_set_that_cannot_be_saved_keeps_its_earlier_checkpoint(
    lab: SimulatedLab, web: ScaleSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.checkpoint()
    before = seen(web)
    real = SimulatedHypervisor.restore
    with monkeypatch.context() as patched:
        patched.setattr(
            SimulatedHypervisor,
            "restore",
            lambda self, machine, memory: real(
                self, machine, memory.with_name("gone") if machine.name.endswith("_1") else memory
            ),
        )
        told = r"web_1 could not be saved; the set's events .* The earlier one without a name, of"
        with pytest.raises(CheckpointError, match=told):
            web.checkpoint()
        with pytest.raises(CheckpointError, match=r"what became of it$"):
            web.checkpoint("another")
    remark = "no checkpoint was made, for web_1 could not be saved"
    assert events(lab, "end")[-1] == f"Completed: {remark}"
    ended = web._engine.journal.operations()[-1]
    assert remark in str(upgrade_summary(web._engine.journal.report(ended.id)))
    assert web.is_healthy()
    assert len(lab.store.select(CheckpointRecord)) == 1
    web.restore()
    assert seen(web) == before


def test_an_instance_that_neither_goes_on_nor_boots_is_told_with_its_evidence(
    lab: SimulatedLab, web: ScaleSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E5: that it was not saved is the least of it."""

    def refuse(*_: object) -> None:
        raise HypervisorError("libvirt refuses")

    with monkeypatch.context() as patched:
        patched.setattr(SimulatedHypervisor, "restore", refuse)
        patched.setattr(SimulatedHypervisor, "start", refuse)
        with pytest.raises(ProvisioningError, match=r"3 of 3 instances .* failed to checkpoint"):
            web.checkpoint()
    assert {i.record.provisioning for i in web} == {"Failed"}
    assert lab.store.select(CheckpointRecord) == []
    assert list(lab.paths.folder.rglob("*-memory")) == []
    web.restart()  # nothing else is wrong with it
    assert web.is_healthy()
    assert {i.record.provisioning for i in web} == {"Succeeded"}


@pytest.mark.parametrize("failing", ["save", "wake"])
def test_what_runs_but_cannot_be_saved_shuts_down_before_it_boots_again(
    web: ScaleSet, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """A5: what its guests have not written to their disks yet is not lost."""
    cut: list[str] = []

    def refuse(*_: object) -> None:
        raise HypervisorError("libvirt refuses")

    with monkeypatch.context() as patched:
        owner = SimulatedHypervisor if failing == "save" else SimulatedGuest
        patched.setattr(owner, failing, refuse)
        patched.setattr(SimulatedHypervisor, "power_off", lambda _, name: cut.append(name))
        with pytest.raises(CheckpointError, match="could not be saved; the set"):
            web.checkpoint()
    assert cut == []
    assert web.is_healthy()


def test_a_restore_ends_with_what_an_interrupted_checkpoint_left(
    lab: SimulatedLab, web: ScaleSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q1, L5: its record and its memory; if they cannot be removed, a resume does it."""
    web.checkpoint()

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("pytest_vmss.steps.checkpoint.sync_folder", fail)
        with pytest.raises(InterruptedOperationError):
            web.checkpoint("other")
    assert len(list(lab.paths.folder.rglob("*-memory"))) == 6
    with monkeypatch.context() as patched:
        patched.setattr("pytest_vmss.operations.checkpoint.drop_checkpoints", fail)
        with pytest.raises(InterruptedOperationError, match="resume web"):
            web.restore()
    assert web.resume() is None
    assert len(list(lab.paths.folder.rglob("*-memory"))) == 3
    assert len(lab.store.select(CheckpointRecord)) == 1
    web.restore()
    assert web.is_healthy()


def test_one_of_the_same_name_replaces_it_and_all_go_with_the_set(
    lab: SimulatedLab, web: ScaleSet
) -> None:
    web.checkpoint("a")
    lab.publish("1.1.0")
    web.upgrade()
    web.checkpoint("a")
    assert web.checkpoints == ["a"]
    assert len(list(lab.paths.folder.rglob("*-memory"))) == 3
    web.restore("a")
    assert [i.image_version for i in web] == ["1.1.0"] * 3
    web.delete()
    assert list(lab.paths.checkpoint("any").parent.iterdir()) == []
    assert lab.store.select(CheckpointRecord) == []
    again = lab.create(web_model(automatic=False), load_balancer=LOAD_BALANCER)
    assert again.checkpoints == []


def test_the_image_of_a_checkpoint_stays_as_long_as_it_does(
    lab: SimulatedLab, web: ScaleSet
) -> None:
    """B1: although nobody else is based on it, and it is published no more."""
    web.checkpoint()
    image = lab.paths.images / f"{web[0].generation.digest}.qcow2"
    lab.publish("1.1.0")
    web.upgrade()
    lab.gallery().delete("web", "1.0.0")
    lab.publish("1.2.0")
    lab.gallery().delete("web", "1.2.0")
    assert image.is_file()
    web.restore()
    assert [i.image_version for i in web] == ["1.0.0"] * 3


def test_uefi_variables_are_put_back(lab: SimulatedLab) -> None:
    """O5: of an image of generation 2."""
    lab.gallery().define("web", hyper_v_generation="V2")
    lab.publish("1.0.0")
    web = lab.create(web_model(automatic=False), load_balancer=LOAD_BALANCER)
    web.checkpoint()
    lab.publish("1.1.0")
    web.upgrade()
    web.restore()
    assert web.is_healthy()
    for instance in web:
        folder = instance.os_disk.parent
        number = instance.record.generation
        assert [path.name for path in folder.glob("nvram-*")] == [f"nvram-{number}.fd"]
