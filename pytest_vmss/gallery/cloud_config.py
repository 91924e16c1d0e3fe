"""Reads what cloud-init in an image is configured to look for (O5).

What counts is, from the last word to the first: the kernel's command line, ds-identify's own
configuration, then ``cloud.cfg.d`` and ``cloud.cfg``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from pytest_vmss.gallery.file_system import ExtFileSystem
from pytest_vmss.untrusted import one_line

__all__ = ["CloudConfig", "read_cloud_config", "read_version"]

_CONFIG_BYTES = 256 * 1024
_MOST_CONFIGS = 50
_MARKER = "/etc/cloud/cloud-init.disabled"
_DS_IDENTIFY = "/etc/cloud/ds-identify.cfg"
_BOOT_CONFIGS = ("grub/grub.cfg", "grub2/grub.cfg", "grub2/grubenv", "extlinux/extlinux.conf")
_BOOT_ENTRIES = "loader/entries"
_MOST_ENTRIES = 10
#: The lines of boot loaders' configurations that hold the kernel's command line.
_KERNEL_LINE = re.compile(
    rb"^[ \t]*+(?:linux\w*|options|append|(?:set[ \t]+)?+\w*kernelopts=)(.*)", re.M | re.I
)
_DATA_SOURCE = re.compile(rb"(?<![\w.-])(?:ds|ci\.ds|ci\.datasource)=[\"']?([A-Za-z0-9]{1,40})")
_DISABLED = b"cloud-init=disabled"
_SETTING = re.compile(r"\s*(datasource|policy)\s*:\s*[\"']?([\w,=]{1,200})")
_VERSION = re.compile(
    rb"^(?:__VERSION__|_PACKAGED_VERSION|UPSTREAM_VERSION|DOWNSTREAM_VERSION) = "
    rb"[\"']([0-9][\w.+~-]{0,60})[\"']",
    re.M,
)


@dataclass(frozen=True)
class CloudConfig:
    """What cloud-init is told.

    Attributes:
        data_sources: The data sources that it may look for; empty for all that it knows.
        disabled_by: The file that switches it off; empty if none does.
        unreadable: Configurations that could not be parsed.
    """

    data_sources: tuple[str, ...] = ()
    disabled_by: str = ""
    unreadable: tuple[str, ...] = ()


def read_cloud_config(root: ExtFileSystem, boots: list[tuple[ExtFileSystem, str]]) -> CloudConfig:
    """Reads the configuration.

    Args:
        root: The file system that holds the distribution.
        boots: Where a boot loader's files may be: a file system, and the folder in it.
    """
    listed, unreadable = _listed(root)
    disabled_by = _MARKER if root.has(_MARKER) else ""
    settings = dict(_settings(root))
    if "disabled" in settings.get("policy", "").split(","):
        disabled_by = disabled_by or _DS_IDENTIFY
    chosen = settings.get("datasource", "")
    lines = list(_kernel_lines(boots))
    if lines and all(_DISABLED in line for _, line in lines):
        disabled_by = disabled_by or lines[0][0]
    if named := next((found for _, line in lines if (found := _DATA_SOURCE.findall(line))), None):
        chosen = named[-1].decode()
    return CloudConfig((chosen,) if chosen else listed, disabled_by, unreadable)


def read_version(root: ExtFileSystem) -> str:
    """Reads cloud-init's version from its own code; empty if it was not found out."""
    folders = ["/usr/lib/python3/dist-packages"]
    folders += [
        f"/usr/lib/{name}/site-packages" for name in root.names("/usr/lib") if "python3" in name
    ]
    for folder in folders:
        code = root.read(f"{folder}/cloudinit/version.py")
        if b"meson_versions" in code:  # from 26.1 on
            code = root.read(f"{folder}/cloudinit/meson_versions.py")
        if found := _VERSION.findall(code):
            return str(found[-1].decode())
    return ""


def _listed(root: ExtFileSystem) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Reads ``datasource_list``; a later file counts for an earlier one.

    Returns:
        The data sources, and the files that could not be parsed.
    """
    folder = "/etc/cloud/cloud.cfg.d"
    names = [name for name in root.names(folder) if name.endswith(".cfg")][:_MOST_CONFIGS]
    sources: tuple[str, ...] = ()
    unreadable = []
    for path in ("/etc/cloud/cloud.cfg", *(f"{folder}/{name}" for name in names)):
        content = root.read(path)
        if b"datasource_list" not in content:
            continue
        root.patience.left()  # parsing takes its time too
        try:
            sources = _datasource_list(content) or sources
        except ValueError:
            unreadable.append(path)
    return sources, tuple(unreadable)


def _datasource_list(content: bytes) -> tuple[str, ...]:
    """Returns what a configuration lists; nothing if it lists none.

    Raises:
        ValueError: It cannot be parsed.
    """
    if len(content) > _CONFIG_BYTES:
        raise ValueError("it is too long")
    try:
        # Everything is text to this loader, so that no value costs more than its bytes.
        parsed = yaml.load(content, Loader=yaml.BaseLoader)  # noqa: S506
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError("it is no YAML") from error
    if not parsed:
        return ()  # nothing but comments
    listed = parsed.get("datasource_list", ()) if isinstance(parsed, dict) else None
    if isinstance(listed, str):  # as ds-identify reads it
        listed = [] if listed.lower() in ("null", "~") else listed.replace(",", " ").split()
    # Of text only: YAML's aliases make lists that are endless once they are written out.
    if not isinstance(listed, (list, tuple)) or not all(isinstance(s, str) for s in listed):
        raise ValueError("its datasource_list is no list of names")
    return tuple(one_line(each, 40) for each in listed[:_MOST_CONFIGS])


def _settings(root: ExtFileSystem) -> Iterator[tuple[str, str]]:
    """Yields what ds-identify's configuration says; of several, the last counts."""
    told = root.read(_DS_IDENTIFY)[:_CONFIG_BYTES].decode(errors="replace")
    for line in told.splitlines():
        if found := _SETTING.match(line.partition("#")[0]):
            yield found[1], found[2]


def _kernel_lines(boots: list[tuple[ExtFileSystem, str]]) -> Iterator[tuple[str, bytes]]:
    """Yields the kernel's command lines, each with the file that it is in."""
    for place, folder in boots:
        entries = place.names(f"{folder}/{_BOOT_ENTRIES}")[:_MOST_ENTRIES]
        names = [*_BOOT_CONFIGS, *(f"{_BOOT_ENTRIES}/{name}" for name in entries)]
        for path in (f"{folder}/{name}" for name in names):
            for line in _KERNEL_LINE.findall(place.read(path)[:_CONFIG_BYTES]):
                yield path, line
