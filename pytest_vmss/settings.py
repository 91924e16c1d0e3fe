"""Settings of a lab: folders, timeouts, limits and the guest network."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, NoReturn, Self, cast, get_args

from platformdirs import user_cache_path, user_state_path

from pytest_vmss.errors import LabError

__all__ = [
    "GIB",
    "OUTBOUND",
    "Accelerator",
    "GuestNetwork",
    "ImageLimits",
    "Keep",
    "Settings",
    "Timeouts",
    "UnknownExtensions",
    "check_factor",
    "check_gib",
    "default_guest_network",
    "former_state_dir",
    "shown_value",
]

Accelerator = Literal["kvm", "tcg"]
GuestNetwork = Literal["isolated", "outbound"]
#: Whether a session's VMs outlive it.
Keep = Literal["never", "failed", "always"]
#: What becomes of extensions that nobody registered: an error, or they are left out.
UnknownExtensions = Literal["refuse", "skip"]

GIB = 1024**3

#: Seconds for what an instance's limit covers besides the guest: disks and the machine itself.
_DISKS_S = 600.0
#: Guests under TCG run 10 to 20 times slower than under KVM.
TCG_FACTOR = 10.0


#: The folder of root's labs: QEMU's own account may enter it, unlike root's home (R4).
_ROOTS_STATE_DIR = Path("/var/lib/pytest-vmss")


def default_state_dir() -> Path:
    """The folder of all labs: ``VMSS_STATE_DIR``, or else the user's state folder.

    Root's is ``/var/lib/pytest-vmss`` unless ``XDG_STATE_HOME`` is set.
    """
    given = os.environ.get("VMSS_STATE_DIR")
    if not given and os.geteuid() == 0 and not os.environ.get("XDG_STATE_HOME"):
        return _ROOTS_STATE_DIR
    return _absolute(Path(given or user_state_path("pytest-vmss")))


def former_state_dir(state_dir: Path) -> Path | None:
    """The folder of root's labs of earlier versions, in root's home; None if there is none.

    Args:
        state_dir: The folder of all labs.
    """
    former = user_state_path("pytest-vmss")
    is_default = os.geteuid() == 0 and state_dir == _ROOTS_STATE_DIR
    return former if is_default and former != state_dir and former.is_dir() else None


def default_cache_dir() -> Path:
    """The folder of built images: ``VMSS_CACHE_DIR``, or else the user's cache folder."""
    return _absolute(Path(os.environ.get("VMSS_CACHE_DIR") or user_cache_path("pytest-vmss")))


def _absolute(path: Path) -> Path:
    """Returns an absolute path, which a change of working directory does not affect.

    Raises:
        LabError: The path is relative, and the working directory has been removed.
    """
    try:
        return path.absolute()
    except OSError as error:
        raise LabError(
            f"the folder {path} is relative to a working directory that is gone ({error}); "
            "go to another one, or give an absolute path"
        ) from error


_LONGEST_S = 100 * 365 * 86400.0
_LARGEST_FACTOR = 1000.0
_MOST_GIB = 10**9 - 1
#: More than any host has.
_MOST_VCPUS, _MOST_MIB = 1024, 32 * 1024**2

#: The warning given whenever guests get outbound network access.
OUTBOUND = (
    "guests started now reach whatever this host can: its network, the outside, and every "
    "service on its own loopback, for QEMU's user network cannot leave that out"
)


def default_guest_network() -> GuestNetwork:
    """Returns what guests may reach: ``VMSS_GUEST_NETWORK``, or else ``isolated``.

    Raises:
        LabError: The variable has an invalid value.
    """
    wanted = os.environ.get("VMSS_GUEST_NETWORK") or "isolated"
    if wanted not in get_args(GuestNetwork):
        raise LabError(f"VMSS_GUEST_NETWORK is {wanted!r}; it must be isolated or outbound")
    return cast("GuestNetwork", wanted)


