"""Platform images that Azure upgrades by itself (B7)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pytest_vmss.model.scale_set import ImageReference

__all__ = ["is_upgraded_by_azure"]

#: Linux SKUs by publisher and offer, all in lower case, as Azure's page on automatic OS image
#: upgrades lists them in 2026-05. It adds more from time to time.
_SKUS: Mapping[tuple[str, str], frozenset[str]] = MappingProxyType(
    {
        ("canonical", "0001-com-ubuntu-server-focal"): frozenset(
            {"20_04-lts", "20_04-lts-gen2", "20_04-lts-arm64"}
        ),
        ("canonical", "0001-com-ubuntu-server-jammy"): frozenset(
            {"22_04-lts", "22_04-lts-gen2", "22_04-lts-arm64"}
        ),
        ("canonical", "0001-com-ubuntu-pro-microsoft"): frozenset({"pro-fips-20_04-gen2"}),
        ("canonical", "ubuntu-24_04-lts"): frozenset({"server-arm64"}),
        ("microsoftcblmariner", "cbl-mariner"): frozenset(
            {
                "cbl-mariner-2", "cbl-mariner-2-arm64", "cbl-mariner-2-gen2", "cbl-mariner-2-fips",
                "cbl-mariner-2-gen2-fips",
            }
        ),
        ("microsoftcblmariner", "azure-linux"): frozenset(
            {"azure-linux-gen2", "azure-linux-3", "azure-linux-arm64"}
        ),
    }
)  # fmt: skip


def is_upgraded_by_azure(reference: ImageReference) -> bool:
    """Whether Azure's automatic OS upgrade supports an image, as far as is known here.

    Args:
        reference: The model's; one that has an id is of a gallery, and supported.
    """
    if reference.id is not None:
        return True
    publisher, offer, sku = (
        (text or "").lower() for text in (reference.publisher, reference.offer, reference.sku)
    )
    return sku in _SKUS.get((publisher, offer), frozenset())
