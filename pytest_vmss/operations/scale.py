"""Scaling: checks a new capacity, and plans what to add or remove (A2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pytest_vmss.environment.environment import Environment
from pytest_vmss.environment.set_health import observe_instances
from pytest_vmss.errors import ConflictError
from pytest_vmss.model import ScaleSetDocument, load_document
from pytest_vmss.operations.create import ScaleOut
from pytest_vmss.operations.delete import ScaleIn
from pytest_vmss.operations.placement import Placed, Spot, choose_to_remove
from pytest_vmss.operations.revisions import check_document
from pytest_vmss.store import InstanceRecord
from pytest_vmss.store.queries import instances_of

__all__ = ["check_capacity_change", "removal_of", "scaling_to"]


def check_capacity_change(environment: Environment, scale_set: str, capacity: int) -> None:
    """Checks that a set can have a capacity; changes nothing.

    Raises:
        CapacityError: The host has no room.
        ConflictError: Too many instances are protected.
    """
    more = capacity - len(_instances(environment, scale_set))
    if more > 0:
        environment.require_room(more, environment.revisions.current(scale_set).model)
    elif len(_removable(environment, scale_set, -more)) < -more:
        raise ConflictError(
            f"{scale_set!r} cannot be scaled in to {capacity}: too many of its "
            "instances are protected (protectFromScaleIn or protectFromScaleSetActions)"
        )


def scaling_to(
    environment: Environment, scale_set: str, capacity: int
) -> ScaleOut | ScaleIn | None:
    """The operation that scales a set to a capacity; None if it has that already.

    Raises:
        ModelError: Azure does not accept that capacity.
    """
    now = len(_instances(environment, scale_set))
    current = environment.revisions.current(scale_set)
    if capacity == now == current.model.sku.capacity:
        return None
    document = _sized(environment, scale_set, capacity)
    version = check_document(environment, document, current=current)
    if capacity <= now:
        return ScaleIn(_removable(environment, scale_set, now - capacity), document)
    return ScaleOut(document, version, capacity - now)


def removal_of(environment: Environment, scale_set: str, numbers: Sequence[int]) -> ScaleIn:
    """The operation that removes instances, even protected ones, and reduces the capacity.

    Raises:
        ModelError: Azure does not accept the remaining capacity.
    """
    left = len(_instances(environment, scale_set)) - len(numbers)
    return ScaleIn(numbers, _sized(environment, scale_set, left))


def _instances(environment: Environment, scale_set: str) -> list[InstanceRecord]:
    return instances_of(environment.store, scale_set)


def _sized(environment: Environment, scale_set: str, capacity: int) -> ScaleSetDocument:
    """A set's current model, with another capacity.

    Raises:
        ModelError: Azure does not accept that capacity.
    """
    now = environment.revisions.current(scale_set)
    sized = load_document(
        now.model.full(), capacity=capacity, known_balancer=now.balancer, is_stored=True
    )
    document = ScaleSetDocument(now.model, now.probe, scale_set, now.clusters, now.balancer)
    return replace(document, model=sized.model, base=now.number)


def _removable(environment: Environment, scale_set: str, count: int) -> list[int]:
    """The instances to remove by the set's scale-in policy; fewer if too many are protected."""
    policy = environment.revisions.current(scale_set).model.scale_in_policy
    records = _instances(environment, scale_set)
    sick: set[int] = set()
    if policy is not None and policy.prioritize_unhealthy_vms:
        seen = observe_instances(environment, scale_set, records)
        sick = {number for number, observation in seen.items() if not observation.healthy}
    placed = [
        Placed(
            record.instance_id,
            Spot(record.zone, record.placement_group, record.update_domain),
            record.created,
            protected=record.protected or record.protect_from_scale_in,
            unhealthy=record.instance_id in sick,
        )
        for record in records
    ]
    rules = policy.rules if policy else []
    return choose_to_remove(placed, count, rules, unhealthy_first=bool(sick))
