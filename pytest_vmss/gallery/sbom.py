"""Software bills of materials: which packages an image holds, as a CycloneDX document beside it.

The builder's disks are read after they are made, so that nothing of a disk depends on this. Any
tool's CycloneDX JSON beside another image will do (``syft -o cyclonedx-json``).
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
from pytest_vmss.untrusted import shown

__all__ = ["Package", "beside", "cyclonedx", "describe", "read_sbom"]

_ROOT_OFFSET = 8 * 1024**2
_MAX_BYTES = 16 * 1024**2


class Package(BaseModel):
    """A package of an image.

    Attributes:
        name: As its distribution has it.
        version: As its distribution has it.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    name: PlainText
    version: PlainText = ""


class _Document(BaseModel):
    """What is read of a CycloneDX document."""

    model_config = ConfigDict(hide_input_in_errors=True)

    format: str = Field(alias="bomFormat", pattern="^CycloneDX$")
    components: list[Package] = Field(default=[], max_length=50_000)


def beside(image: Path) -> Path:
    """Where an image's document is."""
    return image.with_name(f"{image.name}.cdx.json")


def describe(disk: Path) -> None:
    """Writes the document of a disk that the builder has made, unless there is one.

    Raises:
        ToolError: The disk cannot be read.
        OSError: The document cannot be written.
    """
    if not beside(disk).exists():
        document = cyclonedx(disk.name, _packages(disk))
        write_durably(beside(disk), json.dumps(document, indent=1).encode(), mode=0o644)


def read_sbom(image: Path) -> list[Package]:
    """The packages that the document beside an image names; none where there is none.

    Raises:
        ImageError: The document is none of CycloneDX, or too large.
    """
    path = beside(image)
    if not path.is_file():
        return []
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ImageError(
                f"{path} has more than {_MAX_BYTES} bytes; expected a list of packages"
            )
        found = _Document.model_validate_json(content).components
    except (OSError, ValidationError) as error:
        raise ImageError(
            f"{path} is no CycloneDX document in JSON; mend or remove it: {shown(str(error))}"
        ) from error
    return sorted(found, key=lambda package: package.name)


def cyclonedx(name: str, packages: list[Package]) -> dict[str, Any]:
    """The CycloneDX 1.5 document of an image."""
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
    """What dpkg has installed on a disk, and its kernel, which is unpacked without dpkg."""
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
    """The package's version, from the text that a bzImage names itself by."""
    offset = struct.unpack_from("<H", image, 0x20E)[0] + 0x200
    text = image[offset : offset + 256].split(b"\0")[0].decode(errors="replace")
    words = text.partition(" Debian ")[2].split()
    return words[0] if words else ""


def _debugfs(raw: Path, command: str) -> bytes:
    return run(
        ["debugfs", "-R", command, f"{raw}?offset={_ROOT_OFFSET}"],
        what="reading the packages of the disk",
    )
