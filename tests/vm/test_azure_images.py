"""An image made for Azure, unchanged: a VHD of generation 2, one data source, no guest agent.

O1–O6, R1. Debian 12 is upgraded to Debian 13, with netplan and Azure's Linux agent.

The tests of this module share one set and run in the order of the file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_vmss.api.instance import Instance
from pytest_vmss.api.lab import Lab
from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.clock import SystemClock, wait_for
from pytest_vmss.gallery import Gallery
from pytest_vmss.host.process import run
from pytest_vmss.image_builder import ImageBuilder
from pytest_vmss.model import Health
from pytest_vmss.settings import Settings
from tests.models import encode, web_model, with_application_health
from tests.processes import wait_until_ended

BREACH = "MaxUnhealthyUpgradedInstancePercentExceededInRollingUpgrade"
USER_DATA = encode("what the application reads")
#: An application of the first instance, which is not kept on its new OS disk.
APPROVER = """
import json, time, urllib.request as http
url = "http://169.254.169.254/metadata/scheduledevents?api-version=2020-07-01"
header = {"Metadata": "true"}
while True:
    events = json.load(http.urlopen(http.Request(url, headers=header)))["Events"]
    if events:
        body = {"StartRequests": [{"EventId": event["EventId"]} for event in events]}
        http.urlopen(http.Request(url, json.dumps(body).encode(), header))
    time.sleep(1)
"""
_METADATA = "curl -sf -m 20 -H Metadata:true http://169.254.169.254/metadata"


@pytest.fixture(scope="module")
def azure_built() -> Callable[[str], Path]:
    """The qcow2 of a version of the image azure-web, built once for all runs."""
    builder = ImageBuilder.named(
        "azure-web", Settings().cache_dir, say=lambda text: print(text, file=sys.stderr)
    )
    return lambda version: builder.build(version).path


Publish = Callable[[str], None]


@pytest.fixture(scope="module")
def images(vmss: Lab) -> Gallery:
    gallery = vmss.gallery("azure-images")
    gallery.define("web", hyper_v_generation="V2", provisioning="Azure")
    return gallery


@pytest.fixture(scope="module")
def publish(
    images: Gallery, azure_built: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Publish:
    """Publishes a version as Azure has it: a fixed VHD (O5)."""

    def published(version: str) -> None:
        disk = tmp_path_factory.mktemp("vhd") / f"{version}.vhd"
        run(
            ["qemu-img", "convert", "-f", "qcow2", "-O", "vpc",
             "-o", "subformat=fixed,force_size=on", azure_built(version), disk],
            what="an image for Azure",
        )  # fmt: skip
        images.publish("web", version, disk)
        disk.unlink()

    return published


@pytest.fixture(scope="module")
def web(vmss: Lab, images: Gallery, publish: Publish) -> Iterator[ScaleSet]:
    publish("1.0.0")
    model = with_application_health(
        web_model("azweb", capacity=2), "1.0", requestPath="/healthz",
        intervalInSeconds=5, numberOfProbes=1,
    )  # fmt: skip
    model["tags"] = {"team": "shop"}
    profile = model["properties"]["virtualMachineProfile"]
    profile["userData"] = USER_DATA
    profile["scheduledEventsProfile"] = {
        "osImageNotificationProfile": {"enable": True, "notBeforeTimeout": "PT10S"}
    }
    image = profile["storageProfile"]["imageReference"]
    image["id"] = image["id"].replace("/galleries/gallery/", f"/galleries/{images.name}/")
    created = vmss.create(model, health_timeout=30)
    yield created
    created.delete()


def metadata(instance: Instance) -> dict[str, Any]:
    """What an instance's metadata service tells it."""
    told = instance.host.check_output(f"{_METADATA}/instance?api-version=2021-08-01")
    document: dict[str, Any] = json.loads(told)
    return document


def servers(instance: Instance) -> list[psutil.Process]:
    """The processes that serve an instance's guest."""
    folder = f"{instance.record.uuid[:8]}.az"
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(part.endswith(folder) for part in process.info["cmdline"] or ())
    ]


