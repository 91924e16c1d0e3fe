"""``python -m pytest_vmss.image_builder.assemble``: builds one version's disk from its base.

It is a separate program because it runs under fakeroot for anyone but root, so that files keep
their owners on the way into the disk.
"""

from __future__ import annotations

import _imp
import os
import shutil
import struct
import sys
import tempfile
from pathlib import Path

from pytest_vmss.errors import ImageError
from pytest_vmss.host.process import run
from pytest_vmss.image_builder.disk import ROOT_LABEL, write_disk
from pytest_vmss.image_builder.initramfs import build_initramfs
from pytest_vmss.image_builder.recipe import BaseRecipe, ImageRecipe, VersionRecipe, load_image

__all__ = ["assemble"]

# `linux` wants the kernel at its preferred address, where GRUB's own heap is: it loads it elsewhere
# and moves all that the kernel asks for, 58 MiB, byte by byte; 2 s where that is emulated. `linux16`
# loads it where it stays, and the kernel moves itself, a word at a time. Only a BIOS knows it.
_GRUB_CFG = """\
if [ "$grub_platform" = pc ]; then
    linux16 /vmlinuz root=LABEL={label} rw {cmdline}
    initrd16 /initrd.img
else
    linux /vmlinuz root=LABEL={label} rw {cmdline}
    initrd /initrd.img
fi
boot
"""

#: The header of a compiled module whose flags say that the hash of its source follows (PEP 552).
_PYC = struct.Struct("<II8s")
#: The flag that has Python look whether the source still has that hash.
_CHECKED = 2


def assemble(image: ImageRecipe, version: VersionRecipe, rootfs: Path, out: Path) -> None:
    """Builds the qcow2 file of one version.

    Args:
        image: The image definition.
        version: The version.
        rootfs: Tar of the base's root filesystem.
        out: The qcow2 file to write.

    Raises:
        ImageError: The recipe needs something that the base lacks.
        ToolError: A tool failed.
    """
    base = image.base_recipe(version)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix="assemble-") as name:
        work = Path(name)
        root = work / "root"
        root.mkdir(mode=0o755)
        run(["tar", "-C", root, "-xpf", rootfs, "--numeric-owner"], what="unpacking the base")
        _date_bytecode(root, base.timestamp)
        for recipe in (base, image, version):
            if recipe.files.is_dir():
                _overlay(recipe.files, root)
        _install_kernel(root, base, version)
        _set_units(root, base)
        (root / "boot/grub").mkdir(parents=True, exist_ok=True)
        (root / "boot/grub/grub.cfg").write_text(
            _GRUB_CFG.format(label=ROOT_LABEL, cmdline=image.cmdline)
        )
        _identify(root, image, version)
        for pattern in (*base.remove, *version.remove):
            _remove(root, pattern)
        _level(root)
        _clamp_times(root, base.timestamp)
        write_disk(root, out, size_mib=image.size_mib, timestamp=base.timestamp, work=work)


def _overlay(files: Path, root: Path) -> None:
    """Copies files over the root filesystem, following its own symbolic links."""
    for source in sorted(files.rglob("*")):
        relative = source.relative_to(files)
        # Debian's /lib, /bin and /sbin are links into /usr.
        parent = Path(os.path.realpath(root / relative.parent))
        if not parent.is_relative_to(root):  # an absolute link inside the guest
            raise ImageError(f"{relative}: its folder is a link that leaves the root filesystem")
        target = parent / relative.name
        if source.is_symlink():
            target.unlink(missing_ok=True)
            target.symlink_to(source.readlink())
        elif source.is_dir():
            if target.is_dir():
                continue  # a package's folder keeps its owner and mode
            target.mkdir(mode=0o755)
        else:
            target.unlink(missing_ok=True)
            if target.suffix == ".py":  # what is compiled of the replaced one may look current
                for compiled in target.parent.glob(f"__pycache__/{target.stem}.*.pyc"):
                    compiled.unlink()
            shutil.copyfile(source, target)
            target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)
        os.chown(target, 0, 0, follow_symlinks=False)


