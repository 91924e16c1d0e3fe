"""L1: sets restored from checkpoints are as good as sets that were booted, and nothing hangs on it."""

from __future__ import annotations

import base64
import contextlib
import errno
import gzip
import json
import os
from collections.abc import Callable, Iterator
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from pytest_vmss.api.checkpoints import Checkpoints
from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.checkpoints import CheckpointCache, CheckpointFiles, obstacle_to
from pytest_vmss.checkpoints import cache as cache_module
from pytest_vmss.engine.engine import Engine
from pytest_vmss.errors import (
    HypervisorError,
    InterruptedOperationError,
    LabError,
    ModelError,
    ProvisioningError,
)
from pytest_vmss.guest.extensions import CustomScript, find_handler, register
from pytest_vmss.host.files import sync_folder
from pytest_vmss.host.locks import Lock, try_lock, wait_for_lock
from pytest_vmss.journal.report import OperationReport
from pytest_vmss.model import load_document
from pytest_vmss.model.image_version import ImageVersionRef
from pytest_vmss.settings import Settings
from pytest_vmss.simulation.guest import Behaviour
from pytest_vmss.simulation.hypervisor import SimulatedHypervisor
from pytest_vmss.steps import (
    AwaitHealth,
    ProveBoot,
    RestoreMemory,
    Start,
    Stop,
    SyncFiles,
    Undrain,
)
from pytest_vmss.store import OperationRecord, Outcome, Store
from tests.models import LOAD_BALANCER, custom_script, web_model
from tests.simulation.conftest import SimulatedLab
from tests.simulation.kills import Killed


@pytest.fixture
def cache(settings: Settings) -> CheckpointCache:
    return CheckpointCache(settings.cache_dir / "checkpoints", 2**30)


@pytest.fixture
def other(settings: Settings) -> Iterator[SimulatedLab]:
    """Another session's lab."""
    simulated = SimulatedLab.session(settings)
    simulated.publish("1.0.0")
    yield simulated
    simulated.destroy()


@pytest.fixture(autouse=True)
def published(lab: SimulatedLab) -> None:
    lab.publish("1.0.0")


def cannot_be_saved(*_: object) -> None:
    raise HypervisorError("web_0 cannot be saved")


def create(lab: SimulatedLab, model: dict[str, Any] | None = None, **options: Any) -> ScaleSet:
    options.setdefault("pristine", True)
    return lab.create(model or web_model(), load_balancer=LOAD_BALANCER, **options)


def steps(lab: SimulatedLab, web: ScaleSet) -> set[str]:
    """The phases of all operations on a set."""
    operations = web._engine.journal.operations()
    return {step.phase for record in operations for step in lab.store.steps(record.id)}


def events(lab: SimulatedLab, kind: str) -> list[str]:
    return [event.message for event in lab.store.events() if event.kind == kind]


def test_the_first_set_is_booted_and_the_next_are_restored(
    lab: SimulatedLab, other: SimulatedLab
) -> None:
    """In another lab too, with the same boot, host key and results, and nothing run again."""
    first = create(lab)
    assert steps(lab, first) == {"create", "checkpoint"}
    assert first.is_healthy()
    ran = dict(lab.executions)
    known = [(i.generation.boot_id, i.generation.host_key, i.record.mac) for i in first]
    first.delete()
    second = create(lab)
    for where, web in ((lab, second), (other, create(other))):
        assert steps(where, web) == {"restore"}
        assert web.is_healthy()
        assert len(web) == 3
        assert [i.image_version for i in web] == ["1.0.0"] * 3
        assert [(i.generation.boot_id, i.generation.host_key, i.record.mac) for i in web] == known
        assert all(i.extensions[0].status == "success" for i in web)
        assert all(i.latest_model_applied for i in web)
        assert all(Path(i.generation.ssh_key).is_file() for i in web)
    assert lab.executions == ran
    assert other.executions == {}
    assert {i.record.uuid for i in second} & {
        i.record.uuid for i in other.scale_set("web")
    } == set()


@pytest.mark.parametrize("behaviour", [Behaviour.GOOD, Behaviour.UNHEALTHY])
def test_a_restored_set_is_upgraded_and_rolled_back(
    lab: SimulatedLab, other: SimulatedLab, behaviour: Behaviour
) -> None:
    create(lab)
    web = create(other)
    data = {path: path.read_bytes() for i in web for path in i.data_disks.values()}
    upgrade = other.roll(web, "1.1.0", behaviour)
    good = behaviour is Behaviour.GOOD
    assert upgrade.completed is good
    assert {i.image_version for i in web} == ({"1.1.0"} if good else {"1.0.0"})
    assert web.is_healthy()
    assert {path: path.read_bytes() for path in data} == data
    assert all((i.generation.ssh_key == "") is good for i in web)
    web.restart()
    assert web.is_healthy()


def test_what_an_extension_update_sees_of_a_restored_set(
    lab: SimulatedLab, other: SimulatedLab
) -> None:
    """H3: an extension that ran before the checkpoint is not due again."""
    create(lab)
    web = create(other)
    model = web_model()["properties"]["virtualMachineProfile"]["extensionProfile"]["extensions"]
    change = [*model, custom_script("more", settings={"commandToExecute": "true"})]
    web.update({"virtualMachineProfile": {"extensionProfile": {"extensions": change}}})
    web.update_instances()
    assert {what for _, _, what in other.executions} == {"more"}


