"""P4, A3, A6: extensions and sizes that a lab does not have, by choice; and what is said of it."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import pytest

from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.errors import InterruptedOperationError, LabError, ModelError, NotModelledWarning
from pytest_vmss.guest.extensions import registry
from pytest_vmss.settings import Settings
from tests.models import LOAD_BALANCER, custom_script, web_model
from tests.simulation.conftest import SimulatedLab

STRANGE = {
    "name": "Oms",
    "properties": {
        "publisher": "Vendor.Of", "type": "Agent", "typeHandlerVersion": "1.0", "settings": {},
    },
}  # fmt: skip


def body_with(*extensions: dict[str, Any], **sku: Any) -> dict[str, Any]:
    body = web_model(capacity=2)
    body["properties"]["virtualMachineProfile"]["extensionProfile"]["extensions"] += extensions
    body["sku"].update(sku)
    return body


def made(settings: Settings, **changes: Any) -> SimulatedLab:
    return SimulatedLab.session(replace(settings, **changes))


def warned(lab: SimulatedLab, body: dict[str, Any]) -> tuple[ScaleSet, str]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        web = lab.start(body, LOAD_BALANCER)
    return web, "\n".join(str(w.message) for w in told if w.category is NotModelledWarning)


def test_unknown_extensions_are_refused_with_the_ways_out(lab: SimulatedLab) -> None:
    """P4, A6."""
    with pytest.raises(ModelError, match=r"register_package.*--unknown-extensions skip"):
        lab.start(body_with(STRANGE), LOAD_BALANCER)


def test_unknown_extensions_are_left_out_by_choice(settings: Settings) -> None:
    """P4: those behind them run; the warning, the instance view and the report say so."""
    lab = made(settings, unknown_extensions="skip")
    try:
        web, told = warned(lab, body_with(STRANGE, custom_script(
            "late", "oms", settings={"commandToExecute": "true"})))  # fmt: skip
        assert "left out" in told
        assert "Vendor.Of/Agent" in told
        assert web.is_healthy()
        results = {entry.name: entry for entry in web[0].extensions}
        assert results["Oms"].left_out
        assert not results["late"].left_out
        upgrade = lab.roll(web, "1.1.0")
        assert upgrade.completed
        assert "extensions left out, for nobody registered their handlers: oms" in upgrade.explain()
        web.scale(3)
        assert "oms" in web.record.left_out
    finally:
        lab.destroy()


def test_what_has_run_is_never_left_out_later(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P4: a process that lacks a handler does not do without it."""
    lab = made(settings, unknown_extensions="skip")
    try:
        web, told = warned(lab, body_with())
        assert "left out" not in told
        monkeypatch.delitem(registry._handlers, ("microsoft.azure.extensions", "customscript"))
        with pytest.raises(ModelError, match="no handler"):
            web.update({"tags": {"a": "b"}})
        with pytest.raises(InterruptedOperationError, match="is not registered in this process"):
            web.reimage()
    finally:
        monkeypatch.undo()
        lab.destroy()


def test_sets_are_made_in_a_size_of_the_labs_own(settings: Settings) -> None:
    """A3: whatever the model says, and for as long as the set lives."""
    lab = made(settings, size="tiny", sizes={"Tiny": (1, 256)})
    try:
        web, told = warned(lab, body_with(name="Standard_D96s_v5"))
        assert "own size Tiny (1 vCPUs, 256 MiB), not in Standard_D96s_v5" in told
        lab.environment.own_size = None
        web.scale(3)
        assert {found.memory_mib for found in lab.simulated.defined.values()} == {256}
        assert web.model.sku.name == "Standard_D96s_v5"
        web.update({"sku": {"name": "Standard_Nothing", "capacity": 3}})
    finally:
        lab.destroy()


def test_a_size_that_nobody_knows(settings: Settings) -> None:
    with pytest.raises(LabError, match="nearest are: Standard_B1s"):
        SimulatedLab.session(replace(settings, size="Standard_B1"))


def test_what_is_not_modelled_is_said_before_anything_is_made(lab: SimulatedLab) -> None:
    """A6, P3: on creation all of it, on a change what is new; at the line that asked for it."""
    body = body_with()
    body["properties"]["overprovision"] = True
    web, told = warned(lab, body)
    assert "not modelled here: $.overprovision" in told
    with pytest.warns(NotModelledWarning) as changed:
        web.update({"licenseType": "x"})
    (warning,) = changed
    assert "$.licenseType" in str(warning.message)
    assert "overprovision" not in str(warning.message)
    assert warning.filename == __file__
    with pytest.warns(NotModelledWarning) as created:
        lab.create(body | {"name": "other"}, load_balancer=LOAD_BALANCER)
    assert [warning.filename for warning in created] == [__file__]


def _balancer() -> dict[str, Any]:
    identifier = "[resourceId('Microsoft.Network/loadBalancers/probes', 'web-lb', 'healthz')]"
    balancer = copy.deepcopy(LOAD_BALANCER)
    balancer["properties"]["loadBalancingRules"][0]["properties"]["probe"]["id"] = identifier
    return balancer


def test_a_change_from_a_template_keeps_the_sets_secrets(lab: SimulatedLab) -> None:
    """P1: a secure parameter without a value is not generated anew."""
    body = body_with()
    osprofile = body["properties"]["virtualMachineProfile"]["osProfile"]
    osprofile["adminPassword"] = "[parameters('word')]"
    body["name"] = "[parameters('name')]"
    network = body["properties"]["virtualMachineProfile"]["networkProfile"]
    network["healthProbe"]["id"] = (
        "[resourceId('Microsoft.Network/loadBalancers/probes', 'web-lb', 'healthz')]"
    )
    template = {
        "parameters": {"word": {"type": "securestring"}, "name": {"type": "string"}},
        "resources": [
            {"type": "Microsoft.Compute/virtualMachineScaleSets", **body},
            {"type": "Microsoft.Network/loadBalancers", **_balancer()},
        ],
    }
    lab.publish("1.0.0")
    web = lab.create(template, parameters=["name=web", "word=one"])
    before = web.model.full()
    assert web.update(template, parameters={"name": "web"}) is None
    assert web.model.full() == before


def test_a_host_that_cannot_give_a_sizes_vcpus_says_so_once(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A3: as QEMU before 8.1 where there is no KVM."""
    monkeypatch.setattr(lab.hypervisor, "most_vcpus", 1)
    with pytest.warns(NotModelledWarning, match="each instance has 1 virtual CPU, not 2: .* KVM"):
        web = lab.start_web(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        web.update({"tags": {"team": "shop"}})
        web.update({"sku": {"name": "Standard_B1s"}})
    with pytest.warns(NotModelledWarning, match="virtual CPU"):
        web.update({"sku": {"name": "Standard_B2s"}})
