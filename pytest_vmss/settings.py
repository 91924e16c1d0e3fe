"""Where a lab keeps its files, and the limits of its waits."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self, cast, get_args

from platformdirs import user_cache_path, user_state_path

from pytest_vmss.errors import LabError

__all__ = [
    "GIB",
    "OUTBOUND",
    "Accelerator",
    "GuestNetwork",
    "ImageLimits",
    "Settings",
    "Timeouts",
    "default_guest_network",
]

Accelerator = Literal["kvm", "tcg"]
GuestNetwork = Literal["isolated", "outbound"]

GIB = 1024**3

#: Guests under TCG run 10 to 20 times slower than under KVM.
TCG_FACTOR = 10.0


def default_state_dir() -> Path:
    """The folder of all labs: ``VMSS_STATE_DIR``, else the user's state folder."""
    return _absolute(Path(os.environ.get("VMSS_STATE_DIR") or user_state_path("pytest-vmss")))


def default_cache_dir() -> Path:
    """The folder of built images: ``VMSS_CACHE_DIR``, else the user's cache folder."""
    return _absolute(Path(os.environ.get("VMSS_CACHE_DIR") or user_cache_path("pytest-vmss")))


def _absolute(path: Path) -> Path:
    """A path that stays the same wherever the process goes.

    Raises:
        LabError: It is relative, to a working directory that has been removed.
    """
    try:
        return path.absolute()
    except OSError as error:
        raise LabError(
            f"the folder {path} is relative to a working directory that is gone ({error}); "
            "go to another one, or give an absolute path"
        ) from error


#: Said aloud wherever guests are let out.
OUTBOUND = (
    "guests started now reach whatever this host can: its network, the outside, and every "
    "service on its own loopback, for QEMU's user network cannot leave that out"
)


def default_guest_network() -> GuestNetwork:
    """What guests may reach: ``VMSS_GUEST_NETWORK``, else isolated.

    Raises:
        LabError: The variable holds something else.
    """
    wanted = os.environ.get("VMSS_GUEST_NETWORK") or "isolated"
    if wanted not in get_args(GuestNetwork):
        raise LabError(f"VMSS_GUEST_NETWORK is {wanted!r}; it must be isolated or outbound")
    return cast("GuestNetwork", wanted)


def _from_environment(name: str, default: int) -> int:
    """A whole number above 0 from a variable.

    Raises:
        LabError: The variable holds something else.
    """
    value = os.environ.get(name) or str(default)
    if not re.fullmatch("[1-9][0-9]{0,8}", value):
        raise LabError(f"{name} is {value!r}; expected a whole number of GiB, e.g. {default}")
    return int(value)


@dataclass(frozen=True)
class ImageLimits:
    """What a published image may cost (R3).

    Attributes:
        virtual_gib: GiB of the disk that a guest sees: ``VMSS_MAX_IMAGE_GIB``, else the most that
            Azure allows an OS disk.
        stored_gib: GiB that the file takes on the disk, holes not counted:
            ``VMSS_MAX_IMAGE_FILE_GIB``, else 64.
    """

    virtual_gib: int = field(default_factory=lambda: _from_environment("VMSS_MAX_IMAGE_GIB", 4095))
    stored_gib: int = field(
        default_factory=lambda: _from_environment("VMSS_MAX_IMAGE_FILE_GIB", 64)
    )


@dataclass(frozen=True)
class Timeouts:
    """How long the lab waits for a guest, in seconds, as under KVM.

    All but ``drain``, ``health`` and ``upgrade`` are multiplied without KVM; ``health`` is Azure's
    five minutes (F6), which are ample under TCG too.

    Attributes:
        drain: For the connections of an instance to end, before it is stopped.
        stop: For a graceful stop, before the power is cut.
        boot: From start until SSH answers.
        cloud_init: From then until cloud-init has ended.
        extension: For each extension.
        health: For the application, after all that.
        instance: For everything that an operation does to one instance; a rollback has
            as much again.
        upgrade: For a whole upgrade; it ends between two batches (G4).
    """

    drain: float = 30.0
    stop: float = 12.0
    boot: float = 30.0
    cloud_init: float = 60.0
    extension: float = 90.0
    health: float = 300.0
    instance: float = 900.0
    upgrade: float = 86_400.0

    def scaled(self, factor: float) -> Self:
        """The limits for a host whose guests are slower by a factor."""
        return replace(
            self,
            stop=self.stop * min(factor, 5.0),
            boot=self.boot * factor,
            cloud_init=self.cloud_init * factor,
            extension=self.extension * factor,
            instance=self.instance * factor,
        )

    def clipped(self, seconds: float) -> Self:
        """The limits where only so much time is left in all."""
        left = max(seconds, 0.0)
        return replace(
            self,
            drain=min(self.drain, left),
            stop=min(self.stop, left),
            boot=min(self.boot, left),
            cloud_init=min(self.cloud_init, left),
            extension=min(self.extension, left),
            health=min(self.health, left),
        )


@dataclass(frozen=True)
class Settings:
    """What a lab needs to know about its host.

    Attributes:
        state_dir: Folder of all labs.
        cache_dir: Folder of built images.
        connect: libvirt connection URI; None lets the lab choose.
        accelerator: ``kvm`` or ``tcg`` to force one; None lets the lab choose.
        timeout_factor: Multiplier of the guest-side limits; None means 1 with
            KVM and 10 without.
        timeouts: The limits before the multiplier.
        sizes: VM sizes besides the built-in ones: name to (vCPUs, MiB).
        images: What a published image may cost.
        keep: Keep the VMs of a session for a look at them.
        first_rollout_delay: Seconds from the moment at which automatic OS upgrades are
            enabled to the first that may start; Azure takes up to 3 hours (C2).
        repair_grace: Seconds in place of each ``automaticRepairsPolicy.gracePeriod``, which
            Azure lets be 10 minutes at least; None for the policy's own (K1).
        degraded_is_fatal: Whether an instance fails whose cloud-init ended degraded: with
            problems that cloud-init itself got over.
        guest_network: What guests reach, from their machines' next start on. ``isolated``:
            nothing but files of the lab's, while it is logged in to them. ``outbound``:
            whatever the host can reach, its own loopback among it (M6).
        rollout_delay: Seconds from a publication to its rollout, from and to; Azure
            takes 30 to 60 minutes.
    """

    state_dir: Path = field(default_factory=default_state_dir)
    cache_dir: Path = field(default_factory=default_cache_dir)
    connect: str | None = field(default_factory=lambda: os.environ.get("VMSS_CONNECT") or None)
    accelerator: Accelerator | None = None
    timeout_factor: float | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    images: ImageLimits = field(default_factory=ImageLimits)
    keep: bool = False
    first_rollout_delay: float = 0.0
    rollout_delay: tuple[float, float] = (0.0, 0.0)
    repair_grace: float | None = None
    degraded_is_fatal: bool = False
    guest_network: GuestNetwork = field(default_factory=default_guest_network)
