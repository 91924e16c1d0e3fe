"""Keeps apart what the tests of a suite publish."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vmss.errors import ConflictError, ModelError, ModelProblem, NotFoundError
from pytest_vmss.gallery import DEFAULT_GALLERY, Gallery, ImageStore
from pytest_vmss.model import ImageReference
from pytest_vmss.model.arguments import check_text
from pytest_vmss.model.image_version import ImageVersionRef

if TYPE_CHECKING:
    from pytest_vmss.api.lab import Lab
    from pytest_vmss.store import DefinitionRecord, VersionRecord

__all__ = ["OwnGallery", "StartImages"]


class OwnGallery(Gallery):
    """A test's view of the lab's default gallery, which knows what was published with it.

    Args:
        lab: The lab.
    """

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab.images)
        self._published: list[VersionRecord] = []
        self._defined: list[DefinitionRecord] = []

    def define(self, definition: str, **options: Any) -> DefinitionRecord:
        """See :meth:`~pytest_vmss.gallery.Gallery.define`."""
        record = super().define(definition, **options)
        self._defined.append(record)
        return record

    def publish(
        self, definition: str, version: str, path: str | Path, **options: Any
    ) -> VersionRecord:
        """See :meth:`~pytest_vmss.gallery.Gallery.publish`."""
        before = self._images.versions(self.name, check_text(definition, "definition"))
        record = super().publish(definition, version, path, **options)
        if record not in before:
            self._published.append(record)
        return record

    def delete_published(self) -> None:
        """Deletes the versions and definitions that were created with it."""
        with contextlib.ExitStack() as ends:  # each is deleted, even if another cannot be
            for definition in self._defined:
                ends.callback(_undefine, self._images, definition)
            for record in self._published:
                ends.callback(_withdraw, self._images, record)


@dataclass(frozen=True)
class _Start:
    """A version that a marker names.

    Attributes:
        record: The version.
        identity: Identifies the file that it was published from.
        is_own: Whether it was published for the marker; another was there before.
    """

    record: VersionRecord
    identity: tuple[object, ...]
    is_own: bool


class StartImages:
    """The versions that markers name, of which tests with the same ones share one publication.

    Args:
        lab: The lab.
    """

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._published: dict[tuple[str, str], dict[str, _Start]] = {}

    def publish(self, reference: ImageReference, images: Any) -> None:
        """Publishes the versions of a test, and deletes those that only earlier tests named.

        Args:
            reference: The model's reference to the image.
            images: Paths by version.

        Raises:
            ModelError: ``images`` is not such a mapping.
            ImageError: A file is not an image.
            ConflictError: A version is published already, otherwise than by a marker.
        """
        if not isinstance(images, Mapping) or not all(
            isinstance(key, str) and isinstance(path, (str, Path)) for key, path in images.items()
        ):
            expected = 'paths by version, such as {"1.0.0": "web-1.0.0.qcow2"}'
            raise ModelError(
                [ModelProblem("images", "InvalidParameter", f"must be {expected}")],
                source="the marker vmss",
                expected="valid",
            )
        image, identifier = _image(self._lab, reference)
        gallery = self._lab.gallery(image.gallery)
        known = self._published.setdefault(image.definition_key, {})
        wanted = {version: _identity(Path(path)) for version, path in images.items()}
        for version, start in list(known.items()):
            if wanted.get(version) != start.identity:
                if start.is_own:
                    _withdraw(self._lab.images, start.record)
                del known[version]
        for version, path in images.items():
            before = self._lab.images.versions(image.gallery, image.definition)
            if version not in known or known[version].record not in before:
                record = gallery.publish(image.definition, version, path, identifier=identifier)
                known[version] = _Start(record, wanted[version], record not in before)


def _withdraw(images: ImageStore, record: VersionRecord) -> None:
    """Deletes a version unless it is gone, or another was published in its place meanwhile."""
    if record in images.versions(record.gallery, record.definition):
        with contextlib.suppress(NotFoundError):  # just now
            images.delete(record.image)


def _undefine(images: ImageStore, record: DefinitionRecord) -> None:
    """Deletes a definition unless it is gone, or has versions that others published."""
    with contextlib.suppress(NotFoundError, ConflictError):
        images.delete_definition(record.gallery, record.name)


def _image(
    lab: Lab, reference: ImageReference
) -> tuple[ImageVersionRef, tuple[str, str, str] | None]:
    """The image that a model refers to; for a platform image, with what identifies it."""
    if reference.id is not None:
        return lab.images.image_of(reference), None
    named = (reference.publisher or "", reference.offer or "", reference.sku or "")
    with contextlib.suppress(NotFoundError):
        return lab.images.image_of(reference), named
    return ImageVersionRef(DEFAULT_GALLERY, f"{named[1]}-{named[2]}"), named


def _identity(path: Path) -> tuple[object, ...]:
    """Identifies a file as it is now."""
    try:
        about = path.stat()
    except (OSError, ValueError):
        return (str(path),)  # publishing it says what is wrong
    return (str(path.absolute()), about.st_ino, about.st_size, about.st_mtime_ns)
