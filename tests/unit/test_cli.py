"""L2: the command line's messages for bad input; nothing is made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pytest_vmss.cli import main
from tests.models import LOAD_BALANCER, web_model

Vmss = Callable[..., Result]


@pytest.fixture
def vmss_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vmss:
    monkeypatch.setenv("VMSS_STATE_DIR", str(tmp_path / "state"))
    return lambda *arguments: CliRunner().invoke(main, [str(word) for word in arguments])


def test_help_names_every_command(vmss_command: Vmss) -> None:
    text = vmss_command("--help").output
    for command in (
        "image", "create", "list", "show", "ssh", "console", "upgrade", "history", "delete",
        "reap", "doctor", "demo",
    ):  # fmt: skip
        assert f"  {command} " in text


@pytest.mark.parametrize("name", ["a/b", "../x", "", "x" * 33])
def test_a_lab_with_a_bad_name(vmss_command: Vmss, name: str) -> None:
    result = vmss_command("--lab", name, "list")
    assert result.exit_code == 1
    assert "cannot name a lab" in result.output


def test_not_a_qcow2(vmss_command: Vmss, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_text("no image")
    result = vmss_command("image", "publish", "web", "1.0.0", path)
    assert result.exit_code == 1
    assert "is not a qcow2 image" in result.output
    assert "qemu-img convert" in result.output
    assert vmss_command("image", "list").output == ""


def test_a_set_of_an_image_that_is_not_published(vmss_command: Vmss, tmp_path: Path) -> None:
    model, balancer = tmp_path / "m.json", tmp_path / "lb.json"
    model.write_text(json.dumps(web_model()))
    balancer.write_text(json.dumps(LOAD_BALANCER))
    result = vmss_command("create", model)
    assert "--load-balancer" in result.output
    result = vmss_command("create", model, "--load-balancer", balancer)
    assert result.exit_code == 1
    assert "vmss image publish" in result.output
    result = vmss_command("create", model, "--load-balancer", balancer, "--name", "a/b")
    assert "$.name" in result.output
    assert vmss_command("list").output == ""


@pytest.mark.parametrize("command", ["show", "history", "upgrade", "cancel", "delete"])
def test_a_set_that_is_not_there(vmss_command: Vmss, command: str) -> None:
    result = vmss_command(command, "nothing")
    assert result.exit_code == 1
    assert "there is no scale set 'nothing'" in result.output
    assert "Traceback" not in result.output


def test_nothing_to_reap(vmss_command: Vmss) -> None:
    assert vmss_command("reap").output == "nothing was left behind\n"
