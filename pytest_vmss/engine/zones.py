"""Zones of one region, through which an image version goes one after another (D4, I2).

Inside a set the planner sees to that. Across sets, each upgrade claims the zone of its next
batch, and lets it go before it waits for another one, so that no two can wait for each other.
"""

from __future__ import annotations

from pytest_vmss.environment.environment import Environment
from pytest_vmss.host.locks import is_locked
from pytest_vmss.store import OperationRecord

__all__ = ["claim_zone"]


def claim_zone(environment: Environment, operation: OperationRecord, zone: str) -> str:
    """Claims a zone for an upgrade, unless the same version is in another zone of the region.

    Upgrades of several sets may hold the same zone. One that was interrupted holds none.

    Args:
        environment: The lab's environment.
        operation: The upgrade.
        zone: Where its next batch is.

    Returns:
        Which upgrade is in the way, in words; empty if the zone is claimed.
    """
    store = environment.store
    with store.transaction():
        for other in store.select(OperationRecord):
            if _is_beside(environment, operation, other) and other.zone not in ("", zone):
                store.amend(operation, zone="")
                return f"the upgrade of {other.scale_set} to {other.target} in zone {other.zone}"
        store.amend(operation, zone=zone)
    return ""


def _is_beside(environment: Environment, one: OperationRecord, other: OperationRecord) -> bool:
    """Whether another upgrade is running, to the same version, in the same region."""
    if other.ended is not None or other.action != one.action or other.id == one.id:
        return False
    if other.image.key != one.image.key or _region(environment, other) != _region(environment, one):
        return False
    return is_locked(environment.paths.lock(other.scale_set))


def _region(environment: Environment, operation: OperationRecord) -> str:
    """The location in the model that it applies, as Azure compares names: West Europe, westeurope."""
    model = environment.revisions.get(operation.set_id, operation.revision).model
    return (model.location or "").replace(" ", "").lower()
