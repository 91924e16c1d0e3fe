"""F1-F6, K1 on a real VM: every health source, every transition, every fault, and repairs.

The tests share one instance and run in the order of the file; each leaves the
application well.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_vmss.api.instance import Instance
from pytest_vmss.api.lab import Lab
from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.errors import ProvisioningError
from pytest_vmss.model import Health, application_health
from tests.models import application_health as extension
from tests.vm.conftest import qemu_processes
from tests.vm.start import extensions, start

GRACE = 25
PAGE = "/usr/share/web/health"
UNIT = "vmss-application-health.service"
INSIDE, OUTSIDE, OWN = "Application Health extension", "health probe", "check of the lab's own"
HEALTHY, UNHEALTHY, UNKNOWN = Health.HEALTHY, Health.UNHEALTHY, Health.UNKNOWN


def page(**body: Any) -> str:
    return json.dumps(body)


@pytest.fixture(scope="module")
def lab(vmss: Lab) -> Iterator[Lab]:
    made = Lab.session(replace(vmss.settings, repair_grace=5.0))
    yield made
    made.destroy()


@pytest.fixture(scope="module")
def web(lab: Lab, built: Callable[[str], Path]) -> ScaleSet:
    """One instance with a probe and the rich extension, which is fine without automatic upgrade."""
    made = start(lab, built("1.0.0"), health_timeout=20, automatic=False)
    made.scale(1)
    write(made[0], page(ApplicationHealthState="Healthy"))
    change(made, "2.0", gracePeriod=GRACE)
    return made


def write(instance: Instance, body: str) -> None:
    encoded = base64.b64encode(body.encode()).decode()
    instance.host.check_output("echo %s | base64 -d > %s", encoded, PAGE)


def states(instance: Instance) -> dict[str, Health]:
    return {name: seen.health for name, seen in instance.observations().items()}


def until(instance: Instance, wanted: dict[str, Health], timeout: float = 60.0) -> float:
    """Waits for the sources to say what they should, and says how long."""
    start = time.monotonic()
    while (seen := states(instance)) != wanted:
        assert time.monotonic() - start < timeout, f"{seen}, not {wanted}, after {timeout} s"
        time.sleep(0.5)
    return time.monotonic() - start


def report(lab: Lab, instance: Instance) -> Health:
    """What the extension reports this moment, without waiting."""
    context = instance._context
    settings = application_health(context.revision(instance.record.revision).model)
    assert settings is not None
    return lab.environment.health_report(context, settings).health


def test_both_sources_speak(web: ScaleSet) -> None:
    """F2, F3: from outside by HAProxy, from inside over the guest agent."""
    assert states(web[0]) == {OUTSIDE: HEALTHY, INSIDE: HEALTHY}
    (view,) = web[0].extensions
    assert (view.type, view.status) == (
        "Microsoft.ManagedServices.ApplicationHealthLinux", "success",
    )  # fmt: skip


def test_every_rich_state(web: ScaleSet) -> None:
    """F3: Healthy, Unhealthy, Unknown by body, by status and by silence, and back."""
    write(web[0], page(ApplicationHealthState="Unhealthy"))
    until(web[0], {OUTSIDE: HEALTHY, INSIDE: UNHEALTHY})
    write(web[0], "ok")
    until(web[0], {OUTSIDE: HEALTHY, INSIDE: UNKNOWN})
    write(web[0], page(ApplicationHealthState="Healthy"))
    until(web[0], {OUTSIDE: HEALTHY, INSIDE: HEALTHY})
    web[0].host.check_output("rm %s", PAGE)  # status 404
    until(web[0], {OUTSIDE: HEALTHY, INSIDE: UNKNOWN})
    write(web[0], page(ApplicationHealthState="Healthy"))
    until(web[0], {OUTSIDE: HEALTHY, INSIDE: HEALTHY})
    with web[0].faults.without("nginx"):
        until(web[0], {OUTSIDE: UNHEALTHY, INSIDE: UNKNOWN})
    until(web[0], {OUTSIDE: HEALTHY, INSIDE: HEALTHY})


def test_initializing_holds_until_the_grace_period_ends(web: ScaleSet, lab: Lab) -> None:
    """F3."""
    write(web[0], "ok")
    web[0].host.check_output("systemctl restart %s", UNIT)
    seen = [(time.monotonic(), report(lab, web[0]))]
    while seen[-1][1] is not UNKNOWN or len(seen) < 3:
        assert time.monotonic() - seen[0][0] < 3 * GRACE, seen
        time.sleep(0.5)
        seen.append((time.monotonic(), report(lab, web[0])))
    beginning = next(moment for moment, state in seen if state is Health.INITIALIZING)
    lasted = seen[-1][0] - beginning
    assert GRACE - 8 < lasted < GRACE + 15
    write(web[0], page(ApplicationHealthState="Healthy"))
    until(web[0], {OUTSIDE: HEALTHY, INSIDE: HEALTHY})


def test_a_cut_network_is_seen_from_outside_only(web: ScaleSet) -> None:
    """F3: it reports from inside while it cannot be reached."""
    with web[0].faults.network_cut():
        until(web[0], {OUTSIDE: UNHEALTHY, INSIDE: HEALTHY})
        time.sleep(10)  # it goes on reporting
        assert states(web[0]) == {OUTSIDE: UNHEALTHY, INSIDE: HEALTHY}
    until(web[0], {OUTSIDE: HEALTHY, INSIDE: HEALTHY})


def test_a_hanging_agent_gives_unknown_and_hangs_nobody(web: ScaleSet, lab: Lab) -> None:
    """F3: in time; the rest of the lab goes on."""
    host = web[0].host
    host.check_output("pkill -STOP qemu-ga")
    try:
        start = time.monotonic()
        assert report(lab, web[0]) is UNKNOWN
        assert time.monotonic() - start < 15
        assert states(web[0]) == {OUTSIDE: HEALTHY, INSIDE: UNKNOWN}
        assert host.check_output("echo well") == "well"
    finally:
        host.check_output("pkill -CONT qemu-ga")
    until(web[0], {OUTSIDE: HEALTHY, INSIDE: HEALTHY})


def test_a_process_of_the_extension_that_hangs_gives_unknown(web: ScaleSet) -> None:
    """F3: what it said last no longer counts."""
    host = web[0].host
    host.check_output("systemctl kill -s STOP %s", UNIT)
    try:
        took = until(web[0], {OUTSIDE: HEALTHY, INSIDE: UNKNOWN})
        assert took > 10
    finally:
        host.check_output("systemctl kill -s CONT %s", UNIT)
    until(web[0], {OUTSIDE: HEALTHY, INSIDE: HEALTHY})


def test_sources_of_the_labs_own(web: ScaleSet) -> None:
    """F4: a command, and a function of a testinfra host."""
    web.set_health_check("systemctl is-active nginx")
    assert states(web[0]) == {OUTSIDE: HEALTHY, INSIDE: HEALTHY, OWN: HEALTHY}
    web.set_health_check(lambda host: host.service("nginx").is_running)
    with web[0].faults.without("nginx"):
        assert states(web[0])[OWN] is UNHEALTHY
        web.set_health_check("systemctl is-active nginx")
        assert "inactive" in web[0].observations()[OWN].detail
        with web[0].faults.paused():
            assert states(web[0])[OWN] is UNKNOWN
    web.set_health_check(None)
    until(web[0], {OUTSIDE: HEALTHY, INSIDE: HEALTHY})


def test_other_faults(web: ScaleSet) -> None:
    """A full disk and a slow processor; both mended."""
    host = web[0].host
    free = int(host.check_output("stat -f -c %a /data"))
    with web[0].faults.disk_filled("/data"):
        assert host.run("dd if=/dev/zero of=/data/more bs=1M count=1 conv=fsync").rc != 0
        assert int(host.check_output("stat -f -c %a /data")) == 0
    host.check_output("rm -f /data/more")
    assert int(host.check_output("stat -f -c %a /data")) > 0.95 * free
    with web[0].faults.slowed(0.25):
        assert share_of_time(web[0]) < 0.5
    until(web[0], {OUTSIDE: HEALTHY, INSIDE: HEALTHY})


def share_of_time(instance: Instance) -> float:
    """The part of the time for which a machine runs while its guest computes, however busy the host."""
    (pid,) = qemu_processes(instance._context.domain)
    machine = psutil.Process(pid)

    def ran() -> float:
        return sum(machine.cpu_times()[:2])

    start, before = time.monotonic(), ran()
    instance.host.check_output("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done")
    return (ran() - before) / (time.monotonic() - start)


def change(web: ScaleSet, version: str, **settings: Any) -> None:
    web.update(extensions([extension(version, **settings)]))
    web.update_instances()


def test_binary_states(web: ScaleSet) -> None:
    """F3, 1.0: any 200 is Healthy; without the application both say Unhealthy."""
    change(web, "1.0", numberOfProbes=2)
    write(web[0], "ok")
    until(web[0], {OUTSIDE: HEALTHY, INSIDE: HEALTHY})
    with web[0].faults.without("nginx"):
        until(web[0], {OUTSIDE: UNHEALTHY, INSIDE: UNHEALTHY})
    until(web[0], {OUTSIDE: HEALTHY, INSIDE: HEALTHY})
    write(web[0], page(ApplicationHealthState="Healthy"))


def test_a_port_that_nothing_listens_on_is_told(web: ScaleSet) -> None:
    with pytest.raises(ProvisioningError) as failed:
        change(web, "2.0", port=81)
    assert "nothing listens on port 81 in the guest (listening are: 22, 80" in failed.value.evidence
    change(web, "2.0", gracePeriod=GRACE)
    until(web[0], {OUTSIDE: HEALTHY, INSIDE: HEALTHY})


def test_what_the_boot_before_said_does_not_count(web: ScaleSet) -> None:
    """F5: the extension starts with each boot, and its report is gone with the boot."""
    before, disk = web[0].boot_id, web[0].os_disk
    assert web.redeploy().completed
    assert web[0].boot_id != before
    assert web[0].os_disk == disk
    until(web[0], {OUTSIDE: HEALTHY, INSIDE: HEALTHY})


def parts(web: ScaleSet) -> dict[str, str]:
    """The substatuses in the instance view."""
    (health,) = web[0].instance_view()["extensions"]
    return {part["code"]: part["message"] for part in health["substatuses"]}


def test_the_instance_view_has_what_it_says_now(web: ScaleSet) -> None:
    """H4, D5: Azure's names, custom metrics too."""
    metrics = '{"rollingUpgrade": {"PhaseOrderingNumber": 1}}'
    write(web[0], page(ApplicationHealthState="Healthy", customMetrics=metrics))
    deadline = time.monotonic() + 60
    while (found := parts(web)).get("ComponentStatus/CustomMetrics/succeeded") != metrics:
        assert time.monotonic() < deadline, found
        time.sleep(1)
    assert found["ComponentStatus/ApplicationHealthState/succeeded"] == "Healthy"