def _from_environment(name: str, default: int) -> int:
    """Reads a positive whole number from an environment variable.

    Raises:
        LabError: The variable has an invalid value.
    """
    value = os.environ.get(name) or str(default)
    if not re.fullmatch("[1-9][0-9]{0,8}", value):
        raise LabError(f"{name} is {value!r}; expected a whole number of GiB, e.g. {default}")
    return int(value)


@dataclass(frozen=True)
class ImageLimits:
    """The largest image that may be published (R3).

    Attributes:
        virtual_gib: Virtual size in GiB: ``VMSS_MAX_IMAGE_GIB``, or else the largest OS disk that
            Azure allows.
        stored_gib: Size of the file on disk in GiB, not counting holes:
            ``VMSS_MAX_IMAGE_FILE_GIB``, or else 64.
    """

    virtual_gib: int = field(default_factory=lambda: _from_environment("VMSS_MAX_IMAGE_GIB", 4095))
    stored_gib: int = field(
        default_factory=lambda: _from_environment("VMSS_MAX_IMAGE_FILE_GIB", 64)
    )


@dataclass(frozen=True)
class Timeouts:
    """Timeouts for one instance and for an upgrade, in seconds, for a host with KVM.

    They end what hangs, and are never below a budget of Azure's: extensions have the model's
    ``extensionsTimeBudget`` (PT1H30M by default), an application has its ``gracePeriod`` (H3, F6).
    What is set here may undercut them.

    Without KVM, all but ``drain``, ``health``, ``approval``, ``upgrade``, ``wait`` and ``room``
    are multiplied; ``health`` is Azure's five minutes (F6), which is ample under TCG too.

    Attributes:
        drain: For an instance's connections to close before it is stopped.
        stop: For a graceful stop before the power is cut.
        boot: From start until SSH answers.
        cloud_init: From then until cloud-init has finished.
        extension: For each extension; None for what is left of the model's budget for all.
        health: For the application to become healthy after all that.
        instance: For everything that an operation does to one instance; a rollback gets the same
            again. None for the sum of the others and of Azure's budgets.
        approval: For a Service Fabric cluster to approve an update domain; then the upgrade stops.
        upgrade: For a whole upgrade; one that times out stops between two batches (G4). None for
            no limit but those of its instances.
        wait: For ``wait_for_upgrade``, unless a call has its own.
        room: For other labs on this host to give back memory that new instances need (L4).
    """

    drain: float = 30.0
    stop: float = 12.0
    boot: float = 60.0
    cloud_init: float = 300.0
    extension: float | None = None
    health: float = 300.0
    instance: float | None = None
    approval: float = 3600.0
    upgrade: float | None = None
    wait: float = 86_400.0
    room: float = 900.0

    def scaled(self, factor: float) -> Self:
        """Returns the timeouts for a host whose guests are slower by a factor."""
        return replace(
            self,
            stop=self.stop * min(factor, 5.0),
            boot=self.boot * factor,
            cloud_init=self.cloud_init * factor,
            extension=None if self.extension is None else self.extension * factor,
            instance=None if self.instance is None else self.instance * factor,
        )

    def clipped(self, seconds: float) -> Self:
        """Returns the timeouts, none above the seconds that are left."""
        left = max(seconds, 0.0)
        return replace(
            self,
            drain=min(self.drain, left),
            stop=min(self.stop, left),
            boot=min(self.boot, left),
            cloud_init=min(self.cloud_init, left),
            extension=left if self.extension is None else min(self.extension, left),
            health=min(self.health, left),
        )

    def limit_of_instance(self, budgets: float) -> float:
        """Seconds for everything that an operation does to one instance.

        Args:
            budgets: What the model gives the instance: for extensions and as grace period.
        """
        if self.instance is not None:
            return self.instance
        # Health twice: the application's own, and the load balancer's view of it.
        steps = self.drain + self.stop + self.boot + self.cloud_init + 2 * self.health
        return steps + budgets + _DISKS_S


