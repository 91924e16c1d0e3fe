"""The revisions of scale sets' models."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

from pytest_vmss.environment.masking import masker
from pytest_vmss.errors import NotFoundError
from pytest_vmss.model import Cluster, LoadBalancer, Probe, ScaleSetModel
from pytest_vmss.model.load_balancer import LoadBalancingRule, served_rules
from pytest_vmss.secrecy import concealed_at
from pytest_vmss.store import ModelRecord, Store
from pytest_vmss.store.queries import find_scale_set

__all__ = ["Revision", "Revisions"]

#: Texts that are remembered with their secrets masked; a poll has the same answer many times.
_MASKED_TEXTS = 256


@dataclass(frozen=True)
class Revision:
    """A revision of a set's model, as read from the store.

    Attributes:
        probe: The load balancer's probe that the model names.
        balancer: That load balancer.
        clusters: The Service Fabric clusters that were given with it.
    """

    number: int
    model: ScaleSetModel
    probe: Probe | None
    balancer: LoadBalancer | None
    clusters: tuple[Cluster, ...] = ()

    @cached_property
    def served_rules(self) -> tuple[LoadBalancingRule, ...]:
        """The load balancer's rules that are served here; none if there is no load balancer."""
        return () if self.balancer is None else tuple(served_rules(self.balancer, self.model))


class Revisions:
    """Reads and caches the revisions of models; a revision never changes.

    Args:
        store: The lab's store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._revisions: dict[tuple[str, int], Revision] = {}
        self._maskers: dict[str, tuple[int, Callable[[str], str]]] = {}

    def get(self, set_id: str, number: int) -> Revision:
        """Returns a revision of a set's model.

        Raises:
            NotFoundError: There is no such revision.
        """
        found = self._revisions.get((set_id, number))
        if found is None:
            record = self._store.get(ModelRecord, set_id, number)
            if record is None:
                raise NotFoundError(f"there is no revision {number} of the scale set {set_id}")
            found = Revision(
                number,
                ScaleSetModel.model_validate(concealed_at(record.model, record.secrets)),
                None if record.probe is None else Probe.model_validate(record.probe),
                None if record.balancer is None else LoadBalancer.model_validate(record.balancer),
                tuple(Cluster.model_validate(cluster) for cluster in record.clusters),
            )
            if not self._store.in_transaction:  # what is written there may be undone
                self._revisions[set_id, number] = found
        return found

    def known(self) -> list[Revision]:
        """Returns the revisions that this process has read, also of sets that are deleted by now."""
        return list(self._revisions.values())

    def masker(self, set_id: str, newest: int) -> Callable[[str], str]:
        """Returns a function that masks what a set's models hold as secret in its guests' texts (M5).

        A guest may still have what an earlier revision gave it.

        Args:
            set_id: The set's ``unique_id``.
            newest: Number of its newest revision.
        """
        known = self._maskers.get(set_id)
        if known is not None and known[0] == newest:
            return known[1]
        models = []
        for number in range(1, newest + 1):
            with contextlib.suppress(NotFoundError):
                models.append(self.get(set_id, number).model)
        mask = lru_cache(_MASKED_TEXTS)(masker(models))
        if not self._store.in_transaction:
            self._maskers[set_id] = (newest, mask)
        return mask

    def current(self, scale_set: str) -> Revision:
        """Returns the current revision of a set's model.

        Raises:
            NotFoundError: There is no such set.
        """
        record = find_scale_set(self._store, scale_set)
        return self.get(record.unique_id, record.revision)
