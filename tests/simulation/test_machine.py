"""A random life of a scale set: publications, crashes, resumes, sickness, dead machines.

Invariants (M1-M4, G2, G4, E4), after every step:

- each data disk is the file that was made at the beginning;
- each instance's committed OS disk exists, and while no upgrade is interrupted
  it is the one that the instance runs on, with no other disk beside it;
- custom data and each extension ran at most once for each OS disk;
- at most max(1, ⌊N·20 %⌋) instances are out because of an upgrade;
- every upgrade that is not interrupted has ended.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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

from pytest_vmss.errors import ConflictError
from pytest_vmss.guest.simulated import Behaviour
from pytest_vmss.settings import Settings
from pytest_vmss.store import Outcome, Store
from pytest_vmss.upgrade.engine import Engine
from pytest_vmss.upgrade.planner import batch_limit
from tests.simulation.conftest import SimulatedLab
from tests.simulation.test_upgrade import check_accounts


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the product catches it."""


@contextlib.contextmanager
def killed_at(moment: int) -> Iterator[None]:
    """Kills whoever writes the journal for the moment-th time, before or after it is written."""
    originals: dict[str, Any] = {name: getattr(Store, name) for name in ("intend", "done", "put")}
    count = 0

    def patched(name: str) -> Any:
        def call(self: Store, *arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == moment:
                raise Killed
            result = originals[name](self, *arguments, **named)
            count += 1
            if count == moment and self._depth == 0:
                raise Killed
            return result

        return call

    for name in originals:
        setattr(Store, name, patched(name))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(Store, name, original)


class Life(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        self.lab = SimulatedLab.session(Settings(state_dir=folder, cache_dir=folder / "cache"))
        self.lab.begin()
        self.number = 0
        self.dead: set[str] = set()

    @initialize(capacity=st.integers(1, 7))
    def create(self, capacity: int) -> None:
        self.web = self.lab.start_web(capacity)
        self.disks = {
            instance.name: {p: p.stat().st_ino for p in instance.data_disks.values()}
            for instance in self.web
        }

    def teardown(self) -> None:
        self.lab.destroy()
        assert self.lab.simulated.defined == {}
        assert not self.lab.paths.folder.exists()
        self._folder.cleanup()

    @property
    def interrupted(self) -> bool:
        return any(not upgrade.ended for upgrade in self.web.history(limit=None))

    @rule(behaviour=st.sampled_from(Behaviour))
    def publish(self, behaviour: Behaviour) -> None:
        if self.number < 6:
            self.number += 1
            self.lab.publish(f"1.{self.number}.0", behaviour)

    @precondition(lambda self: not self.interrupted)
    @rule()
    def upgrade(self) -> None:
        self.lab.run_due()

    @precondition(lambda self: not self.interrupted)
    @rule(moment=st.integers(1, 160))
    def crash(self, moment: int) -> None:
        with killed_at(moment), contextlib.suppress(Killed):
            self.lab.run_due()

    @precondition(lambda self: self.interrupted)
    @rule()
    def resume(self) -> None:
        assert self.web.resume() is not None
        assert not self.interrupted

    @precondition(lambda self: self.interrupted)
    @rule(moment=st.integers(1, 80))
    def crash_while_resuming(self, moment: int) -> None:
        with killed_at(moment), contextlib.suppress(Killed):
            self.web.resume()

    @rule(index=st.integers(0, 6))
    def fall_sick(self, index: int) -> None:
        self.lab.sick.add(self.web[index % len(self.web)].name)

    @rule()
    def recover(self) -> None:
        self.lab.sick.clear()

    @precondition(lambda self: self.interrupted)
    @rule(index=st.integers(0, 6))
    def machine_dies_meanwhile(self, index: int) -> None:
        """Only those that are being worked on; the others' health is not the engine's to mend."""
        outcomes = self.web.history(limit=None)[0].outcomes
        busy = [number for number, what in outcomes.items() if what is Outcome.IN_PROGRESS]
        if busy:
            number = busy[index % len(busy)]
            name = f"vmss-{self.lab.identity.id}-web_{number}"
            self.lab.simulated.running.discard(name)
            self.dead.add(name)

    @rule()
    def second_orchestrator(self) -> None:
        before = self.lab.store.events()[-1].id
        with Engine(self.lab.world, "web").claim(), pytest.raises(ConflictError) as refused:
            self.web.upgrade()
        assert refused.value.code == "OperationNotAllowed"
        assert self.lab.store.events()[-1].id == before

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "web"):
            return
        for instance in self.web:
            for path, inode in self.disks[instance.name].items():
                assert path.stat().st_ino == inode
            assert instance.os_disk.exists()
        assert set(self.lab.runs.values()) <= {1}
        if not self.interrupted:
            check_accounts(self.lab, self.web, frozenset(self.dead))

    @invariant()
    def no_more_out_than_allowed(self) -> None:
        if hasattr(self, "web"):
            for upgrade in self.web.history(limit=None):
                limit = batch_limit(len(self.web), 20)
                assert all(len(ids) <= limit for ids in upgrade.batches)


def test_a_random_life() -> None:
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
