"""Real VMs: one built image of each version, one lab for the whole run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_vmss.images import ImageBuilder
from pytest_vmss.settings import Settings


@pytest.fixture(scope="session")
def built() -> Callable[[str], Path]:
    """The qcow2 of a version of the image web, built once for all runs."""
    builder = ImageBuilder.named(
        "web", Settings().cache_dir, say=lambda text: print(text, file=sys.stderr)
    )
    return lambda version: builder.build(version).path


def qemu_processes(needle: str) -> list[int]:
    """Pids of QEMU processes whose command line holds a text."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if "qemu-system" in line.split(" ")[0] and needle in line:
                found.append(int(entry.name))
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.vm)
