"""L4, L5, Q2 on real VMs: a parallel suite of restored sets passes each time, and leaves nothing however it ends."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pytest_vmss.labs.reap import reap
from pytest_vmss.settings import Settings
from tests.processes import wait_until_ended

pytestmark = [pytest.mark.nightly, pytest.mark.vm]

RUNS, ENDS, SETS = 10, 20, 6
#: Seconds for a whole run, whose first one boots, without KVM.
LIMIT_S = 900.0
#: Seconds from Ctrl-C to the end.
END_S = 120.0

TESTS = """
import pytest

from tests.models import LOAD_BALANCER, web_model


@pytest.fixture(autouse=True)
def image(gallery):
    gallery.publish("web", "1.0.0", {image!r})


@pytest.mark.vmss(model=web_model(capacity=1), load_balancer=LOAD_BALANCER)
@pytest.mark.parametrize("number", range({sets}))
def test_it(scale_set, number):
    assert scale_set.is_healthy()
    assert scale_set[0].host.run("ls /root/mark").rc != 0, "another test's set"
    scale_set[0].host.check_output("touch /root/mark")
"""


class Suite:
    """A suite of sets that are restored, with a state directory and a cache of its own.

    Args:
        folder: For it alone; QEMU's account must be able to reach it.
    """

    def __init__(self, folder: Path, image: Path) -> None:
        self.folder = folder
        self.settings = Settings(folder / "state", folder / "cache")
        (folder / "test_it.py").write_text(TESTS.format(image=str(image), sets=SETS))
        self.took = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[subprocess.Popen[str]]:
        """Starts it as a terminal does: in a group of its own, which Ctrl-C reaches as a whole."""
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "VMSS_STATE_DIR": str(self.settings.state_dir),
            "VMSS_CACHE_DIR": str(self.settings.cache_dir),
        }
        with subprocess.Popen(
            # Background jobs of a shell ignore SIGINT, and their children do too.
            ["env", "--default-signal=INT", sys.executable, "-m", "pytest",
             "-p", "no:cacheprovider", "-n", "3"],
            cwd=self.folder, env=environment, start_new_session=True, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

    def passes(self) -> None:
        """Runs it to its end."""
        begun = time.monotonic()
        with self.running() as process:
            told, _ = process.communicate(timeout=LIMIT_S)
        self.took = time.monotonic() - begun
        assert process.returncode == 0, told
        assert f"{SETS} passed" in told

    def left(self) -> list[str]:
        """Its machines and files that are there."""
        state = self.settings.state_dir
        files = [path for path in state.rglob("*") if path.is_symlink() or not path.is_dir()]
        files += state.glob("labs/*")
        return [*processes_in(self.folder), *map(str, files)]


@pytest.fixture(scope="module")
def suite(built: Callable[[str], Path]) -> Iterator[Suite]:
    with tempfile.TemporaryDirectory(prefix="vmss-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        made = Suite(folder, built("1.0.0"))
        made.passes()  # it boots, and saves its checkpoint
        try:
            yield made
        finally:
            reap(made.settings)


def moments(suite: Suite, seed: int) -> list[float]:
    """Random moments within a run, in seconds from its start."""
    chance = random.Random(seed)
    return [chance.uniform(0.5, suite.took) for _ in range(ENDS)]


def workers_of(pid: int) -> list[int]:
    """The processes that end with a suite: those of its group; machines and balancers have others."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == pid:
                found.append(process.pid)
    return found


def processes_in(folder: Path) -> list[str]:
    """Whatever runs with files in a folder: machines, balancers, networks."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(folder) in line:
            found.append(f"{process.pid}: {line}")
    return found


def test_each_run_passes(suite: Suite) -> None:
    """L1, L4: with three workers, whose sets come from one checkpoint."""
    for _ in range(RUNS):
        suite.passes()
        assert suite.left() == []
    print(f"the last run took {suite.took:.1f} s")


def test_killed_at_any_moment(suite: Suite) -> None:
    """L5, Q2: one start removes all that SIGKILL of the whole run has left."""
    suite.passes()
    for number, moment in enumerate(moments(suite, 1)):
        with suite.running() as process:
            time.sleep(moment)
            if process.poll() is not None:
                continue
            family = workers_of(process.pid)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=END_S)
        for pid in family:
            wait_until_ended(pid)
        told = [line for line in reap(suite.settings) if not line.startswith("removed")]
        assert (told, suite.left()) == ([], []), f"kill {number}, after {moment:.2f} s"


def test_ctrl_c_at_any_moment(suite: Suite) -> None:
    """L5: it ends with pytest's own status, and nothing is left at once."""
    suite.passes()
    slowest = 0.0
    for number, moment in enumerate(moments(suite, 2)):
        with suite.running() as process:
            time.sleep(moment)
            begun = time.monotonic()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
            told, _ = process.communicate(timeout=END_S)
        slowest = max(slowest, time.monotonic() - begun)
        where = f"Ctrl-C {number}, after {moment:.2f} s:\n{told}"
        assert process.returncode in (0, 2, -signal.SIGINT), where
        assert suite.left() == [], where
    print(f"the slowest end took {slowest:.1f} s")
