"""What of a document counts here, what does not, and what is left out (P3, A6)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from pytest_vmss.errors import ModelProblem
from pytest_vmss.model.azure_names import is_azure_name, nearest
from pytest_vmss.model.document import ScaleSetDocument
from pytest_vmss.model.load_balancer import LoadBalancer, unserved_rules
from pytest_vmss.model.not_modelled import why_not_modelled
from pytest_vmss.model.platform_images import is_upgraded_by_azure
from pytest_vmss.model.scale_set import AzureModel, Extension, ScaleSetModel
from pytest_vmss.model.sizes import VmSize
from pytest_vmss.secrecy import mask
from pytest_vmss.untrusted import listed

__all__ = ["Review", "review", "setting_of"]

_EXTENSIONS = "$.virtualMachineProfile.extensionProfile.extensions"
#: What surrounds a load balancer, in lower case.
_ENVELOPE = ("$.apiversion", "$.location", "$.tags")
#: What a path of a resource in a template begins with.
_RESOURCE = "Microsoft."
_SETTING = re.compile(r".*?\.extensions\[(\d+)\]\.\w+\.?([^.\[]*)")


@dataclass(frozen=True)
class Review:
    """What would be run of a document.

    Attributes:
        counts: JSON paths of the properties that have an effect here.
        not_modelled: Those that are kept and returned, and have none.
        unknown: Those of them that Azure does not have either.
        left_out: What the document asks for and is not done, and why.
        notes: What is done in another way than the document says.
    """

    counts: list[str] = field(default_factory=list)
    not_modelled: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Yields what deserves to be known before anything is made, one line each."""
        yield from self.misspelt()
        if len(self.not_modelled) == 1:
            (path,) = self.not_modelled
            reason = why_not_modelled(path)
            yield f"not modelled here: {path}" + (f" ({reason})" if reason else "")
        elif self.not_modelled:
            names = dict.fromkeys(_name(path) for path in self.not_modelled)
            yield (
                f"not modelled here: {len(self.not_modelled)} properties, which have no effect "
                f"(`vmss validate` lists them): {listed(names)}"
            )
        for told in self.left_out:
            yield f"left out: {told}"
        yield from self.notes

    def misspelt(self) -> Iterator[str]:
        """Yields what is to be said of names that Azure does not have, one line each."""
        for path in self.unknown:
            meant = nearest(_name(path))
            hint = f"did you mean {meant}?" if meant else "it is kept and has no effect"
            yield f"no property that Azure has: {path}; {hint}"


def review(
    document: ScaleSetDocument,
    *,
    left_out: Collection[str] = (),
    own_size: VmSize | None = None,
) -> Review:
    """Reviews a document that was validated.

    Args:
        document: The document.
        left_out: Names of extensions, in lower case, that are left out.
        own_size: The size that the instances get whatever the model says.
    """
    found = Review(counts=sorted(_counting(document.model, "$")))
    paths = document.not_modelled()
    if document.balancer is not None:
        paths += _of_balancer(document.balancer)
        found.not_modelled.extend(_unserved(document.balancer, document.model))
    for path in paths:
        known = path.startswith(_RESOURCE) or is_azure_name(_name(path))
        (found.not_modelled if known else found.unknown).append(path)
    found.left_out.extend(f"{problem.path} {problem.message}" for problem in document.unevaluated)
    for index, extension in enumerate(document.model.extensions):
        if extension.name.lower() in left_out:
            found.left_out.append(
                f"{_EXTENSIONS}[{index}]: nobody registered a handler for {_called(extension)}"
            )
    for problem in document.unread_settings:
        if document.model.extensions[setting_of(problem)[0]].name.lower() not in left_out:
            found.left_out.append(f"{problem.path} {problem.message}")
    found.notes.extend(
        f"the parameter {mask(name)} had no value of its own, and got a generated one"
        for name in document.generated
    )
    found.notes.extend(_unsupported_image(document.model))
    if own_size is not None:
        found.notes.append(
            f"the instances run in the lab's own size {own_size.name} ({own_size.vcpus} vCPUs, "
            f"{own_size.memory_mib} MiB), not in {mask(document.model.sku.name)}"
        )
    return found


def _unsupported_image(model: ScaleSetModel) -> Iterator[str]:
    """Yields a note if Azure would not upgrade the model's image by itself (B7)."""
    reference = model.image_reference
    if model.automatic_os_upgrade.enable_automatic_os_upgrade and not is_upgraded_by_azure(
        reference
    ):
        named = "/".join(
            mask(text or "") for text in (reference.publisher, reference.offer, reference.sku)
        )
        yield (
            f"Azure does not list the image {named} as one that it upgrades automatically; it is "
            "upgraded here all the same. In Azure take a listed SKU, or a gallery image"
        )


def setting_of(problem: ModelProblem) -> tuple[int, str]:
    """Returns the index of the extension that a problem's setting belongs to, and its name."""
    found = _SETTING.match(problem.path)
    return (int(found[1]), found[2]) if found else (0, "")


def _called(extension: Extension) -> str:
    return f"{mask(extension.publisher)}/{mask(extension.type)}"


def _of_balancer(balancer: LoadBalancer) -> Iterator[str]:
    path = f"the load balancer {mask(balancer.title)}"
    yield from sorted(
        f"{path}{found[1:]}" for found in balancer.unknown("$") if found.lower() not in _ENVELOPE
    )


def _unserved(balancer: LoadBalancer, model: ScaleSetModel) -> Iterator[str]:
    path = f"the load balancer {mask(balancer.title)}"
    yield from (f"{path}.{told}" for told in unserved_rules(balancer, model))


def _name(path: str) -> str:
    """Returns the last property name in a path."""
    return path.rpartition(".")[2].partition("[")[0]


def _counting(model: AzureModel, path: str) -> Iterator[str]:
    """Yields the JSON paths of the given properties that are modelled."""
    ignored = set(model.unknown(path))
    fields = type(model).model_fields
    for name in sorted(model.model_fields_set & set(fields)):
        here = f"{path}.{fields[name].alias or name}"
        value: Any = getattr(model, name)
        if here in ignored or value is None:
            continue
        if isinstance(value, AzureModel):
            yield from _counting(value, here)
        elif isinstance(value, list) and any(isinstance(item, AzureModel) for item in value):
            for index, item in enumerate(value):
                yield from _counting(item, f"{here}[{index}]")
        else:
            yield here
