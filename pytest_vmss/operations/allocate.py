"""Allocates new instances: writes their records before anything of them exists."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from pytest_vmss.environment.environment import Environment
from pytest_vmss.guest_platform.private_addresses import computer_name
from pytest_vmss.model import host_ports
from pytest_vmss.operations.placement import Spot, next_spot
from pytest_vmss.store import InstanceRecord

__all__ = ["allocate_instances"]


def allocate_instances(
    environment: Environment, scale_set: str, count: int, places: Sequence[Spot] = ()
) -> list[int]:
    """Allocates new instances of a set, each with its identity and place (A4, D3).

    Args:
        environment: The lab's environment.
        scale_set: The set.
        count: How many.
        places: Where each goes, if they replace others; the emptiest places otherwise.

    Returns:
        Their numbers, which this set has never used before.
    """
    store = environment.store
    ids: list[int] = []
    with store.transaction():
        set_record = environment.set_record(scale_set)
        model = environment.revisions.get(set_record.unique_id, set_record.revision).model
        everyone = store.select(InstanceRecord)
        free = environment.free_addresses(count)
        spots = [
            Spot(record.zone, record.placement_group, record.update_domain)
            for record in everyone
            if record.scale_set == set_record.name
        ]
        prefix = model.computer_name_prefix
        given = iter(places)
        for number in range(set_record.next_instance_id, set_record.next_instance_id + count):
            unique = uuid.uuid4()
            spot = next(given, None) or next_spot(spots, model.zones)
            spots.append(spot)
            ids.append(number)
            store.put(
                InstanceRecord(
                    scale_set=set_record.name,
                    instance_id=number,
                    uuid=str(unique),
                    computer_name=computer_name(prefix, number),
                    mac="52:54:00:" + ":".join(f"{byte:02x}" for byte in unique.bytes[-3:]),
                    address=free.pop(0),
                    forwards=host_ports(set_record.ports),
                    update_domain=spot.domain,
                    placement_group=spot.group,
                    zone=spot.zone,
                    created=environment.clock.now(),
                    revision=set_record.revision,
                )
            )
        store.amend(set_record, next_instance_id=set_record.next_instance_id + count)
    return ids
