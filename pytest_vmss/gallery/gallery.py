"""A gallery, as tests and the command line use it: checks what is given, and asks the store."""

from __future__ import annotations

from pathlib import Path

from pytest_vmss.errors import ImageError
from pytest_vmss.gallery import definitions
from pytest_vmss.gallery.image_store import ImageStore
from pytest_vmss.gallery.names import check_name
from pytest_vmss.gallery.publication import NewVersion
from pytest_vmss.gallery.qcow2 import Progress
from pytest_vmss.model.arguments import check_flag, check_text
from pytest_vmss.model.image_version import ImageVersionRef
from pytest_vmss.store import DefinitionRecord, VersionRecord

__all__ = ["DEFAULT_GALLERY", "Gallery"]

DEFAULT_GALLERY = "gallery"


class Gallery:
    """A gallery, for tests to publish to and query; it is created with its first version.

    Args:
        images: The lab's image store.
        name: The gallery's name.

    Raises:
        ImageError: The name is not valid.
    """

    def __init__(self, images: ImageStore, name: str = DEFAULT_GALLERY) -> None:
        check_name("gallery", name)
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
            hyper_v_generation: ``V1`` (BIOS) or ``V2`` (UEFI) for a new image definition; an
                existing one must have it. By default a new one has V2 if its first version can
                boot by UEFI alone, else V1.
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
        new = NewVersion(
            self.name, definition, version, Path(path), raw, exclude_from_latest, properties
        )
        return self._images.publish(new, progress)

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
        check_text(version, "version")
        self._images.delete(ImageVersionRef(self.name, definition, version))

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
        return self._images.resolve(ImageVersionRef(self.name, definition)).version
