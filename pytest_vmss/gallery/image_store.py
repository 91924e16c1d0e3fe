"""All galleries of a lab: their definitions and versions, and what ``latest`` means (B2)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from pytest_vmss.clock import Clock
from pytest_vmss.errors import HostError, NotFoundError
from pytest_vmss.gallery import definitions
from pytest_vmss.gallery.definitions import DefinitionProperties
from pytest_vmss.gallery.image_files import ImageFiles
from pytest_vmss.gallery.names import check_name, check_version, image_of, version_key
from pytest_vmss.gallery.publication import NewVersion, Publication
from pytest_vmss.gallery.qcow2 import Progress
from pytest_vmss.gallery.sbom import Package
from pytest_vmss.model import ImageReference
from pytest_vmss.model.image_version import ImageVersionRef
from pytest_vmss.settings import ImageLimits
from pytest_vmss.store import DefinitionRecord, PackagesRecord, Store, VersionRecord

__all__ = ["ImageStore"]


class ImageStore:
    """All galleries of a lab, and the files of their versions.

    Args:
        folder: Folder of the files.
        store: Stores the records.
        clock: The source of timestamps.
        on_publish: Called after a version was published.
        limits: The largest image that may be published.
    """

    def __init__(
        self,
        folder: Path,
        store: Store,
        clock: Clock,
        on_publish: Callable[[VersionRecord], None] = lambda _: None,
        limits: ImageLimits | None = None,
    ) -> None:
        self._files = ImageFiles(folder, store)
        self._limits = limits or ImageLimits()
        self._store = store
        self._clock = clock
        self._on_publish = on_publish

    def image_of(self, reference: ImageReference) -> ImageVersionRef:
        """Returns the image that a model's ``imageReference`` refers to.

        Raises:
            NotFoundError: There is no matching image definition.
        """
        return image_of(reference, self.definitions())

    def version_for(self, reference: ImageReference) -> VersionRecord:
        """Returns the version that a model's ``imageReference`` means now.

        Raises:
            NotFoundError: There is none.
        """
        return self.resolve(self.image_of(reference))

    def resolve(self, image: ImageVersionRef) -> VersionRecord:
        """Returns the version that is referred to now (B2).

        Raises:
            NotFoundError: There is none.
        """
        versions = self._versions(image)
        if image.version is not None:
            for record in versions:
                if record.version == image.version:
                    return record
        else:
            eligible = [record for record in versions if not record.exclude_from_latest]
            if eligible:
                return eligible[-1]
        what = f"version {image.version}" if image.version else "version that can be latest"
        known = ", ".join(record.version for record in versions)
        raise NotFoundError(
            f"the image {image.definition!r} of the gallery {image.gallery!r} has no {what}; "
            + (f"there are: {known}" if known else self._hint()),
            code="GalleryImageNotFound",
        )

    def _hint(self) -> str:
        records = self._store.select(VersionRecord)
        known = ", ".join(sorted({f"{record.gallery}/{record.definition}" for record in records}))
        return (
            f"publish one first (gallery.publish or `vmss image publish`); "
            f"published are: {known or 'none'}"
        )

    def versions(self, gallery: str, definition: str) -> list[VersionRecord]:
        """Returns the versions of an image definition, lowest first."""
        return self._versions(ImageVersionRef(gallery, definition))

    def _versions(self, image: ImageVersionRef) -> list[VersionRecord]:
        records = self._store.select(VersionRecord, *image.definition_key)
        return sorted(records, key=lambda record: version_key(record.version))

    def packages(self, record: VersionRecord) -> list[Package]:
        """Returns a version's packages by its SBOM; see :mod:`pytest_vmss.gallery.sbom`."""
        found = self._store.get(PackagesRecord, *record.key)
        named = found.packages if found is not None else ()
        return [Package(name=name, version=version) for name, version in named]

    def define(
        self, gallery: str, definition: str, properties: DefinitionProperties
    ) -> DefinitionRecord:
        """See :meth:`Gallery.define`."""
        check_name("image definition", definition)
        return definitions.create(self._store, gallery, definition, properties)

    def delete_definition(self, gallery: str, definition: str) -> None:
        """See :meth:`Gallery.delete_definition`."""
        definitions.delete(self._store, gallery, definition)

    def definition(self, gallery: str, name: str) -> DefinitionRecord:
        """Returns an image definition.

        Raises:
            NotFoundError: There is none of that name.
        """
        return definitions.get(self._store, gallery, name)

    def definitions(self) -> list[DefinitionRecord]:
        """Returns all image definitions of the lab."""
        return self._store.select(DefinitionRecord)

    def path_of(self, record: VersionRecord) -> Path:
        """Returns the version's file, after verifying its digest (B1).

        Raises:
            ImageError: The file is missing or was changed.
            HostError: It cannot be read now.
        """
        return self._files.path_of(record)

    def publish(self, new: NewVersion, progress: Progress | None = None) -> VersionRecord:
        """See :meth:`Gallery.publish`."""
        check_name("image definition", new.definition)
        check_version(new.version)
        publication = Publication(self._files, self._store, self._clock, self._limits)
        try:
            record, is_new = publication.publish(new, progress)
        except OSError as error:
            raise HostError(
                f"{new.definition} {new.version} cannot be stored in {self._files.folder}: {error}; mend "
                "that, and publish it again"
            ) from error
        if is_new:
            self._on_publish(record)
        return record

    def delete(self, image: ImageVersionRef) -> None:
        """See :meth:`Gallery.delete`."""
        with self._store.transaction():
            record = next(
                (one for one in self._versions(image) if one.version == image.version), None
            )
            if record is None:
                raise NotFoundError(
                    f"the image {image.definition!r} of the gallery {image.gallery!r} has no version "
                    f"{image.version}",
                    code="GalleryImageNotFound",
                )
            packages = self._store.get(PackagesRecord, *record.key)
            for entry in (record, packages):
                if entry is not None:
                    self._store.delete(entry)
            self._store.event("", "image", f"deleted {image}")
        with contextlib.suppress(OSError):  # otherwise the next deletion or publication does it
            self._files.remove_unused()
