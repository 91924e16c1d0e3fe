"""Names a version of an image of a gallery."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ImageVersionRef"]


@dataclass(frozen=True)
class ImageVersionRef:
    """Refers to an image version, or to the latest one of an image definition.

    Azure compares names in any case, so compare by :attr:`key`.

    Attributes:
        gallery: Name of the gallery.
        definition: Name of the image definition.
        version: An exact version; None for the latest.
    """

    gallery: str
    definition: str
    version: str | None = None

    def __str__(self) -> str:
        name = f"{self.gallery}/{self.definition}"
        return name if self.version is None else f"{name} {self.version}"

    @property
    def definition_key(self) -> tuple[str, str]:
        """Gallery and definition, in lower case; versions of different ones do not compare."""
        return self.gallery.lower(), self.definition.lower()

    @property
    def key(self) -> tuple[str, str, str | None]:
        """Gallery and definition, in lower case, and the version."""
        return *self.definition_key, self.version
