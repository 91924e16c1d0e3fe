"""Images for Azure that are not provisioned, each in a way of its own (O2).

Each is Debian 13's image with one file changed, as a slip in a recipe would change it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pytest_vmss.api.lab import Lab
from pytest_vmss.errors import ProvisioningError
from pytest_vmss.host.process import run
from pytest_vmss.image_builder import ImageBuilder
from pytest_vmss.settings import Settings
from tests.models import LOAD_BALANCER, web_model

pytestmark = pytest.mark.nightly

#: Where the recipes' images have their root filesystem.
_ROOT = "?offset=8388608"
#: Seconds from the start to the guest's report, before the host's factor.
_BOOT_S = 24.0
_CLOUD_CFG = "/etc/cloud/cloud.cfg"
_OVF_READER = "/usr/lib/python3/dist-packages/cloudinit/sources/helpers/azure.py"


@dataclass(frozen=True)
class Slip:
    """What is wrong with an image.

    Attributes:
        path: The file that is changed.
        old: Text in it that is replaced; empty where the file is new or goes.
        new: What replaces it; None where the file goes.
    """

    path: str
    old: str = ""
    new: str | None = None


class Disk:
    """A copy of an image whose files can be changed without mounting it."""

    def __init__(self, image: Path, copy: Path) -> None:
        self.path = copy
        self._scratch = copy.with_suffix(".file")
        run(
            ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, copy],
            what="copying an image",
        )

    def change(self, slip: Slip) -> None:
        """Makes a slip."""
        text = self._debugfs(f"cat {slip.path}") if slip.old else ""
        assert slip.old in text
        commands = [f"rm {slip.path}"] if slip.old or slip.new is None else []
        if slip.new is not None:
            self._scratch.write_text(text.replace(slip.old, slip.new) if slip.old else slip.new)
            commands.append(f"write {self._scratch} {slip.path}")
        for command in commands:
            self._debugfs(command)

    def _debugfs(self, command: str) -> str:
        argv = ["debugfs", "-w", "-R", command, f"{self.path}{_ROOT}"]
        return run(argv, what="changing an image").decode()


@pytest.fixture(scope="module")
def lab(vmss: Lab) -> Iterator[Lab]:
    """A lab that waits no longer than a good image takes."""
    settings = vmss.settings
    made = Lab.session(replace(settings, timeouts=replace(settings.timeouts, boot=_BOOT_S)))
    yield made
    made.destroy()


@pytest.fixture(scope="module")
def image() -> Path:
    """Debian 13 for Azure."""
    builder = ImageBuilder.named(
        "azure-web", Settings().cache_dir, say=lambda text: print(text, file=sys.stderr)
    )
    return builder.build("2.0.0").path


@pytest.mark.parametrize(
    ("name", "slip", "code", "words"),
    [
        (
            "nosource", Slip(_CLOUD_CFG, "datasource_list: [Azure]", "datasource_list: [Ec2, None]"),
            "OSProvisioningTimedOut", ["is Azure in cloud-init's datasource_list", "2009-04-04/meta-data"],
        ),
        (
            "nodhcp", Slip("/usr/sbin/dhcpcd"),
            "OSProvisioningTimedOut", ["(dhcpcd, dhclient or udhcpc)", "DataSourceAzure [seed=/dev/sr0]"],
        ),
        (
            "notready", Slip(_OVF_READER, '"HostName", required', '"ComputerName", required'),
            "OSProvisioningClientError", ["ProvisioningFailed", "unexpected metadata parsing ovf-env.xml"],
        ),
        (
            "nodvd", Slip(
                "/etc/modprobe.d/hardening.conf",
                new="install udf /bin/false\ninstall isofs /bin/false\n",
            ),
            "OSProvisioningClientError", ["could not read ovf-env.xml", "[seed=IMDS]", "Unable to find provisioning media"],
        ),
    ],
)  # fmt: skip
def test_a_failure_is_told_apart(
    lab: Lab, image: Path, tmp_path: Path, name: str, slip: Slip, code: str, words: list[str]
) -> None:
    """O2: within the limit, with Azure's code and the guest's words."""
    disk = Disk(image, tmp_path / f"{name}.raw")
    disk.change(slip)
    lab.gallery().publish(name, "1.0.0", disk.path, hyper_v_generation="V2", provisioning="Azure")
    disk.path.unlink()
    body = web_model(name, capacity=1, definition=name, extensions=False)
    with pytest.raises(ProvisioningError) as failed:
        lab.create(body, load_balancer=LOAD_BALANCER)
    try:
        print(failed.value)
        assert failed.value.code == code
        for word in words:
            assert word in str(failed.value)
    finally:
        lab.scale_set(name).delete()
