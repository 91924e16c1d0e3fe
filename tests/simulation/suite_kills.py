"""SIGKILL of a whole parallel suite on simulated labs, at random moments."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from pytest_vmss.labs.reap import reap
from pytest_vmss.settings import Settings
from tests.processes import wait_until_ended

__all__ = ["kill_a_suite", "left_by"]

_CONFTEST = """
import time

import pytest_vmss.api.lab
from pytest_vmss.simulation.guest import SimulatedGuest
from pytest_vmss.simulation.lab import SimulatedLab

pytest_vmss.api.lab.Lab = SimulatedLab
real = SimulatedGuest.wait_cloud_init


def slow(self):
    time.sleep(0.1)
    return real(self)


SimulatedGuest.wait_cloud_init = slow


def pytest_vmss_configure_lab(lab):
    lab.publish("1.0.0")
    (lab.settings.state_dir.parent / "began").touch()
"""

_TESTS = """
import pytest

from tests.models import LOAD_BALANCER, web_model

pytestmark = pytest.mark.vmss(model=web_model(capacity=2), load_balancer=LOAD_BALANCER)


@pytest.mark.parametrize("number", range(1000))
def test_it(vmss, scale_set, number):
    scale_set.checkpoint()
    vmss.publish(f"1.{number + 1}.0")
    scale_set.wait_for_upgrade()
    scale_set.restore()
"""

#: Seconds for the first lab of a suite, however busy the host is.
_BEGIN_S = 240.0


def kill_a_suite(folder: Path, seed: int, *, workers: int = 3, within: float = 4.0) -> None:
    """Starts a suite, and kills all its processes at a random moment after its first lab.

    Args:
        folder: For it alone; state and cache are in there.
        seed: Of the moment.
        workers: How many of pytest-xdist's.
        within: The latest moment, in seconds.
    """
    (folder / "conftest.py").write_text(_CONFTEST)
    (folder / "test_it.py").write_text(_TESTS)
    (folder / "began").unlink(missing_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "VMSS_STATE_DIR": str(folder / "state"),
        "VMSS_CACHE_DIR": str(folder / "cache"),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", str(workers)],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as suite:
        try:
            deadline = time.monotonic() + _BEGIN_S
            while not (folder / "began").exists():
                assert suite.poll() is None, "the suite ended by itself"
                assert time.monotonic() < deadline, "no lab was made"
                time.sleep(0.01)
            time.sleep(random.Random(seed).uniform(0, within))
            family = psutil.Process(suite.pid).children(recursive=True)
        finally:
            os.killpg(suite.pid, signal.SIGKILL)
    for process in family:
        wait_until_ended(process.pid)


def left_by(folder: Path) -> list[str]:
    """What a killed suite has left after the next start, which removes it, and what that told."""
    settings = Settings(folder / "state", folder / "cache")
    told = [line for line in reap(settings) if not line.startswith("removed")]
    files = [path for path in settings.state_dir.rglob("*") if not path.is_dir()]
    files += settings.state_dir.glob("labs/*")
    return told + sorted(str(path.relative_to(folder)) for path in files)
