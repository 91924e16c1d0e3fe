"""J4: pytest's own lines on a terminal on which the live view shows a table."""

from __future__ import annotations

import os
import pty
import struct
import subprocess
import sys
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

import pytest

from tests.terminal import Terminal

ROOT = Path(__file__).parents[2]

CONFTEST = """
import time

from pytest_vmss.api.lab import Lab
from pytest_vmss.simulation.guest import SimulatedGuest
from pytest_vmss.simulation.lab import SimulatedLab

real, session = SimulatedGuest.wait_boot, SimulatedLab.session.__func__


def slow(guest, previous):
    time.sleep(0.5)  # so that the table is seen
    return real(guest, previous)


SimulatedGuest.wait_boot = slow
Lab.session = classmethod(lambda cls, settings: session(SimulatedLab, settings))


def pytest_vmss_configure_lab(lab):
    lab.publish("1.0.0")
"""

TESTS = """
import pytest

from tests.models import LOAD_BALANCER, web_model


@pytest.mark.vmss(model=web_model(capacity=1), load_balancer=LOAD_BALANCER)
@pytest.mark.parametrize("number", range(3))
def test_it(scale_set, number):
    assert number != 1, "as it should"
"""


@pytest.mark.parametrize(("width", "option"), [(80, "-v"), (120, "-q"), (200, "-v")])
def test_no_line_of_pytests_is_lost(tmp_path: Path, width: int, option: str) -> None:
    """A FAILED was, and the table was there all along."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_them.py").write_text(TESTS)
    ours, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    arguments = [
        "-p", "no:cacheprovider", "-p", "no:xdist", "--vmss-no-checkpoints", option,
        "--vmss-state-dir", "state", "--vmss-cache-dir", "cache",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *arguments, "test_them.py"],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "", "LINES": ""},
    )  # fmt: skip
    os.close(theirs)
    terminal, written = Terminal(width, 40), b""
    while part := _read(ours):
        written += part
        terminal.write(part.decode(errors="replace"))
    assert process.wait(60) == pytest.ExitCode.TESTS_FAILED
    assert b"progress" in written  # the table was shown
    assert "progress" not in terminal.text  # and erased
    if option == "-v":
        for word, count in (("PASSED", 2), ("FAILED", 2)):  # one in the summary
            assert terminal.text.count(word) == count, terminal.text
    else:
        assert "1 failed, 2 passed" in terminal.text
    assert terminal.text.count("creation on 1.0.0: Completed") == 3


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # all others have closed it
        return b""


def test_a_width_of_nothing_ends_no_view(tmp_path: Path) -> None:
    """J4: a CI system may set COLUMNS to 0; the view's thread ended in ZeroDivisionError."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_them.py").write_text(TESTS)
    arguments = [
        "-p", "no:cacheprovider", "-p", "no:xdist", "--vmss-live", "on", "-q",
        "--vmss-state-dir", "state", "--vmss-cache-dir", "cache",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments, "test_them.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "0", "LINES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 failed, 2 passed" in done.stdout
    assert "Exception in thread" not in done.stdout
    assert done.stdout.count("creation on 1.0.0: Completed") == 3
