"""The life of a test's scale set: created for it, and deleted or kept after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from pytest_vmss.plugin.artifacts import artifacts_of
from pytest_vmss.plugin.marker import arguments_of, model_of

if TYPE_CHECKING:
    from pytest_vmss.api.lab import Lab
    from pytest_vmss.api.publications import StartImages
    from pytest_vmss.api.scale_set import ScaleSet
    from pytest_vmss.store import ScaleSetRecord

__all__ = ["kept_sets", "marked_set"]

#: Sets that could not be deleted, and why.
_LEFTOVERS: pytest.StashKey[dict[str, str]] = pytest.StashKey()
#: Names of sets of earlier tests that are kept, in lower case.
_KEPT: pytest.StashKey[set[str]] = pytest.StashKey()
#: What has made the sets that there are now, by their names in lower case.
_HOLDERS: pytest.StashKey[dict[str, str]] = pytest.StashKey()
#: What markers have published, by the lab's id.
_START_IMAGES: pytest.StashKey[dict[str, StartImages]] = pytest.StashKey()


def marked_set(vmss: Lab, request: pytest.FixtureRequest) -> Iterator[ScaleSet]:
    """Creates the set that a marker describes, and deletes it afterwards."""
    source, arguments = arguments_of(request.node, request.node.get_closest_marker("vmss"))
    images = arguments.pop("images", None)
    arguments.setdefault("pristine", not request.config.getoption("--vmss-no-checkpoints"))
    leftovers = request.config.stash.setdefault(_LEFTOVERS, {})
    _clear(vmss, leftovers)
    _make_way(vmss, request, source, arguments)
    before = {record.unique_id for record in _records(vmss)}
    try:
        if images is not None:
            _publish_images(vmss, request, images, source, arguments)
        created = vmss.create(source, **arguments)
    except (KeyboardInterrupt, SystemExit):
        raise  # the session ends, and the lab with it
    except BaseException as error:
        artifacts_of(request.config).collect_now()
        for record in _records(vmss):
            if record.unique_id in before:
                continue
            if vmss.settings.keep == "never":
                _delete(vmss, record.name, request, error)
            else:
                _keep(request, record.name)
        for left in leftovers.values():
            error.add_note(left)
        _name_holder(request, source, arguments, error)
        raise
    holders = request.config.stash.setdefault(_HOLDERS, {})
    holders[created.name.lower()] = f"{request.fixturename} of {request.node.nodeid}"
    yield created
    holders.pop(created.name.lower(), None)
    keep, failed = vmss.settings.keep, artifacts_of(request.config).has_failed(request.node)
    if keep == "always" or (keep == "failed" and failed):
        _keep(request, created.name)
    else:
        _delete(vmss, created.name, request)


def _name_holder(
    request: pytest.FixtureRequest, source: Any, arguments: Mapping[str, Any], error: BaseException
) -> None:
    """Tells whose a set is that is in the way: that of another fixture, which still lasts."""
    from pytest_vmss.errors import ConflictError

    if not isinstance(error, ConflictError):
        return
    name = model_of(source, arguments).name
    holder = request.config.stash.get(_HOLDERS, {}).get(name.lower())
    if holder is not None:
        error.add_note(
            f"{name!r} is the set of {holder}, until that ends; use one of the two fixtures, or "
            "give one set another name (name= of the marker vmss)"
        )


def _keep(request: pytest.FixtureRequest, name: str) -> None:
    """Notes that a test's set is kept, until another test needs its name."""
    request.config.stash.setdefault(_KEPT, set()).add(name.lower())


def _make_way(
    lab: Lab, request: pytest.FixtureRequest, source: Any, arguments: Mapping[str, Any]
) -> None:
    """Deletes the set of an earlier test that is kept, if this one needs its name."""
    from pytest_vmss.errors import LabError

    kept = request.config.stash.get(_KEPT, set())
    if not kept:
        return
    try:
        name = model_of(source, arguments).name
    except LabError:
        return  # it is reported where the set is created
    if name.lower() in kept:
        kept.discard(name.lower())
        _delete(lab, name, request)


def kept_sets(lab: Lab, config: pytest.Config) -> list[str]:
    """Names of the sets that outlive the session: those that are left, if any may be."""
    keep = lab.settings.keep
    if keep == "never" or (keep == "failed" and not artifacts_of(config).any_failed):
        return []
    return [record.name for record in _records(lab)]


def _publish_images(
    lab: Lab, request: pytest.FixtureRequest, images: Any, source: Any, arguments: dict[str, Any]
) -> None:
    """Publishes the versions that a test's marker names, of the image in its model."""
    from pytest_vmss.api.publications import StartImages

    model = model_of(source, arguments)
    known = request.config.stash.setdefault(_START_IMAGES, {})
    of_lab = known.setdefault(lab.identity.id, StartImages(lab))
    of_lab.publish(model.image_reference, images)


def _records(lab: Lab) -> list[ScaleSetRecord]:
    from pytest_vmss.store import ScaleSetRecord

    return lab.store.select(ScaleSetRecord)


def _delete(
    lab: Lab, name: str, request: pytest.FixtureRequest, failed: BaseException | None = None
) -> None:
    """Deletes a test's set; if that fails, reports what is left and notes it for another try.

    Args:
        lab: The lab.
        name: The set's name.
        request: The test's request.
        failed: What the test has already failed with; the report is then added to it as a note.
    """
    from pytest_vmss.errors import NotFoundError

    try:
        lab.delete(name)
    except NotFoundError:
        pass  # the test deleted it itself
    except Exception as error:
        left = (
            f"the scale set {name!r} of {request.node.nodeid} could not be deleted "
            f"({type(error).__name__}: {error}); what is left of it goes with the session, or "
            f"before the next test that needs a set: {_remains(lab, name)}"
        )
        request.config.stash[_LEFTOVERS][name] = left
        if failed is None:
            error.add_note(left)
            raise
        failed.add_note(left)


def _remains(lab: Lab, name: str) -> str:
    """Describes what is left of a set, for messages."""
    from pytest_vmss.store.queries import instances_of

    instances = [record.name for record in instances_of(lab.store, name)]
    return f"{', '.join(instances) or 'no instance'}, under {lab.paths.scale_set(name)}"


def _clear(lab: Lab, leftovers: dict[str, str]) -> None:
    """Tries again to delete the sets that earlier tests left."""
    from pytest_vmss.errors import NotFoundError

    for name in list(leftovers):
        try:
            lab.delete(name)
        except NotFoundError:
            del leftovers[name]
        except Exception as error:  # noqa: BLE001 - reported to the test that needs the name
            leftovers[name] += f"; tried again, in vain: {error}"
        else:
            del leftovers[name]
