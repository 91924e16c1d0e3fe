"""F1-F6: health from every source, and what upgrades make of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from pytest_vmss.api.backends import reported_metrics
from pytest_vmss.api.faults import Faults
from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.environment.health import HealthSources, judge_all
from pytest_vmss.errors import (
    BalancerError,
    ModelError,
    NotFoundError,
    ProvisioningError,
    WaitTimeoutError,
)
from pytest_vmss.guest_platform.config import PlatformFiles
from pytest_vmss.health import RollingUpgradeMetrics
from pytest_vmss.model import Health
from pytest_vmss.simulation.guest import Behaviour
from pytest_vmss.store import Outcome
from tests.models import LOAD_BALANCER, web_model, with_application_health
from tests.simulation.conftest import SimulatedLab

BEFORE = "MaxUnhealthyInstancePercentExceededBeforeRollingUpgrade"


def start(lab: SimulatedLab, capacity: int = 3, version: str = "2.0", **settings: Any) -> ScaleSet:
    body = with_application_health(web_model(capacity=capacity), version, **settings)
    return lab.start(body, {})


def health_of(web: ScaleSet) -> list[Health]:
    return [instance.health() for instance in web]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_an_upgrade_goes_by_the_extension(lab: SimulatedLab, version: str) -> None:
    """F3."""
    web = start(lab, version=version)
    assert health_of(web) == [Health.HEALTHY] * 3
    assert lab.roll(web, "1.1.0").completed
    upgrade = lab.roll(web, "1.2.0", Behaviour.UNHEALTHY)
    assert upgrade.faulted
    assert upgrade.outcomes["web_0"] is Outcome.ROLLED_BACK
    assert "did not become healthy" in upgrade.errors["web_0"].message
    assert health_of(web) == [Health.HEALTHY] * 3


def test_unknown_counts_as_unhealthy(lab: SimulatedLab) -> None:
    """F5: before an upgrade, and after a swap."""
    web = start(lab)
    lab.applications["web_1"] = Health.UNKNOWN
    lab.virtual.sleep(60)
    assert health_of(web) == [Health.HEALTHY, Health.UNKNOWN, Health.HEALTHY]
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.faulted
    assert upgrade.error is not None
    assert upgrade.error.code == BEFORE
    assert web[1].instance_view()["vmHealth"]["status"]["code"] == "HealthState/unknown"
    lab.applications.clear()
    lab.virtual.sleep(60)
    lab.applications["web_0"] = Health.HEALTHY
    assert lab.roll(web, "1.2.0").completed
    assert web[1].instance_view()["vmHealth"]["status"] == {
        "code": "HealthState/healthy",
        "level": "Info",
        "displayStatus": "The VM is reporting itself as healthy",
        "message": "it is Healthy",
    }


def test_initializing_is_waited_for(lab: SimulatedLab) -> None:
    """F3: it is no judgement until the grace period ends, and the five minutes count after it."""
    body = with_application_health(web_model(capacity=1), gracePeriod=1200)
    web = lab.start(body, {})
    start_of = lab.virtual.monotonic()
    lab.applications["web_0"] = Health.UNKNOWN
    lab.publish("1.1.0")
    report = lab.environment.health_report

    def slow(*arguments: Any) -> Any:
        if lab.virtual.monotonic() - start_of > 1000:
            lab.applications.clear()
        return report(*arguments)

    lab.virtual.sleep(60)
    assert web[0].health() is Health.UNKNOWN
    lab.applications.clear()
    lab.virtual.sleep(60)
    lab.environment.health_report = slow
    request_stop = lab.simulated.request_stop

    def stopping(name: str) -> None:
        lab.applications["web_0"] = Health.UNKNOWN  # from the next boot on
        request_stop(name)

    lab.simulated.request_stop = stopping  # type: ignore[method-assign]
    lab.run_due()
    upgrade = web.history()[0]
    assert upgrade.completed, upgrade.explain()
    assert upgrade.stages["web_0"]["health"] > 700


def test_whoever_is_initializing_when_an_upgrade_begins_is_waited_for(lab: SimulatedLab) -> None:
    web = start(lab, gracePeriod=300)
    web.restart([1])
    lab.applications["web_1"] = Health.UNKNOWN
    assert web[1].health() is Health.UNKNOWN  # it waited
    assert lab.virtual.monotonic() > 300


def test_a_grace_period_that_ends_without_health_fails(lab: SimulatedLab) -> None:
    body = with_application_health(web_model(capacity=1), gracePeriod=60)
    lab.publish("1.0.0")
    lab.applications["web_0"] = Health.UNKNOWN
    with pytest.raises(ProvisioningError, match="did not come up") as failed:
        lab.create(body)
    assert "it is Unknown" in failed.value.evidence


@pytest.mark.parametrize(
    ("grace", "told"),
    [
        (0, "within 30 s: "),
        (600, "within 30 s, and 610 s before that for its extension's grace period: "),
    ],
)
def test_a_health_timeout_is_told_as_it_was_given(lab: SimulatedLab, grace: int, told: str) -> None:
    """F6: with what was added to it."""
    body = web_model(capacity=1)
    if grace:
        body = with_application_health(body, gracePeriod=grace)
    lab.publish("1.0.0")
    lab.sick.add("web_0")
    balancer = None if grace else LOAD_BALANCER
    with pytest.raises(ProvisioningError) as failed:
        lab.create(body, load_balancer=balancer, health_timeout=30)
    assert f"did not become healthy {told}" in failed.value.evidence


def test_an_agent_that_hangs_gives_unknown(lab: SimulatedLab) -> None:
    """F3."""
    web = start(lab)
    lab.simulated.agents_hang.add(f"vmss-{lab.identity.id}-web_2")
    assert health_of(web) == [Health.HEALTHY, Health.HEALTHY, Health.UNKNOWN]
    assert "does not answer" in web[2].observations()["Application Health extension"].detail


def test_a_cut_instance_still_reports_from_inside(lab: SimulatedLab) -> None:
    """F3: the probe is outside, the extension inside."""
    body = with_application_health(web_model(automatic=False, capacity=2), probe=True)
    web = lab.start(body, LOAD_BALANCER)
    with web[0].faults.network_cut():
        seen = {name: entry.health for name, entry in web[0].observations().items()}
        assert seen == {
            "health probe": Health.UNHEALTHY,
            "Application Health extension": Health.HEALTHY,
        }
        assert health_of(web) == [Health.UNHEALTHY, Health.HEALTHY]
    assert health_of(web) == [Health.HEALTHY] * 2


def test_faults_end_with_their_block(lab: SimulatedLab) -> None:
    web = lab.start_web(2)

    def fails() -> None:
        with web[0].faults.paused():
            assert health_of(web) == [Health.UNHEALTHY, Health.HEALTHY]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert health_of(web) == [Health.HEALTHY] * 2
    with web[0].faults.slowed(0.5):
        pass
    assert health_of(web) == [Health.HEALTHY] * 2
    with web[0].faults.network_cut():
        web[0].faults.kill()  # nothing is left to mend
    assert health_of(web) == [Health.UNHEALTHY, Health.HEALTHY]


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (lambda faults: faults.slowed("half"), "share: must be a number between 0 and 1"),
        (lambda faults: faults.slowed(float("nan")), "share: must be a number between 0 and 1"),
        (lambda faults: faults.slowed(True), "share: must be a number between 0 and 1"),
        (lambda faults: faults.disk_filled("data"), "path: must be the path of a folder"),
        (lambda faults: faults.disk_filled(b"/"), "path: must be the path of a folder"),
        (lambda faults: faults.without(1), "unit: must be the name of a systemd unit"),
        (lambda faults: faults.partitioned(1), r"others\[0\]: must be an instance of 'web'"),
        (
            lambda faults: faults.slowed(1),
            r"share: must be a number between 0 and 1, both excluded, .*; given 1 ",
        ),
        (
            lambda faults: faults.without("a b"),
            "unit: must be the name of a systemd unit, .*; given 'a b' ",
        ),
    ],
)
def test_impossible_faults_are_refused(
    lab: SimulatedLab, fault: Callable[[Faults], AbstractContextManager[None]], problem: str
) -> None:
    web = lab.start_web(1)
    with pytest.raises(ModelError, match=problem):
        fault(web[0].faults)  # before the block


def test_custom_metrics_come_with_the_report(lab: SimulatedLab) -> None:
    """D5: read once, when the upgrade starts."""
    web = start(lab)
    lab.environment.metrics = reported_metrics
    lab.metrics = {f"web_{n}": RollingUpgradeMetrics(skip=n == 1) for n in range(3)}
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.outcomes["web_1"] is Outcome.SKIPPED
    assert [i.image_version for i in web] == ["1.1.0", "1.0.0", "1.1.0"]


# The lab's own sources (F4).


def test_a_command_is_a_health_source(lab: SimulatedLab) -> None:
    """F4: beside Azure's; kept for the next process."""
    lab.publish("1.0.0")
    web = lab.create(web_model(capacity=3), load_balancer=LOAD_BALANCER, health="true")
    assert health_of(web) == [Health.HEALTHY] * 3
    assert web.record.health_command == "true"
    web.set_health_check("exit 3")
    assert health_of(web) == [Health.UNHEALTHY] * 3
    assert "status 3" in web[0].observations()["check of the lab's own"].detail
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.error is not None
    assert upgrade.error.code == BEFORE
    web.set_health_check(None)
    assert health_of(web) == [Health.HEALTHY] * 3


