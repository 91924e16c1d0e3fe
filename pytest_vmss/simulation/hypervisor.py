"""A hypervisor in memory: the same protocol, no processes (for the simulation ring).

Disks are empty files, so that what must be left and what must be gone can be
seen; machines are entries of a dictionary that a test keeps across "crashes".
"""

from __future__ import annotations

import base64
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pytest_vmss.clock import Clock
from pytest_vmss.errors import HypervisorError, ToolError
from pytest_vmss.hypervisor.protocol import Machine, PowerState, Seed
from pytest_vmss.simulation.clock import preempt

__all__ = ["SimulatedDisk", "SimulatedHypervisor"]

#: What outlives the process that orders it about.
_LASTING = (
    "defined", "running", "paused", "cut", "agents_hang", "starts", "boots", "deaf", "images",
    "disks",
)  # fmt: skip


@dataclass
class SimulatedDisk:
    """What is on an OS disk; a fresh one at the same place is another.

    Attributes:
        image: The image version that it was made from.
        ran: The guest's own record, on this disk, of what has been run: custom data, and
            extensions by name and run.
    """

    image: str
    ran: set[tuple[str, str]] = field(default_factory=set)


class SimulatedHypervisor:
    """Implements :class:`~pytest_vmss.hypervisor.protocol.Hypervisor`.

    Args:
        clock: Lets time pass for what takes time.
        folder: Where the file is kept of which OS disks and seeds are further names; a
            name costs a small part of what a file does.

    Attributes:
        defined: Machines by name; whether they run is in ``running``.
        running: Names of the machines that run.
        paused: Names of those that are halted.
        cut: Names of those whose network cable is pulled.
        agents_hang: Names of those whose agent does not answer.
        read_file: Files of guests, as their agents read them.
        starts: Every start so far: (name, generation).
        images: Image versions by digest.
        disks: OS disks by their path.
    """

    accelerator = "tcg"
    slow_factor = 10.0

    def __init__(self, clock: Clock, folder: Path) -> None:
        self._clock = clock
        self._blank = folder / "blank"
        self._blank.touch(mode=0o600)
        self._blank.write_text("a disk")
        self.defined: dict[str, Machine] = {}
        self.running: set[str] = set()
        self.paused: set[str] = set()
        self.cut: set[str] = set()
        self.agents_hang: set[str] = set()
        self.read_file: Callable[[str, str], bytes | None] = lambda _name, _path: None
        self._opened: list[bytes] = []
        self.starts: list[tuple[str, int]] = []
        self.boots: dict[str, int] = {}
        self.deaf: set[str] = set()
        self.fail_os_disks = False
        self.images: dict[str, str] = {}
        self.disks: dict[str, SimulatedDisk] = {}

    def snapshot(self) -> bytes:
        """Everything that outlives the process that orders it about."""
        return pickle.dumps({name: getattr(self, name) for name in _LASTING})

    def restore(self, snapshot: bytes) -> None:
        """Takes up what an earlier process has left."""
        for name, value in pickle.loads(snapshot).items():  # noqa: S301 - made by this class
            setattr(self, name, value)

    def image_of(self, machine: Machine) -> str:
        """The image version that a machine's OS disk was made from."""
        return self.disks[str(machine.os_disk)].image

    def adopt(self, machine: Machine, disk: SimulatedDisk) -> None:
        """Takes a machine for one that runs already."""
        self.defined[machine.name] = machine
        self.running.add(machine.name)
        self.boots[machine.name] = self.boots.get(machine.name, 0) + 1
        self.disks[str(machine.os_disk)] = disk

    def create_data_disk(self, path: Path, size_gib: int) -> None:
        """Makes an empty data disk unless there is one."""
        preempt(self._clock)
        if not path.exists():
            path.write_text(f"{size_gib} GiB")

    def create_os_disk(
        self,
        path: Path,
        image: Path,
        size_gib: int | None,  # noqa: ARG002 - the protocol's
    ) -> None:
        """Makes a fresh disk on an image."""
        preempt(self._clock)
        if self.fail_os_disks:
            raise ToolError(
                f"making the OS disk {path}: qemu-img failed with status 1: no space left on device",
                argv=("qemu-img", "create"),
                returncode=1,
                stderr="no space left on device",
            )
        self._place(path)
        self.disks[str(path)] = SimulatedDisk(self.images.get(image.stem, ""))

    def write_seed(self, path: Path, seed: Seed) -> None:  # noqa: ARG002 - the protocol's
        """Makes the seed's file."""
        preempt(self._clock)
        self._place(path)

    def _place(self, path: Path) -> None:
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)
        os.link(self._blank, part)
        self._half_done()
        path.unlink(missing_ok=True)  # rename does nothing where both are one file
        part.rename(path)

    def _half_done(self) -> None:
        """An effect is half done; whoever simulates kills may do so here."""

    def start(self, machine: Machine) -> None:
        """Runs a machine whose disks are there."""
        preempt(self._clock)
        if self.running_generation(machine.name) == machine.generation:
            return
        for disk in (machine.os_disk, machine.seed, *(disk.path for disk in machine.data_disks)):
            if not disk.exists():
                raise HypervisorError(f"{machine.name} cannot be started: {disk} is not there")
        self._clock.sleep(0.2)
        self.defined[machine.name] = machine
        self._half_done()
        self.running.add(machine.name)
        self.paused.discard(machine.name)
        self.cut.discard(machine.name)
        self.agents_hang.discard(machine.name)
        self.starts.append((machine.name, machine.generation))
        self.boots[machine.name] = self.boots.get(machine.name, 0) + 1

    def state(self, name: str) -> PowerState:
        """Whether a machine runs."""
        if name not in self.defined:
            return PowerState.ABSENT
        return PowerState.RUNNING if name in self.running else PowerState.STOPPED

    def running_generation(self, name: str) -> int | None:
        """The generation that a machine runs on."""
        return self.defined[name].generation if name in self.running else None

    def agent_connected(self, name: str) -> bool:
        """Always, in a machine that runs."""
        return name in self.running

    def agent(self, name: str, command: str) -> str:
        """The agent knows the time, and the files that ``read_file`` gives."""
        if name not in self.running or name in self.agents_hang or name in self.paused:
            raise HypervisorError(f"the guest agent of {name} failed: it does not answer")
        call = json.loads(command)
        match call["execute"]:
            case "guest-file-open":
                content = self.read_file(name, call["arguments"]["path"])
                if content is None:
                    raise HypervisorError(f"the guest agent of {name} failed: no such file")
                self._opened.append(content)
                answer: object = len(self._opened) - 1
            case "guest-file-read":
                content = self._opened[call["arguments"]["handle"]]
                answer = {"buf-b64": base64.b64encode(content).decode()}
            case "guest-get-time":
                answer = int(self._clock.now().timestamp() * 1e9)
            case _:
                answer = {}
        return json.dumps({"return": answer})

    def pause(self, name: str) -> None:
        """Halts a machine."""
        preempt(self._clock)
        self._require_running(name)
        self.paused.add(name)

    def unpause(self, name: str) -> None:
        """Lets a machine go on."""
        preempt(self._clock)
        self._require_running(name)
        self.paused.discard(name)

    def set_link(self, name: str, *, up: bool) -> None:
        """Plugs a machine's network cable in, or pulls it."""
        preempt(self._clock)
        self._require_running(name)
        (self.cut.discard if up else self.cut.add)(name)

    def _require_running(self, name: str) -> None:
        if name not in self.running:
            raise HypervisorError(f"there is no machine {name} that runs")

    def request_stop(self, name: str) -> None:
        """Stops a machine, unless its guest is deaf."""
        preempt(self._clock)
        if name not in self.deaf:
            self.running.discard(name)

    def power_off(self, name: str) -> None:
        """Cuts a machine's power."""
        preempt(self._clock)
        self.running.discard(name)

    def remove(self, name: str) -> None:
        """Cuts a machine's power and forgets it."""
        preempt(self._clock)
        self.running.discard(name)
        self.defined.pop(name, None)

    def machines(self, prefix: str) -> list[str]:
        """Names of all machines that start so."""
        return sorted(name for name in self.defined if name.startswith(prefix))

    def close(self) -> None:
        """Does nothing: machines run on."""
