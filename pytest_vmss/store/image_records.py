"""Records of a lab's galleries."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

from pytest_vmss.model.image_version import ImageVersionRef
from pytest_vmss.store.record import Record

__all__ = ["DefinitionRecord", "PackagesRecord", "VersionRecord"]


class DefinitionRecord(Record):
    """An image definition of a gallery.

    Attributes:
        provisioning: Where guests look for what they are to be: ``NoCloud``, ``Azure``, or
            ``auto``, as each version is found to.
        implicit: Whether it was created by publishing its first version, not by itself.
    """

    kind: ClassVar[str] = "definition"

    gallery: str
    name: str
    publisher: str = "local"
    offer: str
    sku: str
    os_type: Literal["Linux", "Windows"] = "Linux"
    hyper_v_generation: Literal["V1", "V2"] = "V1"
    provisioning: Literal["NoCloud", "Azure", "auto"] = "NoCloud"
    implicit: bool = True

    @property
    def key(self) -> tuple[str | int, ...]:
        """Gallery and name, in lower case."""
        return (self.gallery.lower(), self.name.lower())


class VersionRecord(Record):
    """A published version of an image definition; immutable.

    Attributes:
        digest: Digest of the stored qcow2 file, in hex; the file is named by it.
        algorithm: Algorithm of the digest: ``sha256`` of all bytes, for versions published before
            holes were skipped, or ``sha256-data``.
        size: Size of the stored file in bytes.
        virtual_size: Size of the disk that a guest sees, in bytes.
        hyper_v_generation: That of its definition.
        provisioning: That of its definition; for ``auto``, what this version was found to need.
    """

    kind: ClassVar[str] = "version"

    gallery: str
    definition: str
    version: str
    digest: str
    size: int
    virtual_size: int
    published: datetime
    exclude_from_latest: bool = False
    algorithm: Literal["sha256", "sha256-data"] = "sha256"
    hyper_v_generation: Literal["V1", "V2"] = "V1"
    provisioning: Literal["NoCloud", "Azure"] = "NoCloud"

    @property
    def image(self) -> ImageVersionRef:
        """Refers to it."""
        return ImageVersionRef(self.gallery, self.definition, self.version)

    @property
    def key(self) -> tuple[str | int, ...]:
        """Gallery, definition and version, in lower case."""
        return (self.gallery.lower(), self.definition.lower(), self.version)


class PackagesRecord(Record):
    """The packages in a published version, according to the SBOM beside it.

    Attributes:
        packages: Name and version of each.
    """

    kind: ClassVar[str] = "packages"

    gallery: str
    definition: str
    version: str
    packages: tuple[tuple[str, str], ...]

    @property
    def key(self) -> tuple[str | int, ...]:
        """Gallery, definition and version, in lower case."""
        return (self.gallery.lower(), self.definition.lower(), self.version)
