"""VM sizes: Azure's names, with vCPUs and memory (A3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["SIZES", "VmSize", "find_size"]


@dataclass(frozen=True)
class VmSize:
    """The resources that an instance gets.

    Attributes:
        name: Azure's name, e.g. ``Standard_B1s``.
        vcpus: Number of virtual CPUs.
        memory_mib: Memory in MiB.
    """

    name: str
    vcpus: int
    memory_mib: int


SIZES: Mapping[str, VmSize] = {
    size.name.lower(): size
    for size in (
        VmSize("Standard_B1ls", 1, 512),
        VmSize("Standard_B1s", 1, 1024),
        VmSize("Standard_B1ms", 1, 2048),
        VmSize("Standard_B2s", 2, 4096),
        VmSize("Standard_B2ms", 2, 8192),
        VmSize("Standard_B2ats_v2", 2, 1024),
        VmSize("Standard_B2ts_v2", 2, 1024),
        VmSize("Standard_B2als_v2", 2, 4096),
        VmSize("Standard_B2ls_v2", 2, 4096),
        VmSize("Standard_B2s_v2", 2, 8192),
        VmSize("Standard_B4ms", 4, 16384),
        VmSize("Standard_A1_v2", 1, 2048),
        VmSize("Standard_A2_v2", 2, 4096),
        VmSize("Standard_DS1_v2", 1, 3584),
        VmSize("Standard_DS2_v2", 2, 7168),
        VmSize("Standard_D2s_v3", 2, 8192),
        VmSize("Standard_D2s_v5", 2, 8192),
        VmSize("Standard_D2as_v5", 2, 8192),
        VmSize("Standard_D4s_v3", 4, 16384),
        VmSize("Standard_D4s_v5", 4, 16384),
        VmSize("Standard_F2s_v2", 2, 4096),
        VmSize("Standard_F4s_v2", 4, 8192),
        VmSize("Standard_E2s_v5", 2, 16384),
    )
}


def find_size(name: str, extra: Mapping[str, tuple[int, int]] | None = None) -> VmSize | None:
    """Finds a size by its name, ignoring case; None if there is none.

    Args:
        name: Azure's name.
        extra: The user's own sizes: name to (vCPUs, memory in MiB).
    """
    for own, (vcpus, memory) in (extra or {}).items():
        if own.lower() == name.lower():
            return VmSize(own, vcpus, memory)
    return SIZES.get(name.lower())