@dataclass(frozen=True)
class Settings:
    """Settings of a lab.

    Attributes:
        state_dir: Folder of all labs.
        cache_dir: Folder of built images.
        connect: libvirt connection URI; None lets the lab choose.
        accelerator: ``kvm`` or ``tcg`` to force one; None lets the lab choose.
        timeout_factor: Multiplier of the guest-side timeouts; None means 1 with KVM and 10 without.
        timeouts: The timeouts before the multiplier.
        sizes: VM sizes besides the built-in ones: name to (vCPUs, MiB).
        size: The name of a size for every set that is made, whatever its model says, so that a set
            of large machines can be rehearsed on a small host; None for the model's own (A3).
        unknown_extensions: What becomes of extensions that nobody registered. ``refuse``: the model
            is refused. ``skip``: they are left out, and the report says so (P4).
        images: The largest image that may be published.
        keep: Whether a session's VMs outlive it, for inspection: ``never``, ``failed``: if a test
            that had to do with them failed, or ``always``.
        checkpoints_gib: Size in GiB above which the least recently used checkpoints of booted sets
            are removed: ``VMSS_MAX_CHECKPOINTS_GIB``, or else 20.
        memory_mib: Most memory in MiB that the instances of all labs in the state directory may
            have together; None for what the host has available (L4).
        first_rollout_delay: Seconds from enabling automatic OS upgrades until the first one may
            start; Azure takes up to 3 hours (C2).
        repair_grace: Seconds that replace each ``automaticRepairsPolicy.gracePeriod``, which is at
            least 10 minutes in Azure; None keeps the policy's own (K1).
        degraded_is_fatal: Whether an instance fails if its cloud-init finishes degraded, that is,
            with problems that cloud-init itself recovered from.
        guest_network: What guests can reach, from their next start on. ``isolated``: only the lab's
            files, while it is logged in to them. ``outbound``: whatever the host can reach,
            including its own loopback (M6).
        rollout_delay: Shortest and longest time in seconds from publication to rollout; Azure takes
            30 to 60 minutes.

    Raises:
        LabError: A setting is invalid.
    """

    state_dir: Path = field(default_factory=default_state_dir)
    cache_dir: Path = field(default_factory=default_cache_dir)
    connect: str | None = field(default_factory=lambda: os.environ.get("VMSS_CONNECT") or None)
    accelerator: Accelerator | None = None
    timeout_factor: float | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    size: str | None = None
    unknown_extensions: UnknownExtensions = "refuse"
    images: ImageLimits = field(default_factory=ImageLimits)
    keep: Keep = "never"
    checkpoints_gib: int = field(
        default_factory=lambda: _from_environment("VMSS_MAX_CHECKPOINTS_GIB", 20)
    )
    memory_mib: int | None = None
    first_rollout_delay: float = 0.0
    rollout_delay: tuple[float, float] = (0.0, 0.0)
    repair_grace: float | None = None
    degraded_is_fatal: bool = False
    guest_network: GuestNetwork = field(default_factory=default_guest_network)

    def __post_init__(self) -> None:
        """Rejects values that would make a wait endless or a machine impossible."""
        self._check_choices()
        if self.timeout_factor is not None:
            check_factor(self.timeout_factor)
        _check_timeouts(self.timeouts)
        _check_flag("degraded_is_fatal", self.degraded_is_fatal)
        _check_time("first_rollout_delay", self.first_rollout_delay)
        if self.repair_grace is not None:
            _check_time("repair_grace", self.repair_grace)
        _check_range("rollout_delay", self.rollout_delay)
        limits = {f"images.{name}": limit for name, limit in vars(self.images).items()}
        for name, limit in {**limits, "checkpoints_gib": self.checkpoints_gib}.items():
            check_gib(limit, name)
        if self.memory_mib is not None and (
            not _is_whole(self.memory_mib) or not 1 <= self.memory_mib <= _MOST_MIB
        ):
            _refuse("memory_mib", f"a whole number of MiB from 1 to {_MOST_MIB}", self.memory_mib)
        for name, size in self.sizes.items():
            _check_size(name, size)

    def _check_choices(self) -> None:
        if self.accelerator is not None and self.accelerator not in get_args(Accelerator):
            _refuse("accelerator", "kvm or tcg", self.accelerator)
        if self.guest_network not in get_args(GuestNetwork):
            _refuse("guest_network", "isolated or outbound", self.guest_network)
        if self.keep not in get_args(Keep):
            _refuse("keep", "never, failed or always", self.keep)
        if self.unknown_extensions not in get_args(UnknownExtensions):
            _refuse("unknown_extensions", "refuse or skip", self.unknown_extensions)
        if self.size is not None and not isinstance(self.size, str):
            _refuse("size", "the name of a VM size", self.size)


