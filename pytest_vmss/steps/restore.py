"""Steps that put an instance's disks back as they were at a checkpoint of its set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pytest_vmss.environment.environment import InstanceContext
from pytest_vmss.errors import CheckpointError, HostError
from pytest_vmss.steps.checkpoint import copy_private, files_of, seals_of
from pytest_vmss.store import GenerationRecord

__all__ = ["PowerOff", "PutBackDisks"]


@dataclass(frozen=True)
class PowerOff:
    """Cuts the machine's power, whatever OS disk it runs on: nothing of what it does is kept."""

    name: ClassVar[str] = "power off"
    timed: ClassVar[bool] = False
    durable: ClassVar[bool] = True

    def apply(self, context: InstanceContext) -> None:
        context.leave()
        context.environment.hypervisor.power_off(context.domain)


@dataclass(frozen=True)
class PutBackDisks:
    """Makes an OS disk on a checkpoint's frozen one, and replaces the data disks likewise (L1).

    The machine must be off. Data disks that the instance did not have then are removed.

    Attributes:
        checkpoint: Name of the checkpoint's folder in the lab.
        number: Number of the new OS disk.
        disk: The record of the saved one, with the revision of the model to record.
        luns: The LUNs of the saved data disks.
    """

    name: ClassVar[str] = "put back disks"
    timed: ClassVar[bool] = True
    durable: ClassVar[bool] = True

    checkpoint: str
    number: int
    disk: GenerationRecord
    luns: tuple[int, ...]

    def apply(self, context: InstanceContext) -> None:
        environment, instance = context.environment, context.instance_id
        if environment.hypervisor.running_generation(context.domain) == self.number:
            return  # restored before a crash; its disks are in use
        files, paths = files_of(context, self.checkpoint), environment.paths
        place = (context.scale_set, instance, self.number)
        layers = {paths.os_disk(*place): files.os_disk(instance)}
        for lun in self.luns:
            path = paths.data_disk(context.scale_set, instance, lun)
            layers[path] = files.data_disk(instance, lun)
        _require(context, self.checkpoint, *layers.values(), files.seed(instance))
        environment.store.put(  # before its files exist
            self.disk.model_copy(
                update={
                    "number": self.number,
                    "state": "preparing",
                    "started": False,
                    "created": environment.clock.now(),
                }
            )
        )
        folder = paths.instance(context.scale_set, instance)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path, frozen in layers.items():
            environment.hypervisor.create_layer(path, frozen)
        copy_private(files.seed(instance), paths.seed(*place))
        copy_private(files.console(instance), paths.console(*place))
        copy_private(files.nvram(instance), paths.nvram(*place))
        for path in folder.glob("lun*.qcow2"):
            if path not in layers:
                path.unlink()


def _require(context: InstanceContext, checkpoint: str, *files: Path) -> None:
    """Checks that files of a checkpoint are there, and as they were made.

    Raises:
        HostError: One is not.
    """
    try:
        seals_of(context, checkpoint).check(*files)
    except CheckpointError as error:
        raise HostError(
            f"{context.name} cannot be restored: {error.message}; bring the file back as it was"
        ) from error
