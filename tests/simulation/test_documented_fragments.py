"""L1: what README and docs print besides suites and commands runs too, and nothing is left out.

Each fragment is put into a test that gives it what the page takes for granted, on a simulated lab.
"""

from __future__ import annotations

import ast
import json
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_vmss.api.faults import Faults
from pytest_vmss.configuration import configured, read_project
from pytest_vmss.settings import Settings
from tests.handlers import write_handler
from tests.models import LOAD_BALANCER, node_type, web_model
from tests.simulation.conftest import SimulatedLab
from tests.simulation.documents import ROOT, Block, blocks
from tests.simulation.suites import run_suite
from tests.simulation.test_documented_suites import PAGES as SUITES
from tests.simulation.test_documented_suites import make_images
from tests.simulation.typed import PAGES

DOCUMENTS = ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]

SIZES = "[pytest]\nvmss_sizes"
#: A word of each fragment, and the test that it is put into.
TESTS = {
    "built = ImageBuilder(": """
        def test_build(gallery):
            {block}
            assert gallery.versions("web")
        """,
    "def test_the_cluster_keeps_its_quorum": """
        quorum_without = bool
        {block}
        """,
    "web.always(lambda: httpx.get(web.url, timeout=10)": """
        import httpx

        @pytest.mark.vmss("web.json", load_balancer="lb.json")
        def test_users(scale_set, gallery):
            web = scale_set
            {block}
            assert upgrade.completed
        """,
    'health="systemctl is-active redis-server"': """
        def test_health(vmss):
            {block}
            assert web.is_healthy()
            web.delete()
        """,
    "def pytest_vmss_settings(config, settings)": """
        import dataclasses
        from pytest_vmss import Settings

        {block}

        def test_settings():
            assert pytest_vmss_settings(None, Settings()).repair_grace == 10
        """,
    'vmss.blobs.put("setup.sh"': """
        def test_blobs(vmss):
            {block}
            assert uri.startswith("http://")
        """,
    "class Motd(Handler)": """
        from types import SimpleNamespace

        {block}

        def test_motd():
            assert Motd().check(SimpleNamespace(settings={})) == ["text is not specified"]
        """,
    "register_package(": """
        {block}

        def test_registered():
            register_package(
                Path("contoso-agent.zip"), publisher="Contoso", type="Agent", version="1.2.1"
            )
        """,
    '"azuredeploy.json", parameters=': """
        {block}
        """,
    SIZES: """
        def test_sizes(vmss):
            assert vmss.settings.sizes["Standard_Tiny"] == (1, 384)
        """,
}
CONFTEST = """
def pytest_vmss_configure_lab(lab):
    lab.gallery("gallery").publish("web", "0.9.0", "out/web-1.0.0.qcow2")
"""
#: Of machines, which have no simulation; `tests/vm/test_faults.py` proves what they do.
FAULTS = ("faults.network_cut()", "faults.partitioned()")
NETWORK = '"networkInterfaceConfigurations"'


def fragment(word: str) -> Block:
    """The one block that has a word."""
    (found,) = [block for page in DOCUMENTS for block in blocks(page) if word in block.text]
    return found


def template() -> dict[str, Any]:
    """The example's, as JSON, with a parameter."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "examples/web/template.yaml").read_text())
    found["parameters"] = {"instanceCount": {"type": "int"}, "unused": {"type": "string"}}
    found["resources"][1]["sku"]["capacity"] = "[parameters('instanceCount')]"
    return found


@pytest.fixture
def folder(memory: Path) -> Path:
    """What the pages take for granted."""
    for name, content in (
        ("web.json", web_model()),
        ("lb.json", LOAD_BALANCER),
        ("cluster.json", node_type(2, name="nodes")),
        ("azuredeploy.json", template()),
        ("azuredeploy.parameters.json", {"unused": "x"}),
    ):
        (memory / name).write_text(json.dumps(content))
    (memory / "setup.sh").write_text("true\n")
    (memory / "conftest.py").write_text(CONFTEST)
    (memory / "pytest.ini").write_text(fragment(SIZES).text)
    shutil.copytree(ROOT / "images/web", memory / "images/web")
    (memory / "agent").mkdir()
    handler = write_handler(memory / "agent")
    shutil.make_archive(str(memory / "contoso-agent"), "zip", handler)
    make_images(memory / "out")
    return memory


def test_each_runs(folder: Path) -> None:
    for number, (word, test) in enumerate(TESTS.items()):
        lines = []
        for line in textwrap.dedent(test).splitlines():
            indent = line.removesuffix("{block}") if line.endswith("{block}") else None
            text = line if indent is None else textwrap.indent(fragment(word).text, indent)
            lines.append(text)
        head = "from pathlib import Path\nimport pytest\n"
        (folder / f"test_{number}.py").write_text(head + "\n".join(lines))
    assert f"{len(TESTS)} passed" in run_suite(folder)


def test_faults_are_named_as_they_are() -> None:
    named = {
        node.attr
        for word in FAULTS
        for node in ast.walk(ast.parse(fragment(word).text))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "faults"
    }
    assert {"network_cut", "partitioned", "without", "kill"} <= named
    assert all(hasattr(Faults, name) for name in named)


@pytest.mark.parametrize("word", ["first_rollout_delay = 10800\nrollout_delay", "sizes.Tiny"])
def test_settings_are_taken(tmp_path: Path, word: str) -> None:
    path = tmp_path / "pyproject.toml"
    (block,) = [
        block for page in DOCUMENTS for block in blocks(page)
        if word in block.text and ("sizes" in word) == ("sizes" in block.text)
    ]  # fmt: skip
    path.write_text(block.text)
    assert Settings(**configured(read_project(path))).rollout_delay == (1800, 3600)


def test_the_network_profile_is_taken(lab: SimulatedLab) -> None:
    """A9: as a part of a model."""
    body = web_model(capacity=1)
    profile = json.loads(f"{{{fragment(NETWORK).text}}}")["networkProfile"]
    body["properties"]["virtualMachineProfile"]["networkProfile"] |= profile
    assert lab.start(body, LOAD_BALANCER).is_healthy()


def test_nothing_is_left_out() -> None:
    """Each block of a page is run by a test here, or by one of the suites' tests.

    Those for a shell are in ``test_documented_shell.py``, output and custom data in
    ``test_documented_output.py``, and files that are to be written in ``test_tutorial.py``.
    """
    covered = [*TESTS, *FAULTS, NETWORK, *(word for _, word in SUITES.values()), "[tool.vmss]"]
    covered += ["fs_setup:", "# change.yaml"]
    for page in PAGES:
        for block in blocks(page):
            if block.language in {"sh", "text"}:
                continue
            assert any(word in block.text for word in covered), f"{page}:\n{block.text}"
