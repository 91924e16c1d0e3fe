"""What belongs to somebody else is not trusted (M5)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_vmss.api.lab import Lab
from pytest_vmss.errors import LabError
from pytest_vmss.host.ownership import require_own
from pytest_vmss.host.paths import LabPaths
from pytest_vmss.labs.reap import reap
from pytest_vmss.settings import Settings

STRANGER = 12345


@pytest.fixture
def give_away(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a file a stranger's; who is not root becomes the stranger to it."""
    if os.geteuid() == 0:
        return lambda path: os.chown(path, STRANGER, STRANGER)
    return lambda _path: monkeypatch.setattr(os, "geteuid", lambda: STRANGER)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path / "state", cache_dir=tmp_path / "cache")


@pytest.fixture
def lab(settings: Settings) -> LabPaths:
    """A lab that was made and closed."""
    made = Lab.open(settings, "default")
    made.close()
    return made.paths


@pytest.mark.parametrize(
    "part", ["", "..", "id_ed25519", "vmss.db", "lab.json", "../../locks", "../../networks"]
)
def test_a_lab_with_anything_of_a_strangers_is_not_opened(
    settings: Settings, lab: LabPaths, give_away: Callable[[Path], None], part: str
) -> None:
    """M5: its owner could put another key or disk there."""
    give_away((lab.folder / part).resolve())
    with pytest.raises(LabError, match=r"belongs to uid 12345|this is uid 12345"):
        Lab.open(settings, "default")


def test_a_strangers_folder_is_not_made_a_lab(
    settings: Settings, lab: LabPaths, give_away: Callable[[Path], None]
) -> None:
    """M5: a key that is waiting there is not used."""
    kept = lab.key.read_bytes()
    shutil.rmtree(lab.folder)
    lab.folder.mkdir()
    lab.key.write_bytes(kept)
    give_away(lab.folder)
    with pytest.raises(LabError, match="VMSS_STATE_DIR"):
        Lab.open(settings, "default")
    assert [path.name for path in lab.folder.iterdir()] == [lab.key.name]


def test_reaping_leaves_a_strangers_lab_alone(
    settings: Settings, lab: LabPaths, give_away: Callable[[Path], None]
) -> None:
    """M5, Q2: what it says about machines and folders is not believed."""
    lab.identity.write_text(lab.identity.read_text().replace('"lasting"', '"session"'))
    assert '"session"' in lab.identity.read_text()
    give_away(lab.identity)
    said = reap(settings)
    assert any("stays" in line and str(STRANGER) in line for line in said), said
    assert lab.identity.exists()


def test_a_lab_is_its_owners_whatever_the_umask(settings: Settings) -> None:
    """M5: it can be opened again, for nobody else could write there meanwhile."""
    before = os.umask(0)
    try:
        Lab.open(settings, "default").close()
        again = Lab.open(settings, "default")
    finally:
        os.umask(before)
    for folder in (settings.state_dir, *settings.state_dir.iterdir(), again.paths.folder):
        assert folder.stat().st_mode & 0o022 == 0, folder
    again.close()


def test_where_everyone_writes(tmp_path: Path) -> None:
    """M5: as little as a stranger's; a folder like /tmp keeps its files apart."""
    require_own(tmp_path, tmp_path / "missing")
    tmp_path.chmod(0o777)
    with pytest.raises(PermissionError, match="chmod o-w"):
        require_own(tmp_path)
    tmp_path.chmod(0o1777)
    require_own(tmp_path)
    tmp_path.chmod(0o700)
