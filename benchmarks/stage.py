"""Scale sets that checks disturb, put back as they were for each point of theirs.

A set is made once for each scenario. For a point its files are copied, and a lab is
opened on them as another process would open it; machines, guests and load balancers are
what the simulation kept of them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.journal.report import OperationReport
from pytest_vmss.operations import MakeCheckpoint, Replace
from pytest_vmss.settings import Settings
from pytest_vmss.simulation.guest import Behaviour
from pytest_vmss.simulation.lab import SimulatedLab
from pytest_vmss.store import OperationRecord
from tests.models import LOAD_BALANCER, custom_script, node_type, web_model

__all__ = ["SCENARIOS", "Scenario", "Stage"]

_LAB = "lab"


@dataclass(frozen=True)
class Scenario:
    """Something that is done to a set.

    Attributes:
        act: Does it; called again where a kill came before it was recorded.
        capacity: Number of instances; of four two are in a batch, of one update domain.
        policy: The set's rolling upgrade policy.
        automatic: Whether upgrades start by themselves.
        behaviour: How the instances of version 1.1.0 fare, which is published before.
        prepare: Done to the lab before the beginning.
        replaces_data_disks: Whether it puts other files in the place of data disks.
        keeps_writes: Whether it keeps what guests write to their data disks meanwhile.
        rolling: No more instances may be out than the policy's batch holds (M2).
        model: Makes the set's body.
        hyper_v_generation: That of its image.
    """

    name: str
    act: Callable[[SimulatedLab], object]
    capacity: int = 4
    policy: Mapping[str, Any] = field(default_factory=dict)
    automatic: bool = True
    behaviour: Behaviour | None = None
    prepare: Callable[[SimulatedLab], object] = lambda _: None
    replaces_data_disks: bool = False
    keeps_writes: bool = True
    rolling: bool = False
    model: Callable[..., dict[str, Any]] = web_model
    hyper_v_generation: str = "V1"

    @property
    def most_out(self) -> int:
        """How many instances may be out at once."""
        return max(1, self.capacity // 2)


def _web(lab: SimulatedLab) -> ScaleSet:
    return lab.scale_set("web")


def _replace(lab: SimulatedLab) -> None:
    """What automatic repairs do."""
    web, images = _web(lab), lab.images
    version = images.version_for(web.model.image_reference)
    with web._engine.lock():
        web._engine.perform(Replace([1], version, started_by="Platform"))


def _create(lab: SimulatedLab) -> None:
    """A second set, so that the first one shows what a creation must not touch."""
    lab.create(web_model("api", capacity=3), load_balancer=LOAD_BALANCER)


def _create_pristine(lab: SimulatedLab) -> None:
    """The same from a checkpoint, which is made if there is none."""
    lab.create(web_model("api", capacity=3), load_balancer=LOAD_BALANCER, pristine=True)


def _cache_checkpoint(lab: SimulatedLab) -> None:
    _create_pristine(lab)
    lab.scale_set("api").delete()


def _make_checkpoint(lab: SimulatedLab) -> None:
    """What follows the creation of a set of which there is no checkpoint."""
    web = _web(lab)
    with web._engine.lock():
        web._engine.perform(MakeCheckpoint("0.1"))


def _checkpoint_and_upgrade(lab: SimulatedLab) -> None:
    """What a set is restored from: another version, another model, and other instances."""
    web = _web(lab)
    web.checkpoint()
    lab.run_due()
    web.update({"sku": {"name": "Standard_B1s"}})
    web.delete_instances([1])
    web.scale(3)


_OTHER = custom_script("other", settings={"commandToExecute": "true"})
_OTHER_EXTENSION = {"virtualMachineProfile": {"extensionProfile": {"extensions": [_OTHER]}}}
_NEW_SIZE = {"sku": {"name": "Standard_B1s"}}
_LARGER = {"upgradePolicy": {"mode": "Rolling"}, "sku": {**_NEW_SIZE["sku"], "capacity": 5}}


def _run_due(lab: SimulatedLab) -> None:
    lab.run_due()


def _stop(lab: SimulatedLab) -> None:
    _web(lab).stop([1, 5])


def _stop_and_upgrade(lab: SimulatedLab) -> None:
    _stop(lab)
    lab.run_due()


def _update(change: dict[str, Any]) -> Callable[[SimulatedLab], None]:
    def act(lab: SimulatedLab) -> None:
        _web(lab).update(change)
        _web(lab).update_instances()

    return act


SCENARIOS: Mapping[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("upgrade", _run_due, behaviour=Behaviour.GOOD, rolling=True),
        Scenario("upgrade of one", _run_due, 1, behaviour=Behaviour.GOOD, rolling=True),
        Scenario("rollback", _run_due, behaviour=Behaviour.UNHEALTHY, rolling=True),
        Scenario("rollback of one", _run_due, 1, behaviour=Behaviour.PANICS, rolling=True),
        Scenario(
            "upgrade by hand",
            lambda lab: _web(lab).upgrade(),
            automatic=False,
            behaviour=Behaviour.GOOD,
            rolling=True,
        ),
        Scenario(
            "upgrade by hand that fails",
            lambda lab: _web(lab).upgrade(),
            automatic=False,
            behaviour=Behaviour.EXTENSION_FAILS,
            rolling=True,
        ),
        Scenario(
            "rollback on policy breach",
            lambda lab: _web(lab).upgrade(),
            hyper_v_generation="V2",
            policy={"rollbackFailedInstancesOnPolicyBreach": True},
            automatic=False,
            behaviour=Behaviour.EXTENSION_FAILS,
            rolling=True,
        ),
        Scenario(
            "upgrade with maxSurge",
            _run_due,
            policy={"maxSurge": True},
            behaviour=Behaviour.GOOD,
            rolling=True,
        ),
        Scenario(
            "rollback with maxSurge",
            _run_due,
            policy={"maxSurge": True},
            behaviour=Behaviour.PANICS,
            rolling=True,
        ),
        Scenario(
            "upgrade of a Service Fabric node type",
            _run_due,
            behaviour=Behaviour.GOOD,
            model=node_type,
        ),
        Scenario("upgrade of stopped instances", _run_due, behaviour=Behaviour.GOOD, prepare=_stop),
        Scenario(
            "start of instances that were upgraded while stopped",
            lambda lab: _web(lab).start(),
            behaviour=Behaviour.GOOD,
            prepare=_stop_and_upgrade,
        ),
        Scenario("create", _create, 1),
        Scenario("make a checkpoint", _make_checkpoint, 2, replaces_data_disks=True),
        Scenario("checkpoint", lambda lab: _web(lab).checkpoint(), 2, replaces_data_disks=True),
        Scenario(
            "restore",
            lambda lab: _web(lab).restore(),
            3,
            behaviour=Behaviour.GOOD,
            prepare=_checkpoint_and_upgrade,
            replaces_data_disks=True,
            keeps_writes=False,
        ),
        Scenario("create from a checkpoint", _create_pristine, 1, prepare=_cache_checkpoint),
        Scenario("scale out", lambda lab: _web(lab).scale(6)),
        Scenario("scale in", lambda lab: _web(lab).scale(1)),
        Scenario("reimage", lambda lab: _web(lab).reimage()),
        Scenario(
            "reimageall",
            lambda lab: _web(lab).reimage_all(),
            2,
            replaces_data_disks=True,
            keeps_writes=False,
        ),
        Scenario("replace", _replace),
        Scenario("restart", lambda lab: _web(lab).restart()),
        Scenario("another size", _update(_NEW_SIZE), automatic=False),
        Scenario(
            "another extension in the place of one", _update(_OTHER_EXTENSION), automatic=False
        ),
        Scenario(
            "rolling update of the model and scale out",
            lambda lab: _web(lab).update(_LARGER),
            automatic=False,
            rolling=True,
        ),
        Scenario("delete", lambda lab: _web(lab).delete(), hyper_v_generation="V2"),
    )
}


class Stage:
    """A scenario's set on version 1.0.0, where need be with 1.1.0 published and due.

    Args:
        scenario: What it is made for.
        folder: For it alone, as long as it is used.

    Attributes:
        initial: What the simulation keeps at the beginning, besides files.
        data_disks: The inode of each data disk at the beginning, by its path.
        os_disks: The same of each OS disk.
    """

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario = scenario
        self._state, self._template = folder / "state", folder / "template"
        self._cache, self._cached = folder / "cache", folder / "cached"
        self._settings = Settings(state_dir=self._state, cache_dir=self._cache)
        lab = self._open(0)
        lab.gallery().define("web", hyper_v_generation=scenario.hyper_v_generation)
        body = scenario.model(
            capacity=7 if scenario.capacity == 4 else scenario.capacity,
            policy={"maxBatchInstancePercent": 50, **scenario.policy},
            automatic=scenario.automatic,
        )
        web = lab.start(body, LOAD_BALANCER)
        if scenario.capacity == 4:  # two each in two update domains, so that a batch is of two
            web.delete_instances([2, 3, 4])
        if scenario.behaviour is not None:
            lab.publish("1.1.0", scenario.behaviour)
        scenario.prepare(lab)
        lab.runs.clear()
        self.initial = lab.snapshot()
        self.data_disks: dict[str, int] = {}
        self.os_disks: dict[str, int] = {}
        self._known = {record.id for record in lab.store.select(OperationRecord)}
        lab.close()
        self._cache.mkdir(exist_ok=True)
        self._state.rename(self._template)
        self._cache.rename(self._cached)

    @property
    def folder(self) -> Path:
        """The folder of the lab."""
        return self._state

    def _open(self, seed: int) -> SimulatedLab:
        return SimulatedLab.open(self._settings, _LAB, seed=seed)

    def lay(self) -> None:
        """Puts all files as they were at the beginning; no lab may be open."""
        for path, template in ((self._state, self._template), (self._cache, self._cached)):
            if path.exists():
                shutil.rmtree(path)
            shutil.copytree(template, path)
        disks = {str(path): path.stat().st_ino for path in self._state.rglob("*.qcow2")}
        self.data_disks = {path: inode for path, inode in disks.items() if "/lun" in path}
        self.os_disks = {path: inode for path, inode in disks.items() if "/os-" in path}

    def open(self, left: bytes | None = None, seed: int = 0) -> SimulatedLab:
        """Opens the lab, as a new process.

        Args:
            left: What an earlier process left of machines and guests; None for the beginning.
            seed: Of the order in which things happen.
        """
        lab = self._open(seed)
        lab.restore(self.initial if left is None else left)
        return lab

    def fresh(self, seed: int = 0) -> SimulatedLab:
        """The lab at the beginning."""
        self.lay()
        return self.open(seed=seed)

    def succeed(
        self, lab: SimulatedLab, seed: int = 0, between: Callable[[], object] = lambda: None
    ) -> SimulatedLab:
        """The lab as the next process finds it that comes after a killed one.

        Args:
            lab: The killed one's.
            seed: Of the order in which things happen from then on.
            between: Called while nobody has the lab open.
        """
        left = lab.snapshot()
        lab.close()
        between()
        return self.open(left, seed)

    def reports(self, lab: SimulatedLab) -> list[OperationReport]:
        """All operations since the beginning."""
        return [
            OperationReport.of(lab.store, record)
            for record in lab.store.select(OperationRecord)
            if record.id not in self._known
        ]


def use_memory() -> None:
    """Keeps temporary files in memory where there is room: durability is not what is measured."""
    import tempfile  # noqa: PLC0415 - only to set its folder

    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).free > 2**28 and os.access(shared, os.W_OK):
        tempfile.tempdir = str(shared)
