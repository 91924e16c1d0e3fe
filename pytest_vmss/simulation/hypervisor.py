"""A hypervisor in memory: the same protocol, no processes (for the simulation ring).

Disks are empty files, so that tests can check which are left and which are gone;
machines are entries of a dictionary that a test keeps across "crashes".
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pytest_vmss.clock import Clock
from pytest_vmss.errors import HostError, HypervisorError, ToolError
from pytest_vmss.guest_platform.virtual_network.config import VirtualNetwork
from pytest_vmss.hypervisor.protocol import Machine, PowerState, Seed
from pytest_vmss.simulation.clock import preempt

__all__ = ["SimulatedDisk", "SimulatedHypervisor"]

#: The attributes that outlive the process of a lab.
_LASTING = (
    "defined", "running", "paused", "cut", "agents_hang", "starts", "boots", "deaf", "images",
    "disks", "host_boot",
)  # fmt: skip


@dataclass
class SimulatedDisk:
    """The content of an OS disk; a new disk at the same path has its own.

    Attributes:
        image: The image version that it was made from.
        ran: The guest's own record on this disk of what has been run: custom data, and
            extensions by name and run.
    """

    image: str
    ran: set[tuple[str, str]] = field(default_factory=set)


class SimulatedHypervisor:
    """Implements :class:`~pytest_vmss.hypervisor.protocol.Hypervisor`.

    Args:
        clock: The clock on which its actions take time.
        folder: The folder of the one file to which OS disks and seeds are hard links; a link
            costs far less than a file.

    Attributes:
        defined: Machines by name; whether they run is in ``running``.
        running: Names of the machines that run.
        paused: Names of those that are paused.
        cut: Names of those whose network link is down.
        agents_hang: Names of those whose agent does not answer.
        read_file: Files of guests, as their agents read them.
        starts: Every start so far: (name, generation).
        images: Image versions by digest.
        disks: OS disks by their path.
        host_boot: Identifies the boot of the host.
    """

    accelerator = "tcg"
    slow_factor = 10.0
    most_vcpus: int | None = None
    fingerprint = "simulated"

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
        self.lacks_uefi = False
        self.images: dict[str, str] = {}
        self.disks: dict[str, SimulatedDisk] = {}
        self.host_boot = "first"
        self._cuts: list[tuple[str, int, frozenset[int]]] = []

    def crash_host(self) -> None:
        """Ends all machines at once, as when the host loses its power and is started again."""
        self.running.clear()
        self.host_boot += "'"

    def snapshot(self) -> bytes:
        """Pickles everything that outlives the process of a lab."""
        return pickle.dumps({name: getattr(self, name) for name in _LASTING})

    def load(self, snapshot: bytes) -> None:
        """Restores what an earlier process left."""
        for name, value in pickle.loads(snapshot).items():  # noqa: S301 - made by this class
            setattr(self, name, value)

    def image_of(self, machine: Machine) -> str:
        """The image version that a machine's OS disk was made from."""
        return self.disks[str(machine.os_disk)].image

    def adopt(self, machine: Machine, disk: SimulatedDisk) -> None:
        """Registers a machine as already running."""
        self.defined[machine.name] = machine
        self.running.add(machine.name)
        self.boots[machine.name] = self.boots.get(machine.name, 0) + 1
        self.disks[str(machine.os_disk)] = disk

    def create_data_disk(self, path: Path, size_gib: int) -> None:
        """Creates an empty data disk unless there is one."""
        preempt(self._clock)
        if not path.exists():
            path.write_text(f"{size_gib} GiB")

    def create_os_disk(
        self,
        path: Path,
        image: Path,
        size_gib: int | None,  # noqa: ARG002 - the protocol's
    ) -> None:
        """Creates a fresh OS disk on an image."""
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

    def freeze_disk(self, path: Path, frozen: Path, image: str | None) -> None:  # noqa: ARG002
        """Writes a disk's content into a file of its own."""
        preempt(self._clock)
        if frozen.exists():
            return
        disk = self.disks.get(str(path))
        content = {"image": disk.image, "ran": sorted(disk.ran)} if disk else path.read_text()
        frozen.write_text(json.dumps(content))

    def create_layer(self, path: Path, frozen: Path) -> None:
        """Creates a disk with the content of a frozen one."""
        preempt(self._clock)
        try:
            content = json.loads(frozen.read_text())
        except FileNotFoundError as error:
            raise ToolError(
                f"making the disk {path}: qemu-img failed with status 1: {frozen} is not there",
                argv=("qemu-img", "create"),
                returncode=1,
                stderr="No such file or directory",
            ) from error
        if isinstance(content, str):  # a data disk
            self._place(path, content)
        else:
            self._place(path)
            ran = {(what, run) for what, run in content["ran"]}
            self.disks[str(path)] = SimulatedDisk(content["image"], ran)

    def is_unwritten(self, path: Path, frozen: Path) -> bool:
        """Whether a disk still has the content of the frozen one on which it was created."""
        preempt(self._clock)
        content = json.loads(frozen.read_text())
        if isinstance(content, str):
            return path.read_text() == content
        return bool(sorted(map(list, self.disks[str(path)].ran)) == content["ran"])

    def write_seed(self, path: Path, seed: Seed) -> None:  # noqa: ARG002 - the protocol's
        """Creates the seed's file."""
        preempt(self._clock)
        self._place(path)

    def write_provisioning_dvd(self, path: Path, ovf_env: bytes) -> None:  # noqa: ARG002
        """Creates the DVD's file."""
        preempt(self._clock)
        self._place(path)

    def require_uefi(self) -> None:
        """Checks that the host has UEFI firmware; this one has unless a test says otherwise."""
        if self.lacks_uefi:
            raise HostError("no UEFI firmware was found", mend="apt-get install ovmf")

    def create_nvram(self, path: Path) -> None:
        """Creates the file of UEFI variables."""
        preempt(self._clock)
        self._place(path)

    def _place(self, path: Path, content: str = "") -> None:
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)
        if content:
            part.write_text(content)
        else:
            os.link(self._blank, part)
        self._half_done()
        if path.exists() and path.samefile(part):
            part.unlink()  # rename does nothing if both are the same file
        else:
            part.replace(path)

    def _half_done(self) -> None:
        """Called when an effect is half done: a place for tests to simulate a kill."""

    def start(self, machine: Machine) -> None:
        """Starts a machine; its disks must exist."""
        preempt(self._clock)
        if self.running_generation(machine.name) == machine.generation:
            return
        variables = () if machine.nvram is None else (machine.nvram,)
        disks = (disk.path for disk in machine.data_disks)
        for disk in (machine.os_disk, machine.seed, *variables, *disks):
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

    def save(self, name: str, memory: Path) -> None:
        """Saves a running machine's memory into a file, and powers it off."""
        preempt(self._clock)
        if name not in self.running:
            if memory.exists():
                return
            raise HypervisorError(f"{name} cannot be saved: it does not run")
        self._clock.sleep(0.5)
        memory.write_text(json.dumps({"boots": self.boots[name]}))
        self._half_done()
        self.running.discard(name)

    def restore(self, machine: Machine, memory: Path) -> None:
        """Starts a machine from saved memory; its disks must exist."""
        preempt(self._clock)
        if self.running_generation(machine.name) == machine.generation:
            return
        for file in (memory, machine.os_disk, *(disk.path for disk in machine.data_disks)):
            if not file.exists():
                raise HypervisorError(f"{machine.name} cannot be restored: {file} is not there")
        self._clock.sleep(0.5)
        self.defined[machine.name] = machine
        self._half_done()
        self.running.add(machine.name)
        for names in (self.paused, self.cut, self.agents_hang):
            names.discard(machine.name)
        self.boots[machine.name] = json.loads(memory.read_text())["boots"]

    def state(self, name: str) -> PowerState:
        """The power state of a machine."""
        if name not in self.defined:
            return PowerState.ABSENT
        return PowerState.RUNNING if name in self.running else PowerState.STOPPED

    def running_generation(self, name: str) -> int | None:
        """The generation that a machine runs on."""
        return self.defined[name].generation if name in self.running else None

    def agent_connected(self, name: str) -> bool:
        """Whether the machine is running; its agent is then connected."""
        return name in self.running

    def agent(self, name: str, command: str) -> str:
        """Answers calls to the guest agent for the time, and for files of ``read_file``."""
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
        """Pauses a machine."""
        preempt(self._clock)
        self._require_running(name)
        self.paused.add(name)

    def unpause(self, name: str) -> None:
        """Resumes a paused machine."""
        preempt(self._clock)
        self._require_running(name)
        self.paused.discard(name)

    def set_link(self, name: str, *, up: bool) -> None:
        """Sets a machine's network link up or down."""
        preempt(self._clock)
        self._require_running(name)
        (self.cut.discard if up else self.cut.add)(name)

    @contextlib.contextmanager
    def cut_off(self, network: VirtualNetwork, others: Collection[int]) -> Iterator[None]:
        """Cuts an instance off from others of its set for the block."""
        preempt(self._clock)
        cut = (str(network.files.folder), network.instance_id, frozenset(others))
        self._cuts.append(cut)
        try:
            yield
        finally:
            self._cuts.remove(cut)

    def reaches(self, one: str, other: str) -> bool:
        """Whether two machines reach each other in their private network."""
        if not {one, other} <= self.running - self.paused - self.cut:
            return False
        first, second = self.defined[one].network, self.defined[other].network
        if first is None or second is None or first.files != second.files:
            return False
        one_id, other_id, network = first.instance_id, second.instance_id, str(first.files.folder)
        return not any(
            (folder, number) == (network, a) and (b in others or not others)
            for folder, number, others in self._cuts
            for a, b in ((one_id, other_id), (other_id, one_id))
        )

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
        """Cuts a machine's power and undefines it."""
        preempt(self._clock)
        self.running.discard(name)
        self.defined.pop(name, None)

    def machines(self, prefix: str) -> list[str]:
        """Names of all machines with a prefix."""
        return sorted(name for name in self.defined if name.startswith(prefix))

    def describe(self, name: str) -> str:
        """A domain that has nothing but its name; empty if there is none."""
        machine = self.defined.get(name)
        return "" if machine is None else f"<domain><name>{name}</name></domain>\n"

    def log(self, name: str) -> Path | None:  # noqa: ARG002
        """None: there is no QEMU."""
        return None

    def close(self) -> None:
        """Does nothing: machines keep running."""
