"""Loads image recipes from a folder such as ``images/``.

``<base>/base.yaml`` describes a root filesystem, ``<image>/image.yaml`` an image definition,
``<image>/<Major.Minor.Patch>/version.yaml`` one version. A ``files/`` folder beside any of
them is copied over the root filesystem.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import stat
from pathlib import Path
from typing import Annotated, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from pytest_vmss.errors import ImageError, NotFoundError
from pytest_vmss.host.shipped import shipped

__all__ = ["BaseRecipe", "ImageRecipe", "VersionRecipe", "find_recipes"]

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}"
Name = Annotated[str, StringConstraints(pattern=f"^{_NAME}$")]
Package = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
Unit = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9@_.:\\-]+$")]
#: A package, or ``package/suite``.
Selected = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9+.-]+(/[a-z][a-z0-9-]*)?$")]
GuestPath = Annotated[str, StringConstraints(pattern=r"^/[A-Za-z0-9@%+=:,./_*\[\]-]+$")]

_VERSION = re.compile(r"^\d+\.\d+\.\d+$")


class _Recipe(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=True, hide_input_in_errors=True
    )

    folder: Path = Field(exclude=True)

    @property
    def files(self) -> Path:
        """The folder of files that are copied over the root filesystem."""
        return self.folder / "files"


class BaseRecipe(_Recipe):
    """The recipe of a root filesystem.

    Attributes:
        suite: Debian release, e.g. ``bookworm``.
        mirrors: ``apt`` source lines; ``{suite}`` is replaced.
        packages: Packages that mmdebstrap installs; ``name/suite`` takes one from another suite
            of the mirrors, everything else comes from ``suite``.
        kernels: Kernel metapackages; each version of an image uses one.
        initramfs_modules: Modules needed to find the root disk, in any order.
        mask: systemd units to mask, which the lab's guests do not need.
        wants: systemd units started by ``multi-user.target`` besides the packages' own.
        remove: Paths (globs) deleted from the finished filesystem.
        timestamp: Latest time of any file, in seconds since 1970; later ones are set to it.
    """

    suite: Name
    mirrors: tuple[str, ...]
    packages: tuple[Selected, ...]
    kernels: tuple[Package, ...]
    initramfs_modules: tuple[Name, ...]
    mask: tuple[Unit, ...] = ()
    wants: tuple[Unit, ...] = ()
    remove: tuple[GuestPath, ...] = ()
    timestamp: int = 1_700_000_000


class ImageRecipe(_Recipe):
    """The recipe of an image definition, in Azure's terms.

    Attributes:
        publisher: Azure's identifier, with ``offer`` and ``sku``.
        base: Folder of the :class:`BaseRecipe`, beside the image's or shipped with pytest-vmss;
            a version may name another.
        size_mib: Virtual size of the OS disk in MiB.
        cmdline: Kernel command line besides ``root=``.
    """

    publisher: Name
    offer: Name
    sku: Name
    base: Name
    size_mib: int = Field(default=1024, ge=512, le=65536)
    cmdline: str = ""

    @property
    def name(self) -> str:
        """Name of the image definition, which is its folder's."""
        return self.folder.name

    def versions(self) -> list[str]:
        """Returns the versions that have a recipe, lowest first."""
        found = [
            entry.name
            for entry in self.folder.iterdir()
            if _VERSION.match(entry.name) and (entry / "version.yaml").is_file()
        ]
        return sorted(found, key=lambda version: tuple(int(part) for part in version.split(".")))

    def version(self, version: str) -> VersionRecipe:
        """Loads one version's recipe.

        Raises:
            NotFoundError: There is none.
        """
        folder = self.folder / version
        if version not in self.versions():
            raise NotFoundError(
                f"no recipe for {self.name} {version} under {self.folder}; "
                f"there are: {', '.join(self.versions()) or 'none'}"
            )
        return _load(VersionRecipe, folder, "version.yaml")

    def base_recipe(self, version: VersionRecipe | None = None) -> BaseRecipe:
        """Loads the recipe of the root filesystem: one beside the image's, or a shipped one.

        Args:
            version: The version whose base is wanted; the image's own by default.

        Raises:
            NotFoundError: There is none of that name.
            ImageError: It is invalid.
        """
        base = (version and version.base) or self.base
        places = (self.folder.parent, find_recipes())
        for place in places:
            if (place / base / "base.yaml").is_file():
                return _load(BaseRecipe, place / base, "base.yaml")
        looked = " nor ".join(str(place / base / "base.yaml") for place in places)
        raise NotFoundError(
            f"no recipe of the base {base!r} of the image {self.name}: there is neither {looked}"
        )


