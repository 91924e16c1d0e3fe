"""The ``vmss`` command: the same things by hand."""

from __future__ import annotations

from pytest_vmss.cli import host, images, operations, sets, upgrades
from pytest_vmss.cli.base import main

__all__ = ["host", "images", "main", "operations", "sets", "upgrades"]