def test_a_function_is_a_health_source(lab: SimulatedLab) -> None:
    """F4."""
    sick: set[str] = set()
    lab.publish("1.0.0")
    web = lab.create(
        web_model(capacity=3),
        load_balancer=LOAD_BALANCER,
        health=lambda host: host.name not in sick,
    )
    sick.add("web_1")
    assert health_of(web) == [Health.HEALTHY, Health.UNHEALTHY, Health.HEALTHY]
    web.delete()
    assert lab.environment.checks == {}


def test_where_nothing_is_configured_power_and_extensions_count(lab: SimulatedLab) -> None:
    """F1."""
    body = web_model(automatic=False)
    del body["properties"]["virtualMachineProfile"]["networkProfile"]
    web = lab.start(body, {})
    assert set(web[0].observations()) == {"power and extensions"}
    assert web.is_healthy()
    web[1].faults.kill()
    assert health_of(web) == [Health.HEALTHY, Health.UNHEALTHY, Health.HEALTHY]


def bare(lab: SimulatedLab) -> ScaleSet:
    """A set of three without probe or health extension."""
    body = web_model(automatic=False)
    del body["properties"]["virtualMachineProfile"]["networkProfile"]
    return lab.start(body, {})


@pytest.mark.parametrize(
    ("behaviour", "told"),
    [
        (Behaviour.PANICS, "never booted on its OS disk"),
        (Behaviour.CLOUD_INIT_FAILS, "cloud-init did not run to its end"),
        (Behaviour.EXTENSION_FAILS, "the extension register failed"),
    ],
)
def test_what_never_came_up_is_not_healthy(
    lab: SimulatedLab, behaviour: Behaviour, told: str
) -> None:
    """F1, D1: the machine runs, and yet; the next upgrade does not begin."""
    web = bare(lab)
    lab.publish("1.1.0", behaviour)
    assert web.upgrade().faulted
    assert health_of(web) == [Health.UNHEALTHY, Health.HEALTHY, Health.HEALTHY]
    assert told in web[0].observations()["power and extensions"].detail
    lab.publish("1.2.0")
    upgrade = web.upgrade()
    assert upgrade.error is not None
    assert upgrade.error.code == BEFORE