def check_factor(factor: object, name: str = "timeout_factor") -> None:
    """Checks a multiplier of timeouts.

    Raises:
        LabError: It is not a number, or makes a wait endless.
    """
    if not _is_number(factor) or not 0 < cast("float", factor) <= _LARGEST_FACTOR:
        _refuse(name, f"a number above 0, up to {_LARGEST_FACTOR:.0f}", factor)


def check_gib(limit: object, name: str) -> None:
    """Checks a number of GiB.

    Raises:
        LabError: It is not a whole number, or not above 0.
    """
    if not _is_whole(limit) or not 1 <= cast("int", limit) <= _MOST_GIB:
        _refuse(name, f"a whole number of GiB from 1 to {_MOST_GIB}", limit)


def _refuse(name: str, expected: str, given: object) -> NoReturn:
    raise LabError(f"the setting {name} must be {expected}; given {shown_value(given)[:100]!r}")


def shown_value(value: object, written: Callable[[object], str] = str) -> str:
    """Returns what was given for a setting, for a message.

    Args:
        value: The value.
        written: Writes it: ``str`` or ``repr``.
    """
    try:
        return written(value)
    except ValueError:  # Python writes no whole number of more than some thousand digits
        return "a number of thousands of digits"


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= _LONGEST_S and math.isfinite(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_time(name: str, seconds: float) -> None:
    if not _is_number(seconds) or seconds < 0:
        _refuse(name, "a finite number of seconds, 0 or more", seconds)


def _check_timeouts(timeouts: Timeouts) -> None:
    for entry in fields(Timeouts):
        seconds = getattr(timeouts, entry.name)
        if seconds is not None or entry.default is not None:
            _check_time(f"timeouts.{entry.name}", seconds)


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        _refuse(name, "true or false", value)


def _check_range(name: str, seconds: tuple[float, float]) -> None:
    if not isinstance(seconds, (tuple, list)) or len(seconds) != 2:
        _refuse(name, "two numbers of seconds", seconds)
    for part in seconds:
        _check_time(name, part)
    if seconds[0] > seconds[1]:
        _refuse(name, "two numbers of seconds, the smaller one first", seconds)


def _check_size(name: str, size: tuple[int, int]) -> None:
    """Validates a user-defined VM size.

    Raises:
        LabError: Its name is invalid, or it asks for more than any machine has.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]{1,64}", name):
        _refuse("sizes", "named by letters, digits, '_', '.' and '-'", name)
    if not isinstance(size, (tuple, list)) or len(size) != 2 or not all(map(_is_whole, size)):
        _refuse(f"sizes.{name}", "two whole numbers: vCPUs and MiB", size)
    vcpus, memory = size
    if not 1 <= vcpus <= _MOST_VCPUS or not 1 <= memory <= _MOST_MIB:
        _refuse(f"sizes.{name}", f"up to {_MOST_VCPUS} vCPUs and {_MOST_MIB} MiB, each 1 at least",
                size)  # fmt: skip
