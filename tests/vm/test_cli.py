"""The command line, by hand, on a real VM (L2)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from pytest_vmss.clock import SystemClock
from pytest_vmss.store import Store
from tests.models import CUSTOM_DATA, LOAD_BALANCER, web_model
from tests.vm.conftest import qemu_processes


class Command:
    """The ``vmss`` command with a state directory of its own."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self._program = Path(sys.executable).parent / "vmss"
        self._environment = {**os.environ, "VMSS_STATE_DIR": str(state), "COLUMNS": "200"}

    def __call__(self, *arguments: str | Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [self._program, *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if ok:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    def start(self, *arguments: str | Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [self._program, *arguments],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


@pytest.fixture(scope="module")
def vmss_command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    command = Command(tmp_path_factory.mktemp("state"))
    yield command
    command("delete", "--yes", "shop", ok=False)


def kill_while_booting(command: Command, *arguments: str | Path) -> None:
    """Starts a command, and kills it once an upgrade waits for a guest to boot."""
    store = Store(command.state / "labs/default/vmss.db", SystemClock())
    process = command.start(*arguments)
    try:
        deadline = time.monotonic() + 120
        while not any(event.message == "swap: boot" for event in store.events()):
            assert process.poll() is None, "it ended by itself"
            assert time.monotonic() < deadline, "waited 120 s for the new boot, in vain"
            time.sleep(0.2)
        time.sleep(3.0)
    finally:
        process.kill()
        process.wait()
        store.close()


def test_a_scale_set_by_hand(
    vmss_command: Command, built: Callable[[str], Path], tmp_path: Path
) -> None:
    """create, list, show, ssh, console, publish, history, delete; each a process of its own."""
    model, balancer, custom = tmp_path / "shop.yaml", tmp_path / "lb.json", tmp_path / "custom.yaml"
    model.write_text(yaml.safe_dump(web_model("shop", capacity=1)))
    balancer.write_text(json.dumps(LOAD_BALANCER))
    custom.write_text(CUSTOM_DATA)

    vmss_command("image", "publish", "web", "1.0.0", built("1.0.0"))
    assert "gallery/web 1.0.0" in vmss_command("image", "list").stdout
    created = vmss_command(
        "create", model, "--load-balancer", balancer, "--custom-data", custom,
        "--health-timeout", "15",
    )  # fmt: skip
    assert "shop_0" in created.stdout
    assert "Succeeded" in vmss_command("list").stdout
    assert "Healthy" in vmss_command("show", "shop", "--health").stdout
    view = json.loads(vmss_command("show", "shop", "--json").stdout)
    assert view["virtualMachineProfile"]["osProfile"]["computerNamePrefix"] == "shop"
    assert "customData" not in view["virtualMachineProfile"]["osProfile"]
    assert view["instances"][0]["imageVersionFound"] == "1.0.0"
    assert vmss_command("ssh", "shop", "0", "hostname").stdout == "shop000000\n"
    assert vmss_command("ssh", "shop", "0", "exit 7", ok=False).returncode == 7
    assert "finished at" in vmss_command("console", "shop", "0").stdout
    assert "no upgrade" in vmss_command("history", "shop").stdout

    # M1: killed in the middle of a swap, with the instance booting its new disk.
    vmss_command("ssh", "shop", "0", "redis-cli", "set", "order", "42")
    kill_while_booting(vmss_command, "image", "publish", "web", "1.1.0", built("1.1.0"))
    assert len(qemu_processes(str(vmss_command.state))) == 1
    refused = vmss_command("upgrade", "shop", ok=False)
    assert "vmss resume shop" in refused.stderr
    resumed = vmss_command("resume", "shop")
    assert "Completed" in resumed.stdout
    assert "cloud-init" in resumed.stdout  # the table of stages
    assert vmss_command("ssh", "shop", "0", "redis-cli", "get", "order").stdout == "42\n"
    runs = vmss_command("ssh", "shop", "0", "cat", "/data/custom-data-runs").stdout.split()
    assert len(runs) == len(set(runs)) == 2
    assert (
        "no operation on 'shop' was interrupted" in vmss_command("resume", "shop", ok=False).stderr
    )
    assert "Completed" in vmss_command("history", "shop").stdout
    assert "batch 1: 0" in vmss_command("history", "shop", "--explain").stdout
    again = vmss_command("upgrade", "shop")  # already on the latest version
    assert "Completed" in again.stdout

    missing = vmss_command("show", "nothing", ok=False)
    assert missing.returncode == 1
    assert "there are: shop" in missing.stderr
    vmss_command("delete", "--yes", "shop")
    assert vmss_command("list").stdout == ""
    assert qemu_processes(str(vmss_command.state)) == []


def test_doctor_finds_this_host_fit(vmss_command: Command) -> None:
    """L2: this host ran the tests before, so nothing may be lacking."""
    done = vmss_command("doctor")
    assert "libvirt answers" in done.stdout
    assert "accelerator" in done.stdout
