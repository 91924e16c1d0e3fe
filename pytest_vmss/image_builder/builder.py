"""Builds and caches images; safe for parallel runs."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pytest_vmss.errors import HostError
from pytest_vmss.host.files import PART, settle
from pytest_vmss.host.locks import Lock, try_lock, wait_for_lock
from pytest_vmss.host.ownership import told_obstacle
from pytest_vmss.host.process import require, run
from pytest_vmss.image_builder.bootstrap import HOOK, bootstrap
from pytest_vmss.image_builder.recipe import (
    BaseRecipe,
    ImageRecipe,
    digest_of,
    find_recipes,
    load_image,
)
from pytest_vmss.image_builder.scratch import scratch
from pytest_vmss.settings import Settings

__all__ = ["BuiltImage", "ImageBuilder"]

_LOCK_LIMIT = 1800.0


@dataclass(frozen=True)
class BuiltImage:
    """A built version of an image.

    Attributes:
        name: Name of the image definition.
        version: ``Major.Minor.Patch``.
        path: The qcow2 file in the cache; do not change it.
        recipe: The image definition's recipe.
    """

    name: str
    version: str
    path: Path
    recipe: ImageRecipe


class ImageBuilder:
    """Builds the versions of one image definition.

    ``ImageBuilder("images/web").build("1.0.0").path`` is a qcow2 to publish; the same recipe is
    built once on this host, whoever asks, and a second call returns it from the cache.

    Args:
        folder: The image definition's folder, e.g. ``images/web``.
        cache: Folder where root filesystems and disks are cached; that of the settings by default.
        say: Called with progress messages.

    Attributes:
        recipe: The recipe; ``recipe.versions()`` are the versions that it has.

    Raises:
        NotFoundError: There is no ``image.yaml`` in the folder.
        ImageError: It is invalid.
    """

    def __init__(
        self,
        folder: str | Path,
        cache: Path | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.recipe = load_image(Path(folder).resolve())
        self._cache = cache or Settings().cache_dir
        self._say = say

    @classmethod
    def named(
        cls, name: str, cache: Path | None = None, say: Callable[[str], None] = lambda _: None
    ) -> ImageBuilder:
        """Returns the builder of an image that ships with pytest-vmss."""
        return cls(find_recipes() / name, cache, say)

    def build(self, version: str) -> BuiltImage:
        """Builds one version, or returns it from the cache.

        Args:
            version: ``Major.Minor.Patch``, one of the recipe's.

        Raises:
            NotFoundError: There is no such recipe.
            HostError: A tool is missing, this account cannot build here, or the cache cannot be
                written.
            ToolError: A tool failed; nothing half-built is left.
        """
        recipe = self.recipe.version(version)
        base = self.recipe.base_recipe(recipe)
        digest = digest_of(base, self.recipe, recipe, extra=_own_digest())
        disk = self._cache / "disks" / f"{self.recipe.name}-{version}-{digest}.qcow2"
        if not os.path.exists(disk):  # noqa: PTH110, Path.exists raises in another user's home
            with self._lock(disk):
                if not disk.exists():
                    rootfs = self._rootfs(base)
                    self._say(f"assembling {self.recipe.name} {version}")
                    self._assemble(version, rootfs, disk)
        return BuiltImage(self.recipe.name, version, disk, self.recipe)

    def _lock(self, target: Path) -> Lock:
        """Locks one file of the cache, after waiting until it is free.

        Raises:
            ConflictError: Another run did not release it in time.
            HostError: The cache cannot be written.
        """
        path = Path(f"{target}.lock")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            lock = try_lock(path)
            if lock is None:
                self._say(f"waiting for another run that builds {target.name}")
                lock = wait_for_lock(path, what=f"builds {target}", timeout=_LOCK_LIMIT)
        except OSError as error:
            raise HostError(
                f"the cache of images cannot be written: {error}"
                f"{told_obstacle(path)}; or name another folder (VMSS_CACHE_DIR)"
            ) from error
        return lock

    def _rootfs(self, base: BaseRecipe) -> Path:
        # Only what mmdebstrap uses; the rest is applied to its result later.
        identity = base.model_dump_json(exclude={"mask", "wants", "remove"}) + HOOK
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        tar = self._cache / "rootfs" / f"{base.folder.name}-{digest}.tar"
        if tar.exists():
            return tar
        with self._lock(tar):
            if not tar.exists():
                self._say(
                    f"building the root filesystem {base.folder.name} from Debian packages "
                    "(once; about a minute)"
                )
                part = tar.with_name(f"{tar.name}{PART}")  # a fixed name, as the target is locked
                try:
                    with part.open("wb") as file:
                        bootstrap(base, self._cache, file)
                    settle(part, tar)
                finally:
                    part.unlink(missing_ok=True)
        return tar

    def _assemble(self, version: str, rootfs: Path, disk: Path) -> None:
        fakeroot = [] if os.geteuid() == 0 else ["fakeroot", "--"]
        if fakeroot:
            require("fakeroot")
        with scratch(disk.parent) as work:
            part = work.folder / "disk.qcow2"
            run(
                [*fakeroot, sys.executable, "-m", "pytest_vmss.image_builder.assemble",
                 self.recipe.folder, version, rootfs, part],
                what=f"assembling {self.recipe.name} {version}",
                timeout=600.0,
            )  # fmt: skip
            part.chmod(0o444)
            settle(part, disk)


@cache
def _own_digest() -> str:
    """Returns a digest of this package's code, since other code may build other disks."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
