"""L5: Ctrl-C at any moment ends a suite within seconds, with pytest's own summary, and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

#: The suite presses Ctrl-C itself, where and as often as it is told.
CONFTEST = """
import os, signal, sys, threading, time
from pathlib import Path

import pytest_vmss.api.lab
from pytest_vmss.simulation.guest import SimulatedGuest
from pytest_vmss.simulation.hypervisor import SimulatedHypervisor
from pytest_vmss.simulation.lab import SimulatedLab

pytest_vmss.api.lab.Lab = SimulatedLab
WHERE, TIMES = os.environ["WHERE"], int(os.environ["TIMES"])
pressed = []


def press(where):
    if where != WHERE or pressed:
        return
    pressed.append(where)
    Path("pressed").write_text(str(time.time()))
    os.kill(os.getpid(), signal.SIGINT)

    def again():
        for _ in range(TIMES - 1):
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=again, daemon=True).start()


def wrap(owner, name, where, when=lambda *_: True):
    real = getattr(owner, name)

    def call(self, *arguments, **named):
        if when(self, *arguments):
            press(where)
            if where in ("a boot", "a swap"):  # a real guest takes its time
                for _ in range(500):
                    self._clock.sleep(0.01)
                    time.sleep(0.01)
        return real(self, *arguments, **named)

    setattr(owner, name, call)


wrap(SimulatedLab, "__init__", "the making of the lab")
wrap(SimulatedGuest, "wait_boot", WHERE if WHERE == "a boot" else "", lambda *_: WHERE == "a boot")
wrap(
    SimulatedGuest, "wait_cloud_init", "a swap",
    lambda self: WHERE == "a swap" and self._generation == 2,
)
wrap(SimulatedHypervisor, "restore", "a restore")
wrap(SimulatedHypervisor, "remove", "the removal of a set")
wrap(SimulatedLab, "destroy", "the removal of the lab")


def pytest_vmss_configure_lab(lab):
    lab.publish("1.0.0")
    press("the hook")
"""

TESTS = """
import pytest

from tests.models import LOAD_BALANCER, web_model

pytestmark = pytest.mark.vmss(model=web_model(capacity=2), load_balancer=LOAD_BALANCER)


def test_nothing():
    pass


def test_upgrade(vmss, scale_set):
    vmss.publish("1.1.0")
    assert scale_set.wait_for_upgrade().completed
"""

PLACES = [
    "the making of the lab",
    "the hook",
    "a boot",
    "a restore",
    "a swap",
    "the removal of a set",
    "the removal of the lab",
]


def default_handlers() -> None:
    """What runs in the background ignores SIGINT, and its children would too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(
    ("where", "times"), [*((place, 2) for place in PLACES), ("a swap", 1), ("a boot", 3)]
)
def test_ctrl_c(tmp_path: Path, where: str, times: int) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TESTS)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "VMSS_STATE_DIR": str(tmp_path / "state"),
        "VMSS_CACHE_DIR": str(tmp_path / "cache"),
        "WHERE": where,
        "TIMES": str(times),
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        preexec_fn=default_handlers,
    )
    took = time.time() - float((tmp_path / "pressed").read_text())
    told = done.stdout + done.stderr
    assert done.returncode == 2, told
    assert "! KeyboardInterrupt !" in told
    assert "1 passed" in told or "2 passed" in told
    assert "Traceback" not in told
    assert "Exception" not in told
    assert took < 120, told  # seconds; the host may have much else to do
    left = [path for path in (tmp_path / "state").rglob("*") if not path.is_dir()]
    assert [*left, *(tmp_path / "state").glob("labs/*")] == []
