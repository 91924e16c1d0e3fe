"""Image versions: published once, immutable, addressed by digest (B1, B2, B4)."""

from __future__ import annotations

from pytest_vmss.gallery.gallery import DEFAULT_GALLERY, Gallery
from pytest_vmss.gallery.image_store import ImageStore

__all__ = ["DEFAULT_GALLERY", "Gallery", "ImageStore"]
