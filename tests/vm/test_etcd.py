"""A9 on real VMs: the example's cluster of three loses no acknowledged write."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_LIMIT_S = 1800.0


@pytest.mark.nightly  # ten minutes; tests/vm/test_private_network.py has the network in each run
def test_an_etcd_cluster_keeps_its_data(tmp_path: Path) -> None:
    """A9, D2: a client writes through an upgrade, a partition and a kill of its members."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "examples/etcd"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "VMSS_STATE_DIR": str(tmp_path / "state")},
        capture_output=True, text=True, timeout=_LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "4 passed" in done.stdout
