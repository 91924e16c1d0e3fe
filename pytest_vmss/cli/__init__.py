"""The ``vmss`` command: scale sets from the command line."""

from __future__ import annotations

from pytest_vmss.cli import blobs, cache, host, images, labs, operations, sets, upgrades, validate
from pytest_vmss.cli.base import main

__all__ = [
    "blobs",
    "cache",
    "host",
    "images",
    "labs",
    "main",
    "operations",
    "sets",
    "upgrades",
    "validate",
]
