"""How many instances a set has, and which go (A2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pytest_vmss.engine.engine import Engine, parts
from pytest_vmss.engine.journal import OperationReport
from pytest_vmss.engine.placement import Placed, Spot, choose_to_remove
from pytest_vmss.environment.environment import Environment, Revision
from pytest_vmss.errors import ConflictError
from pytest_vmss.model import ScaleSetDocument, load_document
from pytest_vmss.operations.allocate import allocate_instances
from pytest_vmss.operations.revisions import add_revision, check_document
from pytest_vmss.store import Outcome

__all__ = ["Sizing"]


class Sizing:
    """Changes the number of a set's instances. Call with the set claimed.

    Args:
        environment: Where the set is.
        engine: The set's.
    """

    def __init__(self, environment: Environment, engine: Engine) -> None:
        self._environment = environment
        self._engine = engine

    def check(self, capacity: int) -> None:
        """Whether the set can have so many instances; nothing is changed.

        Raises:
            CapacityError: The host has no room.
            ConflictError: Too many instances are protected.
        """
        more = capacity - len(self._engine.instances())
        if more > 0:
            size = self._environment.find_size(self._revision.model.sku.name)
            self._environment.require_room(more, size)
        elif len(self._removable(-more)) < -more:
            raise ConflictError(
                f"{self._engine.name!r} cannot be scaled in to {capacity}: too many of its "
                "instances are protected (protectFromScaleIn or protectFromScaleSetActions)"
            )

    def scale(self, capacity: int) -> OperationReport | None:
        """Scales out or in.

        Returns:
            What came of it; None where there was nothing to do.

        Raises:
            ModelError: Not a capacity that Azure takes; nothing was changed.
        """
        now = len(self._engine.instances())
        if capacity == now == self._revision.model.sku.capacity:
            return None
        document = self.sized(self.document(), capacity)
        version = check_document(self._environment, document, current=self._revision)
        if capacity <= now:
            return self._remove(self._removable(now - capacity), document)

        def grow() -> dict[int, Outcome]:
            self._add_revision(document)
            return parts(allocate_instances(self._environment, self._engine.name, capacity - now))

        return self._engine.at_once("create", grow, version=version)

    def remove(self, numbers: Sequence[int]) -> OperationReport:
        """Removes instances, also protected ones; the model's capacity shrinks by them."""
        left = len(self._engine.instances()) - len(numbers)
        return self._remove(numbers, self.sized(self.document(), left))

    def sized(self, document: ScaleSetDocument, capacity: int) -> ScaleSetDocument:
        """A model with another capacity.

        Raises:
            ModelError: Azure does not take that capacity.
        """
        sized = load_document(
            document.model.full(), capacity=capacity, known_balancer=document.balancer
        )
        return replace(document, model=sized.model)

    @property
    def _revision(self) -> Revision:
        return self._environment.current_revision(self._engine.name)

    def document(self) -> ScaleSetDocument:
        """The model that the set has now."""
        now = self._revision
        return ScaleSetDocument(now.model, now.probe, self._engine.name, (), now.balancer)

    def _remove(self, numbers: Sequence[int], document: ScaleSetDocument) -> OperationReport:
        def shrink() -> dict[int, Outcome]:
            self._add_revision(document)
            return parts(numbers)

        return self._engine.at_once("delete", shrink)

    def _add_revision(self, document: ScaleSetDocument) -> None:
        """Records another capacity, where it is another."""
        if document.model.sku.capacity != self._revision.model.sku.capacity:
            add_revision(self._environment, document)

    def _removable(self, count: int) -> list[int]:
        policy = self._revision.model.scale_in_policy
        sick: set[int] = set()
        if policy is not None and policy.prioritize_unhealthy_vms:
            sick = {member.instance_id for member in self._engine.members() if member.unhealthy}
        placed = [
            Placed(
                record.instance_id,
                Spot(record.zone, record.placement_group, record.update_domain),
                record.created,
                protected=record.protected or record.protect_from_scale_in,
                unhealthy=record.instance_id in sick,
            )
            for record in self._engine.instances()
        ]
        rules = policy.rules if policy else []
        return choose_to_remove(placed, count, rules, unhealthy_first=bool(sick))
