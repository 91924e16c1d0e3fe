"""A lab whose machines and guests are simulated, on a virtual clock."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.settings import Settings
from pytest_vmss.simulation import lab as simulation
from tests.models import LOAD_BALANCER, web_model


class SimulatedLab(simulation.SimulatedLab):
    """Creates sets of the model that tests share."""

    def start_web(self, capacity: int = 3, **options: Any) -> ScaleSet:
        return self.start(web_model(capacity=capacity, **options), LOAD_BALANCER)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path / "state", cache_dir=tmp_path / "cache")


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: for what makes the same files again and again."""
    shared = Path("/dev/shm")
    where = shared if shared.is_dir() and os.access(shared, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=where) as name:
        yield Path(name)


@pytest.fixture
def lab(settings: Settings) -> Iterator[SimulatedLab]:
    simulated = SimulatedLab.session(settings)
    yield simulated
    simulated.destroy()
