"""Publishes the image that the set starts with; each test publishes the one that it is about."""

from pathlib import Path

import pytest

from pytest_vmss import ImageBuilder

IMAGES = ImageBuilder(Path(__file__).parent / "images/web")


def pytest_vmss_configure_lab(lab):
    lab.gallery("gallery").publish("web", "1.0.0", IMAGES.build("1.0.0").path)


@pytest.fixture(scope="session")
def images():
    """Builds versions of the image; what was built once is kept."""
    return IMAGES
