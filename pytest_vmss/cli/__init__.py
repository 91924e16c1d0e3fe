"""The ``vmss`` command: scale sets from the command line."""

from __future__ import annotations

from pytest_vmss.cli import blobs, cache, host, images, operations, sets, upgrades, validate
from pytest_vmss.cli.base import main

__all__ = ["blobs", "cache", "host", "images", "main", "operations", "sets", "upgrades", "validate"]
