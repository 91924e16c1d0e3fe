"""Creates disks and cloud-init seeds as files of the host."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pycdlib

from pytest_vmss.errors import HostError
from pytest_vmss.guest_platform.provisioning import DVD_LABEL, OVF_FILE
from pytest_vmss.host.files import settle, write_durably
from pytest_vmss.host.process import run
from pytest_vmss.hypervisor.protocol import Seed

__all__ = [
    "create_data_disk",
    "create_layer",
    "create_os_disk",
    "freeze_disk",
    "write_provisioning_dvd",
    "write_seed",
]


def create_data_disk(path: Path, size_gib: int) -> None:
    """Creates an empty data disk; an existing one is never touched (A5).

    Args:
        path: The qcow2 file to create.
        size_gib: Virtual size in GiB.
    """
    if path.exists():
        return
    part = path.with_suffix(".part")
    run(
        ["qemu-img", "create", "-q", "-f", "qcow2", part, f"{size_gib}G"],
        what=f"making the data disk {path}",
    )
    part.chmod(0o600)
    settle(part, path)


def create_os_disk(path: Path, image: Path, size_gib: int | None) -> None:
    """Creates a new copy-on-write disk on an image.

    Args:
        path: The qcow2 file to create; an older one is replaced.
        image: Its backing file, a qcow2; it is only ever read.
        size_gib: Virtual size in GiB; None for the image's.
    """
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    size = [] if size_gib is None else [f"{size_gib}G"]
    run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", image, part, *size],
        what=f"making the OS disk {path}",
    )
    part.chmod(0o600)
    settle(part, path)


def freeze_disk(path: Path, frozen: Path, image: str | None) -> None:
    """Gives a disk a second, read-only name, under which it can be moved with its image.

    Only the header is changed, and only if the disk is based on an image.

    Args:
        path: The disk; no VM may be using it, and a layer must replace it.
        frozen: Its second name, a hard link.
        image: Path of its image relative to the folder of ``frozen``; None if it has none.

    Raises:
        HostError: It cannot be linked.
    """
    if not frozen.exists():
        part = frozen.with_suffix(".part")
        part.unlink(missing_ok=True)
        try:
            os.link(path, part)
        except OSError as error:
            raise HostError(f"{path} cannot be linked to {frozen}: {error.strerror}") from error
        if image is not None:
            run(
                ["qemu-img", "rebase", "-q", "-u", "-F", "qcow2", "-b", image, part],
                what=f"freezing the disk {path}",
            )
        part.chmod(0o400)
        settle(part, frozen)


def create_layer(path: Path, frozen: Path) -> None:
    """Creates a new copy-on-write disk on a frozen one; an older file is replaced."""
    create_os_disk(path, frozen, None)


def write_seed(path: Path, seed: Seed) -> None:
    """Writes the NoCloud disk: an ISO 9660 file system labelled ``cidata``.

    Args:
        path: The file to write, with mode 0600 since it contains keys and custom data.
        seed: What cloud-init reads.

    Raises:
        HostError: The file cannot be written.
    """
    files = {
        "meta-data": seed.meta_data.encode(),
        "network-config": seed.network_config.encode(),
        "vendor-data": seed.vendor_data.encode(),
        "user-data": seed.user_data,
    }
    _write_iso(path, files, label="cidata")


def write_provisioning_dvd(path: Path, ovf_env: bytes) -> None:
    """Writes Azure's provisioning DVD: ISO 9660 with UDF, and ``ovf-env.xml`` (O1).

    Args:
        path: The file to write, with mode 0600 since it contains custom data.
        ovf_env: The content of ``ovf-env.xml``.

    Raises:
        HostError: The file cannot be written.
    """
    _write_iso(path, {OVF_FILE: ovf_env}, label=DVD_LABEL, udf=True)


def _write_iso(path: Path, files: dict[str, bytes], *, label: str, udf: bool = False) -> None:
    """Writes an ISO 9660 file system.

    Raises:
        HostError: The file cannot be written.
    """
    iso = pycdlib.PyCdlib()
    iso.new(vol_ident=label, rock_ridge="1.09", joliet=3, udf="2.60" if udf else None)
    for number, (name, content) in enumerate(files.items()):
        iso.add_fp(
            io.BytesIO(content), len(content), f"/F{number}.;1",
            rr_name=name, joliet_path=f"/{name}", udf_path=f"/{name}" if udf else None,
        )  # fmt: skip
    out = io.BytesIO()
    iso.write_fp(out)
    iso.close()
    try:
        write_durably(path, out.getvalue())
    except OSError as error:
        raise HostError(f"{path} cannot be written: {error.strerror}") from error
