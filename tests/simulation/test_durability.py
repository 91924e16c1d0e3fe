"""M1: what is written before an effect is on the disk before the effect begins."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from benchmarks.effects import Effect, observing
from pytest_vmss.settings import Settings
from pytest_vmss.simulation.guest import Behaviour
from tests.simulation.conftest import SimulatedLab

#: What only waits for the guest: to boot, or to have written what it writes anyhow.
_WAITS = ("wait_boot", "wait_cloud_init", "sync")


def _changes(effect: Effect) -> bool:
    """Whether something outside the store is about to change."""
    return not (
        effect.reads
        or effect.family == "store"
        or effect.when != "before"
        or effect.name in _WAITS
        or "vmss.db" in effect.target
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("version", ["good", "bad", "reimage", "scale out"])
def test_nothing_is_changed_while_a_commit_may_be_lost(
    settings: Settings, request: pytest.FixtureRequest, version: str, seed: int
) -> None:
    """M1: commits that are not synchronized are followed by one that is, before any effect.

    Those of an instance before its own effects, and those of all before what comes after them:
    what one instance has written says nothing about another that is changed beside it.
    """
    lab = SimulatedLab.session(settings, seed=seed)
    request.addfinalizer(lab.destroy)
    web = lab.start_web(3)
    store, lost, hasty = lab.store, Counter[int](), list[str]()
    first, unsynchronized = threading.get_ident(), 0

    def observe(effect: Effect) -> None:
        nonlocal unsynchronized
        here = threading.get_ident()
        if effect.family == "store" and effect.when == "after":
            (level,) = store._db.execute("PRAGMA synchronous").fetchone()
            if level == 1:
                unsynchronized += 1
                lost[here] += 1
            else:
                lost.clear()
        elif _changes(effect) and (lost.total() if here == first else lost[here]):
            hasty.append(str(effect))

    with observing(lab, observe):
        if version == "reimage":
            web.reimage()
        elif version == "scale out":
            web.scale(4)
        else:
            lab.roll(web, "1.1.0", Behaviour.GOOD if version == "good" else Behaviour.UNHEALTHY)
    assert unsynchronized > 3
    assert hasty == []
    assert not lost
