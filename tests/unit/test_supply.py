"""What the set-up installs is locked: versions and hashes, and they are what the project asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ENTRY = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;]+)[^\\]*(?P<hashes>.*)", re.DOTALL)


def locked(name: str) -> dict[str, str]:
    """Versions by package; every entry is exact and has a hash."""
    text = (ROOT / name).read_text()
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=[^ #\n])", re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE)):
        match = ENTRY.fullmatch(entry.strip())
        assert match, f"{name}: {entry!r} is not NAME==VERSION with hashes"
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", match["hashes"]), entry
        found[canonicalize_name(match["name"])] = match["version"]
    return found


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        ("requirements.lock", PROJECT["project"]["dependencies"]),
        (
            "requirements-dev.lock",
            PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["dev"],
        ),
        ("requirements-build.lock", [*PROJECT["build-system"]["requires"], "editables"]),
        ("requirements-build.lock", ["setuptools"]),  # libvirt-python's
        ("requirements-audit.lock", ["pip-audit"]),
    ],
)
def test_the_locks_satisfy_the_project(lock: str, wanted: list[str]) -> None:
    """`scripts/lock` writes them anew where one does not."""
    versions = locked(lock)
    for text in wanted:
        requirement = Requirement(text)
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{lock} lacks {text}; run scripts/lock"
        assert requirement.specifier.contains(version), f"{lock}: {text} is {version}"


def test_one_version_of_a_package_in_all_locks() -> None:
    """They are installed into one place."""
    dev = locked("requirements-dev.lock")
    for lock in ("requirements.lock", "requirements-build.lock"):
        for name, version in locked(lock).items():
            assert dev.get(name, version) == version


def test_the_set_up_installs_nothing_else() -> None:
    setup = (ROOT / "scripts/setup").read_text()
    installs = re.findall(r"^    install (.*)$", setup, flags=re.MULTILINE)
    assert len(installs) == 3
    for options in installs:
        assert "--require-hashes" in options or "--no-deps --no-build-isolation" in options
    assert len(re.findall("pip install", setup)) == 1


def test_the_box_is_pinned() -> None:
    text = (ROOT / "vagrant/Vagrantfile").read_text()
    assert re.search(r'config.vm.box_version = "[0-9.]+"', text)
