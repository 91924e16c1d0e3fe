"""M1: killed before, after or inside any step, a later resume ends where it should."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from pytest_vmss import steps
from pytest_vmss.settings import Settings
from pytest_vmss.simulation.guest import Behaviour
from pytest_vmss.store import Outcome, StepKey, Store
from tests.simulation.conftest import SimulatedLab
from tests.simulation.kills import Killed, at_write, kill
from tests.simulation.test_upgrade import check_accounts

STEPS: list[Any] = [
    steps.PrepareDisk,
    steps.Stop,
    steps.Start,
    steps.ProveBoot,
    steps.FinishCloudInit,
    steps.RunExtensions,
    steps.AwaitHealth,
    steps.Commit,
    steps.Discard,
]


def kill_at(monkeypatch: pytest.MonkeyPatch, step: Any, when: str, nth: int) -> None:
    """Kills the n-th application of a step, before or after its effect, or its journal entry."""
    count = 0
    original, done = step.apply, Store.done

    def apply(self: Any, context: Any) -> Any:
        nonlocal count
        count += 1
        if count == nth and when == "before":
            raise Killed
        conclusion = original(self, context)
        if count == nth and when == "after":
            raise Killed
        return conclusion

    def entry(self: Store, key: StepKey, *, error: str | None = None) -> None:
        done(self, key, error=error)
        entries = self.steps(key.operation, key.instance_id)
        names = {(entry.phase, entry.sequence): entry.name for entry in entries}
        is_of = names[key.phase, key.sequence] == step.name
        if count == nth and when == "journalled" and is_of:
            raise Killed

    monkeypatch.setattr(step, "apply", apply)
    monkeypatch.setattr(Store, "done", entry)


@pytest.mark.parametrize("when", ["before", "after", "journalled"])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_an_upgrade_killed_at_any_step_is_completed_by_resume(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch, step: Any, when: str
) -> None:
    """M1, E4."""
    web = lab.start_web()
    lab.publish("1.1.0")
    with monkeypatch.context() as patch:
        kill_at(patch, step, when, 2)  # in the second batch
        with pytest.raises(Killed):
            lab.run_due()
    assert not web.history()[0].ended
    upgrade = web.resume()
    assert upgrade is not None
    assert upgrade.completed, upgrade.explain()
    assert set(upgrade.outcomes.values()) == {Outcome.SUCCEEDED}
    assert {instance.image_version for instance in web} == {"1.1.0"}
    assert set(lab.runs.values()) == {1}
    check_accounts(lab, web)
    assert web.resume() is None


@pytest.mark.parametrize("when", ["before", "after", "journalled"])
@pytest.mark.parametrize(
    ("step", "nth"),
    [
        (steps.Stop, 2),
        (steps.Commit, 1),
        (steps.Discard, 1),
        (steps.Start, 2),
        (steps.ProveBoot, 2),
        (steps.AwaitHealth, 2),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_rollback_killed_at_any_step_is_finished_by_resume(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch, step: Any, nth: int, when: str
) -> None:
    """M1, G1."""
    web = lab.start_web()
    lab.publish("1.1.0", Behaviour.UNHEALTHY)
    with monkeypatch.context() as patch:
        kill_at(patch, step, when, nth)
        with pytest.raises(Killed):
            lab.run_due()
    upgrade = web.resume()
    assert upgrade is not None
    assert upgrade.faulted
    assert upgrade.outcomes["web_0"] is Outcome.ROLLED_BACK
    assert {instance.image_version for instance in web} == {"1.0.0"}
    assert web.is_healthy()
    check_accounts(lab, web)


def test_a_machine_that_died_with_the_orchestrator_is_rolled_back(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M1: QEMU is gone too; the instance gets its old disk back."""
    web = lab.start_web(1)
    lab.publish("1.1.0")
    with monkeypatch.context() as patch:
        kill_at(patch, steps.ProveBoot, "before", 1)
        with pytest.raises(Killed):
            lab.run_due()
    lab.simulated.running.clear()
    upgrade = web.resume()
    assert upgrade is not None
    assert upgrade.outcomes["web_0"] is Outcome.ROLLED_BACK
    check_accounts(lab, web)


def test_an_interrupted_upgrade_must_be_resumed_first(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C4."""
    web = lab.start_web()
    lab.publish("1.1.0")
    with monkeypatch.context() as patch:
        kill_at(patch, steps.Start, "before", 1)
        with pytest.raises(Killed):
            lab.run_due()
    with pytest.raises(Exception, match="was interrupted") as refused:
        web.upgrade()
    assert getattr(refused.value, "code", "") == "OperationNotAllowed"


def written(act: Callable[[], object]) -> int:
    """How many moments there are before and after durable writes."""
    moments = 0

    def count() -> None:
        nonlocal moments
        moments += 1

    with at_write(0, count, always=True):
        act()
    return moments


def test_a_creation_killed_at_any_write_is_finished_by_resume(settings: Settings) -> None:
    """M1: nothing is there that is not recorded, and what is recorded comes up."""
    lab = SimulatedLab.session(settings)
    total = written(lambda: lab.start_web(2))
    lab.destroy()
    assert total > 30
    for moment in range(1, total + 1):
        lab = SimulatedLab.session(settings)
        lab.publish("1.0.0")
        with at_write(moment, kill), contextlib.suppress(Killed):
            lab.start_web(2)
        if not lab.scale_sets():
            assert lab.simulated.defined == {}
            lab.start_web(2)
        web = lab.scale_set("web")
        web.resume()
        assert web.record.state == "Succeeded"
        assert web.is_healthy()
        assert len(web) == 2
        assert set(lab.runs.values()) == {1}
        check_accounts(lab, web)
        lab.destroy()


def test_a_deletion_killed_at_any_write_is_finished_by_resume_or_again(
    settings: Settings,
) -> None:
    lab = SimulatedLab.session(settings)
    web = lab.start_web(2)
    total = written(web.delete)
    lab.destroy()
    for moment in range(1, total + 1):
        lab = SimulatedLab.session(settings)
        web = lab.start_web(2)
        with at_write(moment, kill), contextlib.suppress(Killed):
            web.delete()
        if lab.scale_sets():
            if moment % 2:
                lab.scale_set("web").resume()
            else:
                lab.scale_set("web").delete()
        if lab.scale_sets():  # it was killed before anything of it was recorded
            assert lab.scale_set("web").record.state in ("Succeeded", "Deleting")
            lab.scale_set("web").delete()
        assert lab.simulated.defined == {}
        assert not lab.paths.scale_set("web").exists()
        lab.destroy()
