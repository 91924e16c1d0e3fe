"""The key of a checkpoint: a digest of everything that a booted set depends on."""

from __future__ import annotations

import base64
import email
import hashlib
import json
import zlib
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from pytest_vmss.guest.extensions import find_handler, is_known
from pytest_vmss.model import Extension, ScaleSetModel, VmSize, respelled
from pytest_vmss.secrecy import SecretBytes
from pytest_vmss.settings import GuestNetwork

__all__ = ["checkpoint_key", "obstacle_to"]

_FORMAT = 1
#: How much of compressed custom data is looked at, and in how many layers.
_MOST_BYTES = 1024**2
_MOST_LAYERS = 8
_GZIP = b"\x1f\x8b"
_INCLUDE_TYPES = {"text/x-include-url", "text/x-include-once-url"}


def obstacle_to(model: ScaleSetModel, hyper_v_generation: str = "V1") -> str:
    """Returns why sets of a model must be booted each time; empty if they can be restored.

    They must if something runs in their guests that the key cannot cover.

    Args:
        model: The model.
        hyper_v_generation: That of its image.
    """
    if hyper_v_generation == "V2":
        return "its machines are of generation 2, whose UEFI variables a checkpoint does not hold"
    custom = model.virtual_machine_profile.os_profile.custom_data
    if custom is not None and _includes(SecretBytes(base64.b64decode(custom.get_secret_value()))):
        return "its custom data includes files by their URLs, which may change"
    for extension in filter(is_known, model.extensions):
        if find_handler(extension.publisher, extension.type).fingerprint is None:
            return f"the extension {extension.name} is run by a handler of the suite's own"
        both = (extension.settings, extension.protected_settings)
        if any(respelled(settings, ["fileUris"]).get("fileUris") for settings in both):
            return f"the extension {extension.name} downloads files, which may change"
    return ""


def checkpoint_key(
    model: ScaleSetModel,
    *,
    digest: str,
    size: VmSize,
    hypervisor: str,
    guest_network: GuestNetwork,
) -> str:
    """Returns the key of a model's checkpoint on this host.

    Args:
        model: The model, with its secrets.
        digest: Digest of the image version.
        size: The size of its instances.
        hypervisor: See :attr:`~pytest_vmss.hypervisor.Hypervisor.fingerprint`.
        guest_network: What guests can reach.
    """
    depends_on = {
        "format": _FORMAT,
        "package": _package_digest(),
        "model": _seen_by_guests(model),
        "handlers": [_handler_of(extension) for extension in model.extensions],
        "image": digest,
        "size": [size.vcpus, size.memory_mib],
        "hypervisor": hypervisor,
        "guest network": guest_network,
    }
    text = json.dumps(depends_on, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _includes(custom_data: bytes, layers: int = _MOST_LAYERS) -> bool:
    """Whether cloud-init downloads parts of custom data (``#include``), in whatever format (H1)."""
    content = custom_data.lower().lstrip()
    if not layers or content.startswith(b"#include"):
        return True
    if custom_data.startswith(_GZIP):
        try:
            inflated = zlib.decompressobj(wbits=31).decompress(custom_data, _MOST_BYTES)
        except zlib.error:
            return False
        return _includes(SecretBytes(inflated), layers - 1)
    if content.startswith(b"#cloud-config-archive"):
        return b"include" in content
    try:
        parts = list(email.message_from_bytes(custom_data).walk())
    except RecursionError:  # it nests too deep for anyone to read
        return True
    return len(parts) > 1 and any(
        part.get_content_type() in _INCLUDE_TYPES
        or _includes(SecretBytes(part.get_payload(decode=True) or b""), layers - 1)
        for part in parts
    )


def _handler_of(extension: Extension) -> str | None:
    """Identifies the handler of an extension; None if it has none, and is left out."""
    if not is_known(extension):
        return None
    return find_handler(extension.publisher, extension.type).fingerprint


def _seen_by_guests(model: ScaleSetModel) -> dict[str, Any]:
    """The parts of a model that guests can see; policies, for example, may differ.

    The image counts by its digest, not by its name. The set's name is part of the machines'.
    """
    profile = dict(model.full()["virtualMachineProfile"])
    profile.pop("networkProfile", None)
    storage = dict(profile.get("storageProfile", {}))
    storage.pop("imageReference", None)
    return {
        "name": model.name,
        "capacity": model.sku.capacity,
        "subnet": model.has_subnet,
        "virtualMachineProfile": {**profile, "storageProfile": storage},
    }


@cache
def _package_digest() -> str:
    """The digest of this package's code: it writes the seeds, and much of it runs in guests."""
    digest = hashlib.sha256()

    def add(folder: Traversable, path: str) -> None:
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
            below = f"{path}/{entry.name}"
            if entry.is_dir():
                add(entry, below)
            elif entry.name.endswith(".py"):
                content = entry.read_bytes()
                digest.update(f"{below} {len(content)}\n".encode() + content)

    add(files("pytest_vmss"), "")
    return digest.hexdigest()
