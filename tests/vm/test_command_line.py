"""L2, M1, M2, Q1 on real VMs: a set by the command line, whatever is killed or cannot be written.

The tests share a set of four, which is upgraded in batches of two, and run in the order
of the file; each checks its own preconditions.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.vm import failing_write
from tests.vm.command import Command
from tests.vm.conftest import qemu_processes
from tests.vm.shop import BREACH, Shop, create

#: Two zones and batches across them: two instances share an update domain each time.
IN_TWOS = {
    "policy": {"maxBatchInstancePercent": 50, "enableCrossZoneUpgrade": True},
    "fields": {"zones": ["1", "2"]},
}


#: Prints the guest's memory in KiB.
MEMORY = "awk '/MemTotal/ { print $2 }' /proc/meminfo"


@pytest.fixture(scope="module")
def shop(
    place: Path, tmp_path_factory: pytest.TempPathFactory, built: Callable[[str], Path]
) -> Iterator[Shop]:
    command = Command(place / "command-line")
    try:
        folder = tmp_path_factory.mktemp("model")
        create(command, folder, built("1.0.0"), pristine=True, capacity=4, **IN_TWOS)
        yield Shop(command, 4)
    finally:
        command("delete", "--yes", "shop", ok=False)
        assert qemu_processes(str(command.state)) == []


def test_a_new_set_is_told_of(shop: Shop) -> None:
    """L2: each command a process of its own."""
    command = shop.command
    assert "gallery/web 1.0.0" in command("image", "list").stdout
    assert "Succeeded" in command("list").stdout
    shown = command("show", "shop", "--health").stdout
    assert shown.count("Healthy") == 4
    assert "load balancer: http://127." in shown
    view = json.loads(command("show", "shop", "--json").stdout)
    assert view["virtualMachineProfile"]["osProfile"]["computerNamePrefix"] == "shop"
    assert "customData" not in view["virtualMachineProfile"]["osProfile"]
    assert view["virtualMachines"][0]["lab"]["imageVersionFound"] == "1.0.0"
    assert command("ssh", "shop", "0", "hostname").stdout == "shop000000\n"
    assert command("ssh", "shop", "0", "exit 7", ok=False).returncode == 7
    assert "finished at" in command("console", "shop", "0").stdout
    assert "no upgrade" in command("history", "shop").stdout
    assert "no operation on 'shop' was interrupted" in command("resume", "shop", ok=False).stderr
    missing = command("show", "nothing", ok=False)
    assert missing.returncode == 1
    assert "there are: shop" in missing.stderr


def test_two_half_done_are_killed_and_a_write_fails_after_a_commit(
    shop: Shop, built: Callable[[str], Path]
) -> None:
    """M1, M2, Q1, D2: SIGKILL, then SQLite's error once an instance is committed; all complete.

    No disk is lost, nothing that is committed goes back, nothing is run or started twice.
    """
    before = shop.check(["1.0.0"] * 4)
    untouched = shop.pids()[2:]
    publish = ("image", "publish", "web", "1.1.0", built("1.1.0"))
    shop.command.killed_at("swap: boot", *publish, times=2, after=3.0)
    machines = shop.pids()
    assert machines[2:] == untouched
    for number in (0, 1):
        assert shop.disks(number) >= {"os-1.qcow2", "os-2.qcow2"}, "both OS disks are there"
    assert shop.history()[0]["runningStatus"]["code"] == "RollingForward"

    failing = Command(shop.command.state, program=(sys.executable, failing_write.__file__))
    interrupted = failing("resume", "shop", ok=False)
    told = interrupted.stdout + interrupted.stderr
    assert interrupted.returncode == 1, told
    assert "disk I/O error" in told
    assert "vmss resume shop" in told
    assert shop.pids() == machines, "no machine was stopped or started again"
    committed = [n for n in (0, 1) if shop.instances()[n]["lab"]["osDiskGeneration"] == 2]
    assert committed
    for number in shop.numbers:
        generation = shop.instances()[number]["lab"]["osDiskGeneration"]
        assert f"os-{generation}.qcow2" in shop.disks(number), "the kept disk is there"
    facts = shop.facts()
    for number in committed:
        assert shop.instances()[number]["lab"]["imageVersionFound"] == "1.1.0"
        assert facts[number].order == str(number)
    assert shop.history()[0]["runningStatus"]["code"] == "RollingForward"
    refused = shop.command("upgrade", "shop", ok=False)
    assert "vmss resume shop" in refused.stderr

    resumed = shop.command("resume", "shop")
    assert "Completed" in resumed.stdout
    assert shop.pids()[:2] == machines[:2], "both were taken up as they were"
    after = shop.check(["1.1.0"] * 4)
    for number in shop.numbers:
        assert after[number].boot_id != before[number].boot_id
        assert len(after[number].custom_data_runs) == len(after[number].extension_runs) == 2
    assert "cloud-init" in resumed.stdout  # the table of stages
    (upgrade,) = shop.history()
    assert upgrade["progress"] == {
        "successfulInstanceCount": 4,
        "failedInstanceCount": 0,
        "inProgressInstanceCount": 0,
        "pendingInstanceCount": 0,
    }
    batches = [event for event in shop.command.events() if event.startswith("batch ")]
    assert [event.partition(" (")[0] for event in batches] == [
        "batch 1: instances 0, 1", "batch 2: instances 2, 3",
    ]  # fmt: skip


def test_an_upgraded_set_by_hand(shop: Shop, tmp_path: Path) -> None:
    """L2, K1: told of, scaled and resized."""
    command = shop.command
    (version,) = set(shop.versions())
    assert version == "1.1.0"
    assert "Completed" in command("history", "shop").stdout
    assert "batch 1: 0, 1" in command("history", "shop", "--explain").stdout
    again = command("upgrade", "shop")  # already on the latest version
    assert "Completed" in again.stdout
    latest = json.loads(command("status", "shop").stdout)["properties"]
    assert latest["runningStatus"]["code"] == "Completed"
    assert latest["progress"]["successfulInstanceCount"] == 0

    # Another size is a new instance's at once, and the others' when that is asked for.
    change = tmp_path / "change.yaml"
    change.write_text("sku: {name: Standard_B1ms}\n")
    assert "vmss update-instances shop" in command("update", "shop", change).stdout
    before, memory = shop.facts(), int(shop.ssh(3, MEMORY))

    # A new instance comes up on the latest version; the newest goes again.
    assert "shop_4" in command("scale", "shop", "5").stdout
    assert '"1.1.0"' in command("ssh", "shop", "4", "curl", "-s", "localhost/version").stdout
    assert int(shop.ssh(4, MEMORY)) > memory * 1.5
    assert int(shop.ssh(3, MEMORY)) == memory
    assert len(shop.processes(4)) == 1
    command("protect", "shop", "0", "--from-scale-in")
    command("scale", "shop", "4")
    assert "shop_4" not in command("show", "shop").stdout
    assert shop.processes(4) == []
    assert shop.check([version] * 4) == before
    unknown = command("start", "shop", "7", ok=False)
    assert "instanceId 7 is not an active" in unknown.stderr


@pytest.mark.nightly  # a boot; tests/simulation/test_model_updates.py has it in each run
def test_another_size_reaches_an_instance_when_that_is_asked_for(
    shop: Shop, tmp_path: Path
) -> None:
    """A3, L2: a restart on the same disk, on which nothing is run again."""
    change = tmp_path / "change.yaml"
    change.write_text("sku: {name: Standard_B1ms}\n")
    shop.command("update", "shop", change)
    versions, before = shop.versions(), shop.facts()
    assert int(shop.ssh(3, MEMORY)) < 1024 * 1024
    shop.command("update-instances", "shop", "3")
    assert int(shop.ssh(3, MEMORY)) > 1.5 * 1024 * 1024
    after = shop.check(versions)
    assert after[:3] == before[:3]
    assert after[3].boot_id != before[3].boot_id
    assert after[3].custom_data_runs == before[3].custom_data_runs


@pytest.mark.nightly  # three minutes; tests/simulation/test_resume.py has it in each run
def test_killed_in_a_rollback_and_in_its_resume(shop: Shop, built: Callable[[str], Path]) -> None:
    """M1, G1: SIGKILL as a rollback begins, and again while the resume boots an old disk."""
    assert shop.versions() == ["1.1.0"] * 4
    before = shop.facts()
    shop.command.killed_at("rollback: stop", "image", "publish", "web", "1.2.0", built("1.2.0"))
    refused = shop.command("upgrade", "shop", ok=False)
    assert "vmss resume shop" in refused.stderr
    shop.command.killed_at("rollback: boot", "resume", "shop", after=3.0)
    resumed = shop.command("resume", "shop", ok=False)
    assert resumed.returncode == 1
    assert BREACH in resumed.stdout
    for number, outcome in enumerate(["rolled back"] * 2 + ["not started"] * 2):
        assert f"shop_{number}: {outcome}" in resumed.stdout
    after = shop.check(["1.1.0"] * 4)
    assert {after[n].boot_id for n in (0, 1)}.isdisjoint(facts.boot_id for facts in before)
    assert after[2:] == before[2:]
    for number in (0, 1):
        # Both ran on the disk that failed, once; on the old disk nothing is run again (E4).
        assert len(after[number].custom_data_runs) == len(after[number].extension_runs) == 3


@pytest.mark.nightly  # four minutes
def test_qemu_killed_in_mid_upgrade(shop: Shop, built: Callable[[str], Path]) -> None:
    """E5, G1: told apart, and rolled back; the batch is finished, the others are not touched."""
    before = shop.versions()  # whatever the tests above left; it runs without them too
    untouched = shop.pids()[2:]
    publish = ("image", "publish", "web", "1.3.0", built("1.0.0"))
    with shop.command.until("swap: boot", *publish, times=2) as process:
        time.sleep(3.0)
        (pid,) = shop.processes(0)
        os.kill(pid, signal.SIGKILL)
        out, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "OSProvisioningNoBoot: the machine ended while it booted" in out
    assert BREACH in out
    shop.check([before[0], "1.0.0", *before[2:]])
    assert shop.pids()[2:] == untouched
    assert shop.history()[0]["rollbackInfo"] == {
        "successfullyRolledbackInstanceCount": 1,
        "failedRolledbackInstanceCount": 0,
    }


@pytest.mark.nightly  # three minutes; tests/simulation/test_upgrade.py has it in each run
def test_too_many_down_in_mid_upgrade(shop: Shop, built: Callable[[str], Path]) -> None:
    """D6, G2: another instance dies; the batch is finished, then Azure's code stops it all."""
    before = shop.versions()  # whatever the tests above left; it runs without them too
    publish = ("image", "publish", "web", "1.4.0", built("1.0.0"))
    with shop.command.until("swap: boot", *publish) as process:
        (pid,) = shop.processes(3)
        os.kill(pid, signal.SIGKILL)
        out, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "MaxUnhealthyInstancePercentExceededInRollingUpgrade" in out
    for number, outcome in enumerate(["succeeded"] * 2 + ["not started"] * 2):
        assert f"shop_{number}: {outcome}" in out
    started = shop.command("start", "shop", "3")
    assert "Completed" in started.stdout
    # HAProxy finds it healthy again by itself.
    deadline = time.monotonic() + 60
    while shop.command("show", "shop", "--health").stdout.count("Healthy") < 4:
        assert time.monotonic() < deadline, "waited 60 s for shop_3 to be healthy, in vain"
    shop.check(["1.0.0", "1.0.0", *before[2:]])


def test_doctor_finds_this_host_fit(shop: Shop) -> None:
    """L2: the tests above ran, so nothing may be lacking."""
    told = shop.command("doctor").stdout
    assert "libvirt answers" in told
    assert "accelerator" in told


def test_a_stopped_set_is_deleted(shop: Shop) -> None:
    """L2: no machine of it is left."""
    command = shop.command
    command("stop", "shop", "1")
    assert shop.processes(1) == []
    command("delete", "--yes", "shop")
    assert command("list").stdout == ""
    assert qemu_processes(str(command.state)) == []
