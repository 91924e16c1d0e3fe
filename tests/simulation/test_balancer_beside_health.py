"""F2, F3: a load balancer beside an Application Health extension, and how documents are given."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_vmss.errors import ModelError, NotFoundError
from pytest_vmss.model import Health
from tests.models import LOAD_BALANCER, web_model, with_application_health
from tests.simulation.conftest import SimulatedLab


def body(**settings: Any) -> dict[str, Any]:
    return with_application_health(web_model(capacity=2), **settings)


def in_service(lab: SimulatedLab) -> list[list[str]]:
    return [sorted(balancer.members) for balancer in lab.balancers.values() if balancer.running]


def test_it_is_taken_and_serves_traffic(lab: SimulatedLab) -> None:
    """As in Azure; it was ignored without a word."""
    web = lab.start(body(), LOAD_BALANCER)
    assert web.url.startswith("http://127.")
    assert in_service(lab) == [["web_0", "web_1"]]
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.completed, upgrade.explain()
    web.scale(3)
    assert in_service(lab) == [["web_0", "web_1", "web_2"]]
    web.update({"tags": {"a": "b"}})
    assert web.url
    assert in_service(lab) == [["web_0", "web_1", "web_2"]]


def test_its_probe_takes_the_sick_out_while_the_extension_decides_on_health(
    lab: SimulatedLab,
) -> None:
    """As in Azure, nothing waits for a probe that is not the set's health probe."""
    web = lab.start(body(), LOAD_BALANCER)
    assert set(web[0].observations()) == {"Application Health extension"}
    lab.sick.add("web_0")
    lab.applications["web_0"] = Health.HEALTHY
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.completed, upgrade.explain()
    (balancer,) = (each for each in lab.balancers.values() if each.running)
    assert [balancer.healthy(name) for name in ("web_0", "web_1")] == [False, True]


def test_one_without_a_health_source_is_taken_too(lab: SimulatedLab) -> None:
    model = web_model(capacity=1, automatic=False)
    del model["properties"]["virtualMachineProfile"]["networkProfile"]
    web = lab.start(model, LOAD_BALANCER)
    assert in_service(lab) == [["web_0"]]
    web.update({"tags": {"a": "b"}})
    assert in_service(lab) == [["web_0"]]


def test_the_one_of_the_backend_pool_is_found_in_a_template(lab: SimulatedLab) -> None:
    model = body()
    pool = "[resourceId('Microsoft.Network/loadBalancers/backendAddressPools', 'web-lb', 'pool')]"
    model["properties"]["virtualMachineProfile"]["networkProfile"] = {
        "networkInterfaceConfigurations": [
            {
                "name": "nic",
                "properties": {
                    "ipConfigurations": [
                        {
                            "name": "ip",
                            "properties": {"loadBalancerBackendAddressPools": [{"id": pool}]},
                        }
                    ]
                },
            }
        ]
    }
    balancer = copy.deepcopy(LOAD_BALANCER)
    balancer["properties"]["loadBalancingRules"][0]["properties"]["probe"]["id"] = (
        "[resourceId('Microsoft.Network/loadBalancers/probes', 'web-lb', 'healthz')]"
    )
    other = {**copy.deepcopy(balancer), "name": "another"}
    resources = [
        {"type": "Microsoft.Network/loadBalancers", **other},
        {"type": "Microsoft.Network/loadBalancers", **balancer},
        {"type": "Microsoft.Compute/virtualMachineScaleSets", **model},
    ]
    lab.publish("1.0.0")
    web = lab.create({"resources": resources})
    assert web._revision.balancer is not None
    assert web._revision.balancer.name == "web-lb"
    assert in_service(lab) == [["web_0", "web_1"]]
    alone = copy.deepcopy(model)
    alone["name"] = "alone"
    alone["properties"]["virtualMachineProfile"]["networkProfile"] = {}
    without = lab.create({"resources": [*resources[:2], {**resources[2], **alone}]})
    with pytest.raises(NotFoundError, match="no load balancer in front of"):
        _ = without.url


def test_the_extensions_port_is_forwarded(lab: SimulatedLab) -> None:
    lab.publish("1.0.0")
    web = lab.create(body(port=8085))
    address, port = web[0].address(8085)
    assert address.startswith("127.")
    assert port == 8085


def test_a_rules_own_probe_is_reached(lab: SimulatedLab) -> None:
    """Its port needs no rule; HAProxy had no address to check."""
    balancer = copy.deepcopy(LOAD_BALANCER)
    balancer["properties"]["probes"][0]["properties"]["port"] = 8086
    web = lab.start(body(), balancer)
    assert web[0].address(8086)


@pytest.mark.parametrize("form", ["dict", "json", "yaml", "path", "name"])
def test_documents_are_taken_in_each_form(lab: SimulatedLab, tmp_path: Path, form: str) -> None:
    """Everywhere; a name is looked for beside the running test first."""

    def given(document: dict[str, Any], name: str) -> Any:
        text = json.dumps(document)
        if form == "dict":
            return document
        if form == "json":
            return text.encode()
        if form == "yaml":
            return yaml.safe_dump(document).encode()
        (tmp_path / name).write_text(text)
        return tmp_path / name if form == "path" else name

    lab.environment.folder = lambda: tmp_path
    (tmp_path / "data.yaml").write_text("#cloud-config\n{}\n")
    custom: Any = {"dict": {"runcmd": ["true"]}, "name": "data.yaml"}.get(form, b"#!/bin/sh\n")
    lab.publish("1.0.0")
    web = lab.create(
        given(web_model(capacity=1), "web.json"),
        load_balancer=given(LOAD_BALANCER, "lb.json"),
        custom_data=custom,
    )
    stored = web.model.virtual_machine_profile.os_profile.custom_data
    assert stored is not None
    before = stored.get_secret_value()
    balancer = copy.deepcopy(LOAD_BALANCER)
    balancer["properties"]["probes"][0]["properties"]["intervalInSeconds"] = 7
    web.update(
        given({"tags": {"a": "b"}}, "change.json"),
        load_balancer=given(balancer, "lb2.json"),
        custom_data=custom,
    )
    assert web._revision.probe is not None
    assert web._revision.probe.interval_in_seconds == 7
    again = web.model.virtual_machine_profile.os_profile.custom_data
    assert again is not None
    assert again.get_secret_value() == before


def test_bytes_that_are_no_document_are_refused(lab: SimulatedLab) -> None:
    for wrong in (b"{", b"\xff\xfe\xff", b"[]", b"x" * (5 << 20)):
        with pytest.raises(ModelError) as refused:
            lab.create(wrong)
        assert "xxxx" not in str(refused.value)
