"""Stores a lab's state in SQLite: records, the journal of steps, and events."""

from __future__ import annotations

from pytest_vmss.store.checkpoint_records import CheckpointRecord
from pytest_vmss.store.database import Store
from pytest_vmss.store.host_records import NetworkRecord, PortRecord
from pytest_vmss.store.image_records import DefinitionRecord, PackagesRecord, VersionRecord
from pytest_vmss.store.instance_records import DetachedDiskRecord, GenerationRecord, InstanceRecord
from pytest_vmss.store.operation_records import (
    BatchRecord,
    ErrorRecord,
    EventRecord,
    OperationRecord,
    Outcome,
    OutcomeRecord,
    RepairTaskRecord,
    StepKey,
    StepRecord,
)
from pytest_vmss.store.record import Record
from pytest_vmss.store.scale_set_records import ModelRecord, ScaleSetRecord

__all__ = [
    "BatchRecord",
    "CheckpointRecord",
    "DefinitionRecord",
    "DetachedDiskRecord",
    "ErrorRecord",
    "EventRecord",
    "GenerationRecord",
    "InstanceRecord",
    "ModelRecord",
    "NetworkRecord",
    "OperationRecord",
    "Outcome",
    "OutcomeRecord",
    "PackagesRecord",
    "PortRecord",
    "Record",
    "RepairTaskRecord",
    "ScaleSetRecord",
    "StepKey",
    "StepRecord",
    "Store",
    "VersionRecord",
]