def test_what_does_not_come_up_again_is_not_healthy(lab: SimulatedLab) -> None:
    """F1, F5: its last start counts, not the one before."""
    web = bare(lab)
    lab.behaviours["1.0.0"] = Behaviour.PANICS
    with pytest.raises(ProvisioningError):
        web.restart([1])
    assert health_of(web) == [Health.HEALTHY, Health.UNHEALTHY, Health.HEALTHY]
    lab.behaviours["1.0.0"] = Behaviour.GOOD
    web.restart([1])
    assert web.is_healthy()


# What is told of a wrong configuration.


def test_a_port_that_nothing_listens_on_is_told(lab: SimulatedLab) -> None:
    lab.publish("1.0.0", Behaviour.UNHEALTHY)
    lab.deaf_ports = {80}
    with pytest.raises(ProvisioningError) as failed:
        lab.create(web_model(capacity=1), load_balancer=LOAD_BALANCER)
    assert "nothing listens on port 80 in the guest (listening are: 22)" in failed.value.evidence


def test_both_sources_are_refused_before_anything_is_made(lab: SimulatedLab) -> None:
    """C5."""
    lab.publish("1.0.0")
    with pytest.raises(ModelError, match="both a health probe and a health extension"):
        lab.create(with_application_health(web_model(), probe=True), load_balancer=LOAD_BALANCER)
    assert lab.simulated.starts == []


