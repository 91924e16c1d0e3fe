"""Reading a model from what people have: Azure's JSON, YAML, an ARM template.

The shapes taken are ARM's body (with ``properties``), what ``az vmss show``
prints (without), and a template whose ``resources`` hold a scale set and,
where its health probe is one of a load balancer's, that load balancer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import ValidationError

from pytest_vmss.errors import ModelError, ModelProblem
from pytest_vmss.model.load_balancer import LoadBalancer, Probe, last_name
from pytest_vmss.model.scale_set import AzureModel, ScaleSetModel
from pytest_vmss.model.service_fabric import Cluster

__all__ = ["ScaleSetDocument", "Source", "load_document", "read_part"]

#: A file, or the document itself.
Source = str | Path | Mapping[str, Any]

_SCALE_SET = "microsoft.compute/virtualmachinescalesets"
_LOAD_BALANCER = "microsoft.network/loadbalancers"
_CLUSTER = "microsoft.servicefabric/clusters"

#: Properties whose content is the user's own: taken as it is.
_OPAQUE = frozenset({"settings", "protectedSettings", "tags"})


@dataclass(frozen=True)
class ScaleSetDocument:
    """A scale set and what it refers to.

    Attributes:
        model: The scale set.
        probe: The load balancer's probe that its ``healthProbe`` names.
        balancer: The load balancer that has this probe.
        source: Where it was read from, for messages.
        clusters: Service Fabric clusters beside it.
    """

    model: ScaleSetModel
    probe: Probe | None
    source: str
    clusters: tuple[Cluster, ...] = ()
    balancer: LoadBalancer | None = None


def load_document(
    source: Source,
    *,
    load_balancer: Source | None = None,
    name: str | None = None,
    capacity: int | None = None,
    custom_data: str | None = None,
    known_balancer: LoadBalancer | None = None,
) -> ScaleSetDocument:
    """Reads a scale set.

    Args:
        source: A file (JSON or YAML) or the document itself.
        load_balancer: Azure's JSON of the load balancer whose probe the scale
            set names, where the document does not hold it.
        name: Replaces the document's name.
        capacity: Replaces ``sku.capacity``.
        custom_data: Replaces ``osProfile.customData`` (base64), which Azure
            never returns.
        known_balancer: The load balancer that the set has had so far, on an update.

    Raises:
        ModelError: The document cannot be read or is not valid; every problem
            has its JSON path and Azure's code.
    """
    label = str(source) if isinstance(source, (str, Path)) else "the model"
    raw = _read(source, label)
    resources = _resources(raw, label)
    body = _one(resources, _SCALE_SET, label) if resources is not None else raw
    body = _flatten(body)
    if name is not None:
        body["name"] = name
    if capacity is not None:
        sku = body.get("sku")
        body["sku"] = {**(sku if isinstance(sku, dict) else {}), "capacity": capacity}
    if custom_data is not None:
        profile = body.get("virtualMachineProfile", {}).get("osProfile")
        if isinstance(profile, dict):
            profile["customData"] = custom_data
    model = validate(ScaleSetModel, body, label)

    balancers = [entry for entry in resources or [] if _type(entry) == _LOAD_BALANCER]
    if load_balancer is not None:
        balancers.append(_read(load_balancer, "the load balancer"))
    parsed = [
        validate(LoadBalancer, _flatten(entry), "the load balancer") for entry in balancers
    ] or [entry for entry in [known_balancer] if entry is not None]
    probe, balancer = _find_probe(model, parsed, label)
    clusters = tuple(
        validate(Cluster, _flatten(entry), label)
        for entry in resources or []
        if _type(entry) == _CLUSTER
    )
    return ScaleSetDocument(model, probe, label, clusters, balancer)


def read_part(source: Source) -> dict[str, Any]:
    """Reads a part of a scale set's body, its ``properties`` laid flat, nulls left out.

    Raises:
        ModelError: It cannot be read.
    """
    label = str(source) if isinstance(source, (str, Path)) else "the change"
    raw = _read(source, label)
    resources = _resources(raw, label)
    flat = _flatten(_one(resources, _SCALE_SET, label) if resources is not None else raw)
    return cast("dict[str, Any]", flat)


def _read(source: Source, label: str) -> dict[str, Any]:
    if isinstance(source, Mapping):
        # A copy, so that nothing of the caller's is changed.
        data: object = json.loads(json.dumps(dict(source)))
    else:
        path = Path(source)
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as unreadable:
            problem = ModelProblem("$", "InvalidRequestContent", f"cannot be read: {unreadable}")
            raise ModelError([problem], source=label) from unreadable
        try:
            data = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        except (json.JSONDecodeError, yaml.YAMLError) as broken:
            problem = ModelProblem("$", "InvalidRequestContent", f"cannot be parsed: {broken}")
            raise ModelError([problem], source=label) from broken
    if not isinstance(data, dict):
        problem = ModelProblem(
            "$", "InvalidRequestContent", f"must be an object, is {type(data).__name__}"
        )
        raise ModelError([problem], source=label)
    return data


def _resources(raw: dict[str, Any], label: str) -> list[dict[str, Any]] | None:
    """The resources of an ARM template, its parameters filled in; None for a plain body."""
    if "resources" not in raw or "sku" in raw:
        return None
    listed = raw["resources"]
    entries = listed.values() if isinstance(listed, dict) else listed  # languageVersion 2.0
    if not isinstance(entries, Iterable) or not all(isinstance(entry, dict) for entry in entries):
        problem = ModelProblem("$.resources", "InvalidTemplate", "must be a list of resources")
        raise ModelError([problem], source=label)
    values = {
        "parameters": {
            key: value.get("defaultValue")
            for key, value in (raw.get("parameters") or {}).items()
            if isinstance(value, dict)
        },
        "variables": raw.get("variables") or {},
    }
    return [_fill(entry, values) for entry in entries]


_REFERENCE = re.compile(r"^\[(parameters|variables)\('([^']+)'\)\]$")


def _fill(value: Any, values: Mapping[str, Mapping[str, Any]]) -> Any:
    """Replaces plain references to parameters and variables; other expressions stay."""
    if isinstance(value, dict):
        return {key: _fill(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, values) for item in value]
    if isinstance(value, str) and (match := _REFERENCE.fullmatch(value)):
        found = values[match[1]].get(match[2])
        return value if found is None else _fill(found, values)
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
    """Lays ``properties`` flat and drops nulls, which Azure takes as absent."""
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
            flat[key] = item if key in _OPAQUE else _flatten(item)
    return flat


_M = TypeVar("_M", bound=AzureModel)


def validate(kind: type[_M], body: Any, label: str) -> _M:
    """Validates a body, turning pydantic's errors into Azure's.

    Raises:
        ModelError: With a problem for each wrong value.
    """
    try:
        return kind.model_validate(body)
    except ValidationError as wrong:
        problems = [
            ModelProblem(_json_path(error["loc"]), "InvalidParameter", _explain(dict(error)))
            for error in wrong.errors(include_url=False, include_context=True)
        ]
        raise ModelError(problems, source=label) from None  # pydantic's text shows input


def _json_path(location: tuple[int | str, ...]) -> str:
    path = "$"
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path


_SECRET_FIELDS = frozenset({"customData", "userData", "adminPassword", "protectedSettings"})


def _explain(error: dict[str, Any]) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "missing":
        return "is required, and missing"
    if _SECRET_FIELDS & {str(part) for part in error["loc"]}:
        return message
    given = error.get("input")
    if isinstance(given, (str, int, float, bool)):
        if isinstance(given, str) and given.startswith("["):
            return (
                f"{message}; {given!r} is an expression of a template: put its value in its place"
            )
        return f"{message}; given {given!r}"
    return message


def _find_probe(
    model: ScaleSetModel, balancers: list[LoadBalancer], label: str
) -> tuple[Probe | None, LoadBalancer | None]:
    """The probe that the model names, and the load balancer that has it."""
    network = model.virtual_machine_profile.network_profile
    if network is None or network.health_probe is None:
        return None, None
    wanted = last_name(network.health_probe.id)
    for balancer in balancers:
        for probe in balancer.probes:
            if probe.name.lower() == wanted.lower():
                return probe, balancer
    names = ", ".join(probe.name for balancer in balancers for probe in balancer.probes)
    message = (
        f"names the load-balancer probe {wanted!r}, and "
        + (f"the load balancer has only: {names}" if names else "no load balancer was given")
        + "; give the load balancer's JSON too (load_balancer=, --load-balancer), "
        "or a template that holds both"
    )
    path = "$.virtualMachineProfile.networkProfile.healthProbe.id"
    raise ModelError([ModelProblem(path, "InvalidResourceReference", message)], source=label)
