"""H1: every example of custom data in cloud-init's documentation, on a real VM.

The examples are those of the Debian package that the lab's images are built from. Each is
given to an instance as its custom data, unchanged, and the instance is reimaged with it.
Those that are not run are listed with the reason.
"""

from __future__ import annotations

import base64
import gzip
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_vmss.api.lab import Lab
from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.errors import ProvisioningError
from tests.models import web_model

pytestmark = pytest.mark.nightly

NETWORK = "needs a network outside"
NOT_RUN = {
    "cloud-config-add-apt-repos": NETWORK,
    "cloud-config-ansible-controller": NETWORK,
    "cloud-config-ansible-managed": NETWORK,
    "cloud-config-ansible-pull": NETWORK,
    "cloud-config-apt": NETWORK,
    "cloud-config-chef": NETWORK,
    "cloud-config-chef-oneiric": NETWORK,
    "cloud-config-gluster": NETWORK,
    "cloud-config-install-packages": NETWORK,
    "cloud-config-launch-index": NETWORK,
    "cloud-config-lxd": NETWORK,
    "cloud-config-ntp": NETWORK,
    "cloud-config-run-cmds": NETWORK,
    "cloud-config-update-apt": NETWORK,
    "cloud-config-update-packages": NETWORK,
    "include": NETWORK,
    "include-once": NETWORK,
    "cloud-config": "a list of all keys, to read: installs packages, shuts down",
    "cloud-config-ssh-keys": "brings host keys of its own, which the lab refuses with that reason",
    "kernel-cmdline": "about the kernel's command line: no custom data",
}

#: The examples that run, and cloud-init's verdict on them with the lab's images: error where
#: /dev/vdb, which an example formats, is the read-only seed; degraded where one names devices,
#: MIME types or servers that are not there, or is no custom data at all.
VERDICTS = {
    "cloud-config-archive": "degraded",
    "cloud-config-archive-launch-index": "degraded",
    "cloud-config-boot-cmds": "error",
    "cloud-config-ca-certs": "done",
    "cloud-config-datasources": "done",
    "cloud-config-disk-setup": "degraded",
    "cloud-config-mount-points": "degraded",
    "cloud-config-reporting": "degraded",
    # Debian's useradd does not take its SELinux user; cloud-init then makes no further user, the
    # administrator neither, and nobody can log in.
    "cloud-config-user-groups": "failed",
    "cloud-config-wireguard": "done",
    "cloud-config-write-files": "done",
    "cloud-config-yum-repo": "done",
    "part-handler": "done",
    "part-handler-v2": "done",
    "plain-ignored": "degraded",
    "user-script": "done",
}


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The examples by name."""
    folder = tmp_path_factory.mktemp("cloud-init")
    subprocess.run(["apt-get", "download", "cloud-init"], cwd=folder, check=True, timeout=300)
    (package,) = folder.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", package, folder / "x"], check=True, timeout=60)
    found = {}
    for path in (folder / "x/usr/share/doc/cloud-init/examples").iterdir():
        if path.is_file():
            content = path.read_bytes()
            text = gzip.decompress(content) if path.suffix == ".gz" else content
            found[path.name.partition(".txt")[0]] = text
    return found


@pytest.fixture(scope="module")
def web(vmss: Lab, built: Callable[[str], Path]) -> Iterator[ScaleSet]:
    """One instance, whose health is its power state."""
    vmss.gallery("examples").publish("web", "1.0.0", built("1.0.0"))
    body = web_model("examples", capacity=1, automatic=False, extensions=False)
    profile = body["properties"]["virtualMachineProfile"]
    image = profile["storageProfile"]["imageReference"]
    image["id"] = image["id"].replace("/galleries/gallery/", "/galleries/examples/")
    del profile["networkProfile"]
    created = vmss.create(body)
    yield created
    created.delete()


def test_every_example_is_run_or_has_its_reason(examples: dict[str, bytes]) -> None:
    assert set(examples) == NOT_RUN.keys() | VERDICTS.keys()


def run(web: ScaleSet, custom_data: bytes) -> tuple[str, str]:
    """cloud-init's verdict on custom data, and what it found wrong."""
    web.update({}, custom_data=base64.b64encode(custom_data).decode())
    web.update_instances()
    try:
        done = web.reimage()
    except ProvisioningError as error:
        told = error.evidence.partition("\n")[0]
        return ("error" if "cloud-init ended in error" in told else "failed"), told
    told = "; ".join(event.message for event in done.events if event.kind == "warning")
    return web[0].generation.cloud_init or "", told


@pytest.mark.parametrize(("name", "verdict"), VERDICTS.items())
def test_an_example(web: ScaleSet, examples: dict[str, bytes], name: str, verdict: str) -> None:
    found = run(web, examples[name])
    print(f"{name}: {found}")
    assert found[0] == verdict, found[1]