def test_wrong_settings_of_the_extension_are_refused(lab: SimulatedLab) -> None:
    lab.publish("1.0.0")
    body = with_application_health(web_model(), intervalInSeconds=1)
    with pytest.raises(ModelError, match=r"extensions\[1\].settings.*intervalInSeconds"):
        lab.create(body)


@pytest.mark.parametrize("named", [None, "other"])
def test_a_probe_that_no_rule_uses_is_refused(lab: SimulatedLab, named: str | None) -> None:
    """F2: Azure's code and words."""
    lab.publish("1.0.0")
    rule = LOAD_BALANCER["properties"]["loadBalancingRules"][0]["properties"]
    probe = {} if named is None else {"probe": {"id": f"/…/probes/{named}"}}
    probes = LOAD_BALANCER["properties"]["probes"]
    other = {**probes[0], "name": "other"}
    balancer = {
        "name": "web-lb",
        "properties": {
            "loadBalancingRules": [{"name": "http", **rule, "probe": None, **probe}],
            "probes": [*probes, other],
        },
    }
    with pytest.raises(ModelError, match="cannot use probe healthz as a HealthProbe") as refused:
        lab.create(web_model(), load_balancer=balancer)
    assert [problem.code for problem in refused.value.problems] == ["CannotUseInactiveHealthProbe"]


def test_a_change_of_health_is_an_event(lab: SimulatedLab) -> None:
    """J4: so that reports show health over time; what stays as it was is none."""
    web = lab.start_web(2)
    assert web.is_healthy()
    assert web.is_healthy()
    lab.sick.add("web_1")
    assert not web.is_healthy()
    events = [event for event in lab.store.events(scale_set="web") if event.kind == "health"]
    seen = [(event.instance_id, event.message.partition(":")[0]) for event in events]
    assert sorted(seen) == [(0, "Healthy"), (1, "Healthy"), (1, "Unhealthy")]


