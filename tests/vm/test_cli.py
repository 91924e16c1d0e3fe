"""The command line, by hand, on a real VM (L2)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.models import CUSTOM_DATA, LOAD_BALANCER, web_model
from tests.vm.conftest import qemu_processes

Vmss = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def vmss_command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vmss]:
    state = tmp_path_factory.mktemp("state")
    command = Path(sys.executable).parent / "vmss"

    def run(*arguments: str | Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [command, *arguments],
            env={**os.environ, "VMSS_STATE_DIR": str(state), "COLUMNS": "200"},
            cwd=tmp_path_factory.getbasetemp(),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if ok:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    yield run
    run("delete", "--yes", "shop", ok=False)


def test_a_scale_set_by_hand(
    vmss_command: Vmss, built: Callable[[str], Path], tmp_path: Path
) -> None:
    """create, list, show, ssh, console, publish, history, delete; each a process of its own."""
    model, balancer, custom = tmp_path / "shop.yaml", tmp_path / "lb.json", tmp_path / "custom.yaml"
    model.write_text(yaml.safe_dump(web_model("shop", capacity=1)))
    balancer.write_text(json.dumps(LOAD_BALANCER))
    custom.write_text(CUSTOM_DATA)

    vmss_command("image", "publish", "web", "1.0.0", built("1.0.0"))
    assert "gallery/web 1.0.0" in vmss_command("image", "list").stdout
    created = vmss_command(
        "create", model, "--load-balancer", balancer, "--custom-data", custom,
        "--health-timeout", "15",
    )  # fmt: skip
    assert "shop_0" in created.stdout
    assert "Succeeded" in vmss_command("list").stdout
    assert "Healthy" in vmss_command("show", "shop", "--health").stdout
    view = json.loads(vmss_command("show", "shop", "--json").stdout)
    assert view["virtualMachineProfile"]["osProfile"]["computerNamePrefix"] == "shop"
    assert "customData" not in view["virtualMachineProfile"]["osProfile"]
    assert view["instances"][0]["imageVersionFound"] == "1.0.0"
    assert vmss_command("ssh", "shop", "0", "hostname").stdout == "shop000000\n"
    assert vmss_command("ssh", "shop", "0", "exit 7", ok=False).returncode == 7
    assert "finished at" in vmss_command("console", "shop", "0").stdout
    assert "no upgrade" in vmss_command("history", "shop").stdout

    published = vmss_command("image", "publish", "web", "1.1.0", built("1.1.0"))
    assert "Completed" in published.stdout
    assert "cloud-init" in published.stdout  # the table of stages
    assert "Completed" in vmss_command("history", "shop").stdout
    assert "batch 1: 0" in vmss_command("history", "shop", "--explain").stdout
    again = vmss_command("upgrade", "shop")  # already on the latest version
    assert "Completed" in again.stdout

    missing = vmss_command("show", "nothing", ok=False)
    assert missing.returncode == 1
    assert "there are: shop" in missing.stderr
    vmss_command("delete", "--yes", "shop")
    assert vmss_command("list").stdout == ""
    assert qemu_processes("shop_0") == []


def test_doctor_finds_this_host_fit(vmss_command: Vmss) -> None:
    """L2: this host ran the tests before, so nothing may be lacking."""
    done = vmss_command("doctor")
    assert "libvirt answers" in done.stdout
    assert "accelerator" in done.stdout
