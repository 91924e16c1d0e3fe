"""P3: what `vmss validate` says, without making anything and without a hypervisor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pytest_vmss.cli import main
from tests.models import LOAD_BALANCER, web_model

Vmss = Callable[..., Result]

STRANGE = {"name": "oms", "publisher": "A", "type": "B", "typeHandlerVersion": "1.0"}


@pytest.fixture
def vmss_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vmss:
    monkeypatch.setenv("VMSS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("VMSS_CONNECT", "nowhere:///")
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, [str(word) for word in arguments])


def written(folder: Path, body: dict[str, Any], name: str = "web.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(body))
    return path


def test_a_model_that_would_be_run(vmss_command: Vmss, tmp_path: Path) -> None:
    body = {**web_model(), "plan": {"name": "x"}}
    balancer = {**LOAD_BALANCER, "apiVersion": "2024-01-01", "outboundRules": [{"name": "out"}]}
    arguments = (
        "validate", written(tmp_path, body), "--load-balancer", written(tmp_path, balancer, "lb.json"),
    )  # fmt: skip
    result = vmss_command(*arguments)
    assert result.exit_code == 0, result.output
    assert "counts       $.sku.name" in result.output
    assert "not modelled 2: $.plan, the load balancer web-lb.outboundRules" in result.output
    last = result.output.splitlines()[-1]
    assert last.startswith("valid ")
    assert last.endswith("web.json: the scale set web, capacity 3")
    told = json.loads(vmss_command(*arguments, "--json").output)
    assert told["valid"]
    assert not any("apiVersion" in path for path in told["notModelled"])
    assert told["problems"] == []
    assert "$.plan" in told["notModelled"]
    assert "$.sku.capacity" in told["counts"]
    assert not (tmp_path / "state").exists()


def test_each_refusal_has_its_path_code_and_way_out(vmss_command: Vmss, tmp_path: Path) -> None:
    body = web_model()
    machine = body["properties"]["virtualMachineProfile"]
    machine["extensionProfile"]["extensions"].append(STRANGE)
    body["sku"]["name"] = "Standard_D7"
    path = written(tmp_path, body)
    balancer = written(tmp_path, LOAD_BALANCER, "lb.json")
    result = vmss_command("validate", path, "--load-balancer", balancer, "--json")
    assert result.exit_code == 1
    told = json.loads(result.output)
    assert not told["valid"]
    assert {(each["path"], each["code"]) for each in told["problems"]} == {
        ("$.sku.name", "InvalidParameter"),
        ("$.virtualMachineProfile.extensionProfile.extensions[1].type", "ArtifactNotFound"),
    }
    for way_out in ("--vmss-size", "--unknown-extensions skip"):
        assert any(way_out in each["message"] for each in told["problems"])
    shown = vmss_command("validate", path, "--load-balancer", balancer)
    assert shown.exit_code == 1
    assert "refused      $.sku.name" in shown.output
    assert shown.output.splitlines()[-1].endswith("web.json is not a valid scale set")
    mended = vmss_command(
        "--size", "Standard_B1s", "--unknown-extensions", "skip",
        "validate", path, "--load-balancer", balancer,
    )  # fmt: skip
    assert mended.exit_code == 0, mended.output
    assert "note         the instances run in the lab's own size Standard_B1s" in mended.output
    assert "left out     $.virtualMachineProfile.extensionProfile.extensions[1]" in mended.output


def test_templates_and_their_parameters(vmss_command: Vmss, tmp_path: Path) -> None:
    body = web_model(automatic=False)
    del body["properties"]["virtualMachineProfile"]["networkProfile"]
    kind = "Microsoft.Compute/virtualMachineScaleSets"
    resource = {**body, "type": kind, "name": "[concat(parameters('p'), copyIndex())]",
                "copy": {"name": "sets", "count": 2}}  # fmt: skip
    path = written(tmp_path, {"resources": [resource], "parameters": {"p": {"type": "string"}}})
    file = written(tmp_path, {"p": "file"}, "p.json")
    assert "--parameters p=" in vmss_command("validate", path).output
    several = vmss_command("validate", path, "-p", file)
    assert several.exit_code == 1
    assert "file0, file1; choose one" in several.output
    result = vmss_command("validate", path, "-p", file, "-p", "p=web", "--name", "web1", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["name"] == "web1"


def test_a_body_gets_its_name(vmss_command: Vmss, tmp_path: Path) -> None:
    body = web_model(automatic=False)
    del body["properties"]["virtualMachineProfile"]["networkProfile"], body["name"]
    path = written(tmp_path, body)
    assert "$.name: is required" in vmss_command("validate", path).output
    assert vmss_command("validate", path, "--name", "web").exit_code == 0


def test_what_is_no_document(vmss_command: Vmss, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[")
    for name in ("x.json", "nothing.json"):
        result = vmss_command("validate", tmp_path / name, "--json")
        assert result.exit_code == 1
        assert json.loads(result.output)["problems"][0]["code"] == "InvalidRequestContent"


def test_the_document_that_is_wrong_is_named(vmss_command: Vmss, tmp_path: Path) -> None:
    written(tmp_path, web_model())
    (tmp_path / "lb.json").write_text("[")
    for arguments, told in (
        (("nothing.json",), "invalid      nothing.json is not a valid scale set"),
        (("web.json", "--load-balancer", "lb.json"), "invalid      lb.json is not a valid load"),
    ):
        result = vmss_command("validate", *arguments)
        assert result.exit_code == 1
        assert told in result.output.splitlines()[-1]