def test_the_load_balancer_is_asked_once_for_a_whole_set(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F2: and if it does not answer, or does not know a member, each instance is probed itself."""
    web = lab.start_web(3)
    balancer = lab.balancers[web.record.unique_id]
    verdicts, asked = balancer.verdicts, list[str]()

    def counted() -> dict[str, bool]:
        asked.append("all")
        return verdicts()

    def one(name: str) -> bool | None:
        asked.append(name)
        return None

    def silent() -> dict[str, bool]:
        raise BalancerError("HAProxy does not answer")

    monkeypatch.setattr(balancer, "verdicts", counted)
    monkeypatch.setattr(balancer, "healthy", one)
    lab.sick.add("web_1")
    lab.simulated.power_off(f"vmss-{lab.identity.id}-web_2")
    assert not web.is_healthy()
    assert asked == ["all"]
    assert [i.record.health for i in web] == [Health.HEALTHY, Health.UNHEALTHY, Health.UNHEALTHY]
    del balancer.members["web_0"]
    assert not web.is_healthy()
    assert asked == ["all", "all", "web_0"]
    monkeypatch.setattr(balancer, "verdicts", silent)
    assert not web.is_healthy()
    assert sorted(asked[3:]) == ["web_0", "web_1"]
    assert [i.record.health for i in web] == [Health.HEALTHY, Health.UNHEALTHY, Health.UNHEALTHY]


@pytest.mark.parametrize("served", ["platform", "network"])
def test_each_instance_is_looked_at_if_the_lab_serves_guests(
    lab: SimulatedLab, served: str
) -> None:
    """A9, O1: such a look starts a killed process again that carries a guest's frames."""
    web = lab.start_web(2)
    web.is_healthy()
    assert not lab.environment.serves_guests
    if served == "network":
        lab.paths.network(web.record.unique_id).mkdir(parents=True)
    else:
        platform = PlatformFiles(lab.paths.platform(web[0].record.uuid))
        platform.config.parent.mkdir(parents=True, exist_ok=True)
        platform.config.write_text("{}")
    sources = HealthSources.of(
        lab.environment, web.name, web._environment.revisions.current(web.name)
    )
    assert judge_all(lab.environment, [web[0].name], sources) == {}


def test_a_suite_waits_for_a_state_of_health(lab: SimulatedLab) -> None:
    """F1: of the instance, or by one of its sources; a wait that ends says what was seen."""
    web = start(lab)
    assert web[1].wait_for_health("Healthy", timeout=1).detail
    lab.applications["web_1"] = Health.UNHEALTHY
    start_of_wait = lab.virtual.monotonic()
    source = "Application Health extension"
    assert not web[1].wait_for_health("Unhealthy", source=source).healthy
    assert lab.virtual.monotonic() > start_of_wait  # after its probes
    assert web[1].wait_for_health(Health.UNHEALTHY).health is Health.UNHEALTHY
    with pytest.raises(
        WaitTimeoutError, match=r"after 30 s waiting for web_1 to be Healthy; last"
    ) as late:
        web[1].wait_for_health("Healthy", timeout=30)
    assert "Unhealthy: " in str(late.value)
    with pytest.raises(NotFoundError, match=f"no health source 'probe'; it has: {source}"):
        web[1].wait_for_health("Healthy", source="probe")
    with pytest.raises(ModelError, match="Healthy"):
        web[1].wait_for_health("healthy!")


def test_every_source_says_that_a_machine_does_not_run(lab: SimulatedLab) -> None:
    """F1: a suite that waits for one of them to notice need not know which notices first."""
    web = start(lab)
    web.set_health_check("true")
    sources = set(web[1].observations())
    assert len(sources) == 2
    web.stop([web[1].instance_id])
    web[2].faults.kill()
    for instance in web[1], web[2]:
        assert set(instance.observations()) == sources
        for source in sources:
            seen = instance.wait_for_health("Unhealthy", source=source, timeout=1)
            assert "does not run" in seen.detail


def test_a_model_of_another_image_needs_no_load_balancer(lab: SimulatedLab) -> None:
    """A suite's own model: its image is published, and the next versions of it roll."""
    web = lab.start(with_application_health(web_model(definition="notes"), "1.0"))
    assert lab.roll(web, "1.1.0").completed
    assert lab.roll(web, "1.2.0", Behaviour.UNHEALTHY).faulted
    assert lab.gallery().versions("notes") == ["1.0.0", "1.1.0", "1.2.0"]
    assert lab.gallery().versions("web") == []


def test_what_outlives_a_labs_process_is_taken_up_by_the_next(lab: SimulatedLab) -> None:
    """M1: as the benchmark of kills by real processes leaves it and goes on."""
    web = lab.start_web(1)
    lab.sick.add("web_0")
    lab.restore(lab.snapshot())
    assert lab.sick == {"web_0"}
    assert web[0].health() is Health.UNHEALTHY
