"""Properties of a test for JUnit files: what ran, on what, and how long each stage took (L3)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from pytest_vmss.api.lab import Lab
from pytest_vmss.api.operation import stages_of
from pytest_vmss.report.artifacts.host import package_version
from pytest_vmss.store import GenerationRecord, OperationRecord

__all__ = ["properties_of"]


def properties_of(lab: Lab, names: Iterable[str], *, since: int) -> list[tuple[str, object]]:
    """Returns the properties of a test, by names that begin with ``vmss.``.

    Args:
        lab: The lab that it used.
        names: The sets that it had to do with.
        since: Id of the last event before the test; operations with none since are left out.

    Returns:
        ``vmss.image.SET`` for each image version that instances were on, with its digest;
        ``vmss.seconds.SET.ACTION.STAGE`` for the seconds that the slowest instance took, summed
        over the operations of that kind.
    """
    found: list[tuple[str, object]] = [
        ("vmss.version", package_version()),
        ("vmss.lab", lab.paths.folder.name),
        ("vmss.accelerator", lab.hypervisor.accelerator),
    ]
    recent = {event.operation for event in lab.store.events(after=since) if event.operation}
    for name in names:
        images = _images(lab, name, recent)
        found += [(f"vmss.image.{name}", image) for image in images]
        stages: defaultdict[str, float] = defaultdict(float)
        for record in lab.store.select(OperationRecord, name.lower()):
            if record.id in recent:
                for stage, seconds in _slowest(lab, record).items():
                    stages[f"{record.action}.{stage.replace(' ', '-').replace(':', '')}"] += seconds
        found += [
            (f"vmss.seconds.{name}.{stage}", round(seconds, 3)) for stage, seconds in stages.items()
        ]
    return found


def _slowest(lab: Lab, record: OperationRecord) -> dict[str, float]:
    """Seconds of each stage, for the instance that took longest over it."""
    longest: dict[str, float] = {}
    for stages in stages_of(lab.store.steps(record.id)).values():
        for stage, seconds in stages.items():
            longest[stage] = max(seconds, longest.get(stage, 0.0))
    return longest


def _images(lab: Lab, name: str, recent: set[str]) -> list[str]:
    """The image versions that instances of a set are on, or that a test's operations installed."""
    known = {
        (str(one.image), one.digest)
        for one in lab.store.select(GenerationRecord, name.lower())
        if one.state != "discarded"
    }
    known |= {
        (str(one.image), one.digest)
        for one in lab.store.select(OperationRecord, name.lower())
        if one.id in recent and one.digest
    }
    return [f"{image} {digest}" for image, digest in sorted(known)]
