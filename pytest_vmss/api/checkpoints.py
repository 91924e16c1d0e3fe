"""Creates scale sets from checkpoints, and makes the checkpoints (L1)."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_vmss.checkpoints import (
    CheckpointCache,
    CheckpointFiles,
    Manifest,
    SavedInstance,
    Seals,
    checkpoint_key,
    obstacle_to,
)
from pytest_vmss.engine.engine import Engine
from pytest_vmss.environment.environment import Environment, InstanceContext
from pytest_vmss.errors import ConflictError, HostError, LabError, error_text
from pytest_vmss.host.files import sync, write_durably
from pytest_vmss.host.locks import try_lock, wait_for_lock
from pytest_vmss.journal.report import OperationReport
from pytest_vmss.model import ScaleSetDocument
from pytest_vmss.operations import MakeCheckpoint, remove_memory
from pytest_vmss.steps import RestoreMemory, SaveMemory
from pytest_vmss.store import CheckpointRecord, OperationRecord, Outcome, VersionRecord

__all__ = ["Checkpoints", "Sought"]

_MIB = 1024**2
#: Seconds to wait for a process that removes unused links, which takes moments.
_SWEEP_S = 60.0
#: What the cache raises, held by another process for too long among it; none of it harms a set.
_CACHE_ERRORS = (OSError, HostError, ConflictError)


@dataclass(frozen=True)
class Sought:
    """What was found when a checkpoint was sought for a new set.

    Attributes:
        key: The key of the set's checkpoint; empty if it can have none.
        name: Name of the checkpoint's folder in the lab; empty if there is none yet.
        obstacle: Why the set must be booted, and no checkpoint of it be made; empty if it can.
    """

    key: str = ""
    name: str = ""
    obstacle: str = ""


class Checkpoints:
    """The checkpoints of a lab.

    Args:
        environment: The lab's environment.
        cache: The cache that all labs share.
    """

    def __init__(self, environment: Environment, cache: CheckpointCache) -> None:
        self._environment = environment
        self._cache = cache

    @contextlib.contextmanager
    def sought(self, document: ScaleSetDocument, version: VersionRecord) -> Iterator[Sought]:
        """Looks for the checkpoint of a set that is to be created.

        If there is none, other processes that need it wait while this context is open.

        Args:
            document: The set's model, validated.
            version: The image version that the model refers to.

        Yields:
            What was found. An obstacle never prevents the set's creation.
        """
        model, environment = document.model, self._environment
        if not model.sku.capacity:
            yield Sought()
            return
        obstacle = (
            _of_platform(version)
            or obstacle_to(model, version.hyper_v_generation)
            or self._lack_of_room(document)
        )
        if obstacle:
            yield Sought(obstacle=obstacle)
            return
        key = checkpoint_key(
            model,
            digest=version.digest,
            size=environment.size_of(model),
            hypervisor=environment.hypervisor.fingerprint,
            guest_network=environment.guest_network,
        )
        with contextlib.ExitStack() as linking, contextlib.ExitStack() as making:
            yield self._look(key, linking, making, wait=environment.instance_limit(model))

    def _look(
        self,
        key: str,
        linking: contextlib.ExitStack,
        making: contextlib.ExitStack,
        *,
        wait: float,
    ) -> Sought:
        name = self._new_name(key)  # of its own: what others break, it does not see
        folder = self._environment.paths.checkpoint(name)
        try:
            linking.enter_context(self._linking())
            if self._cache.take(key, folder):
                return Sought(key, name)
            if refused := self._refused(key):
                return refused
            making.enter_context(self._cache.being_made(key, wait=wait))
            if self._cache.take(key, folder):  # made while this process waited
                making.close()
                return Sought(key, name)
            if refused := self._refused(key):
                making.close()  # the others that wait boot beside this one
                return refused
        except _CACHE_ERRORS as error:
            return Sought(obstacle=f"its checkpoint cannot be used: {error_text(error)}")
        return Sought(key)

    def _refused(self, key: str) -> Sought | None:
        """What there is for a set which could not be saved when it was tried."""
        why = self._cache.refusal(key)
        if not why:
            return None
        return Sought(
            obstacle="such a set could not be saved, which is tried again after an hour or after "
            f"`vmss cache prune`: {why}"
        )

    @contextlib.contextmanager
    def _linking(self) -> Iterator[None]:
        """Links files into the lab that no operation names yet; afterwards one does, or they go.

        So do those of a process that was killed meanwhile, unless another process is linking.

        Raises:
            OSError: The lock cannot be created.
            ConflictError: Another process removes files, and does not end.
        """
        path = self._environment.paths.linking
        lock = wait_for_lock(path, what="removes unused checkpoints", timeout=_SWEEP_S, shared=True)
        try:
            yield
        finally:
            lock.release()
            with contextlib.suppress(OSError, LabError):  # the next one does it
                if (alone := try_lock(path)) is not None:
                    with alone:
                        self._remove_unnamed()

    def _remove_unnamed(self) -> None:
        """Removes the lab's checkpoints that no operation uses or makes.

        An operation is recorded before its folder is made, and may begin just now: so the folders
        are listed before the operations.
        """
        folders = list(self._environment.paths.checkpoint("any").parent.iterdir())
        named = {record.checkpoint for record in self._environment.store.select(OperationRecord)}
        named |= {record.name for record in self._environment.store.select(CheckpointRecord)}
        for folder in folders:
            if folder.name not in named:
                shutil.rmtree(folder)

    @staticmethod
    def _new_name(key: str) -> str:
        return f"{key}.{secrets.token_hex(4)}"

    def _lack_of_room(self, document: ScaleSetDocument) -> str:
        """Says if the disk has no room for the memory of a set's instances."""
        size = self._environment.size_of(document.model)
        needed = 2 * size.memory_mib * _MIB * document.model.sku.capacity
        free = shutil.disk_usage(self._environment.paths.folder).free
        if free >= needed:
            return ""
        return f"a checkpoint needs {needed // _MIB} MiB of disk, and {free // _MIB} MiB are free"

    def check(self, engine: Engine, sought: Sought) -> None:
        """Drops a checkpoint from which a new set's instances could not all be restored.

        The set itself has no more use for the memory, whatever becomes of the cache's.
        """
        remove_memory(self._environment, sought.name)
        contexts = (
            InstanceContext(self._environment, engine.name, record.instance_id)
            for record in engine.instances()
        )
        found = [context.generation(1) for context in contexts]
        if all(generation is not None and generation.ssh_key for generation in found):
            return
        with self._reported(engine, "its checkpoint cannot be dropped"):
            self._cache.discard(sought.key)

    @contextlib.contextmanager
    def _reported(self, engine: Engine, problem: str) -> Iterator[None]:
        """Turns errors of the cache, which harm no set, into events."""
        try:
            yield
        except _CACHE_ERRORS as error:
            self._environment.store.event(engine.name, "warning", f"{problem}: {error_text(error)}")

    def make(self, engine: Engine, sought: Sought) -> None:
        """Makes the checkpoint of a set that was just created; the set must be locked.

        Its instances then continue from it, as restored ones do. One that cannot be saved is
        booted again; there is no checkpoint then, and an event says why.

        Raises:
            ProvisioningError: An instance came up neither from its checkpoint nor by a boot.
            InterruptedOperationError: The host cannot continue for now.
        """
        name = self._new_name(sought.key)
        report = engine.perform(MakeCheckpoint(name))
        files = CheckpointFiles(self._environment.paths.checkpoint(name))
        try:
            report.raise_for_status()
            if all(outcome is Outcome.SUCCEEDED for outcome in report.outcomes.values()):
                self._keep(engine, sought.key, files)
            elif why := self._refusal_of(report):
                with self._reported(engine, "that it cannot be saved cannot be noted"):
                    self._cache.note_refusal(sought.key, why)
        finally:
            remove_memory(self._environment, name)  # the set itself has no more use for it

    def _refusal_of(self, report: OperationReport) -> str:
        """Why no instance was saved and restored, so that the next such set need not be tried."""
        if any(outcome is Outcome.SUCCEEDED for outcome in report.outcomes.values()):
            return ""
        steps = self._environment.store.steps(report.record.id)
        refused = (
            step.error for step in steps if step.name in (SaveMemory.name, RestoreMemory.name)
        )
        return next(filter(None, refused), "")

    def _keep(self, engine: Engine, key: str, files: CheckpointFiles) -> None:
        """Adds a checkpoint that was just made to the cache."""
        is_kept = False
        with self._reported(engine, "its checkpoint cannot be kept"):
            write_durably(files.ssh_key, self._environment.paths.key.read_bytes())
            for file in files.folder.iterdir():
                sync(file)  # libvirt leaves that to the kernel
            seals = Seals.of(files.folder, files.folder.iterdir())
            files.write(self._manifest(engine, key, seals))
            self._cache.keep(key, files.folder)
            is_kept = True
        if is_kept:
            with self._reported(engine, "older checkpoints cannot be removed from the cache"):
                self._cache.shrink(spare=key)

    def _manifest(self, engine: Engine, key: str, seals: Seals) -> Manifest:
        saved, digest = [], ""
        for record in engine.instances():
            context = InstanceContext(self._environment, engine.name, record.instance_id)
            generation = context.existing(record.generation)
            digest = generation.digest
            saved.append(
                SavedInstance(
                    instance_id=record.instance_id,
                    mac=record.mac,
                    host_key=generation.host_key,
                    cloud_instance_id=generation.cloud_instance_id,
                    boot_id=generation.boot_id or "",
                    kernel=generation.kernel,
                    found_version=generation.found_version,
                    cloud_init=generation.cloud_init,
                    extensions=generation.extensions,
                    luns=tuple(
                        disk.lun for disk in context.revision(generation.revision).model.data_disks
                    ),
                )
            )
        return Manifest(
            key=key,
            scale_set=engine.name,
            digest=digest,
            created=self._environment.clock.now(),
            instances=tuple(saved),
            sizes=dict(seals.sizes),
            heads=dict(seals.heads),
        )


def _of_platform(version: VersionRecord) -> str:
    """Why instances of a version cannot be saved; empty if they can (O1)."""
    if version.provisioning != "Azure":
        return ""
    return "its guests look for Azure, and what Azure told them cannot be told to others"
