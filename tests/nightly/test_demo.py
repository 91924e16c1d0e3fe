"""The first of the two commands, whole."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.nightly

_ROOT = Path(__file__).parents[2]
_LIMIT_S = 3600


def test_make_demo() -> None:
    """In this checkout, as a newcomer would: every claim holds."""
    done = subprocess.run(
        ["make", "demo"], cwd=_ROOT, capture_output=True, text=True, timeout=_LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "Everything held." in done.stdout
