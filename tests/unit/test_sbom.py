"""The packages of an image stay with its version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from pytest_vmss.cli import main
from pytest_vmss.errors import ImageError
from pytest_vmss.gallery.sbom import Package, beside, cyclonedx, read_sbom
from pytest_vmss.host.process import run


def test_a_version_shows_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMSS_STATE_DIR", str(tmp_path / "state"))
    disk = tmp_path / "a.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "1M"], what="an image")
    packages = [Package(name="nginx", version="1.22-1"), Package(name="[b]x", version="2")]
    beside(disk).write_text(json.dumps(cyclonedx("a", packages)))
    publish = ["image", "publish", "--no-upgrade", "web", "1.0.0", str(disk)]
    assert CliRunner().invoke(main, publish).exit_code == 0
    shown = CliRunner().invoke(main, ["image", "show", "web", "1.0.0"]).output
    assert "1.22-1" in shown
    assert "[b]x" in shown
    document = json.loads(
        CliRunner().invoke(main, ["image", "show", "web", "1.0.0", "--json"]).output
    )
    assert document["bomFormat"] == "CycloneDX"
    assert {entry["name"] for entry in document["components"]} == {"nginx", "[b]x"}


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"bomFormat": "SPDX"}', "[" * 100_000,
     '{"bomFormat": "CycloneDX", "components": [{"name": "\\u001b[2J"}]}',
     '{"bomFormat": "CycloneDX", "components": [{"name": "\\u202egpj"}]}',
     '{"bomFormat": "CycloneDX", "components": [{"name": "a", "version": "\\u2066"}]}',
     '{"bomFormat": "CycloneDX", "components": [' + '{"name": 1},' * 40_000 + '{}]}'],
)  # fmt: skip
def test_a_document_that_is_none(tmp_path: Path, content: str) -> None:
    """R3."""
    beside(tmp_path / "a").write_text(content)
    with pytest.raises(ImageError, match="no CycloneDX") as refused:
        read_sbom(tmp_path / "a")
    assert len(str(refused.value)) < 10_000
    assert read_sbom(tmp_path / "b") == []
