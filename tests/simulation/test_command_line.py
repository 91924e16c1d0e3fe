"""L2, C1: commands that run upgrades, on a simulated lab."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pytest_vmss.api.lab import Lab
from pytest_vmss.cli import base, main, upgrades
from pytest_vmss.simulation.guest import Behaviour
from tests.models import LOAD_BALANCER, web_model
from tests.simulation.conftest import SimulatedLab

Vmss = Callable[..., Result]


@pytest.fixture
def vmss_command(lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch) -> Vmss:
    """The command line on the simulated lab, which stays open after each command."""
    monkeypatch.setattr(base, "require_lab", lambda *_: None)  # it is a session's
    monkeypatch.setattr(Lab, "open", lambda *_: lab)
    monkeypatch.setattr(lab, "close", lambda: None)
    return lambda *arguments: CliRunner().invoke(main, [str(word) for word in arguments])


def test_update_runs_what_becomes_due(
    lab: SimulatedLab, vmss_command: Vmss, tmp_path: Path
) -> None:
    """C1: enabling automatic upgrades on a set that is behind."""
    web = lab.start_web(1, automatic=False)
    lab.publish("1.1.0")
    change = tmp_path / "change.json"
    policy = {"automaticOSUpgradePolicy": {"enableAutomaticOSUpgrade": True}}
    change.write_text(json.dumps({"properties": {"upgradePolicy": policy}}))
    result = vmss_command("update", "web", change, "--no-upgrade")
    assert result.exit_code == 0, result.output
    assert web.history() == []
    result = vmss_command("update", "web", change)
    assert result.exit_code == 0, result.output
    assert "Completed" in result.output
    assert web[0].image_version == "1.1.0"


def test_create_runs_what_is_due(lab: SimulatedLab, vmss_command: Vmss, tmp_path: Path) -> None:
    """C1: another set's upgrade, which nobody has run yet; it fails, and so does the command."""
    behind = lab.start_web(1)
    lab.publish("1.1.0", Behaviour.GOOD)
    model, balancer = tmp_path / "m.json", tmp_path / "lb.json"
    model.write_text(json.dumps(web_model("other", capacity=1)))
    balancer.write_text(json.dumps(LOAD_BALANCER))
    create = ("create", model, "--load-balancer", balancer)
    result = vmss_command(*create)
    assert result.exit_code == 0, result.output
    assert "other_0" in result.output
    assert behind.history()[0].completed
    lab.publish("1.2.0", Behaviour.PANICS)
    result = vmss_command(*create, "--name", "third", "--no-upgrade", "--capacity", 0)
    assert result.exit_code == 0, result.output
    result = vmss_command(*create, "--name", "fourth", "--capacity", 0)
    assert result.exit_code == 1
    assert behind.history()[0].faulted


def test_create_restores_what_was_created_before(
    lab: SimulatedLab, vmss_command: Vmss, tmp_path: Path
) -> None:
    """L1: a set of the same model and image, once it was made."""
    lab.publish("1.0.0")
    model, balancer = tmp_path / "m.json", tmp_path / "lb.json"
    model.write_text(json.dumps(web_model("web", capacity=2)))
    balancer.write_text(json.dumps(LOAD_BALANCER))
    create = ("create", model, "--load-balancer", balancer, "--pristine")
    phases = []
    for _ in range(2):
        result = vmss_command(*create)
        assert result.exit_code == 0, result.output
        created = lab.scale_set("web")
        assert created.is_healthy()
        operations = created._engine.journal.operations()
        phases.append({step.phase for one in operations for step in lab.store.steps(one.id)})
        created.delete()
    assert phases == [{"create", "checkpoint"}, {"restore"}]


