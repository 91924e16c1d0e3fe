"""Observes the current health of a set's instances, concurrently (F1)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from pytest_vmss.clock import run_concurrently
from pytest_vmss.environment.environment import Environment, InstanceContext
from pytest_vmss.environment.health import HealthSources, judge_all, observe_health
from pytest_vmss.environment.observers import Moment, Told
from pytest_vmss.errors import NotFoundError
from pytest_vmss.health import Observation, worst
from pytest_vmss.store import InstanceRecord

__all__ = ["observe_instances"]


def observe_instances(
    environment: Environment, scale_set: str, records: Sequence[InstanceRecord]
) -> dict[int, Observation]:
    """Observes instances, and records changes of their health.

    Args:
        environment: The lab's environment.
        scale_set: Their set.
        records: The instances to observe.

    Returns:
        The observation of each, by its number.
    """
    set_id = environment.set_record(scale_set).unique_id
    sources = {
        number: HealthSources.of(environment, scale_set, environment.revisions.get(set_id, number))
        for number in {record.revision for record in records}
    }
    seen: dict[int, Observation] = {}
    for number, health_sources in sources.items():
        ids = {record.name: record.instance_id for record in records if record.revision == number}
        judged = judge_all(environment, ids, health_sources)
        seen.update({ids[name]: told for name, told in judged.items()})

    def look(record: InstanceRecord) -> None:
        context = InstanceContext(environment, scale_set, record.instance_id)
        try:
            told = observe_health(context, sources[record.revision])
        finally:
            context.leave()
        seen[record.instance_id] = worst(told)

    others = [record for record in records if record.instance_id not in seen]
    run_concurrently(others, look, clock=environment.clock)
    changed = [entry for entry in records if entry.health != seen[entry.instance_id].health]
    if changed:
        with environment.store.transaction():
            for record in changed:
                now = seen[record.instance_id]
                with contextlib.suppress(NotFoundError):  # it was deleted meanwhile
                    environment.store.amend(record, health=now.health, health_detail=now.detail)
                    environment.store.event(
                        scale_set,
                        "health",
                        f"{now.health}: {now.detail}",
                        instance_id=record.instance_id,
                    )
    for record in changed if environment.observers else ():
        environment.observers.tell(
            Told(
                Moment.HEALTH_CHANGED,
                scale_set,
                instance_ids=(record.instance_id,),
                health=seen[record.instance_id].health,
                before=record.health,
            )
        )
    return seen
