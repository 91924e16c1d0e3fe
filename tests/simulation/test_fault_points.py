"""Q1: faults at a part of all points; `python -m benchmarks.fault_points` has many more."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fault_points import PLAYS, Ground, experiment

#: One of so many points; a prime, so that it falls on effects and faults of every kind.
STRIDE = 331


@pytest.mark.parametrize("play", PLAYS)
def test_whatever_fails_no_disk_is_lost_and_nothing_untrue_is_told(play: str, memory: Path) -> None:
    ground = Ground(play, memory)
    points = ground.points(stride=STRIDE)
    assert points
    assert {point: experiment(ground, point) for point in points} == {point: [] for point in points}
