"""The plugin's options, and the settings that they make."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pytest

if TYPE_CHECKING:
    from pytest_vmss.settings import Accelerator, ImageLimits, Settings

__all__ = ["add_options", "settings_of"]

_T = TypeVar("_T")


def _factor(text: str) -> float:
    """Parses a multiplier of timeouts."""
    from pytest_vmss.settings import check_factor

    return _checked(float, text, check_factor)


def _gib(text: str) -> int:
    """Parses a number of GiB."""
    from pytest_vmss.settings import check_gib

    return _checked(int, text, lambda value: check_gib(value, "in GiB"))


def _checked(parse: Callable[[str], _T], text: str, check: Callable[[object], None]) -> _T:
    """Parses an option's value, and checks it as the settings do.

    Raises:
        argparse.ArgumentTypeError: It is refused.
    """
    from pytest_vmss.errors import LabError

    try:
        value: _T | str = parse(text)
    except ValueError:
        value = text
    try:
        check(value)
    except LabError as error:
        raise argparse.ArgumentTypeError(error.message) from error
    return cast("_T", value)


def add_options(parser: pytest.Parser) -> None:
    """Adds the options."""
    group = parser.getgroup("vmss", "VM scale sets on QEMU")
    group.addoption(
        "--vmss-connect",
        metavar="URI",
        help="libvirt connection; chosen by user and host otherwise",
    )
    group.addoption(
        "--vmss-accel", choices=["kvm", "tcg"], help="force the accelerator; what works otherwise"
    )
    group.addoption(
        "--vmss-guest-network",
        choices=["isolated", "outbound"],
        help="what guests reach: nothing (the default), or whatever the host can",
    )
    group.addoption(
        "--vmss-timeout-factor",
        type=_factor,
        metavar="N",
        help="multiply the limits of waits for guests (1 with KVM and 10 without)",
    )
    group.addoption(
        "--vmss-set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other setting, in TOML, such as timeouts.boot=120; again for another "
        "(ini: vmss_settings; pyproject.toml: [tool.vmss])",
    )
    group.addoption(
        "--vmss-state-dir", type=Path, metavar="DIR", help="folder of all labs (VMSS_STATE_DIR)"
    )
    group.addoption(
        "--vmss-cache-dir", type=Path, metavar="DIR", help="folder of images (VMSS_CACHE_DIR)"
    )
    group.addoption(
        "--vmss-keep",
        choices=["never", "failed", "always"],
        default="never",
        help="whether VMs outlive the session: those of failed tests, or all; the summary has the "
        "commands to get in",
    )
    group.addoption(
        "--vmss-artifacts",
        metavar="DIR",
        help="folder that gets a folder for each failed test, with logs, records and timelines; "
        "`off` for none (ini: vmss_artifacts; vmss-artifacts below rootdir)",
    )
    group.addoption(
        "--vmss-no-checkpoints",
        action="store_true",
        help="boot the set of every test, rather than restore it as it was when it first booted",
    )
    group.addoption(
        "--vmss-size",
        metavar="NAME",
        help="make every set in this VM size, whatever its model says (ini: vmss_size)",
    )
    group.addoption(
        "--vmss-unknown-extensions",
        choices=["refuse", "skip"],
        help="extensions that nobody registered: refuse the model (the default), or leave them "
        "out (ini: vmss_unknown_extensions)",
    )
    group.addoption(
        "--vmss-live",
        choices=["auto", "on", "off"],
        default="auto",
        help="show what the VMs do while tests run (auto: on a terminal)",
    )
    group.addoption(
        "--vmss-max-image-gib",
        type=_gib,
        metavar="GIB",
        help="largest disk that an image may have for a guest (VMSS_MAX_IMAGE_GIB; 4095)",
    )
    group.addoption(
        "--vmss-max-image-file-gib",
        type=_gib,
        metavar="GIB",
        help="most that an image's file may hold, holes not counted (VMSS_MAX_IMAGE_FILE_GIB; 64)",
    )
    parser.addini("vmss_artifacts", "folder of failed tests' artifacts; see --vmss-artifacts")
    parser.addini("vmss_size", "a VM size for every set; see --vmss-size")
    parser.addini("vmss_unknown_extensions", "refuse or skip; see --vmss-unknown-extensions")
    parser.addini("vmss_guest_network", "isolated or outbound; see --vmss-guest-network")
    parser.addini(
        "vmss_settings",
        "settings, a line each, in TOML: timeouts.boot = 120; see --vmss-set",
        type="linelist",
        default=[],
    )
    parser.addini(
        "vmss_sizes",
        "VM sizes of your own, a line each: NAME = VCPUS, MEMORY_MIB",
        type="linelist",
        default=[],
    )


def _sizes(config: pytest.Config) -> dict[str, tuple[int, int]]:
    sizes = {}
    for line in cast("list[str]", config.getini("vmss_sizes")):
        name, _, value = line.partition("=")
        try:
            vcpus, memory = (int(part) for part in value.split(","))
        except ValueError:
            raise pytest.UsageError(
                f"vmss_sizes: {line!r} is not of the form NAME = VCPUS, MEMORY_MIB"
            ) from None
        sizes[name.strip()] = (vcpus, memory)
    return sizes


def _image_limits(config: pytest.Config, limits: ImageLimits) -> ImageLimits:
    given = {
        "virtual_gib": config.getoption("--vmss-max-image-gib"),
        "stored_gib": config.getoption("--vmss-max-image-file-gib"),
    }
    return replace(limits, **{name: value for name, value in given.items() if value is not None})


def _configured(config: pytest.Config) -> dict[str, Any]:
    """The settings of ``[tool.vmss]``, over them the ini-file's, over them ``--vmss-set``'s."""
    from pytest_vmss.configuration import configured, overlay, read_assignments, read_project

    table = read_project(config.rootpath / "pyproject.toml")
    for lines, source in (
        (config.getini("vmss_settings"), "the ini-file's vmss_settings"),
        (config.getoption("--vmss-set"), "--vmss-set"),
    ):
        table = overlay(table, read_assignments(lines, source))
    return configured(table)


def _guest_network(config: pytest.Config) -> str | None:
    wanted: str | None = config.getoption("--vmss-guest-network")
    if wanted is not None:
        return wanted
    wanted = cast("str", config.getini("vmss_guest_network")).strip()
    if wanted not in ("", "isolated", "outbound"):
        raise pytest.UsageError(
            f"vmss_guest_network is {wanted!r}; it must be isolated or outbound"
        )
    return wanted or None


def settings_of(config: pytest.Config) -> Settings:
    """The settings that the configuration asks for, as ``pytest_vmss_settings`` changes them.

    Raises:
        pytest.UsageError: One of them is wrong.
    """
    from pytest_vmss.errors import LabError
    from pytest_vmss.settings import ImageLimits, Settings

    given: dict[str, Any] = {
        "connect": config.getoption("--vmss-connect"),
        "accelerator": cast("Accelerator | None", config.getoption("--vmss-accel")),
        "timeout_factor": config.getoption("--vmss-timeout-factor"),
        "state_dir": config.getoption("--vmss-state-dir"),
        "cache_dir": config.getoption("--vmss-cache-dir"),
        "guest_network": _guest_network(config),
        "size": config.getoption("--vmss-size") or config.getini("vmss_size") or None,
        "unknown_extensions": config.getoption("--vmss-unknown-extensions")
        or config.getini("vmss_unknown_extensions")
        or None,
    }
    for name in ("state_dir", "cache_dir"):
        if given[name] is not None:
            given[name] = given[name].absolute()
    try:
        arguments = _configured(config)
        arguments.update((name, value) for name, value in given.items() if value is not None)
        arguments["sizes"] = arguments.get("sizes", {}) | _sizes(config)
        arguments["images"] = _image_limits(config, arguments.get("images") or ImageLimits())
        settings = Settings(**arguments, keep=config.getoption("--vmss-keep"))
    except LabError as error:
        raise pytest.UsageError(str(error)) from None
    changed: Settings | None = config.hook.pytest_vmss_settings(config=config, settings=settings)
    return changed or settings
