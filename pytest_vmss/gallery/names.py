"""Names of image definitions and versions, and what a model's ``imageReference`` refers to."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pytest_vmss.errors import ImageError, NotFoundError
from pytest_vmss.model import ImageReference
from pytest_vmss.model.image_version import ImageVersionRef
from pytest_vmss.store import DefinitionRecord

__all__ = ["check_name", "check_version", "image_of", "version_key"]

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


def image_of(reference: ImageReference, known: Sequence[DefinitionRecord]) -> ImageVersionRef:
    """Returns the image that a model's ``imageReference`` refers to.

    Args:
        reference: The reference.
        known: All image definitions of the lab.

    Raises:
        NotFoundError: There is no matching image definition.
    """
    if reference.id is not None:
        match = _IN_ID.fullmatch(reference.id)
        if match is None:
            raise NotFoundError(f"{reference.id!r} is not the id of an image in a gallery")
        return ImageVersionRef(match["gallery"], match["definition"], match["version"])
    wanted = (reference.publisher or "", reference.offer or "", reference.sku or "")
    folded = tuple(part.lower() for part in wanted)
    for record in known:
        known_as = (record.publisher, record.offer, record.sku)
        if tuple(part.lower() for part in known_as) == folded:
            version = reference.version
            exact = None if version is None or version.lower() == "latest" else version
            return ImageVersionRef(record.gallery, record.name, exact)
    there_are = ", ".join(f"{record.publisher}:{record.offer}:{record.sku}" for record in known)
    raise NotFoundError(
        f"no image {':'.join(wanted)} was published; there are: {there_are or 'none'}",
        code="PlatformImageNotFound",
    )


def check_name(what: str, name: str) -> None:
    """Validates the name of a gallery or image definition.

    Raises:
        ImageError: It is not valid.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ImageError(
            f"{name!r} is not a valid {what} name; expected up to 80 letters, digits, '.', '_' and "
            "'-', with a letter or digit at both ends"
        )


def check_version(version: str) -> None:
    """Validates the number of an image version.

    Raises:
        ImageError: It is not ``Major.Minor.Patch``.
    """
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise ImageError(
            f"{version!r} is not a valid image version; expected Major.Minor.Patch, e.g. 1.0.0"
        )
