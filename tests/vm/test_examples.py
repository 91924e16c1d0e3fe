"""The examples, each from its own folder with the installed package, as its README says."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pytest_vmss.settings import Settings
from tests.vm.conftest import ROOT, qemu_processes

#: Two instances, several upgrades: five minutes each where guests are emulated.
pytestmark = pytest.mark.nightly

_LIMIT_S = 1800


@pytest.mark.parametrize("name", ["bad-image", "etcd", "redis", "web"])
def test_an_example(python: Path, place: Path, name: str) -> None:
    """A9, B5, F2, F3, G1: data survives, a bad image is undone, nobody notices; nothing is left (L5)."""
    folder, home = place / name, place / f"{name}-home"
    shutil.copytree(ROOT / "examples" / name, folder)
    (home / "run").mkdir(parents=True)
    environment = {
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / ".local/state"),
        "XDG_RUNTIME_DIR": str(home / "run"),
        "VMSS_CACHE_DIR": str(Settings().cache_dir),  # the root filesystem is built already
        "LANG": "C.UTF-8",
    }
    done = subprocess.run(
        [python, "-m", "pytest", "-p", "no:cacheprovider", "-q"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert qemu_processes(str(home)) == []