class VersionRecipe(_Recipe):
    """The recipe of one version of an image.

    Attributes:
        kernel: Kernel metapackage, one of the base's.
        base: Folder of its :class:`BaseRecipe`, such as that of the next release; the image's
            own by default.
        remove: Paths (globs) deleted from the finished filesystem.
        description: What this version is for.
    """

    kernel: Package
    base: Name | None = None
    remove: tuple[GuestPath, ...] = ()
    description: str = ""

    @property
    def name(self) -> str:
        """The version, ``Major.Minor.Patch``."""
        return self.folder.name


_R = TypeVar("_R", bound=_Recipe)


def _load(kind: type[_R], folder: Path, filename: str) -> _R:
    path = folder / filename
    try:
        data = yaml.safe_load(path.read_text()) or {}
        return kind.model_validate({**data, "folder": folder})
    except FileNotFoundError as error:
        raise NotFoundError(f"no recipe at {path}") from error
    except ValidationError as error:
        told = "; ".join(_problem(kind, entry["loc"], entry["msg"]) for entry in error.errors())
        raise ImageError(f"the recipe {path} is not valid: {told}") from None
    except (yaml.YAMLError, TypeError) as error:
        raise ImageError(f"the recipe {path} is not valid: {error}") from error


def _problem(kind: type[_Recipe], location: tuple[int | str, ...], message: str) -> str:
    """Says what is wrong with a key, and which one was probably meant."""
    key = ".".join(map(str, location))
    if key in kind.model_fields:
        return f"{key}: {message[:1].lower()}{message[1:]}"
    names = [name for name in kind.model_fields if name != "folder"]
    near = difflib.get_close_matches(key, names, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(names)}"
    return f"{key}: {message[:1].lower()}{message[1:]}; {hint}"


def is_recipe_name(name: str) -> bool:
    """Whether an image definition or base may have this name."""
    return re.fullmatch(_NAME, name) is not None


def find_recipes() -> Path:
    """Returns the folder of the recipes that ship with pytest-vmss.

    In a checkout that is ``images/``; an installed package contains a copy.

    Raises:
        NotFoundError: The installation is incomplete.
    """
    return shipped("images")


def load_image(folder: Path) -> ImageRecipe:
    """Loads the recipe of an image definition.

    Raises:
        NotFoundError: There is no ``image.yaml`` in the folder.
        ImageError: It is invalid.
    """
    return _load(ImageRecipe, folder, "image.yaml")


def digest_of(*recipes: _Recipe, extra: str = "") -> str:
    """Computes a digest of recipes and their files (16 hex digits)."""
    state = hashlib.sha256(extra.encode())
    for recipe in recipes:
        state.update(recipe.model_dump_json().encode())
        for path in sorted(recipe.files.rglob("*")):
            name = str(path.relative_to(recipe.files))
            mode = path.lstat().st_mode
            # An image gets only this permission bit; the others depend on the umask.
            kind = stat.S_IFMT(mode) | (mode & stat.S_IXUSR if stat.S_ISREG(mode) else 0)
            state.update(f"\0{name}\0{kind:o}\0".encode())
            if path.is_symlink():
                state.update(str(path.readlink()).encode())
            elif path.is_file():
                state.update(path.read_bytes())
    return state.hexdigest()[:16]
