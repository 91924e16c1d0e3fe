"""Loads a scale-set model from Azure's JSON, YAML or an ARM template.

Accepted are ARM's resource body (with ``properties``), what ``az vmss show`` prints
(without), and a template whose ``resources`` contain a scale set and, if its health probe
is a load balancer's, that load balancer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ValidationError

from pytest_vmss.errors import ModelError, ModelProblem
from pytest_vmss.model.load_balancer import LoadBalancer, Probe, last_name
from pytest_vmss.model.not_modelled import STANDBY_POOL
from pytest_vmss.model.reading import OPAQUE, Meter, label_of, read, refusals
from pytest_vmss.model.scale_set import AzureModel, ScaleSetModel
from pytest_vmss.model.service_fabric import Cluster
from pytest_vmss.secrecy import (
    SealedDocument,
    conceal,
    is_secret_name,
    mask,
    plain_name,
    quote,
    seal,
    seal_text,
)
from pytest_vmss.untrusted import listed

__all__ = ["ScaleSetDocument", "Source", "load_document", "read_clusters", "read_part"]

#: The path of a file, or the document itself.
Source = str | Path | Mapping[str, Any] | SealedDocument

_SCALE_SET = "microsoft.compute/virtualmachinescalesets"
_LOAD_BALANCER = "microsoft.network/loadbalancers"
_CLUSTER = "microsoft.servicefabric/clusters"
#: Maximum number of problems reported for one document; a hostile one may have any number.
_TOLD_PROBLEMS = 100
_NAME_CHARS = 200


@dataclass(frozen=True)
class ScaleSetDocument:
    """A scale set and the resources it refers to.

    Attributes:
        model: The scale set.
        probe: The load-balancer probe that its ``healthProbe`` names.
        source: Where it was read from, for messages.
        clusters: The Service Fabric clusters in the same template.
        balancer: The load balancer that has this probe.
        standby_pools: Names of the standby pools in the same template.
    """

    model: ScaleSetModel
    probe: Probe | None
    source: str
    clusters: tuple[Cluster, ...] = ()
    balancer: LoadBalancer | None = None
    standby_pools: tuple[str, ...] = ()

    def not_modelled(self) -> list[str]:
        """What is accepted and has no effect here: properties by JSON path, and resources."""
        pools = [
            f"Microsoft.StandbyPool/standbyVirtualMachinePools[{n}]" for n in self.standby_pools
        ]
        return [*self.model.not_modelled(), *pools]


def load_document(
    source: Source,
    *,
    load_balancer: Source | None = None,
    name: str | None = None,
    capacity: int | None = None,
    custom_data: str | None = None,
    known_balancer: LoadBalancer | None = None,
    known_clusters: tuple[Cluster, ...] = (),
) -> ScaleSetDocument:
    """Loads and validates a scale set.

    Args:
        source: The path of a JSON or YAML file, or the document itself.
        load_balancer: Azure's JSON of the load balancer whose probe the scale set names, if the
            document does not contain it.
        name: Replaces the document's name.
        capacity: Replaces ``sku.capacity``.
        custom_data: Replaces ``osProfile.customData`` (base64), which Azure never returns.
        known_balancer: On an update, the load balancer that the set has had so far.
        known_clusters: On an update, the Service Fabric clusters given with it so far (C7).

    Raises:
        ModelError: The document cannot be read or is invalid; every problem has its JSON path and
            Azure's code.
    """
    # Before anything else, so that no traceback shows the secrets in them.
    source, load_balancer = seal(source), seal(load_balancer)
    custom_data = seal_text(custom_data)
    label = label_of(source, "the model")
    raw = read(source, label)
    resources = _resources(raw, label)
    body = _one(resources, _SCALE_SET, label) if resources is not None else raw
    body = _flatten(body)
    if name is not None:
        body["name"] = name
    if capacity is not None:
        sku = body.get("sku")
        body["sku"] = {**(sku if isinstance(sku, dict) else {}), "capacity": capacity}
    if custom_data is not None:
        machine = body.get("virtualMachineProfile")
        profile = machine.get("osProfile") if isinstance(machine, dict) else None
        if isinstance(profile, dict):
            profile["customData"] = custom_data
    model = validate(ScaleSetModel, body, label)

    balancers = [entry for entry in resources or [] if _type(entry) == _LOAD_BALANCER]
    if load_balancer is not None:
        balancers.append(read(load_balancer, "the load balancer"))
    parsed = [
        validate(LoadBalancer, _flatten(entry), "the load balancer") for entry in balancers
    ] or [entry for entry in [known_balancer] if entry is not None]
    probe, balancer = _find_probe(model, parsed, label)
    clusters = _clusters(resources, label) or known_clusters
    pools = tuple(
        mask(str(entry.get("name", "")))[:_NAME_CHARS]
        for entry in resources or []
        if _type(entry) == STANDBY_POOL
    )
    return ScaleSetDocument(model, probe, label, clusters, balancer, pools)


def _clusters(resources: list[dict[str, Any]] | None, label: str) -> tuple[Cluster, ...]:
    return tuple(
        validate(Cluster, _flatten(entry), label)
        for entry in resources or []
        if _type(entry) == _CLUSTER
    )


def read_clusters(source: Source) -> tuple[Cluster, ...]:
    """Reads the Service Fabric clusters in a template; none in a plain body.

    Raises:
        ModelError: It cannot be read, or a cluster in it is invalid.
    """
    source = seal(source)
    label = label_of(source, "the change")
    return _clusters(_resources(read(source, label), label), label)


def read_part(source: Source) -> dict[str, Any]:
    """Reads part of a scale set's body, with ``properties`` flattened and nulls dropped.

    Raises:
        ModelError: It cannot be read.
    """
    source = seal(source)
    label = label_of(source, "the change")
    raw = read(source, label)
    resources = _resources(raw, label)
    flat = _flatten(_one(resources, _SCALE_SET, label) if resources is not None else raw)
    return cast("dict[str, Any]", flat)


def _resources(raw: dict[str, Any], label: str) -> list[dict[str, Any]] | None:
    """Returns an ARM template's resources with parameters filled in; None for a plain body."""
    if "resources" not in raw or "sku" in raw:
        return None
    listed = raw["resources"]
    entries = listed.values() if isinstance(listed, dict) else listed  # languageVersion 2.0
    if not isinstance(entries, Iterable) or not all(isinstance(entry, dict) for entry in entries):
        problem = ModelProblem("$.resources", "InvalidTemplate", "must be a list of resources")
        raise ModelError([problem], source=label)
    for section in ("parameters", "variables"):
        if not isinstance(raw.get(section) or {}, dict):
            problem = ModelProblem(f"$.{section}", "InvalidTemplate", "must be an object")
            raise ModelError([problem], source=label)
    parameters = {
        name: value.get("defaultValue")
        for name, value in (raw.get("parameters") or {}).items()
        if isinstance(value, dict)
    }
    filler = _Filler({"parameters": parameters, "variables": raw.get("variables") or {}})
    filled = refusals(lambda: [filler.fill(entry, "$.resources", 0) for entry in entries], label)
    return [conceal(entry) for entry in filled]


