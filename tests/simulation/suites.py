"""A pytest plugin for suites of README, docs and examples: they run as printed, on a simulated lab.

What they ask real guests is answered from what the simulation knows: the version, the data disk,
and whether any instance gets and serves traffic. Their images behave as the names of their files
or the descriptions of their recipes say. ``ORDER`` in the environment orders the
tests: ``reversed``, or a seed.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import pytest

import pytest_vmss.api.lab
from pytest_vmss.api.instance import Instance
from pytest_vmss.gallery import Gallery
from pytest_vmss.image_builder import ImageBuilder
from pytest_vmss.simulation.guest import Behaviour, SimulatedGuest
from pytest_vmss.simulation.lab import SimulatedLab

__all__ = ["Lab", "patches", "run_suite"]

ROOT = Path(__file__).parents[2]

_LABS: list[Lab] = []
#: A word of a file's name or of a recipe's description, and what the instances do.
_BEHAVIOURS = {
    "broken": Behaviour.UNHEALTHY,
    "slow": Behaviour.UNHEALTHY,
    "does not start": Behaviour.UNHEALTHY,
    "does not come up": Behaviour.UNHEALTHY,
    "cloud-init": Behaviour.CLOUD_INIT_FAILS,
    "good": Behaviour.GOOD,
}
_real_publish = Gallery.publish


class Lab(SimulatedLab):
    """The lab that the plugin makes."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        _LABS.append(self)


def _publish(self: Gallery, definition: str, version: str, path: Path, **named: Any) -> Any:
    record = _real_publish(self, definition, version, path, **named)
    said = Path(path).name.replace("_", " ")
    behaviours = [how for word, how in _BEHAVIOURS.items() if word in said]
    for lab in _LABS:
        lab.simulated.images[record.digest] = version
        lab.behaviours[version] = behaviours[0] if behaviours else Behaviour.GOOD
    return record


def _build(self: ImageBuilder, version: str) -> Any:
    """An empty disk; the recipe itself is read, and must be sound."""
    recipe = self.recipe.version(version)
    said = recipe.description
    if any("ssl_certificate" in path.read_text() for path in recipe.files.rglob("*.conf")):
        said = "does not start"
    assert recipe.kernel in self.recipe.base_recipe().kernels
    word = next((word for word in _BEHAVIOURS if word in said), "good")
    path = Path(f"built-{version}-{os.getpid()}-{word.replace(' ', '_')}.qcow2").absolute()
    size = f"{100 + int(version.replace('.', ''))}M"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, size], check=True)
    return SimpleNamespace(version=version, path=path)


class Host:
    """What a testinfra host says of a simulated instance.

    Args:
        instance: The instance.
    """

    def __init__(self, instance: Instance) -> None:
        self._instance = instance

    @property
    def _disk(self) -> Path:
        return self._instance.data_disks[0]

    def run(self, command: str) -> None:
        found = re.fullmatch(r"echo (.*) > /data/orders?", command)
        assert found
        self._disk.write_text(found[1] + "\n")

    def file(self, path: str) -> Any:
        if path in {"/data/order", "/data/orders"}:
            return SimpleNamespace(content_string=self._disk.read_text())
        assert path == "/data/extension-runs"
        return SimpleNamespace(content_string="run\n" * len(self._instance.extensions))

    def mount_point(self, path: str) -> Any:
        assert path == "/data"
        assert self._disk.exists()
        return SimpleNamespace(filesystem="ext4")

    def check_output(self, command: str, *arguments: str) -> str:
        command %= arguments
        if command == "curl -s localhost/version":
            return f'{{"version": "{self._instance.image_version}"}}'
        if command == "curl -s localhost/news" and self._instance.image_version == "1.1.0":
            return "the new shop"
        if command == "redis-cli get order":
            return self._disk.read_text()
        found = re.fullmatch(r"redis-cli set order (\S+)", command)
        assert found, command
        self._disk.write_text(found[1])
        return "OK"


def _service(self: SimulatedGuest, name: str) -> Any:
    """What a health check of a suite's own is told: a guest that answers runs its services."""
    del self
    return SimpleNamespace(name=name, is_running=True)


def _serving() -> str | None:
    """The name of an instance that gets traffic and is well."""
    for lab in _LABS:
        for balancer in lab.balancers.values():
            for name, in_service in list(balancer.members.items()):
                if in_service and lab.probe(name).healthy:
                    return name
    return None


def _get(url: str, **_: Any) -> Any:
    """``httpx.get``."""
    del url
    return SimpleNamespace(status_code=200 if _serving() else 503)


class _Reply(io.BytesIO):
    status = 200


def _urlopen(url: str, timeout: float) -> _Reply:
    """``urllib.request.urlopen``."""
    name = _serving()
    if name is None:
        raise URLError(f"nobody serves {url} within {timeout} s")
    set_name, _, number = name.rpartition("_")
    (lab,) = (lab for lab in _LABS if lab.scale_sets())
    version = lab.scale_set(set_name).instance(int(number)).image_version
    return _Reply(json.dumps({"version": version}).encode())


def run_suite(folder: Path, *options: str, order: str = "") -> str:
    """Runs pytest in a suite's folder with this plugin; returns what it prints."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        "VMSS_STATE_DIR": str(folder / "state"),
        "VMSS_CACHE_DIR": str(folder / "cache"),
        "ORDER": order,
    }
    plugins = ["-p", "no:cacheprovider", "-p", __name__]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, "-q", *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def patches() -> list[tuple[Any, str, Any]]:
    """What takes the place of real labs, builds and guests: object, attribute, value."""
    return [
        (pytest_vmss.api.lab, "Lab", Lab),
        (Gallery, "publish", _publish),
        (ImageBuilder, "build", _build),
        (Instance, "host", property(Host)),
        (SimulatedGuest, "service", _service),
        (urllib.request, "urlopen", _urlopen),
    ]


def pytest_configure() -> None:
    for place, name, value in patches():
        setattr(place, name, value)
    sys.modules["httpx"] = SimpleNamespace(get=_get)  # type: ignore[assignment]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = os.environ.get("ORDER")
    if order == "reversed":
        items.reverse()
    elif order:
        random.Random(order).shuffle(items)