def test_any_difference_that_guests_can_see_is_another_checkpoint(
    lab: SimulatedLab, cache: CheckpointCache
) -> None:
    create(lab).delete()
    assert len(cache.entries()) == 1
    models = [web_model(capacity=2), web_model("api"), web_model(), web_model()]
    models[2]["sku"]["name"] = "Standard_B1s"
    profile = models[3]["properties"]["virtualMachineProfile"]
    profile["extensionProfile"]["extensions"][0]["properties"]["settings"] = {
        "commandToExecute": "true"
    }
    for count, model in enumerate(models, 2):
        web = create(lab, model)
        assert "create" in steps(lab, web)
        assert len(cache.entries()) == count
        web.delete()
    lab.publish("1.0.1")
    assert "create" in steps(lab, create(lab))


def test_what_guests_cannot_see_is_no_difference(lab: SimulatedLab) -> None:
    create(lab).delete()
    other = web_model(automatic=False, policy={"maxBatchInstancePercent": 50})
    web = create(lab, other)
    assert steps(lab, web) == {"restore"}
    policy = web.model.upgrade_policy.rolling_upgrade_policy
    assert policy is not None
    assert policy.max_batch_instance_percent == 50


@pytest.mark.parametrize("damage", ["memory", "os disk", "no memory"])
def test_what_cannot_be_restored_boots_and_is_made_anew(
    lab: SimulatedLab,
    other: SimulatedLab,
    cache: CheckpointCache,
    damage: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create(lab)
    (entry,) = cache.entries()
    real = SimulatedHypervisor.restore
    if damage == "no memory":
        files = CheckpointFiles(lab.settings.cache_dir / "checkpoints" / entry.key)
        files.memory(1).unlink()
    else:

        def restore(self: SimulatedHypervisor, machine: Any, memory: Path) -> None:
            if machine.name.endswith("_1"):
                memory = memory.with_name("gone") if damage == "memory" else memory
                if damage == "os disk":
                    machine.os_disk.unlink()
            real(self, machine, memory)

        monkeypatch.setattr(SimulatedHypervisor, "restore", restore)
    web = create(other)
    assert web.is_healthy()
    assert [bool(i.generation.ssh_key) for i in web] == [True, False, True]
    told = [e.instance_id for e in other.store.events() if "boots instead" in e.message]
    assert told == [1]
    assert cache.entries() == []
    monkeypatch.undo()
    assert "create" in steps(other, create(other, web_model("web2")))


def test_an_instance_that_cannot_be_saved_is_booted_again(
    lab: SimulatedLab, cache: CheckpointCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It loses nothing, and there is no checkpoint."""
    real = SimulatedHypervisor.restore
    monkeypatch.setattr(
        SimulatedHypervisor,
        "restore",
        lambda self, machine, memory: real(self, machine, memory.with_name("gone")),
    )
    web = create(lab)
    assert web.is_healthy()
    assert steps(lab, web) == {"create", "checkpoint", "boot again"}
    assert cache.entries() == []
    assert sum("boots again" in message for message in events(lab, "warning")) == 3
    assert {what: times for (_, _, what), times in lab.executions.items()} == {
        "custom data": 1, "register": 1,
    }  # fmt: skip


def test_sets_that_cannot_be_saved_are_not_tried_and_wait_for_none(
    lab: SimulatedLab,
    other: SimulatedLab,
    settings: Settings,
    cache: CheckpointCache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """L4: they boot beside each other, and are tried again once that may have changed."""

    def refuse(*_: object) -> None:
        raise HypervisorError("web_0 cannot be saved: it has host devices")

    monkeypatch.setattr(SimulatedHypervisor, "save", refuse)
    create(lab).delete()
    monkeypatch.undo()
    (entry,) = (path for path in (settings.cache_dir / "checkpoints").glob(".*.refused"))
    key = entry.name.split(".")[1]
    with cache.being_made(key, wait=0):  # by a process that does not end
        web = create(other)
    assert steps(other, web) == {"create"}
    (told,) = (message for message in events(other, "warning") if "could not be saved" in message)
    assert told.startswith(
        "boots: such a set could not be saved, which is tried again after an hour"
    )
    assert told.endswith("web_0 cannot be saved: it has host devices")
    long_ago = entry.stat().st_mtime - 3601
    os.utime(entry, (long_ago, long_ago))
    web.delete()
    web = create(other)
    assert steps(other, web) == {"create", "checkpoint"}
    assert len(cache.entries()) == 1
    cache.prune()
    assert not entry.exists()


def test_who_waited_for_a_set_that_cannot_be_saved_boots_beside_the_others(
    lab: SimulatedLab, cache: CheckpointCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L4: nobody behind it waits for it."""
    create(lab).delete()
    (entry,) = cache.entries()
    cache.prune()
    real, free = CheckpointCache.being_made, list[bool]()

    @contextlib.contextmanager
    def being_made(self: CheckpointCache, key: str, *, wait: float) -> Iterator[None]:
        with real(self, key, wait=wait):
            cache.note_refusal(key, "another's")  # by whom this one waited for
            yield

    def run(self: Engine, operation: str) -> OperationReport:
        lock = try_lock(cache._folder / f".{entry.key}.lock")
        free.append(lock is not None)
        if lock is not None:
            lock.remove()
        return run_for_real(self, operation)

    run_for_real = Engine.run
    monkeypatch.setattr(CheckpointCache, "being_made", being_made)
    monkeypatch.setattr(Engine, "run", run)
    assert steps(lab, create(lab)) == {"create"}
    assert free == [True]


@pytest.mark.parametrize("failing", ["restore", "keep", ""])
def test_a_set_has_no_more_use_for_the_memory_that_was_saved(
    lab: SimulatedLab, cache: CheckpointCache, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """It is as large as the set's guests, and would stay as long as the set does."""
    real = SimulatedHypervisor.restore

    def restore(self: SimulatedHypervisor, machine: Any, memory: Path) -> None:
        if machine.name.endswith("_1"):
            raise HypervisorError("refused")
        real(self, machine, memory)

    def keep(*_: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    with monkeypatch.context() as patched:
        if failing == "restore":
            patched.setattr(SimulatedHypervisor, "restore", restore)
        elif failing == "keep":
            patched.setattr(CheckpointCache, "keep", keep)
        web = create(lab)
    assert list(lab.paths.folder.rglob("*-memory")) == []
    assert len(cache.entries()) == (0 if failing else 1)
    web.restart()
    assert web.is_healthy()
    web.delete()
    assert steps(lab, create(lab)) == ({"create", "checkpoint"} if failing else {"restore"})


@pytest.mark.parametrize("killed", [False, True])
def test_a_set_that_was_restored_keeps_no_memory_that_the_cache_may_drop(
    lab: SimulatedLab,
    other: SimulatedLab,
    cache: CheckpointCache,
    monkeypatch: pytest.MonkeyPatch,
    killed: bool,
) -> None:
    """L5: what a prune says to have removed is free."""
    create(lab)

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched, contextlib.ExitStack() as killing:
        if killed:
            patched.setattr(Checkpoints, "check", kill)
            killing.enter_context(pytest.raises(Killed))
        create(other)
    web = other.scale_set("web")
    assert web.resume() is None
    assert steps(other, web) == {"restore"}
    assert list(other.paths.folder.rglob("*-memory")) == []
    assert len(cache.entries()) == 1
    cache.prune()
    web.restart()
    assert web.is_healthy()


def test_the_memory_of_a_checkpoint_that_was_interrupted_goes_with_a_resume(
    lab: SimulatedLab, cache: CheckpointCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q1, L5: whoever was to put it into the cache is gone."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("pytest_vmss.steps.checkpoint.sync_folder", fail)
        with pytest.raises(InterruptedOperationError):
            create(lab)
    web = lab.scale_set("web")
    assert len(list(lab.paths.folder.rglob("*-memory"))) == 3
    web.resume()
    assert list(lab.paths.folder.rglob("*-memory")) == []
    assert cache.entries() == []
    assert web.is_healthy()
    web.restart()
    assert web.is_healthy()


def test_the_memory_of_a_checkpoint_whose_maker_was_killed_goes_with_a_resume(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L5: also if the operation had ended."""

    with monkeypatch.context() as patched:

        def kill(*_: object, **__: object) -> None:
            patched.setattr(Path, "unlink", kill)  # nothing of the dead process cleans up
            raise Killed

        patched.setattr(Checkpoints, "_keep", kill)
        with pytest.raises(Killed):
            create(lab)
    assert len(list(lab.paths.folder.rglob("*-memory"))) == 3
    assert lab.scale_set("web").resume() is None
    assert list(lab.paths.folder.rglob("*-memory")) == []


@pytest.mark.parametrize("refused", [False, True])
def test_a_lock_that_cannot_be_removed_fails_no_creation(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    """Q1: the set is there by then, and the lock is released."""
    real = Lock.remove

    def remove(self: Lock) -> None:
        if len(self.path.name) > len(".lock"):
            self.release()
            raise OSError(errno.EROFS, "Read-only file system")
        real(self)

    monkeypatch.setattr(Lock, "remove", remove)
    if refused:
        monkeypatch.setattr(SimulatedHypervisor, "save", cannot_be_saved)
    assert create(lab).is_healthy()


def test_notes_of_sets_that_could_not_be_saved_do_not_pile_up(
    lab: SimulatedLab, settings: Settings, cache: CheckpointCache
) -> None:
    """L5: those that count no more go with the next, and with a checkpoint."""
    create(lab)
    (entry,) = cache.entries()
    folder = settings.cache_dir / "checkpoints"
    foreign = folder / ".mine.refused"
    foreign.mkdir()
    for key in ("0" * 32, "1" * 32, entry.key):
        cache.note_refusal(key, "why")
    old = folder / f".{'0' * 32}.refused"
    os.utime(old, (0, 0))
    cache.note_refusal("2" * 32, "why")
    assert not old.exists()
    assert cache.refusal("1" * 32) == "why"
    (source,) = lab.paths.checkpoint("any").parent.iterdir()
    cache.keep(entry.key, source)
    assert cache.refusal(entry.key) == ""
    cache.prune()
    assert {path.name for path in folder.iterdir()} == {".lock", ".mine.refused"}


def test_what_others_may_have_noted_is_not_told(
    lab: SimulatedLab, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R3: in a folder to which they can write; the set is booted, and its event says why."""
    with monkeypatch.context() as patched:
        patched.setattr(SimulatedHypervisor, "save", cannot_be_saved)
        create(lab).delete()
    (noted,) = (settings.cache_dir / "checkpoints").glob(".*.refused")
    noted.write_text("a stranger's word")
    noted.parent.chmod(0o777)
    assert create(lab).is_healthy()
    told = events(lab, "warning")[-1]
    assert told.startswith("boots: its checkpoint cannot be used: PermissionError")
    assert "stranger" not in told
    noted.parent.chmod(0o700)


def test_what_fails_after_a_checkpoint_was_kept_is_told_as_what_it_is(
    lab: SimulatedLab, cache: CheckpointCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q1: of older checkpoints; and one that is not kept is not there."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(CheckpointCache, "_shrink", fail)
        create(lab).delete()
    assert len(cache.entries()) == 1
    assert events(lab, "warning") == [
        "older checkpoints cannot be removed from the cache: OSError: [Errno 5] Input/output error"
    ]
    cache.prune()

    def fail_in_cache(folder: Path) -> None:
        if folder == cache._folder:
            fail()
        sync_folder(folder)

    monkeypatch.setattr("pytest_vmss.checkpoints.cache.sync_folder", fail_in_cache)
    create(lab)
    assert cache.entries() == []
    assert "its checkpoint cannot be kept" in events(lab, "warning")[-1]


def test_a_checkpoint_that_cannot_be_read_for_now_is_not_dropped(
    lab: SimulatedLab, other: SimulatedLab, cache: CheckpointCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q1: having no descriptor left says nothing about it, and the creation goes on afterwards."""
    create(lab)

    def refuse(path: Path, limit: int) -> bytes:
        raise OSError(errno.EMFILE, f"Too many open files: {path}, {limit}")

    with monkeypatch.context() as patched:
        patched.setattr("pytest_vmss.checkpoints.files.read_regular", refuse)
        with pytest.raises(InterruptedOperationError, match="Too many open files"):
            create(other)
    assert len(cache.entries()) == 1
    web = other.scale_set("web")
    web.resume()
    assert web.is_healthy()
    assert steps(other, web) == {"restore"}


class Own(CustomScript):
    """A handler of the suite's own."""


def test_what_a_key_cannot_cover_is_booted_and_says_why(
    lab: SimulatedLab, cache: CheckpointCache
) -> None:
    model = web_model()
    extension = model["properties"]["virtualMachineProfile"]["extensionProfile"]["extensions"][0]
    extension["properties"]["settings"]["fileUris"] = ["http://example.org/x.sh"]
    create(lab, model).delete()
    assert events(lab, "warning") == [
        "boots: the extension register downloads files, which may change"
    ]
    shipped = find_handler("Microsoft.Azure.Extensions", "CustomScript")
    try:
        register(Own())
        create(lab).delete()
    finally:
        register(shipped)
    assert "handler of the suite's own" in events(lab, "warning")[1]
    assert cache.entries() == []


def test_a_degraded_boot_is_as_fatal_in_a_checkpoint(
    lab: SimulatedLab, other: SimulatedLab, cache: CheckpointCache
) -> None:
    """H1: what fails when it is booted does not pass when it is restored."""
    for where in (lab, other):
        where.behaviours["1.0.0"] = Behaviour.CLOUD_INIT_DEGRADED
    create(lab)
    other.environment.degraded_is_fatal = True
    with pytest.raises(ProvisioningError, match="degraded, which is fatal here"):
        create(other)
    assert cache.entries() == []


def test_a_cache_that_another_process_holds_harms_no_set(
    lab: SimulatedLab, other: SimulatedLab, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be stopped in mid-link: a set that needs the cache comes up all the same."""
    create(lab)
    folder = settings.cache_dir / "checkpoints"
    monkeypatch.setattr(cache_module, "_LOCK_S", 0.05)
    real = Checkpoints.make

    def make(self: Checkpoints, *made: Any) -> None:
        with wait_for_lock(folder / ".lock", what="tests", timeout=1):
            real(self, *made)

    with wait_for_lock(folder / ".lock", what="tests", timeout=1):
        assert steps(other, create(other)) == {"create"}
    monkeypatch.setattr(Checkpoints, "make", make)
    assert steps(other, create(other, web_model("web2"))) == {"create", "checkpoint"}
    told = events(other, "warning")
    assert len(told) == 2
    assert "cannot be used: ConflictError: another process changes the cache" in told[0]
    assert "cannot be kept: ConflictError: another process changes the cache" in told[1]


def test_a_set_without_instances_has_no_checkpoint(
    lab: SimulatedLab, cache: CheckpointCache
) -> None:
    assert len(create(lab, web_model(capacity=0))) == 0
    assert cache.entries() == []
    assert events(lab, "warning") == []


def test_a_detached_data_disk_keeps_what_it_is_based_on(
    lab: SimulatedLab, other: SimulatedLab
) -> None:
    """A2, A5."""
    model = web_model()
    disk = model["properties"]["virtualMachineProfile"]["storageProfile"]["dataDisks"][0]
    disk["deleteOption"] = "Detach"
    create(lab, model)
    create(other, model).delete()
    (folder,) = other.paths.checkpoint("any").parent.iterdir()
    assert CheckpointFiles(folder).data_disk(2, 0).is_file()


def test_only_who_asks_for_it_is_restored(lab: SimulatedLab, cache: CheckpointCache) -> None:
    create(lab, pristine=False).delete()
    assert cache.entries() == []
    with pytest.raises(ModelError, match="pristine"):
        create(lab, pristine="yes")


def test_the_cache_is_limited_and_can_be_emptied(
    lab: SimulatedLab, other: SimulatedLab, settings: Settings, cache: CheckpointCache
) -> None:
    """The least recently used goes first; labs that use it keep their own files."""
    for name in ("a", "b"):
        create(lab, web_model(name)).delete()
    first, second = cache.entries()
    assert [entry.manifest.scale_set for entry in (first, second) if entry.manifest] == ["a", "b"]
    web = create(other, web_model("a"))  # uses the first again
    assert [entry.key for entry in cache.entries()] == [second.key, first.key]
    assert [entry.key for entry in cache.prune(first.size)] == [second.key]
    assert [entry.key for entry in cache.prune()] == [first.key]
    assert cache.prune() == []
    web.restart()
    assert web.is_healthy()
    small = CheckpointCache(settings.cache_dir / "small", 1)
    (source,) = other.paths.checkpoint("any").parent.iterdir()
    small.keep(first.key, source)
    assert [entry.key for entry in small.entries()] == [first.key]  # the latest always stays


def test_what_a_kill_left_half_linked_is_swept(
    lab: SimulatedLab, other: SimulatedLab, settings: Settings
) -> None:
    create(lab)
    for folder in (settings.cache_dir / "checkpoints", other.paths.checkpoint("any").parent):
        (folder / "0-1.part").mkdir(parents=True)
        (folder / "0-1.part/0-memory").touch()
    create(other)
    assert list(other.paths.folder.rglob("*.part")) == []
    create(lab, web_model("api"))
    assert list(settings.cache_dir.rglob("*.part")) == []


def test_a_checkpoint_that_is_begun_while_others_are_swept_stays(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A5: the disks of instances move into it; another process may have recorded it just now."""
    select, begun = Store.select, lab.paths.checkpoint("begun")

    def late(store: Store, kind: type[Any], *prefix: str | int) -> list[Any]:
        found = select(store, kind, *prefix)
        if kind is OperationRecord and not prefix:
            begun.mkdir(parents=True, exist_ok=True)
        return found

    create(lab)
    monkeypatch.setattr(Store, "select", late)
    create(lab, web_model("api"))
    assert begun.is_dir()


def in_parts(content: str, subtype: str) -> bytes:
    message = MIMEMultipart()
    message.attach(MIMEText("#!/bin/sh\ntrue\n", "x-shellscript"))
    message.attach(MIMEText(content, subtype, "utf-8"))  # in base64
    return message.as_bytes()


@pytest.mark.parametrize(
    ("custom_data", "includes"),
    [
        (b"#include\nhttps://example.org/a\n", True),
        (b"\n#Include-once\nhttps://example.org/a\n", True),
        (gzip.compress(b"#include\nhttps://example.org/a\n"), True),
        (in_parts("https://example.org/a\n", "x-include-url"), True),
        (in_parts("#include\nhttps://example.org/a\n", "plain"), True),
        (gzip.compress(in_parts("https://example.org/a\n", "x-include-once-url")), True),
        (b"#cloud-config-archive\n- type: text/x-include-url\n  content: https://example.org\n", True),
        (b"#cloud-config\nruncmd: [[echo, '#include']]\n", False),
        (b"#!/bin/sh\ncat > a.c << END\n#include <stdio.h>\nEND\n", False),
        (in_parts("#cloud-config\n{}\n", "cloud-config"), False),
        (b"".join(b"Content-Type: multipart/mixed; boundary=%d\n\n--%d\n" % (n, n) for n in range(1000)), True),
        (gzip.compress(bytes(2**26)), False),
        (b"\x1f\x8b no gzip", False),
        (b"", False),
    ],
    # By their own bytes, which hold times and random boundaries, workers would not know them alike.
    ids=[
        "include", "include once", "packed", "part of that type", "part that says so",
        "packed parts", "archive", "words of a command", "a program's text", "part",
        "nested too deep", "packed zeros", "not packed", "empty",
    ],
)  # fmt: skip
def test_custom_data_that_cloud_init_downloads_is_downloaded_each_time(
    custom_data: bytes, includes: bool
) -> None:
    """H1: what is at a URL may change, like the files of an extension."""
    told = base64.b64encode(custom_data).decode()
    model = load_document(web_model(), load_balancer=LOAD_BALANCER, custom_data=told).model
    expected = "its custom data includes files by their URLs, which may change"
    assert obstacle_to(model) == (expected if includes else "")


@pytest.mark.parametrize("error", [LabError("the disk is full"), KeyboardInterrupt(), Killed()])
def test_what_was_linked_for_a_set_that_there_is_not_is_removed(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """M1, M5: it is all the memory of a set, which would stay as long as the lab."""
    create(lab).delete()

    def refuse(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "open", refuse)
        with pytest.raises(type(error)):
            create(lab)
    folder = lab.paths.checkpoint("any").parent
    assert list(folder.iterdir()) == []
    (folder / f"{'0' * 32}.1").mkdir()  # of a process that was killed
    web = create(lab)
    assert steps(lab, web) == {"restore"}
    (used,) = folder.iterdir()
    web.checkpoint()
    create(lab, web_model("api"))
    assert used.is_dir()
    web.restore()
    assert web.is_healthy()


def test_what_is_linked_for_a_set_while_another_is_made_stays(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L4: in one lab too."""
    create(lab).delete()
    create(lab, web_model("api")).delete()
    real = CheckpointCache.take
    between: list[ScaleSet] = []

    def take(self: CheckpointCache, key: str, folder: Path) -> bool:
        taken = real(self, key, folder)
        monkeypatch.undo()
        between.append(create(lab, web_model("api")))
        return taken

    monkeypatch.setattr(CheckpointCache, "take", take)
    web = create(lab)
    assert [steps(lab, found) for found in (web, *between)] == [{"restore"}] * 2
    assert web.is_healthy()


def test_a_checkpoint_that_is_linked_only_half_the_way_is_removed(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q1: a cache that cannot be written."""
    create(lab).delete()

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    with monkeypatch.context() as patched:
        patched.setattr("pytest_vmss.checkpoints.cache.os.utime", refuse)
        assert steps(lab, create(lab)) == {"create"}
    assert list(lab.paths.checkpoint("any").parent.iterdir()) == []


@pytest.mark.parametrize("damage", ["no key", "another's manifest", "an address"])
def test_a_checkpoint_that_restores_no_such_set_boots_and_is_dropped(
    lab: SimulatedLab,
    other: SimulatedLab,
    settings: Settings,
    cache: CheckpointCache,
    damage: str,
) -> None:
    """Without its key no login works; and what is wrong with it reaches no machine."""
    create(lab)
    (entry,) = cache.entries()
    files = CheckpointFiles(settings.cache_dir / "checkpoints" / entry.key)
    told = json.loads(files.manifest.read_text())
    match damage:
        case "no key":
            files.ssh_key.unlink()
        case "another's manifest":
            told["key"] = "0" * 32
        case "an address":
            told["instances"][0].update(mac="'/><x", boot_id="gone")
    files.manifest.write_text(json.dumps(told))
    web = create(other)
    assert web.is_healthy()
    assert not any(i.generation.ssh_key for i in web)
    assert all(i.record.mac.startswith("52:54:00:") for i in web)
    assert len([m for m in events(other, "warning") if "boots instead" in m]) == 3
    assert cache.entries() == []


def test_a_checkpoint_is_dropped_also_where_the_boot_fails(
    lab: SimulatedLab, other: SimulatedLab, settings: Settings, cache: CheckpointCache
) -> None:
    create(lab)
    (entry,) = cache.entries()
    CheckpointFiles(settings.cache_dir / "checkpoints" / entry.key).memory(1).unlink()
    other.behaviours["1.0.0"] = Behaviour.UNHEALTHY
    with pytest.raises(ProvisioningError):
        create(other)
    assert cache.entries() == []


def in_the_way(folder: Path, what: str) -> None:
    """Puts something into a checkpoint's folder that is none of it."""
    files = CheckpointFiles(folder)
    match what:
        case "a folder":
            (folder / "more").mkdir()
            (folder / "more/file").touch()
        case "a link to nothing":
            (folder / "more").symlink_to("gone")
        case "a link to itself":
            (folder / "more").symlink_to("more")
        case "a folder as manifest":
            files.manifest.unlink()
            files.manifest.mkdir()
        case "a link as manifest":
            files.manifest.rename(folder / "more")
            files.manifest.symlink_to("more")
        case "a pipe as memory":
            files.memory(0).unlink()
            os.mkfifo(files.memory(0))
        case "a folder as memory":
            files.memory(0).unlink()
            files.memory(0).mkdir()
        case "a link to the whole":
            folder.rename(folder.with_name("moved"))
            folder.symlink_to("moved")
        case "a file as part":
            (folder.parent / "more.part").touch()


@pytest.mark.parametrize(
    "what",
    [
        "a folder", "a link to nothing", "a link to itself", "a folder as manifest",
        "a link as manifest", "a pipe as memory", "a folder as memory", "a link to the whole",
        "a file as part",
    ],
)  # fmt: skip
def test_whatever_lies_in_the_cache_is_no_obstacle(
    lab: SimulatedLab, other: SimulatedLab, settings: Settings, cache: CheckpointCache, what: str
) -> None:
    """Sets are restored, or the checkpoint is dropped and made anew; all of it can be removed."""
    create(lab)
    (entry,) = cache.entries()
    in_the_way(settings.cache_dir / "checkpoints" / entry.key, what)
    assert [found.key for found in cache.entries()] == [entry.key]
    if "restore" not in steps(other, create(other)) or cache.entries() == []:
        assert events(other, "warning")
    other.delete("web")
    create(other).delete()
    assert steps(other, create(other)) == {"restore"}
    assert [found.key for found in cache.prune()] == [entry.key]
    left = {path.name for path in (settings.cache_dir / "checkpoints").iterdir()}
    assert left - {"moved"} == {".lock"}


def test_a_prune_removes_what_kills_left(
    lab: SimulatedLab, settings: Settings, cache: CheckpointCache
) -> None:
    """It may be all the memory of a set, which no key names."""
    create(lab)
    (entry,) = cache.entries()
    folder = settings.cache_dir / "checkpoints"
    (folder / entry.key).rename(folder / f"{entry.key}-1.part")
    (folder / f".{entry.key}.lock").touch()
    with cache.being_made("0" * 32, wait=0):
        assert cache.prune() == []
        assert (folder / f".{'0' * 32}.lock").exists()  # its holder lives
    assert {path.name for path in folder.iterdir()} == {".lock"}


def test_an_instance_that_neither_restores_nor_boots_is_kept_failed(
    lab: SimulatedLab, other: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q1: what it says is true, and the next update mends it."""
    create(lab)

    def refuse(*_: object) -> None:
        raise HypervisorError("refused")

    with monkeypatch.context() as patch:
        patch.setattr(SimulatedHypervisor, "restore", refuse)
        patch.setattr(SimulatedHypervisor, "create_data_disk", refuse)
        with pytest.raises(ProvisioningError):
            create(other)
    web = other.scale_set("web")
    assert {i.record.provisioning for i in web} == {"Failed"}
    web.update_instances()
    assert web.is_healthy()


def test_a_damaged_manifest_is_none(
    lab: SimulatedLab, other: SimulatedLab, settings: Settings, cache: CheckpointCache
) -> None:
    """Nothing hangs on the cache: the set is booted, or the error says what to do."""
    create(lab)
    (entry,) = cache.entries()
    manifest = CheckpointFiles(settings.cache_dir / "checkpoints" / entry.key).manifest
    told = json.loads(manifest.read_text())
    fewer = {**told, "instances": told["instances"][:1]}
    for text in ("{", json.dumps(fewer), json.dumps({**told, "more": 1})):
        manifest.write_text(text)
        web = create(other)
        assert web.is_healthy()
        assert cache.entries() == []
        web.delete()
        create(other).delete()
        assert steps(other, create(other)) == {"restore"}
        other.delete("web")
        assert list(other.paths.checkpoint("any").parent.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["0-memory", "0-os.qcow2", "1-lun0.qcow2", "2-seed.iso", "id_ed25519"]
)
@pytest.mark.parametrize("size", [0, 5, 1000])
def test_a_file_of_another_length_is_not_used(
    lab: SimulatedLab,
    other: SimulatedLab,
    settings: Settings,
    cache: CheckpointCache,
    name: str,
    size: int,
) -> None:
    """QEMU would take a disk that was cut off, and the guest read zeros."""
    create(lab)
    (entry,) = cache.entries()
    os.truncate(settings.cache_dir / "checkpoints" / entry.key / name, size)
    web = create(other)
    assert web.is_healthy()
    assert any(f"has {size} bytes, not" in message for message in events(other, "warning"))
    assert cache.entries() == []


@pytest.mark.parametrize("name", ["0-memory", "0-os.qcow2", "1-lun0.qcow2", "id_ed25519"])
def test_a_file_that_was_overwritten_is_not_used(
    lab: SimulatedLab, other: SimulatedLab, settings: Settings, cache: CheckpointCache, name: str
) -> None:
    """QEMU finds what is not there where a header was damaged, or refuses half-way."""
    create(lab)
    (entry,) = cache.entries()
    with (settings.cache_dir / "checkpoints" / entry.key / name).open("r+b") as file:
        file.write(b"\0" * 4)
    web = create(other)
    assert web.is_healthy()
    assert any(f"{name} is damaged" in message for message in events(other, "warning"))
    assert cache.entries() == []


@pytest.mark.parametrize("operation", ["made", "created from", "made of itself", "restored"])
def test_memory_is_restored_on_disks_as_they_were_frozen_also_after_a_crash(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """M1: the guest went on and wrote to its disks, and then the host crashed.

    What is made or put back is made or put back again. What only goes on, having been saved, may
    have acknowledged what it wrote to its clients: it boots with that, as after a power cut (A5).
    """
    model = web_model(capacity=1, automatic=False)
    run: Callable[[], object] = partial(create, lab, model)
    if operation == "created from":
        create(lab, model).delete()
    if operation in ("made of itself", "restored"):
        web = create(lab, model, pristine=False)
        run = web.checkpoint
    if operation == "restored":
        web.checkpoint()
        run = web.restore
    real = SimulatedHypervisor.restore
    found: list[str] = []

    def restore(self: SimulatedHypervisor, machine: Any, memory: Path) -> None:
        found.extend(disk.path.read_text() for disk in machine.data_disks)
        real(self, machine, memory)
        if len(found) == 1:
            for disk in machine.data_disks:
                disk.path.write_text("since")
            raise Killed

    monkeypatch.setattr(SimulatedHypervisor, "restore", restore)
    with pytest.raises(Killed):
        run()
    lab.simulated.crash_host()
    web = lab.scale_set("web")
    web.resume()
    assert web.is_healthy()
    (data,) = web[0].data_disks.values()
    (report,) = web._engine.journal.operations()[-1:]
    if operation in ("created from", "restored"):
        assert found == ["1 GiB", "1 GiB"]
        assert data.read_text() == "1 GiB"
        return
    assert found == ["1 GiB"]
    assert data.read_text() == "since"
    assert web._engine.journal.report(report.id).outcomes == {0: Outcome.SKIPPED}
    assert web.checkpoints == []
    (told,) = [message for message in events(lab, "warning") if "it boots again" in message]
    assert "the host was started again after web_0 had been saved" in told
    web.checkpoint()
    assert len(list(lab.paths.folder.rglob("own.*/*-memory"))) == 1


def test_what_a_machine_wrote_after_it_was_saved_is_kept_where_it_alone_has_ended(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M1, A5: its process was killed too, on a host that goes on."""
    web = create(lab, web_model(capacity=1, automatic=False), pristine=False)
    (data,) = web[0].data_disks.values()
    real = SimulatedHypervisor.restore

    def restore(self: SimulatedHypervisor, machine: Any, memory: Path) -> None:
        real(self, machine, memory)
        data.write_text("since")
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(SimulatedHypervisor, "restore", restore)
        with pytest.raises(Killed):
            web.checkpoint()
    lab.simulated.running.clear()
    web.resume()
    assert web.is_healthy()
    assert data.read_text() == "since"
    (told,) = [message for message in events(lab, "warning") if "it boots again" in message]
    assert "web_0 had gone on and stopped again, and what it has written since to lun0" in told


@pytest.mark.parametrize("when", ["saved", "frozen", "about to go on"])
@pytest.mark.parametrize("host", [True, False])
def test_a_saved_machine_that_has_not_gone_on_yet_goes_on_unless_the_host_crashed(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch, *, host: bool, when: str
) -> None:
    """M1: a crash may have cost it parts of its memory, whose end and beginning tell nothing."""
    web = create(lab, web_model(capacity=1, automatic=False), pristine=False)
    boot = web[0].boot_id
    name = {"saved": "save", "frozen": "create_layer", "about to go on": "restore"}[when]
    real = getattr(SimulatedHypervisor, name)

    def die(*arguments: Any) -> None:
        if name != "restore":
            real(*arguments)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(SimulatedHypervisor, name, die)
        with pytest.raises(Killed):
            web.checkpoint("a")
    if host:
        lab.simulated.crash_host()
    web = lab.scale_set("web")
    web.resume()
    assert web.is_healthy()
    assert web.checkpoints == ([] if host else ["a"])
    assert (web[0].boot_id == boot) is not host
    told = [message for message in events(lab, "warning") if "it boots again" in message]
    assert len(told) == host
    assert all("the host was started again after web_0 had been saved" in one for one in told)


@pytest.mark.parametrize("step", ["observe health", "sync checkpoint"])
def test_a_checkpoint_whose_files_a_crash_may_have_torn_is_none(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """M1: the machine went on already, but nothing had synchronized its memory yet."""
    web = create(lab, web_model(capacity=1, automatic=False), pristine=False)
    kind = {"observe health": AwaitHealth, "sync checkpoint": SyncFiles}[step]
    with monkeypatch.context() as patched:
        patched.setattr(kind, "apply", Mock(side_effect=Killed))
        with pytest.raises(Killed):
            web.checkpoint("a")
    lab.simulated.crash_host()
    web = lab.scale_set("web")
    web.resume()
    assert web.checkpoints == []
    assert web.is_healthy()
    web.checkpoint("a")
    assert web.checkpoints == ["a"]


@pytest.mark.parametrize("step", [Stop, Start, ProveBoot, AwaitHealth, Undrain])
def test_an_instance_boots_again_also_where_the_host_crashes_again(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch, step: type[Any]
) -> None:
    """M1: in the resume, and in its resume."""
    web = create(lab, web_model(capacity=1, automatic=False), pristine=False)
    dying: list[tuple[Any, Callable[..., object]]] = [(RestoreMemory, web.checkpoint)]
    dying += [(step, web.resume)] * 2
    for kind, act in dying:
        with monkeypatch.context() as patched:
            patched.setattr(kind, "apply", Mock(side_effect=Killed))
            with pytest.raises(Killed):
                act()
        lab.simulated.crash_host()
    web = lab.scale_set("web")
    web.resume()
    assert web.is_healthy()
    (report,) = web._engine.journal.operations()[-1:]
    assert web._engine.journal.report(report.id).outcomes == {0: Outcome.SKIPPED}


def test_uefi_variables_that_a_machine_wrote_since_it_was_saved_are_kept(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O5, A5: its disks may be unwritten all the same."""
    lab.gallery().define("api", hyper_v_generation="V2")
    lab.publish("1.0.1", image=ImageVersionRef("gallery", "api"))
    web = create(lab, web_model(capacity=1, automatic=False, definition="api"), pristine=False)
    variables = web[0].os_disk.with_name("nvram-1.fd")
    real = SimulatedHypervisor.restore

    def restore(self: SimulatedHypervisor, machine: Any, memory: Path) -> None:
        real(self, machine, memory)
        variables.unlink()  # all files of the simulation are one
        variables.write_text("since")
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(SimulatedHypervisor, "restore", restore)
        with pytest.raises(Killed):
            web.checkpoint()
    lab.simulated.running.clear()
    web = lab.scale_set("web")
    web.resume()
    assert web.is_healthy()
    assert variables.read_text() == "since"


def test_files_are_the_owners_alone(lab: SimulatedLab, settings: Settings) -> None:
    """M5: seeds, memory and keys hold secrets."""
    create(lab)
    folder = settings.cache_dir / "checkpoints"
    assert folder.stat().st_mode & 0o077 == 0
    (entry,) = (path for path in folder.iterdir() if path.is_dir())
    assert entry.stat().st_mode & 0o077 == 0
    assert (entry / "id_ed25519").stat().st_mode & 0o777 == 0o600
    assert (entry / "checkpoint.json").stat().st_mode & 0o777 == 0o600
