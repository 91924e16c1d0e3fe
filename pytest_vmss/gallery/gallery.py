"""Galleries: image definitions, their versions, and which of them is latest."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pytest_vmss.clock import Clock
from pytest_vmss.errors import ConflictError, ImageError, NotFoundError
from pytest_vmss.gallery.qcow2 import inspect
from pytest_vmss.model import ImageReference
from pytest_vmss.process import run
from pytest_vmss.store import DefinitionRecord, Store, VersionRecord

__all__ = ["DEFAULT_GALLERY", "Gallery", "ImageAddress", "Images", "version_key"]

DEFAULT_GALLERY = "gallery"

_NAME = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,78}[A-Za-z0-9])?$")
_VERSION = re.compile(r"^(0|[1-9]\d{0,9})\.(0|[1-9]\d{0,9})\.(0|[1-9]\d{0,9})$")
_IN_ID = re.compile(
    r"/galleries/(?P<gallery>[^/]+)/images/(?P<definition>[^/]+)(/versions/(?P<version>[^/]+))?/?$",
    re.IGNORECASE,
)


def version_key(version: str) -> tuple[int, ...]:
    """Orders versions as Azure does: Major, then Minor, then Patch (B2)."""
    return tuple(int(part) for part in version.split("."))


@dataclass(frozen=True)
class ImageAddress:
    """Which image a model asks for.

    Attributes:
        gallery: Name of the gallery.
        definition: Name of the image definition.
        version: An exact version; None for the latest.
    """

    gallery: str
    definition: str
    version: str | None = None


class Images:
    """All galleries of a lab, and the files of their versions.

    Args:
        folder: Where the files are kept.
        store: Where the records are kept.
        clock: Where times come from.
        on_publish: Called after a version was published.
    """

    def __init__(
        self,
        folder: Path,
        store: Store,
        clock: Clock,
        on_publish: Callable[[VersionRecord], None] = lambda _: None,
    ) -> None:
        self._folder = folder
        self._store = store
        self._clock = clock
        self._on_publish = on_publish
        self._verified: dict[str, tuple[int, int, int]] = {}
        self._lock = threading.Lock()

    def gallery(self, name: str = DEFAULT_GALLERY) -> Gallery:
        """A gallery by name; it comes into being with its first version."""
        _check_name("gallery", name)
        return Gallery(name, self)

    def address_of(self, reference: ImageReference) -> ImageAddress:
        """Which image a model's ``imageReference`` asks for.

        Raises:
            NotFoundError: No image definition answers to it.
        """
        if reference.id is not None:
            match = _IN_ID.search(reference.id)
            if match is None:
                raise NotFoundError(f"{reference.id!r} names no image of a gallery")
            return ImageAddress(match["gallery"], match["definition"], match["version"])
        wanted = (reference.publisher, reference.offer, reference.sku)
        for record in self._store.select(DefinitionRecord):
            if (record.publisher, record.offer, record.sku) == wanted:
                version = reference.version
                exact = None if version is None or version.lower() == "latest" else version
                return ImageAddress(record.gallery, record.name, exact)
        known = ", ".join(
            f"{record.publisher}:{record.offer}:{record.sku}"
            for record in self._store.select(DefinitionRecord)
        )
        raise NotFoundError(
            f"no image {':'.join(str(part) for part in wanted)} was published; "
            f"there are: {known or 'none'}",
            code="PlatformImageNotFound",
        )

    def resolve(self, address: ImageAddress) -> VersionRecord:
        """The version that an address means now (B2).

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
        """The versions of an image definition, lowest first."""
        records = self._store.select(VersionRecord, gallery.lower(), definition.lower())
        return sorted(records, key=lambda record: version_key(record.version))

    def definitions(self) -> list[DefinitionRecord]:
        """All image definitions of the lab."""
        return self._store.select(DefinitionRecord)

    def path_of(self, record: VersionRecord) -> Path:
        """The version's file, after its digest was checked (B1).

        Raises:
            ImageError: The file is gone or was changed.
        """
        path = self._folder / f"{record.digest}.qcow2"
        try:
            status = path.stat()
        except FileNotFoundError as gone:
            raise ImageError(
                f"the file of {record.definition} {record.version} is gone: {path}; publish it again"
            ) from gone
        seen = (status.st_ino, status.st_size, status.st_mtime_ns)
        with self._lock:
            if self._verified.get(record.digest) != seen:
                if _digest(path) != record.digest:
                    raise ImageError(
                        f"the file of {record.definition} {record.version} was changed after it "
                        f"was published: {path} no longer has the digest {record.digest}"
                    )
                self._verified[record.digest] = seen
        return path

    def publish(
        self,
        gallery: str,
        definition: str,
        version: str,
        source: Path,
        *,
        raw: bool,
        exclude_from_latest: bool,
        identifier: tuple[str, str, str] | None,
    ) -> VersionRecord:
        """See :meth:`Gallery.publish`."""
        _check_name("image definition", definition)
        if not _VERSION.match(version):
            raise ImageError(
                f"{version!r} is no image version; expected Major.Minor.Patch, e.g. 1.0.0"
            )
        image = inspect(source, raw=raw)
        published = self._store.get(VersionRecord, gallery.lower(), definition.lower(), version)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = self._folder / f"{secrets.token_hex(8)}.part"
        try:
            if image.format == "raw":
                run(
                    ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", source, part],
                    what=f"converting {source}",
                    timeout=1800.0,
                )
            else:
                # Shares the blocks where the file system can.
                run(["cp", "--reflink=auto", "--", source, part], what="copying", timeout=1800.0)
            part.chmod(0o444)
            digest = _digest(part)
            if published is not None and published.digest != digest:
                raise ConflictError(
                    f"{definition} {version} is published already, with other content; a published "
                    "version never changes: publish under a higher version",
                    code="Conflict",
                )
            target = self._folder / f"{digest}.qcow2"
            _sync(part)
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        if published is not None:
            return published
        publisher, offer, sku = identifier or ("local", definition, definition)
        record = VersionRecord(
            gallery=gallery,
            definition=definition,
            version=version,
            digest=digest,
            size=target.stat().st_size,
            virtual_size=image.virtual_size,
            published=self._clock.now(),
            exclude_from_latest=exclude_from_latest,
        )
        with self._store.transaction():
            if self._store.get(DefinitionRecord, gallery.lower(), definition.lower()) is None:
                self._store.put(
                    DefinitionRecord(
                        gallery=gallery,
                        name=definition,
                        publisher=publisher,
                        offer=offer,
                        sku=sku,
                    )
                )
            self._store.put(record)
            self._store.event(
                "", "image", f"published {gallery}/{definition} {version} (sha256 {digest[:12]})"
            )
        self._on_publish(record)
        return record


