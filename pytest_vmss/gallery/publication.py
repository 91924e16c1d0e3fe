"""Publishes a user's disk image as an immutable version (B1, B4, O5)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pytest_vmss.clock import Clock
from pytest_vmss.errors import ConflictError, ImageError
from pytest_vmss.gallery import definitions
from pytest_vmss.gallery.copy import (
    Algorithm,
    copy_file,
    digest_of,
    open_regular,
    open_source,
    refuse_stored_size,
    shown,
)
from pytest_vmss.gallery.definitions import DefinitionProperties
from pytest_vmss.gallery.formats import ImageHead, recognize
from pytest_vmss.gallery.image_files import ImageFiles
from pytest_vmss.gallery.inspection import boots_only_by_uefi, inspect_stored
from pytest_vmss.gallery.qcow2 import Progress, convert, inspect
from pytest_vmss.gallery.sbom import Package, read_sbom
from pytest_vmss.settings import ImageLimits
from pytest_vmss.store import DefinitionRecord, PackagesRecord, Store, VersionRecord

__all__ = ["NewVersion", "Publication"]

#: The digest algorithm for new versions.
_ALGORITHM: Algorithm = "sha256-data"


@dataclass(frozen=True)
class NewVersion:
    """A version that is to be published.

    Attributes:
        gallery: Name of the gallery.
        definition: Name of the image definition.
        version: ``Major.Minor.Patch``.
        source: The disk image.
        raw: Whether that is a raw disk, whatever it looks like.
        exclude_from_latest: Whether ``latest`` never refers to the version.
        properties: What the image definition must have.
    """

    gallery: str
    definition: str
    version: str
    source: Path
    raw: bool
    exclude_from_latest: bool
    properties: DefinitionProperties


@dataclass(frozen=True)
class Publication:
    """Publishes images to a lab's store.

    Attributes:
        files: The files of published versions.
        store: The records.
        clock: The source of timestamps.
        limits: The largest image that may be published.
    """

    files: ImageFiles
    store: Store
    clock: Clock
    limits: ImageLimits

    def publish(
        self, new: NewVersion, progress: Progress | None = None
    ) -> tuple[VersionRecord, bool]:
        """See :meth:`Gallery.publish`.

        Returns:
            The version's record, and whether it is new rather than already published.
        """
        belongs = definitions.expected(self.store, new.gallery, new.definition, new.properties)
        name = shown(new.source)
        with open_source(new.source) as file:
            head = recognize(name, file, raw=new.raw, limits=self.limits)
            packages = read_sbom(new.source)
            self.files.prepare()
            with self.files.part() as part:
                self._fill(part, file, name, head, progress)
                virtual_size = inspect(part, name=name, limits=self.limits)
                if self._may_choose_generation(belongs, new.properties):
                    belongs = self._with_generation(belongs, part, virtual_size, name)
                provisioning = self._provisioning(belongs, part, name)
                with open_regular(part) as whole:
                    record = VersionRecord(
                        gallery=new.gallery,
                        definition=new.definition,
                        version=new.version,
                        digest=digest_of(whole, _ALGORITHM),
                        algorithm=_ALGORITHM,
                        size=os.fstat(whole).st_size,
                        virtual_size=virtual_size,
                        published=self.clock.now(),
                        exclude_from_latest=new.exclude_from_latest,
                        hyper_v_generation=belongs.hyper_v_generation,
                        provisioning=provisioning,
                    )
                published = self._keep(part, record, belongs, packages)
        return (record, True) if published is None else (published, False)

    def _fill(
        self,
        part: Path,
        source: int,
        name: str,
        head: ImageHead,
        progress: Progress | None,
    ) -> None:
        """Fills a part with a qcow2 of a file's content; only the part is used from now on."""
        if head.format == "qcow2":
            copy_file(source, part, name=name, limits=self.limits)
            return
        if head.is_plain:
            refuse_stored_size(name, os.fstat(source).st_blocks * 512, self.limits)
            convert(source, part, head=head, name=name, limits=self.limits, progress=progress)
            return
        with self.files.part() as disk:  # a program interprets it, so it must be what was checked
            copy_file(source, disk, name=name, limits=self.limits)
            with open_regular(disk) as file:
                copied = recognize(name, file, limits=self.limits)
            if copied.format != head.format:
                raise ImageError(f"{name} was changed while it was read; publish it again")
            convert(disk, part, head=copied, name=name, limits=self.limits, progress=progress)

    def _may_choose_generation(
        self, belongs: DefinitionRecord, asked: DefinitionProperties
    ) -> bool:
        """Whether a definition is only now created, by a version for which nobody chose one."""
        return (
            asked.hyper_v_generation is None
            and belongs.implicit
            and not definitions.has_versions(self.store, belongs)
        )

    def _with_generation(
        self, belongs: DefinitionRecord, part: Path, size: int, name: str
    ) -> DefinitionRecord:
        """A new definition with the generation as which its first version can boot."""
        with self.files.part() as disk:
            is_uefi = boots_only_by_uefi(part, disk, size=size, name=name)
        return belongs.model_copy(update={"hyper_v_generation": "V2" if is_uefi else "V1"})

    def _provisioning(
        self, belongs: DefinitionRecord, part: Path, name: str
    ) -> Literal["NoCloud", "Azure"]:
        """How guests of a new version are provisioned; looks into it if that is to be found out."""
        if belongs.provisioning != "auto":
            return belongs.provisioning
        with self.files.part() as disk:
            found = inspect_stored(part, disk, name=name, limits=self.limits)
        if found.contents is None:
            self.store.event(
                "",
                "warning",
                f"provisioning auto: what {name} looks for cannot be read, so it is taken for "
                "NoCloud; if it looks for Azure, publish it to a definition of provisioning Azure",
            )
        return found.provisioning

    def _keep(
        self,
        part: Path,
        record: VersionRecord,
        belongs: DefinitionRecord,
        packages: list[Package],
    ) -> VersionRecord | None:
        """Renames a finished file and records it, in one transaction across all processes.

        Returns:
            The existing record, if the version was already published with the same content.

        Raises:
            ConflictError: It was already published with different content, or its definition was
                changed meanwhile.
        """
        with self.store.transaction():
            published = self.store.get(VersionRecord, *record.key)
            if published is not None and not _has_content(part, published):
                raise ConflictError(
                    f"{record.definition} {record.version} is published already, with other "
                    "content; a published version never changes: publish under a higher version",
                    code="Conflict",
                )
            self.files.keep(part, (published or record).digest)
            if published is None:
                self._record(record, belongs)
                self.store.put(
                    PackagesRecord(
                        gallery=record.gallery,
                        definition=record.definition,
                        version=record.version,
                        packages=tuple((entry.name, entry.version) for entry in packages),
                    )
                )
        return published

    def _record(self, record: VersionRecord, belongs: DefinitionRecord) -> None:
        definitions.ensure(self.store, belongs)
        self.store.put(record)
        self.store.event(
            "",
            "image",
            f"published {record.image} (digest {record.digest[:12]})",
        )


def _has_content(part: Path, published: VersionRecord) -> bool:
    """Whether a file has the content of a published version."""
    with open_regular(part) as file:
        return digest_of(file, published.algorithm) == published.digest
