"""What unit tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_vmss.clock import SystemClock
from pytest_vmss.gallery import ImageStore
from pytest_vmss.store import Store


@pytest.fixture
def images(tmp_path: Path) -> Iterator[ImageStore]:
    """The images of a lab, in a folder of their own."""
    clock = SystemClock()
    store = Store(tmp_path / "vmss.db", clock)
    yield ImageStore(tmp_path / "images", store, clock)
    store.close()
