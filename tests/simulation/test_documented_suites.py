"""L1: the tests of README and docs pass alone, in any order, and on several workers.

They run as they are printed, on a simulated lab (``suites.py``); so do those of the examples.
The tutorial's is in ``test_tutorial.py``.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.models import LOAD_BALANCER, web_model
from tests.simulation.suites import run_suite

ROOT = Path(__file__).parents[2]
#: Each page, and a word of the block that is a suite.
PAGES = {
    "test_readme": ("README.md", "def test_new_image_keeps_the_orders"),
    "test_how_to": ("docs/how-to.md", "def test_our_policy_stops_at_the_first_batch"),
    "test_restore": ("docs/how-to.md", "def test_each_bad_image_is_undone"),
}
TESTS = [
    "test_readme.py::test_new_image_keeps_the_orders",
    "test_readme.py::test_bad_image_is_rolled_back",
    "test_how_to.py::test_our_policy_stops_at_the_first_batch",
    "test_restore.py::test_each_bad_image_is_undone[broken]",
    "test_restore.py::test_each_bad_image_is_undone[slow]",
]


def block(page: str, word: str) -> str:
    """The block of Python in a page that has a word."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    (found,) = (text for text in blocks if word in text)
    return str(found)


def make_images(folder: Path) -> None:
    """Empty disks of the names that README and docs use."""
    folder.mkdir()
    for number, name in enumerate(("1.0.0", "1.1.0", "1.2.0-broken", "1.2.0-slow"), 50):
        path = folder / f"web-{name}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, f"{number}M"], check=True)


@pytest.fixture
def folder(memory: Path) -> Path:
    """A suite's folder, with everything that the documented tests take for granted."""
    for name, (page, word) in PAGES.items():
        text = block(page, word)
        if "MODEL" in text:
            text += "\n\nfrom tests.models import LOAD_BALANCER, web_model\n\nMODEL = web_model()\n"
        (memory / f"{name}.py").write_text(text)
    (memory / "web.json").write_text(json.dumps(web_model()))
    (memory / "lb.json").write_text(json.dumps(LOAD_BALANCER))
    make_images(memory / "out")
    return memory


@pytest.mark.parametrize("test", TESTS)
def test_alone(folder: Path, test: str) -> None:
    assert "1 passed" in run_suite(folder, test)


@pytest.mark.parametrize("order", ["reversed", "1"])
def test_in_any_order(folder: Path, order: str) -> None:
    assert f"{len(TESTS)} passed" in run_suite(folder, order=order)


@pytest.mark.parametrize("workers", ["2", "3"])
def test_on_several_workers(folder: Path, workers: str) -> None:
    """L4."""
    assert f"{len(TESTS)} passed" in run_suite(folder, "-n", workers)


EXAMPLES = {"bad-image": 2, "redis": 2, "web": 3}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example(memory: Path, name: str) -> None:
    """From its own folder, copied, as its README says; then backwards."""
    folder = memory / name
    shutil.copytree(ROOT / "examples" / name, folder)
    assert f"{EXAMPLES[name]} passed" in run_suite(folder)
    assert f"{EXAMPLES[name]} passed" in run_suite(folder, order="reversed")
