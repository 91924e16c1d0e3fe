"""L5: the labs on a host, what each holds and costs; list, reap and delete agree."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pytest_vmss.api.lab import Lab
from pytest_vmss.cli import main
from pytest_vmss.errors import LabError
from pytest_vmss.labs.inventory import LabState, find_labs
from pytest_vmss.labs.place import LabPlace
from pytest_vmss.labs.reap import reap
from pytest_vmss.settings import Settings
from pytest_vmss.simulation.lab import SimulatedLab
from tests.models import LOAD_BALANCER, web_model

Vmss = Callable[..., Result]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("VMSS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("VMSS_CACHE_DIR", str(tmp_path / "cache"))
    return Settings()


@pytest.fixture
def vmss_command(settings: Settings) -> Vmss:
    assert settings
    return lambda *arguments: CliRunner().invoke(main, [str(word) for word in arguments])


def session_left(settings: Settings, *, kept_since: float | None = None) -> str:
    """A session's lab whose process has ended; returns its name."""
    lab = Lab.session(settings)
    if kept_since is not None:
        lab.paths.kept.touch()
        os.utime(lab.paths.kept, (kept_since, kept_since))
    lab._place._is_maker = False  # as it is in every other process
    lab.close()
    return lab.paths.folder.name


@pytest.mark.parametrize(
    "arguments",
    [
        "list", "show web", "history web", "upgrade web", "watch", "delete web", "image list",
        "blob list", "lab show",
    ],
)  # fmt: skip
def test_a_typo_makes_no_lab(vmss_command: Vmss, settings: Settings, arguments: str) -> None:
    Lab.open(settings, "mine").close()
    result = vmss_command("--lab", "mime", *arguments.split())
    assert result.exit_code == 1
    assert "there is no lab 'mime'; `vmss create`" in result.output
    assert "there are: mine" in result.output
    assert [lab.name for lab in find_labs(settings)] == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("create wbe.json", "wbe.json"),
        ("create broken.json", "broken.json"),
        ("create web.json --load-balancer lb.json", "no version that can be latest"),
        ("create web.json --load-balancer bl.json", "bl.json"),
        ("image publish web 1.0.0 wbe.qcow2", "wbe.qcow2"),
        ("image publish web one web.json", "one"),
    ],
)
def test_what_fails_before_anything_is_made_leaves_no_lab(
    vmss_command: Vmss,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    told: str,
) -> None:
    """L5: and a lab that was there before stays, however empty."""
    monkeypatch.chdir(tmp_path)
    Path("web.json").write_text(json.dumps(web_model()))
    Path("lb.json").write_text(json.dumps(LOAD_BALANCER))
    Path("broken.json").write_text("{")
    result = vmss_command("--lab", "fresh", *arguments.split())
    assert result.exit_code == 1
    assert told in result.output
    assert find_labs(settings) == []
    Lab.open(settings, "fresh").close()
    assert vmss_command("--lab", "fresh", *arguments.split()).exit_code == 1
    assert [lab.name for lab in find_labs(settings)] == ["fresh"]


