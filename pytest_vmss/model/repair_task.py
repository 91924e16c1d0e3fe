"""The repair task that a Service Fabric cluster is asked to approve (I3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Approver", "RepairTask"]


@dataclass(frozen=True)
class RepairTask:
    """What a cluster is told of one update domain: before it is upgraded, and after.

    The names in :meth:`wire` are those of Service Fabric's ``RepairTask``, as far as it has them.

    Attributes:
        task_id: The same before and after, and when it is asked or told again.
        state: ``Preparing`` while approval is asked for, ``Completed`` in the report.
        scale_set: The node type's scale set.
        action: The operation, such as ``upgrade``.
        target: The image version that an OS upgrade installs; empty for other operations.
        update_domain: The update domain.
        placement_group: Its placement group.
        zone: Its availability zone; empty in a regional set.
        instances: Names of the instances that are to be changed.
        result_status: ``Pending`` until the report.
        outcomes: In the report, the outcome of each instance by name.
    """

    task_id: str
    state: Literal["Preparing", "Completed"]
    scale_set: str
    action: str
    target: str
    update_domain: int
    placement_group: int
    zone: str
    instances: tuple[str, ...]
    result_status: Literal["Pending", "Succeeded", "Failed", "Cancelled"] = "Pending"
    outcomes: Mapping[str, str] = field(default_factory=dict)

    def wire(self) -> dict[str, Any]:
        """Returns the JSON that an endpoint is sent."""
        return {
            "TaskId": self.task_id,
            "State": self.state,
            "Action": self.action,
            "Executor": f"fabric:/System/InfrastructureService/{self.scale_set}",
            "Target": {"Kind": "Node", "NodeNames": [f"_{name}" for name in self.instances]},
            "ResultStatus": self.result_status,
            "ScaleSet": self.scale_set,
            "ImageVersion": self.target,
            "UpdateDomain": self.update_domain,
            "PlacementGroup": self.placement_group,
            "Zone": self.zone,
            "Outcomes": {f"_{name}": outcome for name, outcome in self.outcomes.items()},
        }


#: The URL of an endpoint on loopback, or a function that returns True to approve.
Approver = str | Callable[[RepairTask], object]