def test_it_goes_with_the_model(web: ScaleSet, lab: Lab) -> None:
    """H2: its process ends, and nothing of it is left."""
    host = web[0].host
    assert host.run("systemctl is-active %s", UNIT).rc == 0
    web.update(extensions([]))
    web.update_instances()
    assert host.run("systemctl is-active %s", UNIT).rc != 0
    assert host.run("pgrep -f application_health.p[y]").rc == 1
    assert host.run("ls /etc/systemd/system /var/lib/waagent | grep -i health").rc == 1
    assert states(web[0]) == {OUTSIDE: HEALTHY}
    told = [event.message for event in lab.store.events() if event.kind == "warning"]
    assert not any("was not removed" in message for message in told), told


def test_a_killed_instance_is_repaired_by_itself(web: ScaleSet, lab: Lab) -> None:
    """K1: the watched lab sees it by the probe alone, and restarts it."""
    web.update({"automaticRepairsPolicy": {"enabled": True, "repairAction": "Restart"}})
    time.sleep(5)
    before = web[0].boot_id
    lab.watch()
    web[0].faults.kill()
    deadline = time.monotonic() + 240
    while web[0].boot_id == before or web[0].record.repairs:
        assert time.monotonic() < deadline, [e.message for e in lab.store.events()][-10:]
        time.sleep(1)
    until(web[0], {OUTSIDE: HEALTHY})
    repairs = [event.message for event in lab.store.events() if event.kind == "repair"]
    assert repairs
    assert repairs[0].startswith("Restart: ")
    assert web.orchestration_services[0]["serviceState"] == "Running"