def test_watch_upgrades_until_ctrl_c(
    lab: SimulatedLab, vmss_command: Vmss, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C1: what another process publishes while it watches; Ctrl-C is no failure."""
    web = lab.start_web(1)
    lab.roll(web, "1.1.0")
    published = threading.Event()

    def looking(_: float) -> None:
        if not published.is_set():
            lab.publish("1.2.0")
            published.set()
        time.sleep(0.01)
        if web.history()[0].target == "1.2.0" and web.history()[0].ended and lab.controller.idle:
            raise KeyboardInterrupt

    monkeypatch.setattr(upgrades, "_look", looking)
    result = vmss_command("watch")
    assert result.exit_code == 0, result.output
    assert web[0].image_version == "1.2.0"
    assert "1.0.0 → 1.1.0" not in result.output  # it had ended before
    assert "unfinished" not in result.output


def test_watch_tells_what_it_leaves_unfinished(
    lab: SimulatedLab, vmss_command: Vmss, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C1, M1."""
    lab.start_web(1)
    lab.publish("1.1.0")
    monkeypatch.setitem(lab.environment.working, "web", threading.Event())

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(upgrades, "_look", interrupted)
    result = vmss_command("watch")
    assert result.exit_code == 0, result.output
    assert "unfinished: web; go on with: vmss" in result.output


def test_history_shows_a_creation_that_failed(
    lab: SimulatedLab, vmss_command: Vmss, tmp_path: Path
) -> None:
    """J2, L2: with what went wrong; one that succeeded is no event of its history."""
    lab.publish("1.0.0", Behaviour.PANICS)
    model, balancer = tmp_path / "m.json", tmp_path / "lb.json"
    model.write_text(json.dumps(web_model(capacity=1)))
    balancer.write_text(json.dumps(LOAD_BALANCER))
    assert vmss_command("create", model, "--load-balancer", balancer).exit_code == 1
    result = vmss_command("history", "web")
    assert result.exit_code == 0, result.output
    assert "web: create  Faulted" in result.output
    assert "web_0: failed  OSProvisioningKernelPanic: the kernel panicked" in result.output
    assert "no upgrade" not in result.output
    explained = vmss_command("history", "web", "--explain").output
    assert "Kernel panic - not syncing" in explained
    lab.behaviours["1.0.0"] = Behaviour.GOOD
    lab.start(web_model("other", capacity=1), LOAD_BALANCER)
    assert "no upgrade of 'other' yet" in vmss_command("history", "other").output


def test_history_writes_the_timeline_of_every_operation(
    lab: SimulatedLab, vmss_command: Vmss, tmp_path: Path
) -> None:
    """L3: private, for it shows what guests wrote; where it cannot be written, the reason."""
    web = lab.start_web(1)
    lab.roll(web, "1.1.0", Behaviour.PANICS)
    page = tmp_path / "web.html"
    result = vmss_command("history", "web", "--html", page)
    assert result.exit_code == 0, result.output
    assert "Creation of web" in page.read_text()
    assert "web_0 failed at “boot” and was rolled back" in page.read_text()
    assert page.stat().st_mode & 0o777 == 0o600
    result = vmss_command("history", "web", "--html", tmp_path / "none" / "web.html")
    assert result.exit_code == 1
    assert "cannot be written: No such file or directory" in result.output


def test_what_a_command_says_nothing_of_is_no_error(
    lab: SimulatedLab, vmss_command: Vmss, tmp_path: Path
) -> None:
    """L2: a script without a word of output ended in KeyError."""
    lab.start_web(1)
    script = tmp_path / "script.sh"
    script.write_text("true\n")
    result = vmss_command("run-command", "web", 0, script)
    assert result.exit_code == 0, result.exception
    assert result.output.strip() == ""
    answer = json.loads(vmss_command("run-command", "web", 0, script, "--json").output)
    assert answer["value"][0]["code"] == "ProvisioningState/succeeded"


def test_azures_words_are_taken_in_any_case(lab: SimulatedLab, vmss_command: Vmss) -> None:
    """A1: as ARM and the az command take them."""
    lab.start_web(1)
    for action in ("suspend", "RESUME"):
        command = "set-orchestration-service-state"
        result = vmss_command("--accel", "TCG", command, "web", "--action", action)
        assert result.exit_code == 0, result.output
