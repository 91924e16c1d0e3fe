"""Finds the host's UEFI firmware, and gives each OS disk its own variables (O5).

Firmware is described by the JSON files of QEMU's ``docs/interop/firmware.json``, as libvirt reads
them; a file of the same name in a later folder is hidden by an earlier one.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_vmss.errors import HostError
from pytest_vmss.host.files import write_durably

__all__ = ["Firmware", "create_nvram", "find_firmware"]

_FOLDERS = (Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))
_MACHINE = "pc-i440fx-1.0"
#: Guests here have neither SMM nor secure boot.
_UNWANTED = frozenset({"requires-smm", "secure-boot", "enrolled-keys", "amd-sev-es", "amd-sev-snp"})
_PACKAGE = "ovmf"


@dataclass(frozen=True)
class Firmware:
    """UEFI firmware for x86-64 in flash.

    Attributes:
        code: The program, shared by all machines and only read.
        variables: The template of a machine's variables.
    """

    code: Path
    variables: Path


def find_firmware(folders: tuple[Path, ...] = _FOLDERS) -> Firmware:
    """Finds UEFI firmware without secure boot.

    Args:
        folders: The folders of descriptions, the one that counts first.

    Raises:
        HostError: There is none; the message names the package.
    """
    for description in _descriptions(folders):
        try:
            found = _firmware(json.loads(description.read_bytes()))
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue  # a description that cannot be read says nothing of the others
        if found is not None and found.code.is_file() and found.variables.is_file():
            return found
    mend = f"apt-get install {_PACKAGE}"
    raise HostError(
        "no UEFI firmware for machines of generation 2 was found (looked for descriptions in "
        f"{' and '.join(map(str, folders))}); install it with: {mend}",
        mend=mend,
    )


def _descriptions(folders: tuple[Path, ...]) -> Iterator[Path]:
    """Yields the descriptions in the order of their names."""
    by_name: dict[str, Path] = {}
    for folder in folders:
        for path in folder.glob("*.json"):
            by_name.setdefault(path.name, path)
    for name in sorted(by_name):
        yield by_name[name]


def _firmware(description: dict[str, Any]) -> Firmware | None:
    """Returns what a description describes; None if it is no firmware for machines here."""
    mapping = description["mapping"]
    fits = (
        "uefi" in description["interface-types"]
        and mapping["device"] == "flash"
        and mapping.get("mode", "split") == "split"
        and mapping["executable"]["format"] == mapping["nvram-template"]["format"] == "raw"
        and _UNWANTED.isdisjoint(description["features"])
        and any(
            target["architecture"] == "x86_64"
            and any(fnmatch.fnmatchcase(_MACHINE, machine) for machine in target["machines"])
            for target in description["targets"]
        )
    )
    if not fits:
        return None
    return Firmware(
        Path(mapping["executable"]["filename"]), Path(mapping["nvram-template"]["filename"])
    )


def create_nvram(path: Path, firmware: Firmware) -> None:
    """Creates the variables of a new OS disk, as the firmware brings them; replaces an older file.

    Raises:
        HostError: The file cannot be written.
    """
    try:
        write_durably(path, firmware.variables.read_bytes())
    except OSError as error:
        raise HostError(f"the UEFI variables {path} cannot be written: {error.strerror}") from error