class Gallery:
    """A gallery, as a test holds it in its hand."""

    def __init__(self, name: str, images: Images) -> None:
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
    ) -> VersionRecord:
        """Publishes a disk as an immutable version; sets that may, upgrade to it.

        Args:
            definition: Name of the image definition; made where there is none.
            version: ``Major.Minor.Patch``.
            path: A qcow2 without a backing file; it is copied.
            raw: The file is a raw disk.
            exclude_from_latest: ``latest`` never means this version.
            identifier: Publisher, offer and sku of a new image definition.

        Raises:
            ImageError: The file cannot be an image; nothing was stored (B4).
            ConflictError: The version is published, with other content.
        """
        return self._images.publish(
            self.name,
            definition,
            version,
            Path(path),
            raw=raw,
            exclude_from_latest=exclude_from_latest,
            identifier=identifier,
        )

    def versions(self, definition: str) -> list[str]:
        """The versions of an image definition, lowest first."""
        return [record.version for record in self._images.versions(self.name, definition)]

    def latest(self, definition: str) -> str:
        """The version that ``latest`` means now (J5).

        Raises:
            NotFoundError: There is none.
        """
        return self._images.resolve(ImageAddress(self.name, definition)).version


def _check_name(what: str, name: str) -> None:
    if not _NAME.match(name):
        raise ImageError(
            f"{name!r} is no name for a {what}; expected up to 80 letters, digits, '.', '_' and "
            "'-', with a letter or digit at both ends"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