def _date_bytecode(root: Path, timestamp: int) -> None:
    """Lets Python trust its compiled modules by the time and size of their source, as it usually does.

    Under mmdebstrap, which sets SOURCE_DATE_EPOCH, Python's compiler writes a hash of the source
    into them instead, and a guest would read and hash each module's source whenever it is imported.
    """
    for compiled in root.glob("usr/lib/python3*/**/__pycache__/*.pyc"):
        source = compiled.parent.parent / f"{compiled.name.partition('.')[0]}.py"
        if any(path.is_symlink() for path in (compiled, compiled.parent, source)):
            continue  # it may lead out of the root
        if not source.is_file():
            continue
        status = source.stat()
        with compiled.open("r+b") as file:
            head = file.read(_PYC.size)
            if len(head) < _PYC.size:
                continue
            magic, flags, digest = _PYC.unpack(head)
            if not flags:  # PEP 552: a time and a size follow already, not a hash
                continue
            if flags & _CHECKED and digest != _imp.source_hash(magic, source.read_bytes()):
                continue  # the source was changed since, and Python is to notice that
            changed = min(int(status.st_mtime), timestamp)  # as _clamp_times leaves it
            file.seek(4)
            file.write(struct.pack("<III", 0, changed, status.st_size & 0xFFFF_FFFF))


def _install_kernel(root: Path, base: BaseRecipe, version: VersionRecipe) -> None:
    """Moves the version's kernel into place, and removes the base's other kernels."""
    if version.kernel not in base.kernels:
        raise ImageError(
            f"{version.folder}: kernel {version.kernel!r} is none of the base's: "
            f"{', '.join(base.kernels)}"
        )
    kernel = root / "kernels" / version.kernel
    (vmlinuz,) = (kernel / "boot").glob("vmlinuz-*")
    release = vmlinuz.name.removeprefix("vmlinuz-")
    (root / "usr/lib/modules").mkdir(exist_ok=True)
    (modules,) = kernel.glob(f"**/lib/modules/{release}")  # below /usr from Debian 13 on
    shutil.move(modules, root / "usr/lib/modules" / release)
    shutil.move(vmlinuz, root / "boot" / vmlinuz.name)
    shutil.rmtree(root / "kernels")
    run(["depmod", "-b", root, release], what=f"listing the modules of {release}")
    initrd = root / "boot" / f"initrd.img-{release}"
    initrd.write_bytes(build_initramfs(root, release, base.initramfs_modules))
    for name, target in (("vmlinuz", vmlinuz.name), ("initrd.img", initrd.name)):
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(f"boot/{target}")


def _set_units(root: Path, base: BaseRecipe) -> None:
    units = root / "etc/systemd/system"
    for unit in base.mask:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    wants = units / "multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    for unit in base.wants:
        (wants / unit).unlink(missing_ok=True)
        (wants / unit).symlink_to(f"/lib/systemd/system/{unit}")


def _identify(root: Path, image: ImageRecipe, version: VersionRecipe) -> None:
    """Writes the os-release fields that identify an image and its version."""
    release = root / "usr/lib/os-release"
    lines = [
        line
        for line in release.read_text().splitlines()
        if not line.startswith(("IMAGE_ID=", "IMAGE_VERSION="))
    ]
    lines += [f"IMAGE_ID={image.name}", f"IMAGE_VERSION={version.name}"]
    release.write_text("\n".join(lines) + "\n")
    (root / "etc/machine-id").write_text("")  # systemd creates one at first boot


def _remove(root: Path, pattern: str) -> None:
    for path in root.glob(pattern.lstrip("/")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _level(root: Path) -> None:
    """Removes differences that depend on the account that built the root filesystem (B5)."""
    for partial in ("var/cache/apt/archives/partial", "var/lib/apt/lists/partial"):
        if (root / partial).is_dir():
            os.chown(root / partial, 0, 0)  # apt makes its own user the owner if it can
    journal = root / "var/log/journal"
    if journal.is_dir():
        groups = (line.split(":") for line in (root / "etc/group").read_text().splitlines())
        numbers = [int(group[2]) for group in groups if group[0] == "systemd-journal"]
        os.chown(journal, 0, *numbers or [0])
        journal.chmod(0o2755)  # as systemd-tmpfiles sets it at boot
    # Python may compile the same module to different bytes.
    shutil.rmtree(root / "usr/share/python3/debpython/__pycache__", ignore_errors=True)


def _clamp_times(root: Path, timestamp: int) -> None:
    for folder, names, files in os.walk(root, topdown=False):
        for name in (*names, *files, "."):
            path = Path(folder, name)
            if path.lstat().st_mtime > timestamp:
                os.utime(path, (timestamp, timestamp), follow_symlinks=False)


def main() -> None:
    """Assembles the version given by the command line: image folder, version, tar, out."""
    os.umask(0o022)  # the guest's folders must not depend on the user's umask
    folder, name, rootfs, out = sys.argv[1:]
    image = load_image(Path(folder))
    assemble(image, image.version(name), Path(rootfs), Path(out))


if __name__ == "__main__":
    main()
