"""Real VMs: one built image of each version, one lab for the whole run."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: The user without rights, as whom parts of the tests run where they run as root.
NOBODY = 65534

#: The modules that take minutes, longest first, so that workers end together. Of the first, which
#: begin at once, one mostly waits.
LONGEST_FIRST = (
    "test_azure_images",
    "test_health",
    "test_user_accounts",
    "test_command_line",
    "test_upgrade",
    "test_eligibility",
    "test_extensions",
    "test_faults",
    "test_hostile_guests",
)


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A folder that every user can reach; pytest's own are the owner's alone."""
    with tempfile.TemporaryDirectory(prefix="vmss-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture(scope="session")
def python(place: Path) -> Path:
    """The interpreter of a virtual environment with only the package, from its wheel."""
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(place), str(ROOT)]
    subprocess.run(build, check=True, timeout=300)
    base = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
    subprocess.run([base, "-m", "venv", place / "venv"], check=True, timeout=120)
    found = place / "venv/bin/python"
    (wheel,) = place.glob("*.whl")
    subprocess.run([found, "-m", "pip", "install", "--quiet", wheel], check=True, timeout=600)
    return found


def qemu_processes(needle: str) -> list[int]:
    """Pids of virtual machines whose command line holds a text; libvirt's probes are none."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if "qemu-system" in line.split(" ")[0] and " guest=" in line and needle in line:
                found.append(int(entry.name))
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent

    def rank(item: pytest.Item) -> int:
        name = item.path.stem
        return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)

    mine = [item for item in items if item.path.is_relative_to(here)]
    for item in mine:
        item.add_marker(pytest.mark.vm)
    # Sorting keeps the order within a file, and so does this the others' places.
    ordered = iter(sorted(mine, key=rank))
    items[:] = [next(ordered) if item.path.is_relative_to(here) else item for item in items]
