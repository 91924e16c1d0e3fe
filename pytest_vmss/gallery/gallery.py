"""Galleries: image definitions, their versions, and resolving ``latest``."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pytest_vmss.clock import Clock
from pytest_vmss.errors import ConflictError, HostError, ImageError, NotFoundError, VmssError
from pytest_vmss.gallery import definitions
from pytest_vmss.gallery.copy import (
    Algorithm,
    copy_file,
    digest_of,
    open_regular,
    open_source,
    refuse_stored_size,
    seen,
    shown,
)
from pytest_vmss.gallery.definitions import DefinitionProperties
from pytest_vmss.gallery.formats import ImageHead, recognize
from pytest_vmss.gallery.inspection import found_provisioning
from pytest_vmss.gallery.qcow2 import Progress, convert, inspect
from pytest_vmss.gallery.sbom import Package, read_sbom
from pytest_vmss.host.files import PART, sync_folder
from pytest_vmss.host.locks import try_lock, wait_for_lock
from pytest_vmss.model import ImageReference
from pytest_vmss.model.arguments import check_flag, check_text
from pytest_vmss.settings import ImageLimits
from pytest_vmss.store import (
    CheckpointRecord,
    DefinitionRecord,
    GenerationRecord,
    PackagesRecord,
    Store,
    VersionRecord,
)

__all__ = ["DEFAULT_GALLERY", "Gallery", "ImageAddress", "ImageStore", "version_key"]

DEFAULT_GALLERY = "gallery"

_LOCK_LIMIT_S = 10.0
#: The digest algorithm for new versions.
_ALGORITHM: Algorithm = "sha256-data"
#: Suffix of the temporary hard link by which a part is renamed.
_LINK = ".link"

# For fullmatch: `$` would also match before a trailing newline.
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,78}[A-Za-z0-9])?")
_NUMBER = r"(0|[1-9][0-9]{0,9})"
_VERSION = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}")
_IN_ID = re.compile(
    r".*/galleries/(?P<gallery>[^/\n]+)/images/(?P<definition>[^/\n]+)"
    r"(/versions/(?P<version>[^/\n]+))?/?",
    re.IGNORECASE,
)


def version_key(version: str) -> tuple[int, ...]:
    """Returns a sort key that orders versions as Azure does: by Major, Minor, Patch (B2)."""
    return tuple(int(part) for part in version.split("."))


@dataclass(frozen=True)
class ImageAddress:
    """The image that a model refers to.

    Attributes:
        gallery: Name of the gallery.
        definition: Name of the image definition.
        version: An exact version; None for the latest.
    """

    gallery: str
    definition: str
    version: str | None = None


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
        self._folder = folder.absolute()
        self._limits = limits or ImageLimits()
        self._store = store
        self._clock = clock
        self._on_publish = on_publish
        self._verified: dict[str, tuple[int, ...]] = {}
        self._lock = threading.Lock()

    def gallery(self, name: str = DEFAULT_GALLERY) -> Gallery:
        """Returns a gallery by name; it is created with its first version."""
        _check_name("gallery", name)
        return Gallery(name, self)

    def address_of(self, reference: ImageReference) -> ImageAddress:
        """Returns the image that a model's ``imageReference`` refers to.

        Raises:
            NotFoundError: There is no matching image definition.
        """
        if reference.id is not None:
            match = _IN_ID.fullmatch(reference.id)
            if match is None:
                raise NotFoundError(f"{reference.id!r} names no image of a gallery")
            return ImageAddress(match["gallery"], match["definition"], match["version"])
        wanted = (reference.publisher or "", reference.offer or "", reference.sku or "")
        folded = tuple(part.lower() for part in wanted)
        for record in self._store.select(DefinitionRecord):
            known_as = (record.publisher, record.offer, record.sku)
            if tuple(part.lower() for part in known_as) == folded:
                version = reference.version
                exact = None if version is None or version.lower() == "latest" else version
                return ImageAddress(record.gallery, record.name, exact)
        known = ", ".join(
            f"{record.publisher}:{record.offer}:{record.sku}"
            for record in self._store.select(DefinitionRecord)
        )
        raise NotFoundError(
            f"no image {':'.join(wanted)} was published; there are: {known or 'none'}",
            code="PlatformImageNotFound",
        )

    def version_for(self, reference: ImageReference) -> VersionRecord:
        """Returns the version that a model's ``imageReference`` means now.

        Raises:
            NotFoundError: There is none.
        """
        return self.resolve(self.address_of(reference))

    def resolve(self, address: ImageAddress) -> VersionRecord:
        """Returns the version that an address refers to now (B2).

        Raises:
            NotFoundError: There is none.
        """
        versions = self.versions(address.gallery, address.definition)
        if address.version is not None:
            for record in versions:
                if record.version == address.version:
                    return record
        else:
            eligible = [record for record in versions if not record.exclude_from_latest]
            if eligible:
                return eligible[-1]
        what = f"version {address.version}" if address.version else "version that can be latest"
        known = ", ".join(record.version for record in versions)
        raise NotFoundError(
            f"the image {address.definition!r} of the gallery {address.gallery!r} has no {what}; "
            + (f"there are: {known}" if known else self._hint()),
            code="GalleryImageNotFound",
        )

    def _hint(self) -> str:
        known = ", ".join(
            f"{record.gallery}/{record.name}" for record in self._store.select(DefinitionRecord)
        )
        return (
            f"publish one first (gallery.publish or `vmss image publish`); "
            f"published are: {known or 'none'}"
        )

    def versions(self, gallery: str, definition: str) -> list[VersionRecord]:
        """Returns the versions of an image definition, lowest first."""
        records = self._store.select(VersionRecord, gallery.lower(), definition.lower())
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
        _check_name("image definition", definition)
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
        path = self._folder / f"{record.digest}.qcow2"
        try:
            self._verify(record, path)
        except FileNotFoundError as error:
            raise ImageError(
                f"the file of {record.definition} {record.version} is gone: {path}; publish it again"
            ) from error
        except OSError as error:
            raise HostError(
                f"the file of {record.definition} {record.version} cannot be read: {error}"
            ) from error
        return path

    def _verify(self, record: VersionRecord, path: Path) -> None:
        with open_regular(path) as file, self._lock:
            state = seen(file)
            if self._verified.get(record.digest) != state:
                if digest_of(file, record.algorithm) != record.digest:
                    raise ImageError(
                        f"the file of {record.definition} {record.version} was changed after it "
                        f"was published: {path} no longer has the digest {record.digest}"
                    )
                self._verified[record.digest] = state

    def publish(
        self,
        gallery: str,
        definition: str,
        version: str,
        source: Path,
        *,
        raw: bool,
        exclude_from_latest: bool,
        properties: DefinitionProperties,
        progress: Progress | None = None,
    ) -> VersionRecord:
        """See :meth:`Gallery.publish`."""
        _check_name("image definition", definition)
        if not isinstance(version, str) or not _VERSION.fullmatch(version):
            raise ImageError(
                f"{version!r} is no image version; expected Major.Minor.Patch, e.g. 1.0.0"
            )
        belongs = definitions.expected(self._store, gallery, definition, properties)
        try:
            with open_source(source) as file:
                head = recognize(shown(source), file, raw=raw, limits=self._limits)
                packages = read_sbom(source)
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._sweep()
                with self._part() as part:
                    self._fill(part, file, shown(source), head, progress)
                    virtual_size = inspect(part, name=shown(source), limits=self._limits)
                    provisioning = self._provisioning(belongs, part, shown(source))
                    with open_regular(part) as whole:
                        record = VersionRecord(
                            gallery=gallery,
                            definition=definition,
                            version=version,
                            digest=digest_of(whole, _ALGORITHM),
                            algorithm=_ALGORITHM,
                            size=os.fstat(whole).st_size,
                            virtual_size=virtual_size,
                            published=self._clock.now(),
                            exclude_from_latest=exclude_from_latest,
                            hyper_v_generation=belongs.hyper_v_generation,
                            provisioning=provisioning,
                        )
                    published = self._settle(part, record, belongs, packages)
        except OSError as error:
            raise HostError(
                f"{definition} {version} cannot be stored in {self._folder}: {error}; mend "
                "that, and publish it again"
            ) from error
        if published is not None:
            return published
        self._on_publish(record)
        return record

    def delete(self, gallery: str, definition: str, version: str) -> None:
        """See :meth:`Gallery.delete`."""
        with self._store.transaction():
            record = self._store.get(VersionRecord, gallery.lower(), definition.lower(), version)
            if record is None:
                raise NotFoundError(
                    f"the image {definition!r} of the gallery {gallery!r} has no version {version}",
                    code="GalleryImageNotFound",
                )
            packages = self._store.get(PackagesRecord, *record.key)
            for entry in (record, packages):
                if entry is not None:
                    self._store.delete(entry)
            self._store.event("", "image", f"deleted {gallery}/{definition} {version}")
        with contextlib.suppress(OSError):  # otherwise the next deletion or publication does it
            self._remove_unused()

    def _remove_unused(self) -> None:
        """Removes files of deleted versions on which no OS disk or checkpoint is based any more."""
        with self._store.transaction():  # so that none is recorded meanwhile
            used = {record.digest for record in self._store.select(VersionRecord)}
            used |= {
                record.digest
                for record in self._store.select(GenerationRecord)
                if record.state != "discarded"
            }
            used |= {
                disk.digest
                for checkpoint in self._store.select(CheckpointRecord)
                for disk in checkpoint.disks
            }
            for path in self._folder.glob("*.qcow2"):
                if path.stem not in used and path.stat().st_nlink == 1:
                    path.unlink()

    @contextlib.contextmanager
    def _part(self) -> Iterator[Path]:
        """Creates a locked, empty part file in the folder, and removes it afterwards."""
        part = self._folder / f"{secrets.token_hex(8)}{PART}"
        writing = wait_for_lock(part, what=f"writes {part}", timeout=_LOCK_LIMIT_S)
        try:
            yield part
        finally:
            with contextlib.suppress(VmssError, OSError):  # otherwise the next publication does it
                self._clear(part)
            writing.release()

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
            copy_file(source, part, name=name, limits=self._limits)
            return
        if head.is_plain:
            refuse_stored_size(name, os.fstat(source).st_blocks * 512, self._limits)
            convert(source, part, head=head, name=name, limits=self._limits, progress=progress)
            return
        with self._part() as disk:  # a program interprets it, so it must be what was checked
            copy_file(source, disk, name=name, limits=self._limits)
            with open_regular(disk) as file:
                copied = recognize(name, file, limits=self._limits)
            if copied.format != head.format:
                raise ImageError(f"{name} was changed while it was read; publish it again")
            convert(disk, part, head=copied, name=name, limits=self._limits, progress=progress)

    def _provisioning(
        self, belongs: DefinitionRecord, part: Path, name: str
    ) -> Literal["NoCloud", "Azure"]:
        """How guests of a new version are provisioned; looks into it if that is to be found out."""
        if belongs.provisioning != "auto":
            return belongs.provisioning
        with self._part() as disk:
            return found_provisioning(part, disk, name=name, limits=self._limits)

    def _settle(
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
        with self._store.transaction():
            published = self._store.get(VersionRecord, *record.key)
            if published is not None and not _has_content(part, published):
                raise ConflictError(
                    f"{record.definition} {record.version} is published already, with other "
                    "content; a published version never changes: publish under a higher version",
                    code="Conflict",
                )
            # The part stays until the commit: if that fails, it identifies the file to remove.
            link = part.with_suffix(_LINK)
            os.link(part, link)
            link.replace(self._folder / f"{(published or record).digest}.qcow2")
            sync_folder(self._folder)
            if published is None:
                self._record(record, belongs)
                self._store.put(
                    PackagesRecord(
                        gallery=record.gallery,
                        definition=record.definition,
                        version=record.version,
                        packages=tuple((entry.name, entry.version) for entry in packages),
                    )
                )
        return published

    def _record(self, record: VersionRecord, belongs: DefinitionRecord) -> None:
        definitions.ensure(self._store, belongs)
        self._store.put(record)
        self._store.event(
            "",
            "image",
            f"published {record.gallery}/{record.definition} {record.version} "
            f"(digest {record.digest[:12]})",
        )

    def _sweep(self) -> None:
        """Removes leftovers of killed publications; those in progress are locked."""
        for part in self._folder.glob(f"*{PART}"):
            lock = try_lock(part)
            if lock is not None:
                with lock:
                    self._clear(part)

    def _clear(self, part: Path) -> None:
        """Removes a publication's part, and the file that it became unless that is recorded.

        Raises:
            LabError: The database cannot be read; the part stays, for the next publication to
                clear.
        """
        part.with_suffix(_LINK).unlink(missing_ok=True)
        if part.stat().st_nlink > 1:
            with self._store.transaction():  # so that it is not recorded meanwhile
                recorded = {record.digest for record in self._store.select(VersionRecord)}
                for path in self._folder.glob("*.qcow2"):
                    if path.stem not in recorded and path.samefile(part):
                        path.unlink()
        part.unlink()
        sync_folder(self._folder)


class Gallery:
    """A gallery, for tests to publish to and query."""

    def __init__(self, name: str, images: ImageStore) -> None:
        self.name = name
        self._images = images

    def publish(
        self,
        definition: str,
        version: str,
        path: str | Path,
        *,
        raw: bool = False,
        exclude_from_latest: bool = False,
        identifier: tuple[str, str, str] | None = None,
        hyper_v_generation: str | None = None,
        provisioning: str | None = None,
        progress: Progress | None = None,
    ) -> VersionRecord:
        """Publishes a disk as an immutable version; may start automatic OS upgrades to it.

        Args:
            definition: Name of the image definition; created if missing.
            version: ``Major.Minor.Patch``.
            path: A disk image: qcow2 without a backing file, VHD, VHDX or raw, which is recognized
                by its content. A qcow2 is copied, everything else converted to one.
            raw: Whether the file is a raw disk, whatever it looks like.
            exclude_from_latest: Whether ``latest`` never refers to this version.
            identifier: Publisher, offer and sku of a new image definition.
            hyper_v_generation: ``V1`` (BIOS, the default) or ``V2`` (UEFI) for a new image
                definition; an existing one must have it.
            provisioning: ``NoCloud`` (the default), ``Azure`` or ``auto`` for a new image
                definition; an existing one must have it.
            progress: Told the fraction of the conversion that is done, if there is one.

        Returns:
            The record of the version.

        Raises:
            ImageError: The file is not a valid image, or a name is none; nothing was stored (B4).
            ModelError: Another argument cannot be used; nothing was stored.
            ConflictError: The version is already published, with different content, or the image
                definition has other properties than those given.
            HostError: It cannot be stored; nothing was.
        """
        if not isinstance(path, (str, Path)):
            raise ImageError(
                f"the image's path must be a text or a Path; given a {type(path).__name__}"
            )
        check_flag(raw, "raw")
        check_flag(exclude_from_latest, "exclude_from_latest")
        properties = definitions.properties(identifier, hyper_v_generation, provisioning)
        return self._images.publish(
            self.name,
            definition,
            version,
            Path(path),
            raw=raw,
            exclude_from_latest=exclude_from_latest,
            properties=properties,
            progress=progress,
        )

    def define(
        self,
        definition: str,
        *,
        identifier: tuple[str, str, str] | None = None,
        hyper_v_generation: str | None = None,
        provisioning: str | None = None,
    ) -> DefinitionRecord:
        """Creates an image definition before its first version; replaces one without versions.

        Args:
            definition: Its name.
            identifier: Publisher, offer and sku.
            hyper_v_generation: ``V1`` (BIOS, the default) or ``V2`` (UEFI).
            provisioning: Where guests look for what they are to be: ``NoCloud`` (the default) on
                a disk, ``Azure`` on Azure's provisioning DVD and endpoints, ``auto`` as each
                version is found to when it is published.

        Returns:
            The definition.

        Raises:
            ImageError: The name is none, or the identifier is not three texts.
            ModelError: Another argument cannot be used.
            ConflictError: The definition has versions, and other properties.
        """
        return self._images.define(
            self.name,
            definition,
            definitions.properties(identifier, hyper_v_generation, provisioning),
        )

    def delete_definition(self, definition: str) -> None:
        """Deletes an image definition that has no versions.

        Raises:
            ModelError: The definition is not a text.
            NotFoundError: There is no such definition.
            ConflictError: It has versions.
        """
        self._images.delete_definition(self.name, check_text(definition, "definition"))

    def delete(self, definition: str, version: str) -> None:
        """Deletes a version: from now on it is not ``latest``, and nothing can be made from it.

        Instances that were made from it keep running, as in Azure.

        Args:
            definition: Name of the image definition.
            version: ``Major.Minor.Patch``.

        Raises:
            ModelError: The definition or the version is not a text.
            NotFoundError: There is no such version.
        """
        check_text(definition, "definition")
        self._images.delete(self.name, definition, check_text(version, "version"))

    def versions(self, definition: str) -> list[str]:
        """Returns the versions of an image definition, lowest first.

        Raises:
            ModelError: The definition is not a text.
        """
        check_text(definition, "definition")
        return [record.version for record in self._images.versions(self.name, definition)]

    def latest(self, definition: str) -> str:
        """Returns the version that ``latest`` refers to now (J5).

        Raises:
            ModelError: The definition is not a text.
            NotFoundError: There is none.
        """
        check_text(definition, "definition")
        return self._images.resolve(ImageAddress(self.name, definition)).version


def _check_name(what: str, name: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ImageError(
            f"{name!r} is no name for a {what}; expected up to 80 letters, digits, '.', '_' and "
            "'-', with a letter or digit at both ends"
        )


def _has_content(part: Path, published: VersionRecord) -> bool:
    """Whether a file has the content of a published version."""
    with open_regular(part) as file:
        return digest_of(file, published.algorithm) == published.digest
