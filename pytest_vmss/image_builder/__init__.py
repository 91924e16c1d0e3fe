"""Builds bootable, self-contained cloud images from recipes (B5).

A *base* is a Debian root filesystem, built once by mmdebstrap and cached. A *version* is that
filesystem with one kernel and a few files of its own, laid out as a qcow2 disk that boots from
BIOS and UEFI; building one takes seconds.
"""

from __future__ import annotations

from pytest_vmss.image_builder.builder import BuiltImage, ImageBuilder
from pytest_vmss.image_builder.new import write_recipe
from pytest_vmss.image_builder.recipe import BaseRecipe, ImageRecipe, VersionRecipe, find_recipes

__all__ = [
    "BaseRecipe",
    "BuiltImage",
    "ImageBuilder",
    "ImageRecipe",
    "VersionRecipe",
    "find_recipes",
    "write_recipe",
]
