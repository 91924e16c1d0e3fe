"""The ``vmss`` command: the same things by hand."""

from __future__ import annotations

from pytest_vmss.cli import blobs, host, images, operations, sets, upgrades
from pytest_vmss.cli.base import main

__all__ = ["blobs", "host", "images", "main", "operations", "sets", "upgrades"]
