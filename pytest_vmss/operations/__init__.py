"""The kinds of operations: what each plans, and what it does to an instance."""

from __future__ import annotations

from pytest_vmss.errors import LabError
from pytest_vmss.operations.checkpoint import (
    MakeCheckpoint,
    SaveScaleSet,
    checkpoints_of,
    drop_checkpoints,
    drop_incomplete,
    remove_memory,
)
from pytest_vmss.operations.create import Create, CreateScaleSet, ScaleOut
from pytest_vmss.operations.delete import Delete, DeleteScaleSet, ScaleIn
from pytest_vmss.operations.extension_upgrade import ExtensionUpgrade
from pytest_vmss.operations.kind import Kind, Plan, StartedBy, at_once
from pytest_vmss.operations.model_update import ModelUpdate, UpdateInstances
from pytest_vmss.operations.os_upgrade import OSUpgrade
from pytest_vmss.operations.power import Deallocate, Restart, StartInstances, StopInstances
from pytest_vmss.operations.redeploy import Redeploy
from pytest_vmss.operations.reimage import Reimage, ReimageAll
from pytest_vmss.operations.replace import Replace
from pytest_vmss.operations.restore import RestoreCheckpoint, missing_from

__all__ = [
    "KINDS",
    "CreateScaleSet",
    "Deallocate",
    "DeleteScaleSet",
    "ExtensionUpgrade",
    "Kind",
    "MakeCheckpoint",
    "ModelUpdate",
    "OSUpgrade",
    "Plan",
    "Redeploy",
    "Reimage",
    "ReimageAll",
    "Replace",
    "Restart",
    "RestoreCheckpoint",
    "SaveScaleSet",
    "ScaleIn",
    "ScaleOut",
    "StartInstances",
    "StartedBy",
    "StopInstances",
    "UpdateInstances",
    "at_once",
    "checkpoints_of",
    "drop_checkpoints",
    "drop_incomplete",
    "kind_of",
    "missing_from",
    "remove_memory",
]

#: Every kind by its action, to resume an operation that another process started.
KINDS: dict[str, type[Kind]] = {
    kind.action: kind
    for kind in (
        Create,
        Deallocate,
        Delete,
        ExtensionUpgrade,
        MakeCheckpoint,
        OSUpgrade,
        Redeploy,
        Reimage,
        ReimageAll,
        Replace,
        Restart,
        RestoreCheckpoint,
        ScaleOut,
        StartInstances,
        StopInstances,
        UpdateInstances,
    )
}


def kind_of(action: str) -> type[Kind]:
    """Returns the kind of operation for an action.

    Raises:
        LabError: This version does not know the action.
    """
    kind = KINDS.get(action)
    if kind is None:
        raise LabError(
            f"this version of pytest-vmss knows no operation {action!r} (it knows: "
            f"{', '.join(sorted(KINDS))}); go on with the version that began it"
        )
    return kind
