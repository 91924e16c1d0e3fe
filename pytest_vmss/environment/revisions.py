"""The models of scale sets, as they were at each of their changes."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_vmss.errors import NotFoundError
from pytest_vmss.model import LoadBalancer, Probe, ScaleSetModel
from pytest_vmss.store import ModelRecord, ScaleSetRecord, Store

__all__ = ["Revision", "Revisions", "find_scale_set"]


@dataclass(frozen=True)
class Revision:
    """A revision of a set's model, read.

    Attributes:
        probe: The load balancer's probe that the model names.
        balancer: That load balancer.
    """

    number: int
    model: ScaleSetModel
    probe: Probe | None
    balancer: LoadBalancer | None


class Revisions:
    """Reads the revisions of models; none ever changes, so each is read once.

    Args:
        store: Where they are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._revisions: dict[tuple[str, int], Revision] = {}

    def get(self, set_id: str, number: int) -> Revision:
        """A revision of a set's model; it never changes, so it is read once.

        Raises:
            NotFoundError: There is none.
        """
        found = self._revisions.get((set_id, number))
        if found is None:
            record = self._store.get(ModelRecord, set_id, f"{number:06d}")
            if record is None:
                raise NotFoundError(f"there is no revision {number} of the scale set {set_id}")
            found = Revision(
                number,
                ScaleSetModel.model_validate(record.model),
                None if record.probe is None else Probe.model_validate(record.probe),
                None if record.balancer is None else LoadBalancer.model_validate(record.balancer),
            )
            self._revisions[set_id, number] = found
        return found

    def current(self, scale_set: str) -> Revision:
        """A set's model as it is now.

        Raises:
            NotFoundError: There is no such set.
        """
        record = find_scale_set(self._store, scale_set)
        return self.get(record.unique_id, record.revision)


def find_scale_set(store: Store, name: str) -> ScaleSetRecord:
    """A set's record; case does not matter.

    Raises:
        NotFoundError: There is no such set.
    """
    record = store.get(ScaleSetRecord, name.lower())
    if record is None:
        known = ", ".join(entry.name for entry in store.select(ScaleSetRecord))
        raise NotFoundError(
            f"there is no scale set {name!r} in this lab; there are: {known or 'none'}"
        )
    return record