def test_a_lab_that_another_process_uses_by_now_stays(
    vmss_command: Vmss, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L5, Q2."""
    others: list[Lab] = []

    def create(*_: object, **__: object) -> None:
        others.append(Lab.open(settings, "fresh"))
        raise LabError("it fails")

    monkeypatch.setattr(Lab, "create", create)
    assert "it fails" in vmss_command("--lab", "fresh", "create", "web.json").output
    assert [lab.name for lab in find_labs(settings)] == ["fresh"]
    others[0].close()


@pytest.mark.parametrize("moment", ["before it is opened", "meanwhile", "before it is removed"])
def test_a_lab_that_another_process_made_or_filled_stays(
    vmss_command: Vmss, settings: Settings, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """L5, Q2: also if that process has ended by then."""
    opening, removal = Lab.open, LabPlace.removal

    def fill() -> None:
        lab = opening(settings, "fresh")
        if moment != "before it is opened":
            lab.blobs.put("config", "x")
        lab.close()

    def opened(*args: Any) -> Lab:
        if moment == "before it is opened":
            fill()
        return opening(*args)

    def create(*_: object, **__: object) -> None:
        if moment == "meanwhile":
            fill()
        raise LabError("it fails")

    def removed(place: LabPlace) -> AbstractContextManager[None]:
        if moment == "before it is removed":
            fill()
        return removal(place)

    monkeypatch.setattr(Lab, "open", opened)
    monkeypatch.setattr(Lab, "create", create)
    monkeypatch.setattr(LabPlace, "removal", removed)
    assert "it fails" in vmss_command("--lab", "fresh", "create", "web.json").output
    assert [lab.name for lab in find_labs(settings)] == ["fresh"]


def test_each_lab_is_listed_with_what_it_holds(vmss_command: Vmss, settings: Settings) -> None:
    assert "there is no lab" in vmss_command("lab", "list").output
    lab = SimulatedLab.open(settings, "shop")
    try:
        lab.start(web_model(capacity=2), LOAD_BALANCER)
        (found,) = find_labs(settings)
        assert found.state is LabState.OPEN
        (web,) = found.holdings.sets
        assert (web.name, web.instances, web.running, web.memory_mib) == ("web", 2, 2, 2048)
        assert found.holdings.images == 1
        assert found.disk_bytes > 0
        listed = vmss_command("lab", "list").output
        assert "shop" in listed
        assert "2048 MiB" in listed
        assert "open in a process" in listed
        shown = vmss_command("lab", "show", "shop").output
        assert "images:  1 version\n" in shown
        assert "set:     web, 2 instances, 2 of them running in 2048 MiB of memory" in shown
        asked = vmss_command("lab", "delete", "shop")
        assert "'shop' with 1 scale set, 2 VMs and 1 image version? [y/N]" in asked.output
        refused = vmss_command("lab", "delete", "shop", "--yes")
        assert refused.exit_code == 1
        assert "another process has the lab shop open" in refused.output
    finally:
        lab.destroy()
    assert find_labs(settings) == []


def test_reap_and_list_agree(vmss_command: Vmss, settings: Settings) -> None:
    Lab.open(settings, "mine").close()
    left, kept = session_left(settings), session_left(settings, kept_since=time.time())
    old = session_left(settings, kept_since=time.time() - 8 * 86400)
    states = {lab.name: lab.state for lab in find_labs(settings)}
    assert states == {
        "mine": LabState.LASTING, left: LabState.LEFT, kept: LabState.KEPT, old: LabState.LEFT,
    }  # fmt: skip
    output = vmss_command("lab", "list").output
    assert output.count("left behind  ") == 2
    assert "`vmss reap` removes what sessions have left behind" in output
    assert "kept until" in output
    told = "\n".join(reap(settings))
    assert left in told
    assert old in told
    assert kept not in told
    assert {lab.name for lab in find_labs(settings)} == {"mine", kept}
    assert "labs on this host: 2; `vmss lab list`" in vmss_command("reap").output


def test_until_when_a_lab_is_kept_is_a_setting(vmss_command: Vmss, settings: Settings) -> None:
    name = session_left(settings, kept_since=time.time() - 8 * 86400)
    shown = vmss_command("--set", "kept_days=9", "lab", "show", name)
    assert "kept until" in shown.output
    assert "left behind" in vmss_command("lab", "show", name).output


def test_a_lab_is_deleted_even_if_its_records_are_broken(
    vmss_command: Vmss, settings: Settings
) -> None:
    lab = Lab.open(settings, "mine")
    lab.close()
    lab.paths.database.write_text("no database")
    assert "?" in vmss_command("lab", "list").output
    assert "cannot be read" in vmss_command("lab", "show", "mine").output
    result = vmss_command("lab", "delete", "mine", "--yes")
    assert result.exit_code == 0, result.output
    assert find_labs(settings) == []
    assert not lab.paths.folder.exists()


@pytest.mark.parametrize("arguments", ["list", "prune"])
@pytest.mark.parametrize("place", ["cache", "cache/checkpoints"])
def test_a_cache_of_checkpoints_that_is_no_folder(
    vmss_command: Vmss, settings: Settings, arguments: str, place: str
) -> None:
    """L1: what is wrong, and how another folder is named."""
    path = settings.cache_dir.parent / place
    path.parent.mkdir(exist_ok=True)
    path.touch()
    told = vmss_command("cache", arguments)
    assert told.exit_code == 1
    assert "the cache of checkpoints cannot be used: " in told.output
    assert "VMSS_CACHE_DIR" in told.output