def check_custom_data(instance: Instance, times: int) -> None:
    """H1, H2: custom data and CustomScript ran once on each OS disk; the instance's id stays."""
    runs = instance.host.check_output("cat /data/custom-data-runs /data/extension-runs").split()
    assert runs == [instance.record.uuid] * 2 * times


def custom_data_runs(instance: Instance) -> int:
    """On how many OS disks an instance's custom data ran."""
    return len(instance.host.check_output("cat /data/custom-data-runs").split())


def test_instances_come_up_from_azures_data_source(web: ScaleSet) -> None:
    """O1, O2, O5, H1: by UEFI; user, host name, key and custom data; not degraded; no agent."""
    assert [instance.image_version for instance in web] == ["1.0.0", "1.0.0"]
    assert web.is_healthy()
    for number, instance in enumerate(web):
        host = instance.host
        assert host.check_output("cloud-id") == "azure"
        assert host.file("/sys/firmware/efi").is_directory
        assert host.check_output("hostname") == f"azweb{number:06}"
        assert instance.generation.cloud_init == "done"
        assert host.run("pgrep qemu-ga").rc != 0
        assert instance.generation.host_key.split()[1] in host.check_output(
            "cat /etc/ssh/ssh_host_*.pub"
        )
        check_custom_data(instance, 1)


def test_each_instance_is_told_its_own_truth(web: ScaleSet) -> None:
    """O3."""
    for number, instance in enumerate(web):
        told = metadata(instance)
        compute = told["compute"]
        assert (compute["name"], compute["vmId"]) == (f"azweb_{number}", instance.record.uuid)
        assert compute["vmScaleSetName"] == "azweb"
        assert compute["tags"] == "team:shop"
        assert compute["userData"] == USER_DATA
        image = compute["storageProfile"]["imageReference"]
        assert image["id"].endswith("/versions/1.0.0")
        card = told["network"]["interface"][0]
        mac = instance.host.check_output("cat /sys/class/net/eth0/address")
        assert card["macAddress"] == mac.replace(":", "").upper()
        address = card["ipv4"]["ipAddress"][0]["privateIpAddress"]
        assert address in instance.host.check_output("ip -4 -br addr show eth0")
        refused = instance.host.run(
            "curl -s -m 20 http://169.254.169.254/metadata/instance?api-version=2023-11-15"
        )
        assert json.loads(refused.stdout) == {
            "error": "Bad request. Required metadata header not specified"
        }


def test_the_application_reports_its_health_without_an_agent(web: ScaleSet) -> None:
    """F3, O1: over a virtio port."""
    for instance in web:
        told = {name: seen.health for name, seen in instance.observations().items()}
        assert told == {"Application Health extension": Health.HEALTHY}
    host = web[0].host
    host.check_output("systemctl stop nginx")
    wait_for(
        "the report",
        lambda: (
            web[0].observations()["Application Health extension"].health is Health.UNHEALTHY or None
        ),
        timeout=120,
        clock=SystemClock(),
        interval=1.0,
    )
    host.check_output("systemctl start nginx")
    wait_for(
        "health", lambda: web.is_healthy() or None, timeout=120, clock=SystemClock(), interval=1.0
    )


def test_guests_reach_nothing_else(web: ScaleSet) -> None:
    """R1: neither the host's loopback, nor another instance, nor anything outside."""
    first, second = web
    host = first.host
    ports = " ".join(f"{second.record.address}:{port}" for port in second.record.forwards.values())
    reached = host.check_output(
        f"for a in {ports} 10.0.0.1:22 10.0.0.5:22 127.0.0.1:1 1.1.1.1:80 168.63.129.14:80; do "
        'if curl -s -m 2 -o /dev/null "http://$a/"; then echo "$a"; fi; done'
    )
    assert reached == ""
    assert host.run("timeout 10 getent hosts deb.debian.org").rc == 2  # at once, not in time


def test_a_guest_keeps_its_network_when_its_process_is_killed(web: ScaleSet) -> None:
    """O1: another one goes on where it ended."""
    instance = web[0]
    (process,) = servers(instance)
    process.kill()
    wait_until_ended(process.pid)
    assert metadata(instance)["compute"]["vmId"] == instance.record.uuid
    assert web.is_healthy()


