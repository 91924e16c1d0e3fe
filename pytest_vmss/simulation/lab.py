"""A lab whose machines and guests are simulated, on a virtual clock.

Everything from the engine up is real; only what is behind the protocols of hypervisor and
guest is simulated. For the simulation ring, the benchmarks, and suites that want to see what
an upgrade policy does without starting a VM.
"""

from __future__ import annotations

import json
import pickle
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Self

from pytest_vmss.api.backends import LocalBackends
from pytest_vmss.api.lab import DEFAULT_LAB, Lab
from pytest_vmss.api.operation import Upgrade
from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.clock import SystemClock
from pytest_vmss.environment.environment import InstanceContext
from pytest_vmss.errors import CapacityError
from pytest_vmss.gallery import DEFAULT_GALLERY
from pytest_vmss.guest.extensions.application_health import STATUS_FILE
from pytest_vmss.guest.in_guest.application_health import Rules, document, rules_of
from pytest_vmss.health import Observation, RollingUpgradeMetrics
from pytest_vmss.host.boot_turns import BootTurns
from pytest_vmss.host.capacity import memory_of
from pytest_vmss.host.process import run
from pytest_vmss.hypervisor import Hypervisor
from pytest_vmss.labs.identity import find_lab
from pytest_vmss.labs.place import LabPlace, open_place, session_paths
from pytest_vmss.load_balancer import Balancer, Rule
from pytest_vmss.model import (
    Health,
    Probe,
    ScaleSetModel,
    VmSize,
    application_health,
    load_document,
)
from pytest_vmss.model.image_version import ImageVersionRef
from pytest_vmss.settings import Settings
from pytest_vmss.simulation.clock import VirtualClock
from pytest_vmss.simulation.guest import Behaviour, SimulatedGuest
from pytest_vmss.simulation.hypervisor import SimulatedDisk, SimulatedHypervisor
from pytest_vmss.simulation.load_balancer import SimulatedBalancer
from pytest_vmss.store import GenerationRecord, InstanceRecord, ScaleSetRecord, Store, VersionRecord

__all__ = ["SimulatedLab"]

#: The attributes that outlive the process of a lab, besides machines and load balancers.
_LASTING = ("behaviours", "sick", "applications", "deaf_ports", "unreachable", "metrics", "runs")

#: The image that is published where none is named.
_IMAGE = ImageVersionRef(DEFAULT_GALLERY, "web")

#: What is seen of an application, by the behaviour of its image version.
_APPLICATIONS = {
    behaviour: Observation.of(behaviour is not Behaviour.UNHEALTHY, str(behaviour))
    for behaviour in Behaviour
}


