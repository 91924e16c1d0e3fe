"""Says before anything is made what of a model has no effect here (A6, P3)."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator

from pytest_vmss.environment.environment import Environment
from pytest_vmss.environment.revisions import Revision
from pytest_vmss.errors import NotFoundError, NotModelledWarning
from pytest_vmss.model import Review, ScaleSetDocument, ScaleSetModel, VmSize, review
from pytest_vmss.operations.revisions import left_out_of

__all__ = ["announce", "review_of"]

#: Modules whose own lines would say nothing to whoever is warned.
_API = ("pytest_vmss.api.", "pytest_vmss.model.")
_EVENTS = "$.virtualMachineProfile.scheduledEventsProfile"


def review_of(
    environment: Environment, document: ScaleSetDocument, current: Revision | None = None
) -> Review:
    """Reviews a document for a lab.

    Args:
        environment: The lab's environment.
        document: The document, validated.
        current: The current revision of the set that it changes, if it exists.
    """
    size = environment.own_size
    if current is not None:
        own = environment.set_record(current.model.name).own_size
        size = None if own is None else VmSize(*own)
    model = document.model
    left_out = left_out_of(environment, model, current)
    found = review(document, left_out=left_out, own_size=size)
    found.notes.extend(_fewer_vcpus(environment, model, current))
    notices = _notices(model)
    if notices and not _looks_for_azure(environment, model):
        found.not_modelled.extend(notices)
    return found


def _fewer_vcpus(
    environment: Environment, model: ScaleSetModel, current: Revision | None
) -> Iterator[str]:
    """Yields a note if the host cannot give guests as many virtual CPUs as their size has (A3)."""
    most = environment.hypervisor.most_vcpus
    vcpus = environment.size_of(model).vcpus
    if most is None or vcpus <= most:
        return
    if current is None or environment.size_of(current.model).vcpus <= most:  # else it was said
        yield (
            f"each instance has {most} virtual CPU, not {vcpus}: this host's QEMU cannot emulate "
            "more without crashing guests; use KVM, or QEMU 8.1 or newer"
        )


def _notices(model: ScaleSetModel) -> list[str]:
    """Paths of the notices that only guests with a metadata service get (O4)."""
    wanted = {
        "osImageNotificationProfile": model.os_image_notice,
        "terminateNotificationProfile": model.terminate_notice,
    }
    return [f"{_EVENTS}.{name}" for name, seconds in wanted.items() if seconds is not None]


def _looks_for_azure(environment: Environment, model: ScaleSetModel) -> bool:
    """Whether a model's image looks for Azure; also if there is no such image, which is told."""
    with contextlib.suppress(NotFoundError):
        return environment.images.version_for(model.image_reference).provisioning == "Azure"
    return True


def announce(
    environment: Environment, document: ScaleSetDocument, current: Revision | None = None
) -> None:
    """Warns of what has no effect here, or is done in another way; once for a document.

    Of a change only what is new is said.

    Args:
        environment: The lab's environment.
        document: The document, validated.
        current: The current revision of the set that it changes, if it exists.
    """
    found = review_of(environment, document, current)
    if current is not None:
        before = {*current.model.not_modelled(), *_notices(current.model)}
        for paths in (found.not_modelled, found.unknown):
            paths[:] = [path for path in paths if path not in before]
    lines = list(found.lines())
    if lines:
        told = "".join(f"\n  {line}" for line in lines)
        warnings.warn(
            NotModelledWarning(f"{document.source}:{told}"), stacklevel=_level_of_caller()
        )


def _level_of_caller() -> int:
    """The stack level, seen from the function that calls this, of whoever uses the API."""
    level, frame = 1, inspect.currentframe()
    frame = None if frame is None else frame.f_back
    while frame is not None and str(frame.f_globals.get("__name__")).startswith(_API):
        level, frame = level + 1, frame.f_back
    return level
