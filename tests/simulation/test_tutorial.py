"""The tutorial, word by word: its files written, its commands run, its suite run in either order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pytest_vmss.api.lab import Lab
from pytest_vmss.cli import base, images, main
from pytest_vmss.settings import Settings
from tests.simulation import suites
from tests.simulation.documents import Reader

#: Packages and the host are set up elsewhere; `ssh` becomes the user's own ssh.
SKIPPED = ("apt-get", "python3 -m venv", "pip ", "vmss doctor", "vmss ssh")


@pytest.fixture
def at_hand(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where commands meet one simulated lab, and builds make empty disks."""
    lab = suites.Lab.session(settings)
    for place, name, value in suites.patches():
        monkeypatch.setattr(place, name, value, raising=False)
    monkeypatch.setattr(base, "require_lab", lambda *_: None)
    monkeypatch.setattr(Lab, "open", lambda *_: lab)
    monkeypatch.setattr(lab, "close", lambda: None)
    monkeypatch.setattr(images, "describe", lambda *_: None)
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_the_tutorial(at_hand: Path) -> None:
    def vmss(*words: str) -> Any:
        return CliRunner().invoke(main, words, prog_name="vmss")

    reader = Reader(at_hand, vmss, fails="publish shop 1.2.0", skipped=SKIPPED)
    reader.follow("docs/tutorial.md")
    assert sum(command.startswith("vmss ") for command in reader.ran) > 8
    assert "2 passed" in suites.run_suite(at_hand)
    assert "2 passed" in suites.run_suite(at_hand, "-n", "2", order="reversed")
