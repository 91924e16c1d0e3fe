"""L1: the tests of README and docs pass alone, in any order, and on several workers.

They run as they are printed, on a simulated lab. What they ask real guests is answered from what
the simulation knows: the version, the data disk, and whether any instance gets and serves traffic.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models import LOAD_BALANCER, web_model

ROOT = Path(__file__).parents[2]
#: Each page, and a word of the block that is a suite.
PAGES = {
    "test_readme": ("README.md", "def test_new_image_keeps_the_orders"),
    "test_tutorial": ("docs/tutorial.md", "def test_upgrade"),
    "test_how_to": ("docs/how-to.md", "def test_our_policy_stops_at_the_first_batch"),
    "test_restore": ("docs/how-to.md", "def test_each_bad_image_is_undone"),
}
TESTS = [
    "test_readme.py::test_new_image_keeps_the_orders",
    "test_readme.py::test_bad_image_is_rolled_back",
    "test_tutorial.py::test_upgrade",
    "test_how_to.py::test_our_policy_stops_at_the_first_batch",
    "test_restore.py::test_each_bad_image_is_undone[broken]",
    "test_restore.py::test_each_bad_image_is_undone[slow]",
]

CONFTEST = '''
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest_vmss.api.lab
from pytest_vmss.api.instance import Instance
from pytest_vmss.gallery import Gallery
from pytest_vmss.image_builder import ImageBuilder
from pytest_vmss.simulation.guest import Behaviour
from pytest_vmss.simulation.lab import SimulatedLab

LABS = []


class Lab(SimulatedLab):
    """A lab whose images behave as the names of their files say."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        LABS.append(self)


def publish(self, definition, version, path, **named):
    record = real_publish(self, definition, version, path, **named)
    bad = "broken" in str(path) or "slow" in str(path)
    for lab in LABS:
        lab.simulated.images[record.digest] = version
        lab.behaviours[version] = Behaviour.UNHEALTHY if bad else Behaviour.GOOD
    return record


class Host:
    """What a testinfra host says of a simulated instance."""

    def __init__(self, instance):
        self._instance = instance
        self._disk = instance.data_disks[0]

    def run(self, command):
        text = re.fullmatch(r"echo (.*) > /data/orders", command)[1]
        self._disk.write_text(text + "\\n")

    def file(self, path):
        assert path == "/data/orders"
        return SimpleNamespace(content_string=self._disk.read_text())

    def check_output(self, command):
        assert command == "curl -s localhost/version"
        return f'{{"version": "{self._instance.image_version}"}}'


def get(url, **_):
    """Answers as long as an instance gets traffic and is well."""
    for lab in LABS:
        for balancer in lab.balancers.values():
            for name, in_service in list(balancer.members.items()):
                if in_service and lab.probe(name).healthy:
                    return SimpleNamespace(status_code=200)
    return SimpleNamespace(status_code=503)


class Builder:
    @classmethod
    def named(cls, *_):
        return cls()

    def build(self, version):
        path = Path(f"built-{version}-{os.getpid()}.qcow2").absolute()
        size = f"{100 + int(version.replace('.', ''))}M"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, size], check=True)
        return SimpleNamespace(path=path)


real_publish, Gallery.publish = Gallery.publish, publish
pytest_vmss.api.lab.Lab = Lab
Instance.host = property(Host)
ImageBuilder.named = Builder.named
sys.modules["httpx"] = SimpleNamespace(get=get)


def pytest_collection_modifyitems(items):
    order = os.environ.get("ORDER")
    if order == "reversed":
        items.reverse()
    elif order:
        random.Random(order).shuffle(items)
'''


def block(page: str, word: str) -> str:
    """The block of Python in a page that has a word."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    (found,) = (text for text in blocks if word in text)
    return str(found)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A suite's folder, with everything that the documented tests take for granted."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for name, (page, word) in PAGES.items():
        text = block(page, word)
        if "MODEL" in text:
            text += "\n\nfrom tests.models import LOAD_BALANCER, web_model\n\nMODEL = web_model()\n"
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "web.json").write_text(json.dumps(web_model()))
    (tmp_path / "lb.json").write_text(json.dumps(LOAD_BALANCER))
    (tmp_path / "out").mkdir()
    for number, name in enumerate(("1.0.0", "1.1.0", "1.2.0-broken", "1.2.0-slow"), 50):
        path = tmp_path / f"out/web-{name}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, f"{number}M"], check=True)
    return tmp_path


def run(folder: Path, *options: str, order: str = "") -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        "VMSS_STATE_DIR": str(folder / "state"),
        "VMSS_CACHE_DIR": str(folder / "cache"),
        "ORDER": order,
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("test", TESTS)
def test_alone(folder: Path, test: str) -> None:
    assert "1 passed" in run(folder, test)


@pytest.mark.parametrize("order", ["reversed", "1"])
def test_in_any_order(folder: Path, order: str) -> None:
    assert f"{len(TESTS)} passed" in run(folder, order=order)


def test_on_two_workers(folder: Path) -> None:
    """L4."""
    assert f"{len(TESTS)} passed" in run(folder, "-n", "2")
