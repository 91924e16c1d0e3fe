"""Deployments inside a template: their order, places, symbolic names and linked parameters (P1)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_vmss.errors import ModelError
from pytest_vmss.model import load_document
from tests.models import LOAD_BALANCER
from tests.unit.test_arm_templates import deployment, scale_set, template

PROBES = "Microsoft.Network/loadBalancers/probes"
BALANCER = {"type": "Microsoft.Network/loadBalancers", **LOAD_BALANCER}


def named(name: str, inner: dict[str, Any], **properties: Any) -> dict[str, Any]:
    """A deployment of an inner template, whose expressions are its own."""
    made = deployment(inner, scope="inner", **properties)
    return {**made, "name": name}


def giving(**outputs: str) -> dict[str, Any]:
    """A template that makes nothing and has outputs."""
    return template(
        outputs={name: {"type": "string", "value": value} for name, value in outputs.items()}
    )


def sized(expression: str) -> dict[str, Any]:
    return scale_set(sku={"name": f"[{expression}]", "capacity": 1})


def size_of(document: dict[str, Any]) -> str:
    return load_document(document).model.sku.name


@pytest.mark.parametrize("turned", [False, True])
def test_a_deployment_may_refer_to_one_that_comes_later(turned: bool) -> None:
    """P1: Azure orders them by what they depend on, not by their places."""
    inner = template(
        scale_set(sku={"name": "[parameters('size')]", "capacity": 1}),
        parameters={"size": {"type": "string"}},
    )
    one = {"size": {"value": "[reference('two').outputs.size.value]"}}
    two = {"size": {"value": "[reference('three').outputs.size.value]"}}
    passing = {**giving(size="[parameters('size')]"), "parameters": {"size": {"type": "string"}}}
    deployments = [
        named("one", inner, parameters=one),
        named("two", passing, parameters=two),
        named("three", giving(size="Standard_B2s")),
    ]
    assert size_of(template(*(deployments[::-1] if turned else deployments))) == "Standard_B2s"


def test_deployments_that_refer_to_each_other_have_no_value() -> None:
    """P1: Azure refuses them too."""
    passing = {**giving(size="[parameters('size')]"), "parameters": {"size": {"type": "string"}}}
    circle = [
        named(
            name,
            passing,
            parameters={"size": {"value": f"[reference('{other}').outputs.size.value]"}},
        )
        for name, other in (("a", "b"), ("b", "a"))
    ]
    with pytest.raises(ModelError, match=r"sku\.name: has no value here"):
        load_document(template(sized("reference('a').outputs.size.value"), *circle))


def test_a_full_reference_has_properties() -> None:
    """P1."""
    whole = "reference(resourceId('Microsoft.Resources/deployments', 'x'), '2022-09-01', 'Full')"
    inner = named("x", giving(size="Standard_B2s"))
    document = template(sized(f"{whole}.properties.outputs.size.value"), inner)
    assert size_of(document) == "Standard_B2s"


def test_symbolic_names_of_deployments() -> None:
    """P1: as Bicep refers to its modules, alone and in loops."""
    loop = {
        **named("[concat('deploy-', copyIndex())]", giving(size="Standard_B2s")),
        "copy": {"name": "nets", "count": 2},
    }
    modules = {"Net": named("[concat('net', '-1')]", giving(size="Standard_B1s")), "nets": loop}

    def document(expression: str) -> dict[str, Any]:
        return {**template(), "resources": {"web": sized(expression), **modules}}

    assert size_of(document("reference('net').outputs.size.value")) == "Standard_B1s"
    for one in ("reference('nets[1]')", "references('nets')[1]", "last(references('nets'))"):
        assert size_of(document(f"{one}.outputs.size.value")) == "Standard_B2s"
    with pytest.raises(ModelError, match=r"references\(\) asks Azure"):
        load_document(document("references('web')[0].x"))


def test_resource_info_knows_symbolic_names() -> None:
    """P1."""
    probe = {"id": "[format('{0}/probes/healthz', resourceInfo('balancer').id)]"}
    web = scale_set()
    web["properties"]["virtualMachineProfile"]["networkProfile"] = {"healthProbe": probe}
    document = {**template(), "resources": {"web": web, "balancer": BALANCER}}
    assert load_document(document).probe is not None
    probe["id"] = "[resourceInfo('other').id]"
    with pytest.raises(ModelError, match="no resource with the symbolic name"):
        load_document(document)


@pytest.mark.parametrize("scope", ["inner", "outer"])
def test_a_deployment_into_another_resource_group(scope: str) -> None:
    """P1, P2: ids of what it makes are of that group; its own expressions mean it too."""
    network = {**named("net", template(BALANCER)), "resourceGroup": "[toLower('NET-rg')]"}
    network["properties"]["expressionEvaluationOptions"] = {"scope": scope}
    web = scale_set()
    probe = {"id": f"[resourceId('net-rg', '{PROBES}', 'web-lb', 'healthz')]"}
    web["properties"]["virtualMachineProfile"]["networkProfile"] = {"healthProbe": probe}
    assert load_document(template(web, network)).probe is not None
    probe["id"] = f"[resourceId('{PROBES}', 'web-lb', 'healthz')]"
    with pytest.raises(ModelError, match="names the load-balancer probe"):
        load_document(template(web, network))
    group = named("web", template(scale_set(tags={"group": "[resourceGroup().name]"})))
    group["properties"]["expressionEvaluationOptions"] = {"scope": scope}
    model = load_document(template({**group, "resourceGroup": "other"})).model
    assert model.tags == {"group": "other" if scope == "inner" else "lab"}


def test_an_id_of_azure_fits_a_template_that_is_deployed_nowhere() -> None:
    """P2: what `az network lb show` prints, beside a template."""
    web = scale_set()
    probe = {"id": f"[resourceId('{PROBES}', 'web-lb', 'healthz')]"}
    web["properties"]["virtualMachineProfile"]["networkProfile"] = {"healthProbe": probe}
    azure = "/subscriptions/6f1d/resourceGroups/g/providers/Microsoft.Network/loadBalancers"
    balancer = {**LOAD_BALANCER, "id": f"{azure}/web-lb"}
    assert load_document(template(web), load_balancer=balancer).probe is not None
    probe["id"] = f"{azure.replace('6f1d', '77aa')}/web-lb/probes/healthz"
    with pytest.raises(ModelError, match="names the load-balancer probe"):
        load_document(template(web), load_balancer=balancer)


def test_parameters_may_be_linked(tmp_path: Path) -> None:
    """P1: a file that is not at hand is told, rather than its values left out."""
    inner = template(
        scale_set(sku={"name": "[parameters('size')]", "capacity": 1}),
        parameters={"size": {"type": "string", "defaultValue": "Standard_B1s"}},
    )
    (tmp_path / "set.json").write_text(json.dumps(inner))
    values = {
        "$schema": "x",
        "contentVersion": "1",
        "parameters": {"size": {"value": "Standard_B2s"}},
    }
    (tmp_path / "values.json").write_text(json.dumps(values))
    call = {**named("set", inner), "properties": {"templateLink": {"relativePath": "set.json"}}}
    main = tmp_path / "main.json"
    for name in ("values.json", "missing.json"):
        call["properties"]["parametersLink"] = {"uri": f"https://x.example/{name}"}
        main.write_text(json.dumps(template(call)))
        if name == "values.json":
            assert load_document(main).model.sku.name == "Standard_B2s"
    with pytest.raises(ModelError, match=r"parametersLink: links to a parameters file"):
        load_document(main)


def test_a_key_that_has_no_value_here_is_left_out() -> None:
    """P1: such as the id of a managed identity that another template made."""
    identity = {"type": "UserAssigned", "userAssignedIdentities": {"[reference('x').id]": {}}}
    document = load_document(template(scale_set(identity=identity)))
    assert ["userAssignedIdentities" in problem.path for problem in document.unevaluated] == [True]
