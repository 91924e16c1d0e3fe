"""Checkpoints of whole scale sets: frozen disks and saved memory, from which sets are restored."""

from __future__ import annotations

from pytest_vmss.checkpoints.cache import CheckpointCache, Entry
from pytest_vmss.checkpoints.files import CheckpointFiles, Manifest, SavedInstance
from pytest_vmss.checkpoints.key import checkpoint_key, obstacle_to
from pytest_vmss.checkpoints.seals import Seals, with_backing_files

__all__ = [
    "CheckpointCache",
    "CheckpointFiles",
    "Entry",
    "Manifest",
    "SavedInstance",
    "Seals",
    "checkpoint_key",
    "obstacle_to",
    "with_backing_files",
]
