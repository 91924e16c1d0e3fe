"""What a lab remembers: records, the journal of steps, and events, in SQLite."""

from __future__ import annotations

from pytest_vmss.store.database import Store
from pytest_vmss.store.records import (
    DefinitionRecord,
    ErrorRecord,
    EventRecord,
    ExtensionRecord,
    GenerationRecord,
    InstanceRecord,
    OperationRecord,
    Outcome,
    Record,
    ScaleSetRecord,
    StepRecord,
    VersionRecord,
)

__all__ = [
    "DefinitionRecord",
    "ErrorRecord",
    "EventRecord",
    "ExtensionRecord",
    "GenerationRecord",
    "InstanceRecord",
    "OperationRecord",
    "Outcome",
    "Record",
    "ScaleSetRecord",
    "StepRecord",
    "Store",
    "VersionRecord",
]
