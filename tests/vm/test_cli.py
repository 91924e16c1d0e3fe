"""The command line, by hand, on a real VM (L2)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.models import CUSTOM_DATA, LOAD_BALANCER, web_model
from tests.vm.command import Command
from tests.vm.conftest import qemu_processes


@pytest.fixture(scope="module")
def vmss_command(place: Path) -> Iterator[Command]:
    command = Command(place / "cli")
    yield command
    command("delete", "--yes", "shop", ok=False)


def test_a_scale_set_by_hand(
    vmss_command: Command, built: Callable[[str], Path], tmp_path: Path
) -> None:
    """L2, K1: each command a process of its own."""
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
    shown = vmss_command("show", "shop", "--health").stdout
    assert "Healthy" in shown
    assert "load balancer: http://127." in shown
    view = json.loads(vmss_command("show", "shop", "--json").stdout)
    assert view["virtualMachineProfile"]["osProfile"]["computerNamePrefix"] == "shop"
    assert "customData" not in view["virtualMachineProfile"]["osProfile"]
    assert view["virtualMachines"][0]["lab"]["imageVersionFound"] == "1.0.0"
    assert vmss_command("ssh", "shop", "0", "hostname").stdout == "shop000000\n"
    assert vmss_command("ssh", "shop", "0", "exit 7", ok=False).returncode == 7
    assert "finished at" in vmss_command("console", "shop", "0").stdout
    assert "no upgrade" in vmss_command("history", "shop").stdout

    vmss_command("ssh", "shop", "0", "redis-cli", "set", "order", "42")
    published = vmss_command("image", "publish", "web", "1.1.0", built("1.1.0"))
    assert "Completed" in published.stdout
    assert "cloud-init" in published.stdout  # the table of stages
    assert vmss_command("ssh", "shop", "0", "redis-cli", "get", "order").stdout == "42\n"
    assert (
        "no operation on 'shop' was interrupted" in vmss_command("resume", "shop", ok=False).stderr
    )
    assert "Completed" in vmss_command("history", "shop").stdout
    assert "batch 1: 0" in vmss_command("history", "shop", "--explain").stdout
    (past,) = json.loads(vmss_command("history", "shop", "--json").stdout)["value"]
    assert past["properties"]["progress"]["successfulInstanceCount"] == 1
    again = vmss_command("upgrade", "shop")  # already on the latest version
    assert "Completed" in again.stdout
    latest = json.loads(vmss_command("status", "shop").stdout)["properties"]
    assert latest["runningStatus"]["code"] == "Completed"
    assert latest["progress"]["successfulInstanceCount"] == 0

    # A new instance comes up on the latest version; the newest goes again.
    assert "shop_1" in vmss_command("scale", "shop", "2").stdout
    assert "1.1.0" in vmss_command("ssh", "shop", "1", "curl", "-s", "localhost/version").stdout
    assert len(qemu_processes(str(vmss_command.state))) == 2
    vmss_command("protect", "shop", "0", "--from-scale-in")
    vmss_command("scale", "shop", "1")
    assert "shop_1" not in vmss_command("show", "shop").stdout
    assert len(qemu_processes(str(vmss_command.state))) == 1

    # Another size reaches the instance when it is asked for: a restart on the same disk.
    change = tmp_path / "change.yaml"
    change.write_text("sku: {name: Standard_B2s}\n")
    assert "vmss update-instances shop" in vmss_command("update", "shop", change).stdout
    facts = "grep MemTotal /proc/meminfo; cat /proc/sys/kernel/random/boot_id"
    before = vmss_command("ssh", "shop", "0", facts).stdout.split()
    vmss_command("update-instances", "shop")
    more = f"{facts}; redis-cli get order; cat /data/custom-data-runs"
    _, memory, _, boot, order, *runs = vmss_command("ssh", "shop", "0", more).stdout.split()
    assert int(memory) > int(before[1]) * 1.5
    assert boot != before[3]
    assert order == "42"
    assert len(runs) == len(set(runs)) == 2
    vmss_command("stop", "shop", "0")
    assert qemu_processes(str(vmss_command.state)) == []
    unknown = vmss_command("start", "shop", "7", ok=False)
    assert "instanceId 7 is not an active" in unknown.stderr

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
