"""O5 on a real VM: an Azure image of generation 2 boots by UEFI, is upgraded and rolled back.

One instance, four boots, one of which panics at once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_vmss.api.instance import Instance
from pytest_vmss.api.lab import Lab
from pytest_vmss.host.process import run
from pytest_vmss.store import Outcome
from tests.models import LOAD_BALANCER, web_model

GALLERY = "generation-2"
#: Seconds for one upgrade of the set, on the slowest host.
LIMIT = 3600.0


@pytest.fixture
def azure(built: Callable[[str], Path], tmp_path: Path) -> Callable[[str, str, str], Path]:
    """Makes a file of a version in one of the formats that Azure's users have."""

    def make(version: str, driver: str, subformat: str) -> Path:
        path = tmp_path / f"{version}.vhd"
        options = f"subformat={subformat}" + (",force_size=on" if driver == "vpc" else "")
        run(
            ["qemu-img", "convert", "-f", "qcow2", "-O", driver, "-o", options,
             built(version), path],
            what="an image for Azure",
        )  # fmt: skip
        return path

    return make


def booted_by_uefi(instance: Instance) -> bool:
    return bool(instance.host.file("/sys/firmware/efi").is_directory)


def variables(instance: Instance) -> dict[str, int]:
    """The files of an instance's UEFI variables, with their inodes."""
    folder = instance.os_disk.parent
    return {path.name: path.stat().st_ino for path in folder.glob("nvram*")}


@pytest.mark.nightly  # three minutes; test_azure_images.py has generation 2 in each run
def test_a_vhd_of_generation_2_is_upgraded_and_rolled_back(
    vmss: Lab, azure: Callable[[str, str, str], Path]
) -> None:
    """O5, G1, B6: each OS disk with its own UEFI variables; the rollback brings the old ones."""
    gallery = vmss.gallery(GALLERY)
    first = azure("1.0.0", "vpc", "fixed")
    record = gallery.publish("web", "1.0.0", first, hyper_v_generation="V2")
    assert record.hyper_v_generation == "V2"
    body: dict[str, Any] = web_model("gen2", capacity=1, extensions=False)
    image = body["properties"]["virtualMachineProfile"]["storageProfile"]["imageReference"]
    image["id"] = image["id"].replace("/galleries/gallery/", f"/galleries/{GALLERY}/")
    web = vmss.create(body, load_balancer=LOAD_BALANCER, health_timeout=60)
    try:
        assert booted_by_uefi(web[0])
        assert set(variables(web[0])) == {"nvram-1.fd"}
        gallery.publish("web", "1.1.0", azure("1.1.0", "vhdx", "dynamic"))
        upgrade = web.wait_for_upgrade(timeout=LIMIT)
        assert upgrade.completed, upgrade.explain()
        assert web[0].image_version == "1.1.0"
        assert booted_by_uefi(web[0])
        kept = variables(web[0])
        assert set(kept) == {"nvram-2.fd"}
        gallery.publish("web", "1.3.0", azure("1.3.0", "vpc", "dynamic"))
        upgrade = web.wait_for_upgrade(timeout=LIMIT)
        assert upgrade.outcomes["gen2_0"] is Outcome.ROLLED_BACK, upgrade.explain()
        assert upgrade.errors["gen2_0"].code == "OSProvisioningKernelPanic"
        assert web[0].image_version == "1.1.0"
        assert booted_by_uefi(web[0])
        assert variables(web[0]) == kept
        folder = web[0].os_disk.parent
    finally:
        web.delete()
    assert not folder.exists()
