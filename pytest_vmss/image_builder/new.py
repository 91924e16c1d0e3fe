"""Writes a commented recipe to begin with: ``vmss image new``."""

from __future__ import annotations

from pathlib import Path

from pytest_vmss.errors import ConflictError, ImageError
from pytest_vmss.image_builder.recipe import find_recipes, is_recipe_name

__all__ = ["write_recipe"]

_IMAGE = """\
# The image definition {name}. All keys: `vmss help recipe keys`.

# Azure's identifiers, which a model's imageReference may name.
publisher: Own
offer: {name}
sku: {base}

# The root filesystem: the folder of a base.yaml, beside this folder or shipped with pytest-vmss.
# The shipped one has nginx, Redis and Python. For packages of your own copy its folder, files/ included:
#     cp -r {shipped} {recipes}/own-base
# add to `packages` in own-base/base.yaml, and write `base: own-base` here.
base: {base}

# Virtual size of the OS disk in MiB.
size_mib: 1024

# The kernel's command line, besides root=. What is shown on ttyS0 is the instance's console.
# norandmaps and init_on_alloc=0 save a sixth of a boot where there is no KVM.
cmdline: console=ttyS0,115200 loglevel=4 net.ifnames=0 nomodeset no_timer_check norandmaps init_on_alloc=0

# files/ beside this file is copied over the root filesystem of every version:
# files/etc/motd becomes /etc/motd. Executables stay executable, symbolic links stay links. A service
# of yours is files/etc/systemd/system/NAME.service, and a link that starts it at boot:
#     mkdir -p files/etc/systemd/system/multi-user.target.wants
#     ln -s ../NAME.service files/etc/systemd/system/multi-user.target.wants/
"""

_VERSION = """\
# The version {version} of {name}. For the next one copy this folder: cp -r {version} 1.1.0

# One of the base's kernels.
kernel: {kernel}

# What this version is for.
description: "The first version."

# Paths (globs) that are deleted from the finished filesystem.
# remove: [/usr/share/doc/*]

# The root filesystem, if it is another than the image's, such as that of the next release.
# base: own-base

# files/ beside this file is copied last, over those of the image.
"""

_MOTD = "This is {name}. Its version is in /etc/os-release.\n"
_FIRST, _BASE, _KERNEL = "1.0.0", "debian-12", "linux-image-cloud-amd64"


def write_recipe(name: str, recipes: Path) -> Path:
    """Writes the commented recipe of a new image definition with one version.

    Args:
        name: The image definition's name.
        recipes: The folder of recipes; made if there is none.

    Returns:
        The image definition's folder.

    Raises:
        ImageError: The name is not valid, or the folder cannot be written.
        ConflictError: There is something of that name already; nothing was changed.
    """
    if not is_recipe_name(name):
        raise ImageError(
            f"{name!r} cannot name an image; use up to 80 letters, digits, '.', '_' and '-', the "
            "first of them a letter or digit"
        )
    folder = recipes / name
    values = {
        "name": name, "version": _FIRST, "base": _BASE, "kernel": _KERNEL,
        "shipped": find_recipes() / _BASE, "recipes": recipes,
    }  # fmt: skip
    try:
        folder.mkdir(parents=True)
        for path, text in (
            (folder / "image.yaml", _IMAGE),
            (folder / _FIRST / "version.yaml", _VERSION),
            (folder / _FIRST / "files/etc/motd", _MOTD),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.format_map(values))
    except FileExistsError as error:
        raise ConflictError(
            f"there is {folder} already; take another name, or remove it"
        ) from error
    except OSError as error:
        raise ImageError(f"the recipe cannot be written: {error}; name another folder") from error
    return folder
