"""The steps of an instance: small effects that can be taken again after a crash.

Each step's :meth:`Step.apply` brings one effect about and may be repeated; the
journal tells which are done (M1). Lists of them are in
:mod:`pytest_vmss.operations.phases`.
"""

from __future__ import annotations

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
from pytest_vmss.steps.guest import ApplyModel, AwaitHealth, FinishCloudInit, Sync
from pytest_vmss.steps.power import ProveBoot, SetPower, Start, Stop
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
    "FinishCloudInit",
    "Forget",
    "LeaveBalancer",
    "PrepareDisk",
    "ProveBoot",
    "RemoveFiles",
    "RemoveMachine",
    "ReplaceDataDisks",
    "RunExtensions",
    "SetPower",
    "Start",
    "Step",
    "Stop",
    "Sync",
    "Undrain",
]
