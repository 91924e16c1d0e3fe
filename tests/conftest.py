"""What the rings of real VMs share: each image built once for all runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

from pytest_vmss.image_builder import ImageBuilder
from pytest_vmss.settings import Settings

# How long an example takes says how busy the host is, and nothing else.
hypothesis.settings.register_profile("vmss", deadline=None)
hypothesis.settings.load_profile("vmss")


@pytest.fixture(scope="session")
def built() -> Callable[[str], Path]:
    """The qcow2 of a version of the image web, built once for all runs."""
    builder = ImageBuilder.named(
        "web", Settings().cache_dir, say=lambda text: print(text, file=sys.stderr)
    )
    return lambda version: builder.build(version).path
