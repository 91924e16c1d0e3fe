"""Builds a Debian root filesystem with mmdebstrap, as root or as any other account."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from pytest_vmss.errors import HostError, ToolError
from pytest_vmss.host.ownership import account_name
from pytest_vmss.host.process import require, run, search_path
from pytest_vmss.image_builder.recipe import BaseRecipe
from pytest_vmss.image_builder.scratch import Scratch, places, scratch

__all__ = ["HOOK", "Mode", "Way", "bootstrap", "choose_way"]

Mode = Literal["root", "unshare", "fakechroot"]

#: The part of building a root filesystem that is in neither its recipe nor mmdebstrap.
HOOK = """\
set -eu
# What is installed before this holds Python's compiled modules: see _mmdebstrap.
# Of the base's own package sources; without it apt would ask those of this host.
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
for meta in {kernels}; do
    mkdir -p "$1/kernels/$meta"
    cd "$1/kernels/$meta"
    package=$(apt-cache depends "$meta" | sed -n 's/^ *Depends: \\(linux-image-.*\\)/\\1/p' | head -n 1)
    apt-get -o APT::Sandbox::User=root download "${{package:-$meta}}"
    dpkg-deb -x ./*.deb .
    rm ./*.deb
    rm -r boot/System.map-* usr/share
done
"""

_BUILD_LIMIT = 1200.0
_TRIAL_LIMIT = 60.0
#: Seconds in which mmdebstrap may unmount and clean up if it is stopped.
_GRACE = 30.0
#: MiB for the shipped recipe's unpacked root filesystem, packages and kernels, doubled.
_ROOM_MIB = 1536
_SUBORDINATE_IDS = 65_536
#: Kernel settings: the value that denies accounts namespaces, and one that allows them.
_NAMESPACE_SWITCHES = {
    "kernel.unprivileged_userns_clone": ("0", "1"),
    "kernel.apparmor_restrict_unprivileged_userns": ("1", "0"),
    "user.max_user_namespaces": ("0", "65536"),
}
_TRIAL = 'cp /bin/sh "$1/trial" && "$1/trial" -c "exit 0"'


@dataclass(frozen=True)
class Way:
    """How and where this account can build a root filesystem.

    Attributes:
        mode: mmdebstrap's mode.
        place: The folder in which it is unpacked.
        reason: Why a faster mode does not work; empty if this is the fastest.
        mend: The command that would enable a faster one.
    """

    mode: Mode
    place: Path
    reason: str = ""
    mend: str = ""


def choose_way(cache: Path) -> Way:
    """Finds a mode and a place that work, by trying them on an empty root filesystem.

    mmdebstrap's own choice ignores the place: its unshare mode fails where the subordinate root
    may not enter, as in most home folders, and where nothing may be executed.

    Args:
        cache: The folder of built images.

    Raises:
        HostError: None works; the message says why, and how to fix it.
    """
    require("mmdebstrap")
    if os.geteuid() == 0:
        return Way("root", _first_place("root", cache))
    try:
        _enter_namespace()
        return Way("unshare", _first_place("unshare", cache))
    except HostError as error:
        unshare = error
    try:
        require("fakechroot")
        place = _first_place("fakechroot", cache)
    except HostError as error:
        raise HostError(
            f"this account can make no root filesystem. In mmdebstrap's unshare mode: {unshare} "
            f"In its fakechroot mode: {error}",
            mend=unshare.mend or error.mend,
        ) from error
    return Way("fakechroot", place, str(unshare), unshare.mend)


def bootstrap(base: BaseRecipe, cache: Path, tar: BinaryIO) -> None:
    """Builds a root filesystem; assembling removes the differences between the modes.

    Args:
        base: Its recipe.
        cache: The folder of built images.
        tar: The file to write it to. This process opens it, since mmdebstrap's root may not be
            allowed to.

    Raises:
        HostError: This account cannot build one here.
        ToolError: mmdebstrap failed or timed out.
    """
    way = choose_way(cache)
    excluded = ("man", "locale", "doc", "info", "lintian", "bash-completion")
    options = [
        "--variant=apt", "--format=tar",
        f"--include={','.join(base.packages)}",
        '--aptopt=Apt::Install-Recommends "false"',
        # Of other suites only what is named with them, and what that needs of them.
        f'--aptopt=APT::Default-Release "/^{re.escape(base.suite)}(-updates|-security)?$/"',
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in excluded),
        # Passed as text, since its root may not be allowed to read our files.
        f"--customize-hook={HOOK.format(kernels=' '.join(base.kernels))}",
        base.suite, "-",
        *(line.format(suite=base.suite) for line in _mirrors(base)),
    ]  # fmt: skip
    what = f"building the root filesystem {base.folder.name} in {way.mode} mode"
    try:
        with scratch(way.place) as work:
            _mmdebstrap(
                way.mode, options, work,
                what=what, timeout=_BUILD_LIMIT, tar=tar, timestamp=base.timestamp,
            )  # fmt: skip
    except ToolError as error:
        if not way.mend:
            raise
        # In this mode programs run with a library of this host, which may be too new for them.
        raise ToolError(
            f"{error.message}; mmdebstrap's unshare mode depends less on the host, and is to be "
            f"had by: {way.mend}",
            argv=error.argv,
            returncode=error.returncode,
            stderr=error.stderr,
        ) from error


def _first_place(mode: Mode, cache: Path) -> Path:
    """Returns the first place where a mode works on an empty root filesystem.

    Raises:
        HostError: There is none; the message says why for each.
    """
    refusals: list[str] = []
    for place in places(cache):
        try:
            with scratch(place) as work:
                _mmdebstrap(
                    mode,
                    # Nothing is downloaded, so the package source is never contacted.
                    ["--variant=custom", "--format=null", "--skip=update",
                     f"--customize-hook={_TRIAL}", "bookworm", "-",
                     "deb [trusted=yes] file:///nonexistent bookworm main"],
                    work,
                    what="trying it on an empty root filesystem",
                    timeout=_TRIAL_LIMIT,
                )  # fmt: skip
                free = shutil.disk_usage(work.folder).free // 1024**2
        except ToolError as error:
            refusals.append(f"{place}: {_reason(error)}")
        except HostError as error:
            refusals.append(f"{place}: {error}")
        else:
            if free >= _ROOM_MIB:
                return place
            refusals.append(f"{place}: {free} MiB are free, {_ROOM_MIB} are needed")
    raise HostError(
        f"it works in no folder; {'; '.join(refusals)}. Name a folder that it may use by TMPDIR.",
        mend="export TMPDIR=/a/folder/that/all/accounts/may/enter",
    )


def _mmdebstrap(
    mode: Mode,
    options: Sequence[str],
    work: Scratch,
    *,
    what: str,
    timeout: float,
    tar: BinaryIO | None = None,
    timestamp: int = 0,
) -> None:
    run(
        ["mmdebstrap", f"--mode={mode}", *options],
        what=what,
        timeout=timeout,
        # Nothing may point into the user's folders, which its root may not be able to enter.
        cwd=work.folder,
        env={
            "SOURCE_DATE_EPOCH": str(timestamp),
            "TMPDIR": str(work.folder),
            "HOME": str(work.folder),
            "LC_ALL": "C.UTF-8",
            "PATH": search_path(),
            # Python's settings of this process would hold for the packages' scripts as well, and
            # its compiled modules lie elsewhere (PYTHONPYCACHEPREFIX, as in a suite's run). Each
            # new guest would then compile cloud-init while it boots. Python ignores empty ones.
            **{name: "" for name in os.environ if name.startswith("PYTHON")},
        },
        stdout=tar,
        grace=_GRACE,
        pass_fds=[work.lock],
    )


def _enter_namespace() -> None:
    """Checks that this account can enter a user namespace the way mmdebstrap does.

    Raises:
        HostError: It cannot; the message says how to fix it.
    """
    try:
        run(
            ["mmdebstrap", "--unshare-helper", "true"],
            what="entering a user namespace",
            timeout=_TRIAL_LIMIT,
            cwd=Path("/"),
        )
    except ToolError as error:
        reason = _reason(error)
        mend = _mend_namespace(error.stderr)
        raise HostError(f"{reason}; an administrator mends it by: {mend}.", mend=mend) from error


def _reason(failed: ToolError) -> str:
    """Returns mmdebstrap's last error message that gives a reason."""
    told = [line[3:] for line in failed.stderr.splitlines() if line.startswith("E: ")]
    telling = [line for line in told if line != "mmdebstrap failed to run"]
    return (telling or [failed.stderr or str(failed)])[-1].strip()


def _mend_namespace(stderr: str) -> str:
    """Returns the command that would allow this account to use namespaces."""
    if "newuidmap" in stderr or "newgidmap" in stderr:
        return "apt-get install uidmap"
    if "subuid" in stderr or "subgid" in stderr:
        first = _free_ids()
        ids = f"{first}-{first + _SUBORDINATE_IDS - 1}"
        return f"usermod --add-subuids {ids} --add-subgids {ids} {account_name()}"
    for name, (forbidden, allowed) in _NAMESPACE_SWITCHES.items():
        path = Path("/proc/sys") / name.replace(".", "/")
        if path.exists() and path.read_text().strip() == forbidden:
            return f"sysctl -w {name}={allowed}"
    return "allowing user namespaces (a container forbids them unless it is told not to)"


def _free_ids() -> int:
    """Returns the first subordinate id above all that are assigned."""
    first = 100_000
    for path in (Path("/etc/subuid"), Path("/etc/subgid")):
        lines = path.read_text().splitlines() if path.exists() else []
        for line in lines:
            _, _, rest = line.partition(":")
            start, _, count = rest.partition(":")
            if start.isdigit() and count.isdigit():
                first = max(first, int(start) + int(count))
    return first


def _mirrors(base: BaseRecipe) -> list[str]:
    """Returns the base's package sources; ``VMSS_DEBIAN_MIRROR`` replaces the archive's host."""
    mirror = os.environ.get("VMSS_DEBIAN_MIRROR")
    if not mirror:
        return list(base.mirrors)
    return [line.replace("http://deb.debian.org", mirror.rstrip("/")) for line in base.mirrors]
