"""What all rings share: bytecode of the programs that tests start, and images built once."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

from pytest_vmss.image_builder import ImageBuilder
from pytest_vmss.settings import Settings

# How long an example takes says how busy the host is, and nothing else.
hypothesis.settings.register_profile("vmss", deadline=None)
hypothesis.settings.load_profile("vmss")


def pytest_configure(config: pytest.Config) -> None:
    """Lets programs that tests start share their bytecode, where it may not lie beside its source.

    Otherwise each suite that a test runs rewrites every module of pytest's plugins, this package
    and Hypothesis among them: two seconds, against half a second for the suite itself.
    """
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        folder = tempfile.TemporaryDirectory(prefix="vmss-bytecode-", ignore_cleanup_errors=True)
        config.add_cleanup(folder.cleanup)
        os.environ["PYTHONPYCACHEPREFIX"] = folder.name


@pytest.fixture(scope="session")
def built() -> Callable[[str], Path]:
    """The qcow2 of a version of the image web, built once for all runs."""
    builder = ImageBuilder.named(
        "web", Settings().cache_dir, say=lambda text: print(text, file=sys.stderr)
    )
    return lambda version: builder.build(version).path