def test_a_bad_version_is_rolled_back(web: ScaleSet, publish: Publish) -> None:
    """O1, D3: the instance is again on the disk that it had."""
    before = {instance.name: instance.boot_id for instance in web}
    publish("1.2.0")
    upgrade = web.wait_for_upgrade()
    assert upgrade.faulted, upgrade.explain()
    assert upgrade.error is not None
    assert upgrade.error.code == BREACH
    assert web.is_healthy()
    assert {instance.image_version for instance in web} == {"1.0.0"}
    assert sum(instance.boot_id != before[instance.name] for instance in web) == 1
    for instance in web:
        check_custom_data(instance, 1 + (instance.boot_id != before[instance.name]))


def test_the_set_is_upgraded_to_debian_13(vmss: Lab, web: ScaleSet, publish: Publish) -> None:
    """O1, O4, O5, C1: told first; stopped by ACPI, provisioned anew, and told what it runs."""
    before = {instance.name: (instance.boot_id, custom_data_runs(instance)) for instance in web}
    earlier = len(vmss.store.events())
    web[0].host.check_output("systemd-run --quiet python3 -c %s", APPROVER)
    publish("2.0.0")
    upgrade = web.wait_for_upgrade()
    assert upgrade.completed, upgrade.explain()
    for instance in web:
        assert instance.image_version == "2.0.0"
        assert instance.host.file("/etc/os-release").contains("trixie")
        assert instance.host.file("/sys/firmware/efi").is_directory
        assert instance.host.file("/etc/netplan/50-cloud-init.yaml").exists
        assert instance.generation.cloud_init == "done"
        boot_id, runs = before[instance.name]
        assert instance.boot_id != boot_id
        check_custom_data(instance, runs + 1)
        image = metadata(instance)["compute"]["storageProfile"]["imageReference"]
        assert image["exactVersion"] == "2.0.0"
    events = vmss.store.events()[earlier:]
    assert not [event for event in events if "cutting its power" in event.message]
    told = [event.message for event in events if event.kind == "scheduled event"]
    assert [message.partition(": ")[2] for message in told] == [
        "the guest may approve it within 10 s", "approved by the guest",
        "the guest may approve it within 10 s", "not approved in time; it begins anyway",
    ]  # fmt: skip


@pytest.mark.nightly
def test_azures_linux_agent_finds_its_wire_server(web: ScaleSet, publish: Publish) -> None:
    """O6: versions, goal state and shared config; it reports, and then leaves the run alone.

    Debian starts it on Hyper-V only, and it waits for a key that this image does not make.
    """
    if web[0].image_version == "1.0.0":  # alone it is the first
        publish("2.0.0")
        assert web.wait_for_upgrade().completed
    instance = web[0]
    runs = custom_data_runs(instance)
    instance.host.check_output(
        "mkdir -p /run/systemd/system/walinuxagent.service.d && "
        "printf '[Unit]\nConditionVirtualization=\n' "
        "> /run/systemd/system/walinuxagent.service.d/here.conf && "
        "ssh-keygen -q -t rsa -N '' -f /etc/ssh/ssh_host_rsa_key && "
        "systemctl daemon-reload && systemctl start walinuxagent"
    )
    log = instance.host.file("/var/log/waagent.log")
    wait_for(
        "the agent's report",
        lambda: (log.exists and "Finished provisioning" in log.content_string) or None,
        timeout=240,
        clock=SystemClock(),
        interval=5.0,
    )
    for told in (
        "Fabric preferred wire protocol version:2015-04-05",
        "Fetched a new incarnation for the WireServer goal state [incarnation 1]",
        "Fetch goal state completed",
    ):
        assert told in log.content_string
    assert instance.host.file("/var/lib/waagent/SharedConfig.xml").contains(instance.name)
    assert instance.host.service("walinuxagent").is_running
    assert web.is_healthy()
    check_custom_data(instance, runs)