@lru_cache(maxsize=64)
def _empty_image(size_mib: int) -> bytes:
    """A qcow2 of an empty disk; simulated labs of one process publish the same ones."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.qcow2"
        run(["qemu-img", "create", "-q", "-f", "qcow2", path, f"{size_mib}M"], what="an image")
        return path.read_bytes()


class ScheduledStore(Store):
    """A store that lets other threads run before and after each transaction, never inside one.

    Args:
        path: The database file.
        clock: The clock that schedules the threads.
    """

    def __init__(self, path: Path, clock: VirtualClock) -> None:
        super().__init__(path, clock)
        self._virtual = clock
        clock.held = lambda: self.in_transaction

    def _let_others_run(self) -> None:
        self._virtual.preempt()


class SimulatedLab(Lab):
    """A real lab with a simulated hypervisor and simulated guests.

    If the lab already has sets, their instances are assumed to run as the records say, and all
    images to be good.

    Args:
        place: The lab's folder, open in this process.
        seed: The same seed gives the same run.
        threads: The most instances that are acted on in threads of their own; more are
            acted on one after another, which is several times as fast.

    Attributes:
        behaviours: How the instances of each image version behave.
        sick: Names of instances whose probe fails whatever they run.
        applications: What the Application Health extension observes, by instance name, where
            it differs from the instance's behaviour.
        deaf_ports: Ports of guests on which nothing listens.
        unreachable: What is wrong with URIs that extensions download from.
        metrics: Custom metrics by instance name.
        balancers: Load balancers by the set's unique id.
        runs: How often custom data and each run of an extension was executed: by instance,
            number of the OS disk, and what.
        virtual: The virtual clock.
        simulated: The simulated hypervisor.
        room: How many machines the host has room for.
        turns: How many guests may boot at once; None for all.
    """

    def __init__(self, place: LabPlace, *, seed: int = 0, threads: int = 8) -> None:
        self.behaviours: dict[str, Behaviour] = {}
        self.sick: set[str] = set()
        self.applications: dict[str, Health] = {}
        self.deaf_ports: set[int] = set()
        self.unreachable: dict[str, str] = {}
        self.metrics: dict[str, RollingUpgradeMetrics] = {}
        self.balancers: dict[str, SimulatedBalancer] = {}
        self.runs: dict[tuple[str, int, str], int] = {}
        self.room = 10_000
        self.turns: int | None = None
        self.virtual = VirtualClock(seed, threads=threads)
        self.simulated = SimulatedHypervisor(self.virtual, place.paths.folder)
        self.simulated.read_file = self._simulate_file
        self._extensions: dict[tuple[str, int, int], tuple[Rules, float]] = {}
        store = ScheduledStore(place.paths.database, self.virtual)
        super().__init__(
            place, clock=self.virtual, store=store, backends=SimulatedBackends(self, place, store)
        )
        self._adopt()

    @classmethod
    def open(
        cls, settings: Settings, name: str = DEFAULT_LAB, *, seed: int = 0, threads: int = 8
    ) -> Self:
        """Opens a lasting lab by name, and creates it if there is none; see :class:`Lab`."""
        make = partial(cls, seed=seed, threads=threads)
        settings, paths = find_lab(settings, name)
        return open_place(settings, paths, "lasting", make)

    @classmethod
    def session(cls, settings: Settings, *, seed: int = 0, threads: int = 8) -> Self:
        """Creates a lab that lives as long as this process; see :class:`Lab`."""
        make = partial(cls, seed=seed, threads=threads)
        return open_place(settings, session_paths(settings), "session", make)

    @property
    def executions(self) -> dict[tuple[str, int, str], int]:
        """How often custom data and each extension were executed, over all runs.

        An extension that was removed from an instance is counted anew afterwards.
        """
        found = Counter[tuple[str, int, str]]()
        for (name, generation, what), times in self.runs.items():
            extension, _, rest = what.partition(" ")
            if what != "custom data" and extension != "no":
                _, before, number = rest.rpartition("before ")
                what = f"{extension} before {number}" if before else extension  # noqa: PLW2901
            found[name, generation, what] += times
        return dict(found)

    def snapshot(self) -> bytes:
        """Pickles all that outlives the lab's process: machines, guests, load balancers."""
        told = {
            "machines": self.simulated.snapshot(),
            "balancers": {
                key: (balancer.running, balancer.members, balancer.busy)
                for key, balancer in self.balancers.items()
            },
            "elapsed": self.virtual.monotonic(),
            "others": {name: getattr(self, name) for name in _LASTING},
        }
        return pickle.dumps(told)

    def restore(self, snapshot: bytes) -> None:
        """Restores what another process of the lab left."""
        told = pickle.loads(snapshot)  # noqa: S301 - made by this class
        self.simulated.load(told["machines"])
        for key, (running, members, busy) in told["balancers"].items():
            balancer = self.new_balancer()
            balancer.running, balancer.members, balancer.busy = running, members, busy
            self.balancers[key] = balancer
        self.virtual.sleep(told["elapsed"])
        for name, value in told["others"].items():
            setattr(self, name, value)

    def _adopt(self) -> None:
        """Registers the machines of the records as running."""
        for version in self.store.select(VersionRecord):
            self.behaviours[version.version] = Behaviour.GOOD
            self.simulated.images[version.digest] = version.version
        for record in self.store.select(InstanceRecord):
            if record.generation:
                context = InstanceContext(self.environment, record.scale_set, record.instance_id)
                machine = context.machine(record.generation)
                known = context.existing(record.generation).extensions
                ran = {("custom data", ""), *((entry.name, "1") for entry in known)}
                self.simulated.adopt(machine, SimulatedDisk(record.version or "", ran))

    def new_balancer(self) -> SimulatedBalancer:
        """Returns a load balancer that probes the lab's instances."""
        return SimulatedBalancer(lambda name: self.probe(name).healthy, self.virtual)

    def probe(self, name: str) -> Observation:
        """The result of probing an instance from outside."""
        domain = f"vmss-{self.identity.id}-{name}"
        if domain in self.simulated.paused or domain in self.simulated.cut:
            return Observation(Health.UNHEALTHY, "timed out")
        return self._application(name, domain)

    def _application(self, name: str, domain: str) -> Observation:
        """The health of an instance's application, as seen inside the guest."""
        machine = self.simulated.defined.get(domain)
        if machine is None or domain not in self.simulated.running or name in self.sick:
            return Observation(Health.UNHEALTHY, "sick")
        behaviour = self.behaviours.get(self.simulated.image_of(machine), Behaviour.GOOD)
        return _APPLICATIONS[behaviour]

    def _simulate_file(self, domain: str, path: str) -> bytes | None:
        """The status file of the Application Health extension, if the instance has it."""
        name = domain.removeprefix(f"vmss-{self.identity.id}-")
        scale_set, _, number = name.rpartition("_")
        context = InstanceContext(self.environment, scale_set, int(number))
        generation = context.generation(self.simulated.running_generation(domain) or 0)
        if path != STATUS_FILE or generation is None:
            return None
        settings = application_health(context.revision(generation.revision).model)
        if settings is None or not any(
            entry.type.endswith("ApplicationHealthLinux") for entry in generation.extensions
        ):
            return None
        boot, now = self.simulated.boots[domain], self.virtual.monotonic()
        key = (domain, boot, generation.revision)
        rules, due = self._extensions.get(key) or (rules_of(settings.full(), now), now)
        seen = self.applications.get(name) or self._application(name, domain).health
        while due <= now:
            rules.observe(str(seen), due)
            due += settings.interval_in_seconds
        self._extensions[key] = (rules, due)
        stamp = int(self.virtual.now().timestamp() * 1e9)
        told = f"it is {seen}"
        return document(rules.state, told, self._told(name), f"boot-{boot}", stamp).encode()

    def _told(self, name: str) -> str | None:
        """``customMetrics`` as an application reports them; None for none."""
        metrics = self.metrics.get(name)
        if metrics is None:
            return None
        told = {"PhaseOrderingNumber": metrics.phase, "SkipUpgrade": metrics.skip}
        return json.dumps({"rollingUpgrade": told})

    def publish(
        self,
        version: str,
        behaviour: Behaviour = Behaviour.GOOD,
        *,
        image: ImageVersionRef = _IMAGE,
    ) -> None:
        """Publishes an image version whose instances have a given behaviour."""
        path = self.paths.folder / f"source-{version}.qcow2"
        size = 1 + int(version.replace(".", ""))  # the size makes the digest unique
        path.write_bytes(_empty_image(size))
        self.behaviours[version] = behaviour
        record = self.gallery(image.gallery).publish(image.definition, version, path)
        self.simulated.images[record.digest] = version

    def start(self, body: dict[str, Any], load_balancer: dict[str, Any] | None = None) -> ScaleSet:
        """Creates a set; publishes a good version 1.0.0 of its image first if it has none yet."""
        image = self._image_of(load_document(body, load_balancer=load_balancer).model)
        if not self.gallery(image.gallery).versions(image.definition):
            self.publish("1.0.0", image=image)
        return self.create(body, load_balancer=load_balancer)

    def roll(self, web: ScaleSet, version: str, behaviour: Behaviour = Behaviour.GOOD) -> Upgrade:
        """Publishes a version of a set's image, and runs the upgrades that become due.

        They run in this thread.
        """
        self.publish(version, behaviour, image=self._image_of(web.model))
        self.run_due()
        return web.history()[0]

    def _image_of(self, model: ScaleSetModel) -> ImageVersionRef:
        """The image that a model names in a gallery; the usual one for a platform image."""
        reference = model.image_reference
        return _IMAGE if reference.id is None else self.images.image_of(reference)


