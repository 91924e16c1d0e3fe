"""M1: what is written before an effect is on the disk before the effect begins."""

from __future__ import annotations

import pytest

from benchmarks.effects import Effect, observing
from pytest_vmss.simulation.guest import Behaviour
from tests.simulation.conftest import SimulatedLab

#: What only waits for the guest.
_WAITS = ("wait_boot", "wait_cloud_init")


def _changes(effect: Effect) -> bool:
    """Whether something outside the store is about to change."""
    return not (
        effect.reads
        or effect.family == "store"
        or effect.when != "before"
        or effect.name in _WAITS
        or "vmss.db" in effect.target
    )


@pytest.mark.parametrize("version", ["good", "bad", "reimage"])
def test_nothing_is_changed_while_a_commit_may_be_lost(lab: SimulatedLab, version: str) -> None:
    """M1: commits that are not synchronized are followed by one that is, before any effect."""
    web = lab.start_web(3)
    store, lost, hasty = lab.store, [0], list[str]()

    def observe(effect: Effect) -> None:
        if effect.family == "store" and effect.when == "after":
            (level,) = store._db.execute("PRAGMA synchronous").fetchone()
            lost[0] = lost[0] + 1 if level == 1 else 0
            hasty.extend([""] * (level == 1))
        elif lost[0] and _changes(effect):
            hasty.append(str(effect))

    with observing(lab, observe):
        if version == "reimage":
            web.reimage()
        else:
            lab.roll(web, "1.1.0", Behaviour.GOOD if version == "good" else Behaviour.UNHEALTHY)
    assert hasty.count("") > 3
    assert [told for told in hasty if told] == []
