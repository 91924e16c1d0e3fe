"""Software bills of materials (SBOMs): a CycloneDX document beside an image lists its packages.

The builder's disks are read after they are built, so their content does not depend on this.
For other images any tool's CycloneDX JSON will do (``syft -o cyclonedx-json``).
"""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pytest_vmss.errors import ImageError
from pytest_vmss.host.files import write_durably
from pytest_vmss.host.process import run
from pytest_vmss.model.names import PlainText
from pytest_vmss.untrusted import read_regular, shown

__all__ = ["Package", "beside", "cyclonedx", "describe", "read_sbom"]

_ROOT_OFFSET = 8 * 1024**2
_MAX_BYTES = 16 * 1024**2


class Package(BaseModel):
    """A package in an image.

    Attributes:
        name: The distribution's name for it.
        version: The distribution's version.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    name: PlainText
    version: PlainText = ""


class _Document(BaseModel):
    """The parts of a CycloneDX document that are read."""

    model_config = ConfigDict(hide_input_in_errors=True)

    format: str = Field(alias="bomFormat", pattern="^CycloneDX$")
    components: list[Package] = Field(default=[], max_length=50_000)


def beside(image: Path) -> Path:
    """Returns the path of an image's CycloneDX document."""
    return image.with_name(f"{image.name}.cdx.json")


def describe(disk: Path) -> None:
    """Writes the CycloneDX document of a disk that the builder has built, unless it exists.

    Raises:
        ToolError: The disk cannot be read.
        OSError: The document cannot be written.
    """
    if not beside(disk).exists():
        document = cyclonedx(disk.name, _packages(disk))
        write_durably(beside(disk), json.dumps(document, indent=1).encode(), mode=0o644)


def read_sbom(image: Path) -> list[Package]:
    """Returns the packages in the document beside an image; an empty list if there is none.

    Raises:
        ImageError: It is not a CycloneDX document, or too large.
    """
    path = beside(image)
    try:
        found = _Document.model_validate_json(read_regular(path, _MAX_BYTES)).components
    except FileNotFoundError:
        return []
    except (OSError, ValidationError) as error:
        raise ImageError(
            f"{path} is no CycloneDX document in JSON; mend or remove it: {shown(str(error))}"
        ) from error
    return sorted(found, key=lambda package: package.name)


def cyclonedx(name: str, packages: list[Package]) -> dict[str, Any]:
    """Creates the CycloneDX 1.5 document of an image."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "operating-system", "name": name}},
        "components": [
            {"type": "library", "name": package.name, "version": package.version}
            for package in packages
        ],
    }


def _packages(disk: Path) -> list[Package]:
    """Lists the packages installed by dpkg on a disk, and its kernel, which is not."""
    with tempfile.TemporaryDirectory(dir=disk.parent, prefix="sbom-") as name:
        raw = Path(name) / "disk.raw"
        run(
            ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk, raw],
            what="reading the packages of the disk",
        )
        status = _debugfs(raw, "cat /var/lib/dpkg/status").decode(errors="replace")
        listed = _debugfs(raw, "ls -p /boot").decode(errors="replace")
        found = []
        for entry in status.split("\n\n"):
            fields = dict(line.split(": ", 1) for line in entry.splitlines() if ": " in line[1:])
            if fields.get("Status", "").endswith(" installed"):
                found.append(Package(name=fields["Package"], version=fields["Version"]))
        for line in listed.splitlines():
            file = line.split("/")[5] if line.count("/") > 5 else ""
            if file.startswith("vmlinuz-"):
                image = _debugfs(raw, f"cat /boot/{file}")
                found.append(
                    Package(
                        name=f"linux-image-{file.removeprefix('vmlinuz-')}",
                        version=_kernel_version(image),
                    )
                )
    return sorted(found, key=lambda package: package.name)


def _kernel_version(image: bytes) -> str:
    """Returns the package version from a bzImage's version string."""
    offset = struct.unpack_from("<H", image, 0x20E)[0] + 0x200
    text = image[offset : offset + 256].split(b"\0")[0].decode(errors="replace")
    words = text.partition(" Debian ")[2].split()
    return words[0] if words else ""


def _debugfs(raw: Path, command: str) -> bytes:
    return run(
        ["debugfs", "-R", command, f"{raw}?offset={_ROOT_OFFSET}"],
        what="reading the packages of the disk",
    )
