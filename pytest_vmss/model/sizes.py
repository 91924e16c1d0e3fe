"""VM sizes: Azure's names, with vCPUs and memory (A3)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

__all__ = ["SIZES", "VmSize", "find_size", "nearest_sizes"]


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


#: Sizes whose memory grows with their vCPUs: names with # for the number of vCPUs, GiB for each of
#: them, and the numbers that exist.
_REGULAR: tuple[tuple[str, float, str], ...] = (
    ("A#_v2", 2, "1 2 4 8"),
    ("A#m_v2", 8, "2 4 8"),
    ("B#ms", 4, "2 4 8 12 16 20"),
    ("B#s_v2 B#as_v2 B#ps_v2", 4, "2 4 8 16 32"),
    ("B#ls_v2 B#als_v2 B#pls_v2", 2, "2 4 8 16 32"),
    ("B#ts_v2 B#ats_v2 B#pts_v2", 0.5, "2"),
    ("D#_v3 D#s_v3", 4, "2 4 8 16 32 48 64"),
    ("D#_v4 D#s_v4 D#d_v4 D#ds_v4", 4, "2 4 8 16 32 48 64"),
    ("D#a_v4 D#as_v4", 4, "2 4 8 16 32 48 64 96"),
    ("D#_v5 D#s_v5 D#d_v5 D#ds_v5 D#as_v5 D#ads_v5", 4, "2 4 8 16 32 48 64 96"),
    ("D#ls_v5 D#lds_v5", 2, "2 4 8 16 32 48 64 96"),
    ("D#ps_v5 D#pds_v5", 4, "2 4 8 16 32 48 64"),
    ("D#pls_v5 D#plds_v5", 2, "2 4 8 16 32 48 64"),
    ("D#s_v6 D#ds_v6", 4, "2 4 8 16 32 48 64 96 128 192"),
    ("D#ls_v6 D#lds_v6", 2, "2 4 8 16 32 48 64 96 128"),
    ("D#as_v6 D#ads_v6 D#ps_v6 D#pds_v6", 4, "2 4 8 16 32 48 64 96"),
    ("D#als_v6 D#alds_v6 D#pls_v6 D#plds_v6", 2, "2 4 8 16 32 48 64 96"),
    ("D#as_v7 D#ads_v7", 4, "2 4 8 16 32 48 64 96 128 160"),
    ("D#als_v7 D#alds_v7", 2, "2 4 8 16 32 48 64 96 128 160"),
    ("DC#s", 4, "2 4"),
    ("DC#s_v2", 4, "1 2 4"),
    ("DC#_v2", 4, "8"),
    ("DC#s_v3 DC#ds_v3", 8, "1 2 4 8 16 24 32 48"),
    ("DC#as_v5 DC#ads_v5 DC#es_v5 DC#eds_v5 DC#as_cc_v5", 4, "2 4 8 16 32 48 64 96"),
    ("DC#as_v6 DC#ads_v6 DC#es_v6 DC#eds_v6", 4, "2 4 8 16 32 48 64 96 128"),
    ("E#_v3 E#s_v3", 8, "2 4 8 16 20 32 48"),
    ("E#_v4 E#s_v4 E#d_v4 E#ds_v4", 8, "2 4 8 16 20 32 48"),
    ("E#a_v4 E#as_v4", 8, "2 4 8 16 20 32 48 64"),
    ("E#_v5 E#s_v5 E#d_v5 E#ds_v5 E#as_v5 E#ads_v5", 8, "2 4 8 16 20 32 48 64"),
    ("E#bs_v5 E#bds_v5", 8, "2 4 8 16 32 48 64"),
    ("E#ps_v5 E#pds_v5", 8, "2 4 8 16 20 32"),
    ("E#s_v6 E#ds_v6", 8, "2 4 8 16 20 32 48 64 96 128"),
    ("E#as_v6 E#ads_v6", 8, "2 4 8 16 20 32 48 64"),
    ("E#ps_v6 E#pds_v6", 8, "2 4 8 16 32 48 64"),
    ("E#as_v7 E#ads_v7", 8, "2 4 8 16 20 32 48 64 96 128 160"),
    ("EC#as_v5 EC#ads_v5 EC#es_v5 EC#eds_v5", 8, "2 4 8 16 20 32 48 64"),
    ("F# F#s", 2, "1 2 4 8 16"),
    ("F#s_v2", 2, "2 4 8 16 32 48 64 72"),
    ("F#as_v6 F#as_v7 F#ads_v7", 4, "2 4 8 16 32 48 64 80"),
    ("F#als_v6 F#als_v7 F#alds_v7", 2, "2 4 8 16 32 48 64 80"),
    ("F#ams_v6 F#ams_v7 F#amds_v7", 8, "2 4 8 16 32 48 64 80"),
    ("FX#mds", 21, "4 12 24 36 48"),
    ("FX#ms_v2 FX#mds_v2", 21, "2 4 8 12 16 24 32 48 64"),
    ("H# H#r", 7, "8 16"),
    ("H#m H#mr", 14, "8 16"),
    ("L#s", 8, "4 8 16 32"),
    ("L#s_v2", 8, "8 16 32 48 64 80"),
    ("L#s_v3 L#as_v3", 8, "8 16 32 48 64 80"),
    ("L#s_v4 L#as_v4 L#aos_v4", 8, "2 4 8 16 32 48 64 80 96"),
    ("NC# NC#r NV#", 56 / 6, "6 12 24"),
    ("NC#s_v2 NC#rs_v2 NC#s_v3 NC#rs_v3 ND#s ND#rs", 112 / 6, "6 12 24"),
    ("NC#ads_A100_v4", 220 / 24, "24 48 96"),
    ("NC#ads_H100_v5 NC#adis_H100_v5", 8, "40 80"),
    ("NP#s", 16.8, "10 20 40"),
    ("NV#as_v4", 3.5, "4 8 16 32"),
    ("NV#s_v3", 112 / 12, "12 24 48"),
)

#: The others: name, vCPUs and GiB.
_SINGLE = """
A0 1 0.75, A1 1 1.75, A2 2 3.5, A3 4 7, A4 8 14, A5 2 14, A6 4 28, A7 8 56,
A8 8 56, A9 16 112, A10 8 56, A11 16 112,
B1ls 1 0.5, B1s 1 1, B1ms 1 2, B2s 2 4,
E64_v3 64 432, E64s_v3 64 432, E64i_v3 64 432, E64is_v3 64 432,
E64_v4 64 504, E64s_v4 64 504, E64d_v4 64 504, E64ds_v4 64 504, E80is_v4 80 504, E80ids_v4 80 504,
E96a_v4 96 672, E96as_v4 96 672, E96_v5 96 672, E96s_v5 96 672, E96d_v5 96 672, E96ds_v5 96 672,
E96as_v5 96 672, E96ads_v5 96 672, E96bs_v5 96 672, E96bds_v5 96 672, E104i_v5 104 672,
E104is_v5 104 672, E104id_v5 104 672, E104ids_v5 104 672, E112ias_v5 112 672, E112iads_v5 112 672,
E96as_v6 96 672, E96ads_v6 96 672, E96ps_v6 96 672, E96pds_v6 96 672, E192is_v6 192 1832,
E192ids_v6 192 1832, EC96as_v5 96 672, EC96ads_v5 96 672, EC128es_v5 128 768, EC128eds_v5 128 768,
G1 2 28, G2 4 56, G3 8 112, G4 16 224, G5 32 448,
GS1 2 28, GS2 4 56, GS3 8 112, GS4 16 224, GS5 32 448,
HB60rs 60 228, HB120rs_v2 120 456, HB120rs_v3 120 448, HB176rs_v4 176 768, HC44rs 44 352,
HX176rs 176 1408,
M8ms 8 218.75, M16ms 16 437.5, M32ts 32 192, M32ls 32 256, M32ms 32 875, M64 64 1024, M64s 64 1024,
M64ls 64 512, M64m 64 1792, M64ms 64 1792, M128 128 2048, M128s 128 2048, M128m 128 3892,
M128ms 128 3892, M32ms_v2 32 875, M32dms_v2 32 875, M64s_v2 64 1024, M64ds_v2 64 1024,
M64ms_v2 64 1792, M64dms_v2 64 1792, M128s_v2 128 2048, M128ds_v2 128 2048, M128ms_v2 128 3892,
M128dms_v2 128 3892, M192is_v2 192 2048, M192ids_v2 192 2048, M192ims_v2 192 4096,
M192idms_v2 192 4096, M208s_v2 208 2850, M208ms_v2 208 5700, M416s_v2 416 5700,
M416ms_v2 416 11400, M12s_v3 12 240, M12ds_v3 12 240, M24s_v3 24 480, M24ds_v3 24 480,
M48s_1_v3 48 974, M48ds_1_v3 48 974, M96s_1_v3 96 974, M96ds_1_v3 96 974, M96s_2_v3 96 1946,
M96ds_2_v3 96 1946, M176s_3_v3 176 2794, M176ds_3_v3 176 2794, M176s_4_v3 176 3892,
M176ds_4_v3 176 3892,
NC4as_T4_v3 4 28, NC8as_T4_v3 8 56, NC16as_T4_v3 16 110, NC64as_T4_v3 64 440,
ND40rs_v2 40 672, ND96asr_v4 96 900, ND96amsr_A100_v4 96 1900, ND96isr_H100_v5 96 1900,
NV6ads_A10_v5 6 55, NV12ads_A10_v5 12 110, NV18ads_A10_v5 18 220, NV36ads_A10_v5 36 440,
NV36adms_A10_v5 36 880, NV72ads_A10_v5 72 880
"""
#: The first D sizes, which come in several families: number, vCPUs and GiB.
_OLD_D = "1 1 3.5, 2 2 7, 3 4 14, 4 8 28, 11 2 14, 12 4 28, 13 8 56, 14 16 112"
_OLD_D_V2 = f"{_OLD_D}, 5 16 56, 15 20 140"

_NEAREST = 5
_PARTS = re.compile(r"([A-Za-z_]{1,24})(\d{1,4})(?:-\d{1,4})?(.{0,40})")
_CONSTRAINED = re.compile(r"(?i)(standard_[a-z]+\d+)-(\d{1,3})([a-z].*|_.*)")


def _entries(table: str) -> Iterator[tuple[str, int, float]]:
    for entry in table.split(","):
        name, vcpus, gib = entry.split()
        yield name, int(vcpus), float(gib)


def _sizes() -> Iterator[VmSize]:
    for name, vcpus, gib in _entries(_SINGLE):
        yield _size(f"Standard_{name}", vcpus, gib)
        if name in ("A0", "A1", "A2", "A3", "A4"):
            yield _size(f"Basic_{name}", vcpus, gib)
    for number, vcpus, gib in _entries(_OLD_D):
        yield _size(f"Standard_D{number}", vcpus, gib)
        yield _size(f"Standard_DS{number}", vcpus, gib)
    for number, vcpus, gib in _entries(_OLD_D_V2):
        for form in ("D{}_v2", "DS{}_v2", "D{}_v2_Promo", "DS{}_v2_Promo"):
            yield _size(f"Standard_{form.format(number)}", vcpus, gib)
    for names, gib, counts in _REGULAR:
        for count in counts.split():
            for name in names.split():
                yield _size(f"Standard_{name.replace('#', count)}", int(count), int(count) * gib)


def _size(name: str, vcpus: int, gib: float) -> VmSize:
    return VmSize(name, vcpus, round(gib * 1024))


#: Azure's sizes by their names in lower case.
SIZES: Mapping[str, VmSize] = {size.name.lower(): size for size in _sizes()}


def find_size(name: str, extra: Mapping[str, tuple[int, int]] | None = None) -> VmSize | None:
    """Finds a size by its name, ignoring case; None if there is none.

    Sizes with constrained vCPUs (``Standard_E4-2s_v5``) have the memory of the whole size.

    Args:
        name: Azure's name.
        extra: The user's own sizes: name to (vCPUs, memory in MiB).
    """
    for own, (vcpus, memory) in (extra or {}).items():
        if own.lower() == name.lower():
            return VmSize(own, vcpus, memory)
    known = SIZES.get(name.lower())
    constrained = _CONSTRAINED.fullmatch(name) if known is None and len(name) < 64 else None
    if constrained is None:
        return known
    whole = SIZES.get(f"{constrained[1]}{constrained[3]}".lower())
    vcpus = int(constrained[2])
    if whole is None or not 0 < vcpus < whole.vcpus:
        return None
    return VmSize(name, vcpus, whole.memory_mib)


def nearest_sizes(name: str, extra: Mapping[str, tuple[int, int]]) -> list[str]:
    """Returns the user's own sizes, and those of Azure's whose names are most like a name.

    First come other sizes of the same series.
    """
    near = sorted(
        (size for size in SIZES.values() if _series(size.name) == _series(name)),
        key=lambda size: abs(size.vcpus - _number(name)),
    )
    names = [size.name for size in near[:_NEAREST]]
    for found in difflib.get_close_matches(name[:64].lower(), SIZES, n=_NEAREST, cutoff=0.5):
        if SIZES[found].name not in names:
            names.append(SIZES[found].name)
    return [*extra, *names[:_NEAREST]]


def _series(name: str) -> tuple[str, ...]:
    """What sizes have in common that differ only in their first number."""
    found = _PARTS.match(name.lower())
    return (found[1], found[3]) if found else ()


def _number(name: str) -> int:
    found = _PARTS.match(name)
    return int(found[2]) if found else 0