_REFERENCE = re.compile(r"\[(parameters|variables)\('([^']+)'\)\]")


class _Filler:
    """Replaces plain references to parameters and variables; other expressions stay.

    The result is limited like a document, since references can be circular or multiply.

    Args:
        values: The values, by section and name.
    """

    def __init__(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        self._values = values
        self._meter = Meter()

    def fill(self, value: Any, path: str, depth: int) -> Any:
        """Returns a copy of a value with its references replaced."""
        self._meter.take(path, depth, value if isinstance(value, str) else "")
        if isinstance(value, dict):
            return {key: self.fill(item, path, depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [self.fill(item, path, depth + 1) for item in value]
        if isinstance(value, str) and (match := _REFERENCE.fullmatch(value)):
            found = self._values[match[1]].get(match[2])
            return value if found is None else self.fill(found, path, depth + 1)
        return value


def _type(resource: Mapping[str, Any]) -> str:
    return str(resource.get("type", "")).lower()


def _one(resources: list[dict[str, Any]], kind: str, label: str) -> dict[str, Any]:
    found = [entry for entry in resources if _type(entry) == kind]
    if len(found) != 1:
        message = f"must hold one Microsoft.Compute/virtualMachineScaleSets, holds {len(found)}"
        raise ModelError([ModelProblem("$.resources", "InvalidTemplate", message)], source=label)
    return found[0]


def _flatten(value: Any) -> Any:
    """Flattens ``properties`` and drops nulls, which Azure treats as absent."""
    if isinstance(value, list):
        return [_flatten(item) for item in value]
    if not isinstance(value, dict):
        return value
    flat: dict[str, Any] = {}
    inner = value.get("properties")
    if isinstance(inner, dict):
        value = {**{k: v for k, v in value.items() if k != "properties"}, **inner}
    for key, item in value.items():
        if item is not None:
            flat[key] = item if key in OPAQUE else _flatten(item)
    return flat


_M = TypeVar("_M", bound=AzureModel)


def validate(kind: type[_M], body: Any, label: str) -> _M:
    """Validates a body, converting pydantic's errors to Azure's.

    Raises:
        ModelError: The body is invalid; it has a problem for each wrong value, up to a maximum.
    """
    try:
        checked = kind.model_validate(body)
    except ValidationError as wrong:
        count = wrong.error_count()
        problems = [
            ModelProblem(_json_path(error["loc"]), "InvalidParameter", _explain(dict(error)))
            for error in wrong.errors(include_url=False, include_context=False)[:_TOLD_PROBLEMS]
        ]
        if count > _TOLD_PROBLEMS:
            problems.append(
                ModelProblem("$", "InvalidParameter", f"{count - _TOLD_PROBLEMS} more are wrong")
            )
    else:
        return checked
    raise ModelError(problems, source=label)  # here: pydantic's error shows its input


def _json_path(location: tuple[int | str, ...]) -> str:
    """Converts a location to a JSON path, which ends at the first name of a secret."""
    path = "$"
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{mask(part)[:_NAME_CHARS]}"
        if isinstance(part, str) and is_secret_name(part):
            break
    return path


def _explain(error: dict[str, Any]) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "missing":
        return "is required, and missing"
    names = [part for part in error["loc"] if isinstance(part, str)]
    if any(is_secret_name(name) or plain_name(name) == "settings" for name in names):
        return message
    given = error.get("input")
    if not isinstance(given, (str, int, float, bool)):
        return message
    if isinstance(given, str) and given.startswith("["):
        return (
            f"{message}; {quote(given)} is an expression of a template: put its value in its place"
        )
    return f"{message}; given {quote(given)}"


def _find_probe(
    model: ScaleSetModel, balancers: list[LoadBalancer], label: str
) -> tuple[Probe | None, LoadBalancer | None]:
    """Finds the probe that the model names, and the load balancer that has it.

    Raises:
        ModelError: The model names a probe that no load balancer has.
    """
    network = model.virtual_machine_profile.network_profile
    if network is None or network.health_probe is None:
        return None, None
    wanted = last_name(network.health_probe.id)
    for balancer in balancers:
        for probe in balancer.probes:
            if probe.name.lower() == wanted.lower():
                return probe, balancer
    names = listed(mask(probe.name) for balancer in balancers for probe in balancer.probes)
    message = (
        f"names the load-balancer probe {quote(wanted)}, and "
        + (f"the load balancer has only: {names}" if balancers else "no load balancer was given")
        + "; give the load balancer's JSON too (load_balancer=, --load-balancer), "
        "or a template that holds both"
    )
    path = "$.virtualMachineProfile.networkProfile.healthProbe.id"
    raise ModelError([ModelProblem(path, "InvalidResourceReference", message)], source=label)
