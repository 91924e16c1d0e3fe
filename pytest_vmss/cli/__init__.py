"""The ``vmss`` command: scale sets from the command line."""

from __future__ import annotations

from pytest_vmss.cli import (
    blobs,
    cache,
    guide,
    host,
    images,
    labs,
    operations,
    sets,
    upgrades,
    validate,
)
from pytest_vmss.cli.base import main

__all__ = [
    "blobs",
    "cache",
    "guide",
    "host",
    "images",
    "labs",
    "main",
    "operations",
    "sets",
    "upgrades",
    "validate",
]
