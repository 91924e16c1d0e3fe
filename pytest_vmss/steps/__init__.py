"""The steps on an instance: small effects that can be repeated after a crash.

Each step's :meth:`Step.apply` has one effect and may be repeated; the journal records
which are done (M1). The modules of :mod:`pytest_vmss.operations` combine them into phases.
"""

from __future__ import annotations

from pytest_vmss.steps.checkpoint import (
    DropRestored,
    FreezeDisks,
    RestoreDisks,
    RestoreMemory,
    SaveMemory,
    SyncFiles,
    Wake,
)
from pytest_vmss.steps.disks import (
    Commit,
    CreateDataDisks,
    Discard,
    Forget,
    PrepareDisk,
    RemoveFiles,
    RemoveMachine,
    ReplaceDataDisks,
)
from pytest_vmss.steps.extensions import RunExtensions
from pytest_vmss.steps.guest import ApplyModel, AwaitHealth, FinishCloudInit
from pytest_vmss.steps.logs import KeepGuestLogs
from pytest_vmss.steps.notice import GiveNotice, notice_steps
from pytest_vmss.steps.power import ProveBoot, SetPower, Start, Stop
from pytest_vmss.steps.restore import PowerOff, PutBackDisks
from pytest_vmss.steps.step import Conclusion, Step
from pytest_vmss.steps.traffic import Drain, LeaveBalancer, Undrain

__all__ = [
    "ApplyModel",
    "AwaitHealth",
    "Commit",
    "Conclusion",
    "CreateDataDisks",
    "Discard",
    "Drain",
    "DropRestored",
    "FinishCloudInit",
    "Forget",
    "FreezeDisks",
    "GiveNotice",
    "KeepGuestLogs",
    "LeaveBalancer",
    "PowerOff",
    "PrepareDisk",
    "ProveBoot",
    "PutBackDisks",
    "RemoveFiles",
    "RemoveMachine",
    "ReplaceDataDisks",
    "RestoreDisks",
    "RestoreMemory",
    "RunExtensions",
    "SaveMemory",
    "SetPower",
    "Start",
    "Step",
    "Stop",
    "SyncFiles",
    "Undrain",
    "Wake",
    "notice_steps",
]
