"""E1, F2: instances in and out of load balancing, and checks that must always hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pytest_vmss.errors import NotFoundError, ProvisioningError, ViolationError
from pytest_vmss.load_balancer import Balancer, Rule
from pytest_vmss.simulation.guest import Behaviour
from pytest_vmss.store import Outcome, ScaleSetRecord
from tests.models import LOAD_BALANCER, web_model
from tests.simulation.conftest import SimulatedLab


def test_an_instance_is_drained_before_it_stops(lab: SimulatedLab) -> None:
    """E1: and comes back only when it is healthy."""
    web = lab.start_web(3)
    balancer = lab.balancers[web.record.unique_id]
    assert balancer.members == {"web_0": True, "web_1": True, "web_2": True}
    balancer.busy = {"web_1": 40}
    seen = []
    request_stop, probe = lab.simulated.request_stop, lab.environment.probe

    def stopping(name: str) -> None:
        seen.append((dict(balancer.members), balancer.busy.get(name.rpartition("-")[2], 0)))
        request_stop(name)

    def probing(*arguments: object) -> object:
        assert sum(balancer.members.values()) >= 2
        return probe(*arguments)  # type: ignore[arg-type]

    lab.simulated.request_stop = stopping  # type: ignore[method-assign]
    lab.environment.probe = probing  # type: ignore[assignment]
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.completed
    assert [(members[f"web_{n}"], busy) for n, (members, busy) in enumerate(seen)] == [
        (False, 0)
    ] * 3
    assert [sum(members.values()) for members, _ in seen] == [2, 2, 2]
    assert set(balancer.members.values()) == {True}
    assert upgrade.stages["web_1"]["drain"] == pytest.approx(2.0, abs=0.1)


def test_connections_that_do_not_end_are_cut_after_a_limit(lab: SimulatedLab) -> None:
    web = lab.start_web(1)
    lab.balancers[web.record.unique_id].busy = {"web_0": 10_000}
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.completed
    assert any("they will break" in event.message for event in upgrade.events)
    assert upgrade.stages["web_0"]["drain"] == pytest.approx(30.0, abs=0.1)


def test_a_rolled_back_instance_serves_again(lab: SimulatedLab) -> None:
    web = lab.start_web(3)
    upgrade = lab.roll(web, "1.1.0", Behaviour.PANICS)
    assert upgrade.outcomes["web_0"] is Outcome.ROLLED_BACK
    assert set(lab.balancers[web.record.unique_id].members.values()) == {True}
    assert all(i.record.in_service for i in web)


def test_stopped_and_removed_instances_get_no_traffic(lab: SimulatedLab) -> None:
    web = lab.start_web(3)
    balancer = lab.balancers[web.record.unique_id]
    web.stop([1])
    assert balancer.members == {"web_0": True, "web_1": False, "web_2": True}
    web.start([1])
    web.delete_instances([2])
    assert balancer.members == {"web_0": True, "web_1": True}
    web.delete()
    assert not balancer.running


def test_the_url_is_the_frontends(lab: SimulatedLab) -> None:
    web = lab.start_web(1)
    assert web.url == f"http://{web.record.frontend}:10080"
    assert web.record.frontend not in {i.record.address for i in web}
    body = web_model("bare", automatic=False)
    body["properties"]["virtualMachineProfile"].pop("networkProfile")
    bare = lab.create(body)
    with pytest.raises(NotFoundError, match="no load balancer in front of 'bare'"):
        _ = bare.url


def test_what_always_holds(lab: SimulatedLab) -> None:
    web = lab.start_web(1)
    with web.always(lambda: True, every=0.01) as watched:
        lab.roll(web, "1.1.0")
    assert watched.checks >= 1
    assert watched.violations == []
    with web.always(lambda: None, every=0.01):  # as a check that only asserts
        pass


def test_every_violation_is_told_with_step_and_states(lab: SimulatedLab) -> None:
    web = lab.start_web(2)

    def check() -> bool:
        return all(i.record.version == "1.0.0" for i in web)

    def upgrade() -> None:
        with web.always(check, every=0.0):
            lab.roll(web, "1.1.0")
            for _ in range(200):
                check()

    with pytest.raises(ViolationError, match="the check returned False") as violated:
        upgrade()
    assert isinstance(violated.value, AssertionError)
    assert "web_0 Succeeded on 1.1.0" in violated.value.message
    first = violated.value.violations[0]
    assert "web_1" in str(first)


def test_what_a_check_raises_is_a_violation_and_the_blocks_own_error_comes_first(
    lab: SimulatedLab,
) -> None:
    web = lab.start_web(1)

    def broken() -> bool:
        raise ConnectionError("connection refused")

    with (
        pytest.raises(ViolationError, match="ConnectionError: connection refused"),
        web.always(broken),
    ):
        pass

    def fails() -> None:
        with web.always(broken):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as raised:
        fails()
    assert "connection refused" in raised.value.__notes__[0]


def test_an_instance_that_failed_is_served_where_its_probe_says_so(lab: SimulatedLab) -> None:
    """F2: without rollback it stays as it is, and HAProxy's own probe decides."""
    web = lab.start_web(2, automatic=False)
    lab.publish("1.1.0", Behaviour.EXTENSION_FAILS)
    upgrade = web.upgrade()
    assert upgrade.outcomes["web_0"] is Outcome.FAILED
    assert lab.balancers[web.record.unique_id].members == {"web_0": True, "web_1": True}
    assert [i.record.in_service for i in web] == [True, True]


