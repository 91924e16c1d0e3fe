"""Loads a scale-set model from Azure's JSON, YAML or an ARM template.

Accepted are ARM's resource body (with ``properties``), what ``az vmss show`` prints
(without), and a template whose ``resources`` contain a scale set and, if its health probe
is a load balancer's, that load balancer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from pytest_vmss.arm import Resource
from pytest_vmss.errors import ModelError, ModelProblem
from pytest_vmss.model.load_balancer import (
    LoadBalancer,
    Probe,
    pool_balancers,
    probe_names,
    served_rules,
)
from pytest_vmss.model.other_documents import refuse_other_documents
from pytest_vmss.model.reading import OPAQUE, copied, label_of, read
from pytest_vmss.model.refusals import check_kind
from pytest_vmss.model.scale_set import AzureModel, ScaleSetModel
from pytest_vmss.model.service_fabric import Cluster
from pytest_vmss.model.spelling import spell
from pytest_vmss.model.templates import (
    CLUSTER,
    LOAD_BALANCER,
    STANDBY_POOL,
    Expansion,
    Parameters,
    Supply,
    expand_template,
    is_template,
    seal_parameters,
)
from pytest_vmss.secrecy import (
    SealedDocument,
    is_secret_name,
    mask,
    plain_name,
    quote,
    seal,
    seal_text,
)
from pytest_vmss.untrusted import listed

__all__ = ["Change", "ScaleSetDocument", "Source", "load_document", "read_change", "read_part"]

#: The path of a file, or the document itself: an object, or its JSON or YAML as bytes.
Source = str | Path | bytes | Mapping[str, Any] | SealedDocument

#: Maximum number of problems reported for one document; a hostile one may have any number.
_TOLD_PROBLEMS = 100
_NAME_CHARS = 200
_BALANCER, _VALID_BALANCER = "the load balancer", "a valid load balancer"


@dataclass(frozen=True)
class ScaleSetDocument:
    """A scale set and the resources it refers to.

    Attributes:
        model: The scale set.
        probe: The load-balancer probe that its ``healthProbe`` names.
        source: Where it was read from, for messages.
        clusters: The Service Fabric clusters in the same template.
        balancer: The load balancer that has this probe.
        unevaluated: Values of a template that were left out: they have no value here, and nothing
            modelled reads them.
        unread_settings: The same in extensions' settings, where it depends on the handler.
        generated: Parameters of the template that had no value of their own, and got one.
        standby_pools: Names of the standby pools in the same template.
        base: The revision of the set's model that it was made from; None if from none.
    """

    model: ScaleSetModel
    probe: Probe | None
    source: str
    clusters: tuple[Cluster, ...] = ()
    balancer: LoadBalancer | None = None
    unevaluated: tuple[ModelProblem, ...] = ()
    unread_settings: tuple[ModelProblem, ...] = ()
    generated: tuple[str, ...] = ()
    standby_pools: tuple[str, ...] = ()
    base: int | None = None

    def not_modelled(self) -> list[str]:
        """What is accepted and has no effect here: properties by JSON path, and resources."""
        pools = [
            f"Microsoft.StandbyPool/standbyVirtualMachinePools[{n}]" for n in self.standby_pools
        ]
        return [*self.model.not_modelled(), *pools]


@dataclass(frozen=True)
class Change:
    """Part of a scale set's body, to be merged into a stored one.

    Attributes:
        body: The part, flattened and in Azure's spelling.
        unevaluated: As in :class:`ScaleSetDocument`.
        unread_settings: As in :class:`ScaleSetDocument`.
        clusters: The Service Fabric clusters in the same template.
        balancers: The load balancers in it, as they are.
    """

    body: dict[str, Any] = field(repr=False)
    unevaluated: tuple[ModelProblem, ...] = ()
    unread_settings: tuple[ModelProblem, ...] = ()
    clusters: tuple[Cluster, ...] = ()
    balancers: tuple[Resource, ...] = ()


def load_document(
    source: Source,
    *,
    load_balancer: Source | None = None,
    name: str | None = None,
    capacity: int | None = None,
    custom_data: str | None = None,
    known_balancer: LoadBalancer | None = None,
    keep_balancer: bool = False,
    known_clusters: tuple[Cluster, ...] = (),
    known_resources: Sequence[Resource] = (),
    parameters: Parameters | None = None,
    supply: Supply | None = None,
    is_stored: bool = False,
) -> ScaleSetDocument:
    """Loads and validates a scale set.

    Args:
        source: The path of a JSON or YAML file, or the document itself.
        load_balancer: Azure's JSON of the load balancer whose probe the scale set names, if the
            document does not contain it.
        name: Replaces the document's name; in a template with several sets, chooses one.
        capacity: Replaces ``sku.capacity``.
        custom_data: Replaces ``osProfile.customData`` (base64), which Azure never returns.
        known_balancer: On an update, the load balancer that the set has had so far.
        keep_balancer: Whether it stays although the model names none of its probes.
        known_clusters: On an update, the Service Fabric clusters given with it so far (C7).
        known_resources: On an update by a template, the load balancers in it.
        parameters: Values for a template's parameters: a parameters file, ``name=value``, an
            object, or a list of these.
        supply: Asks for the value of a secure parameter that has none.
        is_stored: Whether it has been loaded before, so that its texts are taken as they are.

    Raises:
        ModelError: The document cannot be read or is invalid; every problem has its JSON path and
            Azure's code.
    """
    # Before anything else, so that no traceback shows the secrets in them.
    source, load_balancer = seal(source), seal(load_balancer)
    custom_data, parameters = seal_text(custom_data), seal_parameters(parameters)
    label = label_of(source, "the model")
    raw = read(source, label)
    refuse_other_documents(raw, label)
    made = _expanded(raw, source, label, parameters, supply)
    body = _flatten(raw if made is None else copied(made.scale_set(name, label), label))
    if name is not None:
        body[_key(body, "name")] = name
    if capacity is not None:
        sku = body.get(_key(body, "sku"))
        body[_key(body, "sku")] = {
            **{
                key: value
                for key, value in (sku if isinstance(sku, dict) else {}).items()
                if key.lower() != "capacity"
            },
            "capacity": capacity,
        }
    spelled = spell(
        ScaleSetModel,
        body,
        in_template=made is not None or is_stored,
        catch_misspelt=not is_stored,
    )
    body = spelled.body
    if custom_data is not None:
        machine = body.get("virtualMachineProfile")
        profile = machine.get("osProfile") if isinstance(machine, dict) else None
        if isinstance(profile, dict):
            profile["customData"] = custom_data
    refused = [*check_kind(body), *spelled.problems]
    model = validate(ScaleSetModel, body, label, refused)

    given, balancer_label = None, label_of(load_balancer, _BALANCER)
    if load_balancer is not None:
        given = _flatten(read(load_balancer, balancer_label, _VALID_BALANCER))
    declared = known_resources if made is None else made.of(LOAD_BALANCER)
    probe, balancer = _find_probe(
        model,
        given,
        declared,
        known_balancer,
        label,
        balancer_label,
        keep_balancer=keep_balancer,
    )
    clusters = _clusters(made, label) or known_clusters
    return ScaleSetDocument(
        model,
        probe,
        label,
        clusters,
        balancer,
        tuple(spelled.unevaluated),
        tuple(spelled.extension_settings),
        tuple(made.generated) if made else (),
        tuple(mask(found.name)[:_NAME_CHARS] for found in (made.of(STANDBY_POOL) if made else ())),
    )


def _clusters(made: Expansion | None, label: str) -> tuple[Cluster, ...]:
    return tuple(
        validate(Cluster, *_spelled(Cluster, found.body, label), label)
        for found in (made.of(CLUSTER) if made else ())
    )


def read_part(source: Source) -> dict[str, Any]:
    """Reads part of a scale set's body, with ``properties`` flattened and nulls dropped.

    Raises:
        ModelError: It cannot be read.
    """
    return read_change(source).body


def read_change(
    source: Source, parameters: Parameters | None = None, name: str | None = None
) -> Change:
    """Reads part of a scale set's body, with ``properties`` flattened and nulls dropped.

    Args:
        source: The path of a JSON or YAML file, or the document itself.
        parameters: Values for a template's parameters.
        name: In a template with several sets, chooses one.

    Raises:
        ModelError: It cannot be read.
    """
    source, parameters = seal(source), seal_parameters(parameters)
    label = label_of(source, "the change")
    raw = read(source, label)
    refuse_other_documents(raw, label)
    made = _expanded(raw, source, label, parameters, None, is_change=True)
    flat = _flatten(raw if made is None else copied(made.scale_set(name, label), label))
    spelled = spell(ScaleSetModel, flat, in_template=made is not None, catch_misspelt=True)
    if spelled.problems:
        raise ModelError(spelled.problems, source=label)
    return Change(
        spelled.body,
        tuple(spelled.unevaluated),
        tuple(spelled.extension_settings),
        _clusters(made, label),
        tuple(made.of(LOAD_BALANCER)) if made else (),
    )


def _expanded(
    raw: dict[str, Any],
    source: Any,
    label: str,
    parameters: Parameters | None,
    supply: Supply | None,
    *,
    is_change: bool = False,
) -> Expansion | None:
    """Evaluates a document that is a template; None if it is a plain body.

    Raises:
        ModelError: The template is wrong, or parameters are given for a plain body.
    """
    if is_template(raw):
        folder = Path(source).parent if isinstance(source, (str, Path)) else None
        return expand_template(
            raw,
            label,
            folder=folder,
            parameters=parameters,
            supply=supply,
            is_change=is_change,
        )
    if parameters is None or (isinstance(parameters, (list, tuple)) and not parameters):
        return None
    message = "is a resource's body, which has no parameters; give none, or the whole template"
    raise ModelError([ModelProblem("$", "InvalidParameter", message)], source=label)


def _spelled(kind: type[AzureModel], body: Any, label: str) -> tuple[Any]:
    found = spell(kind, _flatten(copied(body, label)), in_template=True)
    if found.problems:
        raise ModelError(found.problems, source=label)
    return (found.body,)


def _key(body: Mapping[str, Any], name: str) -> str:
    """Returns how an object spells a property."""
    return next((key for key in body if key.lower() == name), name)


def _flatten(value: Any) -> Any:
    """Flattens ``properties`` and drops nulls, which Azure treats as absent."""
    if isinstance(value, list):
        return [_flatten(item) for item in value]
    if not isinstance(value, dict):
        return value
    flat: dict[str, Any] = {}
    while isinstance(inner := value.get(outer := _key(value, "properties")), dict):
        names = {key.lower() for key in inner}
        value = {
            **{k: v for k, v in value.items() if k != outer and k.lower() not in names},
            **inner,
        }
    for key, item in value.items():
        if item is not None:
            flat[key] = item if key in OPAQUE else _flatten(item)
    return flat


_M = TypeVar("_M", bound=AzureModel)


def validate(
    kind: type[_M],
    body: Any,
    label: str,
    known: Sequence[ModelProblem] = (),
    expected: str = "a valid scale set",
) -> _M:
    """Validates a body, converting pydantic's errors to Azure's.

    Args:
        kind: The model.
        body: The body, in Azure's spelling.
        label: Its name in messages.
        known: Problems that were found before; they come first, and each of them stands for what
            is wrong at its path.
        expected: What it must be, for messages.

    Raises:
        ModelError: The body is invalid; it has a problem for each wrong value, up to a maximum.
    """
    problems = list(known)
    try:
        checked = kind.model_validate(body)
    except ValidationError as wrong:
        count = wrong.error_count()
        told = {path for problem in problems for path in _judged(problem.path)}
        problems += [
            ModelProblem(_json_path(error["loc"]), "InvalidParameter", _explain(dict(error)))
            for error in wrong.errors(include_url=False, include_context=False)[:_TOLD_PROBLEMS]
            if not any(f"{_json_path(error['loc'])}.".startswith(f"{path}.") for path in told)
        ]
        if count > _TOLD_PROBLEMS:
            problems.append(
                ModelProblem("$", "InvalidParameter", f"{count - _TOLD_PROBLEMS} more are wrong")
            )
    else:
        if not problems:
            return checked
    raise ModelError(
        problems, source=label, expected=expected
    )  # here: pydantic's error shows its input


def _judged(path: str) -> Iterator[str]:
    """Yields the paths that a problem speaks for: its own, and what a refused image leaves out."""
    yield path
    if path.endswith((".osDisk.image", ".imageReference.id")):
        yield f"{path.rpartition('.storageProfile.')[0]}.storageProfile.imageReference"


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
    return f"{message}; given {quote(given)}"


def _find_probe(
    model: ScaleSetModel,
    given: Any,
    made: Sequence[Resource],
    known: LoadBalancer | None,
    label: str,
    balancer_label: str,
    *,
    keep_balancer: bool = False,
) -> tuple[Probe | None, LoadBalancer | None]:
    """Finds the probe that the model names, and the load balancer that has it.

    A set without a health probe is behind the load balancer in whose backend pool its instances
    are, or else behind the one that was given beside it. Only the load balancer that it names is
    validated, and one that was given beside the model.

    Args:
        model: The scale set.
        given: The body of a load balancer that was given beside it, or None.
        made: The load balancers of the template that holds it, if one does.
        known: The load balancer that the set has had so far.
        label: The document's name in messages.
        balancer_label: The name in messages of the load balancer that was given beside it.
        keep_balancer: Whether ``known`` stays although the model names none of its probes.

    Raises:
        ModelError: The model names a probe that no load balancer has.
    """
    network = model.virtual_machine_profile.network_profile
    wanted = "" if network is None or network.health_probe is None else network.health_probe.id
    balancer_name, probe_name = probe_names(wanted)
    candidates = [known] if known is not None and given is None else []
    if given is not None:
        found = spell(LoadBalancer, given, catch_misspelt=True)
        candidates.append(
            validate(LoadBalancer, found.body, balancer_label, found.problems, _VALID_BALANCER)
        )
        made = ()
    if not wanted:
        stays = given is not None or keep_balancer
        other = candidates[0] if candidates and stays else None
        return None, _balancer_by_pool(model, candidates, made, label) or other
    for resource in made:
        if resource.name.lower() != (balancer_name or resource.name).lower():
            continue
        candidates.insert(0, _balancer_in(resource, label))
    for balancer in candidates:
        probe = balancer.probe_by_id(wanted)
        if probe is not None:
            return probe, balancer
    names = listed(
        f"{balancer.title}/{mask(probe.name)}"
        for balancer in candidates
        for probe in balancer.probes
    )
    told = f"{balancer_name}/{probe_name}" if balancer_name else probe_name
    message = (
        f"names the load-balancer probe {quote(told)}, and "
        + (f"there is only: {names}" if candidates else "no load balancer was given")
        + "; give the load balancer's JSON too (load_balancer=, --load-balancer), "
        "or a template that holds both"
    )
    path = "$.virtualMachineProfile.networkProfile.healthProbe.id"
    raise ModelError([ModelProblem(path, "InvalidResourceReference", message)], source=label)


def _balancer_by_pool(
    model: ScaleSetModel,
    candidates: list[LoadBalancer],
    made: Sequence[Resource],
    label: str,
) -> LoadBalancer | None:
    """Returns the load balancer whose backend pool the model names; None if there is none.

    If there are several, such as an inner and an outer one, it is the first that has rules to serve.
    """
    names = pool_balancers(model)
    found = [_balancer_in(entry, label) for entry in made if entry.name.lower() in names]
    found += [balancer for balancer in candidates if balancer.has_pool_of(model)]
    return next((balancer for balancer in found if served_rules(balancer, model)), None) or (
        found[0] if found else None
    )


def _balancer_in(resource: Resource, label: str) -> LoadBalancer:
    body = {**_spelled(LoadBalancer, resource.body, label)[0], "id": resource.identifier}
    title = f"{_BALANCER} {quote(resource.name)} of {label}"
    return validate(LoadBalancer, body, title, expected=_VALID_BALANCER)
