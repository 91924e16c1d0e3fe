"""What a lab remembers: records, the journal of steps, and events, in SQLite."""

from __future__ import annotations

from pytest_vmss.store.database import Store
from pytest_vmss.store.records import (
    BatchRecord,
    DefinitionRecord,
    DetachedDiskRecord,
    ErrorRecord,
    EventRecord,
    GenerationRecord,
    InstanceRecord,
    ModelRecord,
    NetworkRecord,
    OperationRecord,
    Outcome,
    OutcomeRecord,
    PackagesRecord,
    PortRecord,
    Record,
    ScaleSetRecord,
    StepRecord,
    VersionRecord,
)

__all__ = [
    "BatchRecord",
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
    "ScaleSetRecord",
    "StepRecord",
    "Store",
    "VersionRecord",
]
