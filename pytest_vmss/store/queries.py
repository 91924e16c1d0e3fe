"""The questions that many ask the store."""

from __future__ import annotations

from pytest_vmss.errors import NotFoundError
from pytest_vmss.store.database import Store
from pytest_vmss.store.instance_records import GenerationRecord, InstanceRecord
from pytest_vmss.store.scale_set_records import ScaleSetRecord

__all__ = ["current_disk", "find_scale_set", "instances_of"]


def find_scale_set(store: Store, name: str) -> ScaleSetRecord:
    """Returns a scale set's record; case does not matter.

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


def instances_of(store: Store, scale_set: str) -> list[InstanceRecord]:
    """Returns the records of a set's instances, by their ids; none where there is no such set."""
    return store.select(InstanceRecord, scale_set.lower())


def current_disk(store: Store, instance: InstanceRecord) -> GenerationRecord | None:
    """Returns the record of the OS disk an instance is on; None where it never came up."""
    return store.get(GenerationRecord, *instance.key, instance.generation)
