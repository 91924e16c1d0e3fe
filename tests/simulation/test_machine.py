"""A random life of a scale set, of at least 10,000 steps.

Publications good and bad, automatic upgrades, scaling, reimages, restarts,
model changes, protection, cancellation; instances that fall sick or die at any
moment, orchestrators that are killed at any moment and resumed, second ones.

Invariants, after every step:

- M1, M3: each data disk is the file that was made for its instance; each
  instance's committed OS disk exists; no file or machine that the records do
  not know, once nothing is interrupted.
- G2: while nothing is interrupted, an instance that runs is on its committed OS
  disk, and no other disk of its is half made.
- E4: custom data and each extension ran at most once for each OS disk.
- M4: a second orchestrator is refused with 409, and changes nothing.
- G4: every operation that is not interrupted has ended.
- M2, checked at every stop of a machine: an upgrade never has more than
  max(1, ⌊N·20 %⌋) instances in hand.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pytest_vmss.engine.engine import Engine
from pytest_vmss.engine.planner import batch_limit
from pytest_vmss.errors import ConflictError, ProvisioningError
from pytest_vmss.settings import Settings
from pytest_vmss.simulation.guest import Behaviour
from pytest_vmss.store import GenerationRecord, Outcome
from tests.simulation.conftest import SimulatedLab
from tests.simulation.kills import Killed, at_write, kill

#: Lives of so many steps for each seed; at least 10,000 steps in all.
SEEDS, EXAMPLES, STEPS = 4, 68, 50


class Life(RuleBasedStateMachine):
    steps = 0  # of all lives so far

    def __init__(self) -> None:
        super().__init__()
        shared = Path("/dev/shm")
        self._folder = tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None)
        folder = Path(self._folder.name)
        settings = Settings(state_dir=folder, cache_dir=folder / "cache")
        # One after another: thousands of steps in a minute.
        self.lab = SimulatedLab.session(settings, threads=0)
        self.number = 0
        self.size = 0
        self.disks: dict[str, int] = {}

    @initialize(capacity=st.integers(1, 7))
    def create(self, capacity: int) -> None:
        self.web = self.lab.start_web(capacity)
        request_stop = self.lab.simulated.request_stop

        def stop(name: str) -> None:
            self.check_in_hand()
            request_stop(name)

        self.lab.simulated.request_stop = stop  # type: ignore[method-assign]

    def teardown(self) -> None:
        self.lab.destroy()
        assert self.lab.simulated.defined == {}
        assert not self.lab.paths.folder.exists()
        self._folder.cleanup()

    @property
    def interrupted(self) -> bool:
        return self.web._engine.journal.unfinished() is not None

    def name_of(self, index: int) -> str | None:
        return self.web[index % len(self.web)].name if len(self.web) else None

    # What is done to it.

    @rule(behaviour=st.sampled_from([Behaviour.GOOD, *Behaviour]))
    def publish(self, behaviour: Behaviour) -> None:
        if self.number < 8:
            self.number += 1
            self.lab.publish(f"1.{self.number}.0", behaviour)

    def act(self, what: str, number: int) -> None:
        """One of the operations."""
        with contextlib.suppress(ProvisioningError, ConflictError):
            match what:
                case "upgrade":
                    self.lab.run_due()
                case "by hand":
                    self.web.upgrade()
                case "scale":
                    self.web.scale(number)
                case "reimage":
                    self.web.reimage()
                case "restart":
                    self.web.restart()
                case "start":
                    self.web.start()
                case "update":
                    self.size += 1
                    size = ("Standard_B1ls", "Standard_B1s")[self.size % 2]
                    self.web.update({"sku": {"name": size}})
                    self.web.update_instances()

    WHAT = st.sampled_from(
        [
            "upgrade",
            "upgrade",
            "upgrade",
            "by hand",
            "scale",
            "reimage",
            "restart",
            "start",
            "update",
        ]
    )

    @precondition(lambda self: not self.interrupted)
    @rule(what=WHAT, number=st.integers(0, 7))
    def operate(self, what: str, number: int) -> None:
        self.act(what, number)
        assert not self.interrupted

    @precondition(lambda self: not self.interrupted)
    @rule(what=WHAT, number=st.integers(0, 7), moment=st.integers(1, 90))
    def crash(self, what: str, number: int, moment: int) -> None:
        with at_write(moment, kill), contextlib.suppress(Killed):
            self.act(what, number)

    @precondition(lambda self: self.interrupted)
    @rule()
    def resume(self) -> None:
        assert self.web.resume() is not None
        assert not self.interrupted

    @precondition(lambda self: self.interrupted)
    @rule(moment=st.integers(1, 60))
    def crash_while_resuming(self, moment: int) -> None:
        with at_write(moment, kill), contextlib.suppress(Killed):
            self.web.resume()

    @precondition(lambda self: not self.interrupted)
    @rule(moment=st.integers(1, 60))
    def cancel_meanwhile(self, moment: int) -> None:
        def cancel() -> None:
            with contextlib.suppress(ConflictError):
                self.web.cancel()

        with at_write(moment, cancel):
            self.lab.run_due()
        assert not self.interrupted

    @rule(index=st.integers(0, 6), actions=st.booleans())
    def protect(self, index: int, actions: bool) -> None:
        if len(self.web):
            self.web[index % len(self.web)].protect(
                from_scale_set_actions=actions, from_scale_in=True if actions else None
            )

    # What befalls it.

    @rule(index=st.integers(0, 6))
    def fall_sick(self, index: int) -> None:
        if (name := self.name_of(index)) is not None:
            self.lab.sick.add(name)

    @rule()
    def recover(self) -> None:
        self.lab.sick.clear()

    @precondition(lambda self: not self.interrupted)
    @rule(index=st.integers(0, 6), moment=st.integers(1, 90), dies=st.booleans())
    def trouble_meanwhile(self, index: int, moment: int, dies: bool) -> None:
        """An instance's health or its machine goes in the middle of an upgrade."""
        if (name := self.name_of(index)) is None:
            return

        def befall() -> None:
            if dies:
                self.lab.simulated.running.discard(f"vmss-{self.lab.identity.id}-{name}")
            else:
                self.lab.sick.add(name)

        with at_write(moment, befall):
            self.lab.run_due()
        assert not self.interrupted

    @rule(index=st.integers(0, 6))
    def machine_dies(self, index: int) -> None:
        if (name := self.name_of(index)) is not None:
            self.lab.simulated.running.discard(f"vmss-{self.lab.identity.id}-{name}")

    @rule()
    def second_orchestrator(self) -> None:
        before = self.lab.store.events()[-1].id
        with Engine(self.lab.environment, "web").lock(), pytest.raises(ConflictError) as refused:
            self.web.upgrade()
        assert refused.value.code == "OperationNotAllowed"
        assert self.lab.store.events()[-1].id == before

    # Invariants.

    def check_in_hand(self) -> None:
        """M2."""
        operation = self.web._engine.journal.unfinished()
        if operation is not None and operation.rolling:
            report = self.web._engine.journal.report(operation.id)
            limit = batch_limit(len(self.web), 20)
            assert report.count(Outcome.IN_PROGRESS) <= limit

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "web"):
            return
        Life.steps += 1
        for instance in self.web:
            if self.interrupted and instance.record.provisioning == "Deleting":
                continue  # killed while it was removed, with its disks
            for path in instance.data_disks.values() if instance.record.generation else ():
                inode = path.stat().st_ino
                assert self.disks.setdefault(instance.record.uuid, inode) == inode
            if instance.record.generation:
                assert instance.os_disk.exists()
        assert set(self.lab.runs.values()) <= {1}

    @invariant()
    def all_is_accounted_for(self) -> None:
        if not hasattr(self, "web") or self.interrupted:
            return
        prefix = f"vmss-{self.lab.identity.id}-"
        names = {f"{prefix}{instance.name}" for instance in self.web}
        assert set(self.lab.simulated.defined) <= names
        folder = self.lab.paths.scale_set("web")
        assert {path.name for path in folder.iterdir()} <= {i.instance_id for i in self.web}
        for instance in self.web:
            self.check_instance(instance, prefix + instance.name)

    def check_instance(self, instance: Any, domain: str) -> None:
        record = instance.record
        running = self.lab.simulated.running_generation(domain)
        assert running in (None, record.generation)
        generations = self.lab.store.select(GenerationRecord, *record.key)
        assert [g.number for g in generations if g.state == "current"] == (
            [record.generation] if record.generation else []
        )
        kept = [g.number for g in generations if g.state in ("current", "previous")]
        folder = self.lab.paths.instance("web", record.instance_id)
        files = {path.name for path in folder.iterdir()} if folder.exists() else set()
        known = {f"os-{n}.qcow2" for n in kept} | {f"seed-{n}.iso" for n in kept}
        if record.generation:
            logs = {name for name in files if name.startswith("guest-")}
            assert files - logs == known | {"lun0.qcow2"}
            assert logs <= {f"guest-{g.number}" for g in generations if g.number not in kept}
        else:
            assert record.provisioning == "Failed"


def live(examples: int, steps: int, *, seed: int | None = None) -> None:
    """Lives a number of lives of a number of steps each; without a seed others each time."""
    life = type("Life", (Life,), {})
    run_state_machine_as_test(
        life if seed is None else hypothesis.seed(seed)(life),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_random_life(seed: int) -> None:
    before = Life.steps
    live(EXAMPLES, STEPS, seed=seed)
    assert Life.steps - before >= 10_000 / SEEDS
