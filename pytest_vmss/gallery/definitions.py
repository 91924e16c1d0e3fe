"""Image definitions: what all versions of an image have in common (B1, O5).

As in Azure, generation and identifier belong to the definition, not to a version. The first
version creates a definition that nobody has created before; with its first version a definition's
properties are fixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from pytest_vmss.errors import ConflictError, ImageError, NotFoundError
from pytest_vmss.model.arguments import check_choice, check_text
from pytest_vmss.store import DefinitionRecord, Store, VersionRecord

__all__ = [
    "GENERATIONS",
    "PROVISIONING",
    "DefinitionProperties",
    "create",
    "delete",
    "ensure",
    "expected",
    "get",
    "has_versions",
    "properties",
]

HyperVGeneration = Literal["V1", "V2"]
Provisioning = Literal["NoCloud", "Azure", "auto"]

GENERATIONS: tuple[str, ...] = get_args(HyperVGeneration)
PROVISIONING: tuple[str, ...] = get_args(Provisioning)

#: What identifies an image definition besides its name.
_IDENTIFIER = ("publisher", "offer", "sku")


@dataclass(frozen=True)
class DefinitionProperties:
    """Properties that a caller asks for; None where the caller does not care.

    Attributes:
        identifier: Publisher, offer and sku.
        hyper_v_generation: ``V1`` (BIOS) or ``V2`` (UEFI); Azure's ``hyperVGeneration``.
        provisioning: Where guests look for what they are to be: ``NoCloud`` on a disk,
            ``Azure`` on Azure's provisioning DVD and endpoints, ``auto`` as each version is found
            to.
    """

    identifier: tuple[str, str, str] | None = None
    hyper_v_generation: HyperVGeneration | None = None
    provisioning: Provisioning | None = None


def properties(identifier: Any, hyper_v_generation: Any, provisioning: Any) -> DefinitionProperties:
    """Validates what a caller asks for; enumerated values are taken in any case, as ARM does.

    Raises:
        ImageError: The identifier is not three texts.
        ModelError: Another value is not one of those allowed.
    """
    return DefinitionProperties(
        _checked_identifier(identifier),
        cast(
            "HyperVGeneration | None",
            _chosen(hyper_v_generation, "hyper_v_generation", GENERATIONS),
        ),
        cast("Provisioning | None", _chosen(provisioning, "provisioning", PROVISIONING)),
    )


def _checked_identifier(identifier: Any) -> tuple[str, str, str] | None:
    if identifier is None:
        return None
    if not isinstance(identifier, (tuple, list)) or len(identifier) != len(_IDENTIFIER):
        raise ImageError(
            f"the identifier of an image definition must be its {', '.join(_IDENTIFIER)}; "
            f"given a {type(identifier).__name__}"
        )
    publisher, offer, sku = (
        check_text(text, f"identifier.{what}")
        for text, what in zip(identifier, _IDENTIFIER, strict=True)
    )
    return publisher, offer, sku


def _chosen(value: Any, path: str, choices: tuple[str, ...]) -> str | None:
    if value is None:
        return None
    folded = {choice.lower(): choice for choice in choices}
    key = value.lower() if isinstance(value, str) else value
    return check_choice(folded.get(key, value) if isinstance(key, str) else key, path, choices)


def create(store: Store, gallery: str, name: str, wanted: DefinitionProperties) -> DefinitionRecord:
    """Creates an image definition; one without versions is replaced.

    Raises:
        ConflictError: It has versions, and other properties.
    """
    with store.transaction():
        record = _new(gallery, name, wanted, implicit=False)
        present = store.get(DefinitionRecord, *record.key)
        if present is not None and has_versions(store, present):
            _refuse_change(present, wanted)
            return present
        store.put(record)
        store.event("", "image", f"defined {gallery}/{name} ({_told(record)})")
        return record


def get(store: Store, gallery: str, name: str) -> DefinitionRecord:
    """Returns an image definition.

    Raises:
        NotFoundError: There is none of that name.
    """
    present = store.get(DefinitionRecord, gallery.lower(), name.lower())
    if present is None:
        raise NotFoundError(
            f"the gallery {gallery!r} has no image definition {name!r}",
            code="GalleryImageNotFound",
        )
    return present


def ensure(store: Store, belongs: DefinitionRecord) -> None:
    """Records the definition that :func:`expected` returned, unless it is recorded.

    Raises:
        ConflictError: Another process has recorded one with other properties meanwhile.
    """
    wanted = DefinitionProperties(
        hyper_v_generation=belongs.hyper_v_generation, provisioning=belongs.provisioning
    )
    present = store.get(DefinitionRecord, *belongs.key)
    if expected(store, belongs.gallery, belongs.name, wanted) != present:
        store.put(belongs)


def expected(
    store: Store, gallery: str, name: str, wanted: DefinitionProperties
) -> DefinitionRecord:
    """Returns the definition that a version published now would belong to; writes nothing.

    Raises:
        ConflictError: It has other properties than those asked for.
    """
    record = _new(gallery, name, wanted, implicit=True)
    present = store.get(DefinitionRecord, *record.key)
    if present is None or (present.implicit and not has_versions(store, present)):
        return record if present is None or _differs(present, wanted) else present
    _refuse_change(present, wanted)
    return present


def delete(store: Store, gallery: str, name: str) -> None:
    """Deletes an image definition without versions.

    Raises:
        NotFoundError: There is none of that name.
        ConflictError: It has versions.
    """
    with store.transaction():
        present = get(store, gallery, name)
        if has_versions(store, present):
            raise ConflictError(
                f"the image definition {gallery}/{name} has versions; delete those first",
                code="CannotDeleteResource",
            )
        store.delete(present)
        store.event("", "image", f"deleted the definition {gallery}/{name}")


def _refuse_change(present: DefinitionRecord, wanted: DefinitionProperties) -> None:
    """Rejects properties other than those of an existing definition.

    Raises:
        ConflictError: One differs.
    """
    if differing := _differs(present, wanted):
        raise ConflictError(
            f"the image definition {present.gallery}/{present.name} has {_told(present)}, and "
            f"{' and '.join(differing)} was asked for; these belong to the definition and do not "
            "change: publish under another definition, or leave them out",
            code="PropertyChangeNotAllowed",
        )


def _differs(present: DefinitionRecord, wanted: DefinitionProperties) -> list[str]:
    differing = []
    if wanted.hyper_v_generation not in (None, present.hyper_v_generation):
        differing.append(f"hyperVGeneration {wanted.hyper_v_generation}")
    if wanted.provisioning not in (None, present.provisioning):
        differing.append(f"provisioning {wanted.provisioning}")
    return differing


def _new(
    gallery: str, name: str, wanted: DefinitionProperties, *, implicit: bool
) -> DefinitionRecord:
    publisher, offer, sku = wanted.identifier or ("local", name, name)
    return DefinitionRecord(
        gallery=gallery,
        name=name,
        publisher=publisher,
        offer=offer,
        sku=sku,
        hyper_v_generation=wanted.hyper_v_generation or "V1",
        provisioning=wanted.provisioning or "NoCloud",
        implicit=implicit,
    )


def has_versions(store: Store, definition: DefinitionRecord) -> bool:
    """Whether a definition has versions, which fix its properties."""
    return bool(store.select(VersionRecord, *definition.key))


def _told(record: DefinitionRecord) -> str:
    return f"hyperVGeneration {record.hyper_v_generation}, provisioning {record.provisioning}"
