"""Checkpoints of whole scale sets: frozen disks and saved memory, from which sets are restored."""

from __future__ import annotations

from pytest_vmss.checkpoints.cache import CheckpointCache, Entry
from pytest_vmss.checkpoints.files import CheckpointFiles, Manifest, SavedInstance
from pytest_vmss.checkpoints.key import checkpoint_key, obstacle_to

__all__ = [
    "CheckpointCache",
    "CheckpointFiles",
    "Entry",
    "Manifest",
    "SavedInstance",
    "checkpoint_key",
    "obstacle_to",
]