def test_also_where_the_rollback_fails_and_where_it_was_new(lab: SimulatedLab) -> None:
    web = lab.start_web(2)
    lab.behaviours["1.0.0"] = Behaviour.PANICS  # what it goes back to has gone bad
    upgrade = lab.roll(web, "1.1.0", Behaviour.UNHEALTHY)
    assert upgrade.outcomes["web_0"] is Outcome.ROLLBACK_FAILED
    balancer = lab.balancers[web.record.unique_id]
    assert balancer.members["web_0"]
    with pytest.raises(ProvisioningError):
        web.scale(3)
    assert balancer.members["web_2"]


RULE = {
    "name": "admin",
    "frontendPort": 8080,
    "backendPort": 80,
    "probe": {"id": "/…/loadBalancers/web-lb/probes/healthz"},
}


def balancer_with(*rules: dict[str, Any]) -> dict[str, Any]:
    properties = LOAD_BALANCER["properties"]
    return {
        **LOAD_BALANCER,
        "properties": {
            **properties,
            "loadBalancingRules": [*properties["loadBalancingRules"], *rules],
        },
    }


def test_an_update_changes_the_rules(lab: SimulatedLab) -> None:
    web = lab.start_web(1)
    made: list[Sequence[Rule]] = []
    make = lab.environment.make_balancer

    def remember(record: ScaleSetRecord, rules: Sequence[Rule]) -> Balancer:
        made.append(rules)
        return make(record, rules)

    lab.environment.make_balancer = remember
    web.update({}, load_balancer=balancer_with(RULE))
    assert [rule.name for rule in made[-1]] == ["http", "admin"]
    assert lab.balancers[web.record.unique_id].members == {"web_0": True}


def test_a_load_balancer_comes_and_goes_with_the_model(lab: SimulatedLab) -> None:
    lab.publish("1.0.0")
    body = web_model(automatic=False, capacity=1)
    network = body["properties"]["virtualMachineProfile"].pop("networkProfile")
    body["properties"]["virtualMachineProfile"]["networkProfile"] = {}
    web = lab.create(body, ports=[80])
    assert web.record.frontend is None
    web.update({"virtualMachineProfile": {"networkProfile": network}}, load_balancer=LOAD_BALANCER)
    assert web.url == f"http://{web.record.frontend}:10080"
    balancer = lab.balancers[web.record.unique_id]
    assert balancer.members == {"web_0": True}
    web.update(body, replace=True)
    assert not balancer.running
    with pytest.raises(NotFoundError):
        _ = web.url


def test_a_load_balancer_without_a_health_probe_serves_all(lab: SimulatedLab) -> None:
    """F2: its rules' probes decide on traffic alone; the set's health is its own (F1)."""
    lab.publish("1.0.0")
    body = web_model(automatic=False, capacity=2)
    pools = [{"id": "/…/loadBalancers/web-lb/backendAddressPools/web"}]
    body["properties"]["virtualMachineProfile"]["networkProfile"] = {
        "networkInterfaceConfigurations": [
            {"name": "n", "ipConfigurations": [{"loadBalancerBackendAddressPools": pools}]}
        ]
    }
    web = lab.create(body, load_balancer=LOAD_BALANCER)
    assert web.url == f"http://{web.record.frontend}:10080"
    lab.sick.add("web_0")
    lab.publish("1.1.0")
    upgrade = web.upgrade()
    assert upgrade.status == "Completed", upgrade.explain()
    assert web.is_healthy()
    assert set(lab.balancers[web.record.unique_id].members.values()) == {True}


def test_ports_of_other_rules_probes_are_forwarded(lab: SimulatedLab) -> None:
    """F2: a load balancer probes at each rule's own probe."""
    lab.publish("1.0.0")
    balancer = balancer_with({**RULE, "probe": {"id": "/…/loadBalancers/web-lb/probes/admin"}})
    probe = {"name": "admin", "protocol": "Tcp", "port": 9000, "intervalInSeconds": 5}
    balancer["properties"]["probes"] = [*LOAD_BALANCER["properties"]["probes"], probe]
    web = lab.create(web_model(capacity=1), load_balancer=balancer)
    assert set(web[0].record.forwards) == {22, 80, 9000}


def test_the_url_is_of_a_rule_that_is_served(lab: SimulatedLab) -> None:
    """F2: neither of UDP, nor of port 0."""
    lab.publish("1.0.0")
    balancer = balancer_with()
    own = balancer["properties"]["loadBalancingRules"]
    udp = {"name": "dns", "frontendPort": 53, "backendPort": 53, "protocol": "Udp"}
    balancer["properties"]["loadBalancingRules"] = [udp, *own]
    web = lab.create(web_model(capacity=1), load_balancer=balancer)
    assert web.url == f"http://{web.record.frontend}:10080"


def test_an_update_by_a_template_takes_its_load_balancer(lab: SimulatedLab) -> None:
    """F2, P1: as deploying it does in Azure."""
    web = lab.start_web(1)
    kinds = "Microsoft.Compute/virtualMachineScaleSets", "Microsoft.Network/loadBalancers"
    resources = [
        {"type": kind, **body}
        for kind, body in zip(kinds, (web_model(capacity=1), balancer_with(RULE)), strict=True)
    ]
    web.update({"resources": resources})
    declared = lab.environment.revisions.current("web").balancer
    assert declared is not None
    assert [rule.name for rule in declared.load_balancing_rules] == ["http", "admin"]