class SimulatedBackends(LocalBackends):
    """The backends of a simulated lab: files and networks are real, all else is simulated.

    Args:
        lab: The lab, whose attributes decide how the simulated parts behave.
        place: Its folder.
        store: Its database.
    """

    def __init__(self, lab: SimulatedLab, place: LabPlace, store: Store) -> None:
        super().__init__(place, store, lab.virtual)
        self._lab = lab
        self._room_clock = SystemClock()  # other labs are other processes

    def connect(self) -> Hypervisor:
        """Returns the simulated hypervisor."""
        return self._lab.simulated

    def make_guest(self, context: InstanceContext, generation: GenerationRecord) -> SimulatedGuest:
        """Returns a simulated guest, which behaves as its image version does."""
        lab = self._lab
        return SimulatedGuest(
            context.name,
            domain=context.domain,
            generation=generation.number,
            version=generation.version,
            behaviour=lambda: lab.behaviours.get(generation.version, Behaviour.GOOD),
            hypervisor=lab.simulated,
            clock=lab.virtual,
            runs=lab.runs,
            listening=lambda: set(context.record.forwards) - lab.deaf_ports,
        )

    def require_balancer(self) -> None:
        """Does nothing: a simulated load balancer is always available."""

    def require_platform(self) -> None:
        """Does nothing: no guest is served."""

    def make_balancer(self, record: ScaleSetRecord, rules: Sequence[Rule]) -> Balancer:
        """Returns the simulated load balancer of a set."""
        made = self._lab.balancers.get(record.unique_id)
        made = made or self._lab.balancers.setdefault(record.unique_id, self._lab.new_balancer())
        made.judges = any(rule.judges for rule in rules)
        return made

    def check_room(
        self, count: int, size: VmSize, hypervisor: Hypervisor, memory: Sequence[int]
    ) -> None:
        """Checks that the lab has ``room`` for so many machines more, and claims their memory.

        Simulated machines take none of the host's; only the setting ``memory_mib`` counts.
        """
        if len(self._lab.simulated.defined) + count > self._lab.room:
            raise CapacityError(
                f"{count} more instances of {size.name} do not fit: there is room for "
                f"{self._lab.room}"
            )
        held = sum(memory_of(mib, hypervisor.accelerator) for mib in memory)
        needed = count * memory_of(size.memory_mib, hypervisor.accelerator)
        self._take_room(needed, held, available=lambda: None)

    def boot_turns(self, hypervisor: Hypervisor) -> BootTurns | None:  # noqa: ARG002
        """As many turns as the lab's ``turns``: simulated guests need no processors."""
        turns = self._lab.turns
        return None if turns is None else BootTurns(self._place.settings.state_dir, turns)

    def probe(self, probe: Probe, record: InstanceRecord) -> Observation:  # noqa: ARG002
        """Returns what a probe from outside finds."""
        return self._lab.probe(record.name)

    def metrics(self, context: InstanceContext) -> RollingUpgradeMetrics:
        """Returns the custom metrics that the lab's ``metrics`` name."""
        return self._lab.metrics.get(context.name, RollingUpgradeMetrics())

    def reach(self, uri: str) -> str:
        """Returns what the lab's ``unreachable`` says of a URI."""
        return self._lab.unreachable.get(uri, "")
