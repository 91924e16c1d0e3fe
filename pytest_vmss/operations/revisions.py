"""Validates and records a set's model, before anything is touched."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple
from datetime import datetime

from pytest_vmss.environment.environment import Environment
from pytest_vmss.environment.revisions import Revision
from pytest_vmss.errors import ConflictError, ModelError, ModelProblem
from pytest_vmss.file_server.blobs import GUEST_VIEW, names_server
from pytest_vmss.guest import SSH_PORT
from pytest_vmss.guest.extensions import check_settings, is_known, known_types
from pytest_vmss.model import (
    Extension,
    ScaleSetDocument,
    ScaleSetModel,
    VmSize,
    application_health,
    check_model,
    check_update,
    model_warnings,
    profile_of,
)
from pytest_vmss.model.load_balancer import served_rules
from pytest_vmss.secrecy import own_secrets
from pytest_vmss.store import InstanceRecord, ModelRecord, ScaleSetRecord, VersionRecord

__all__ = [
    "add_revision",
    "check_document",
    "has_latest_model",
    "is_behind",
    "left_out_of",
    "model_problems",
    "register_scale_set",
]


def check_document(
    environment: Environment, document: ScaleSetDocument, *, current: Revision | None = None
) -> VersionRecord:
    """Validates a model and its image before anything is touched.

    Args:
        environment: The lab's environment.
        document: The model.
        current: The set's current revision, if it exists.

    Returns:
        The image version that the model refers to.

    Raises:
        ModelError: The model is not valid; every problem has its path and Azure's code.
        NotFoundError: There is no such image.
    """
    model = document.model
    problems = model_problems(
        document,
        sizes=environment.sizes,
        own_size=_own_size(environment, current),
        left_out=left_out_of(environment, model, current),
    )
    problems += _check_custom_data(environment, model)
    if current is not None:
        problems += check_update(current.model, model)
        problems += _check_ports(environment, model, document)
    if problems:
        raise ModelError(problems, source=document.source)
    version = environment.images.version_for(model.image_reference)
    environment.images.path_of(version)
    if version.hyper_v_generation == "V2":
        environment.hypervisor.require_uefi()
    problem = disk_problem(model, version)
    if problem is not None:
        raise ModelError([problem], source=document.source)
    return version


def disk_problem(model: ScaleSetModel, version: VersionRecord) -> ModelProblem | None:
    """What is wrong if an image is larger than the OS disk that the model asks for; None if it fits."""
    gib = model.virtual_machine_profile.storage_profile.os_disk.disk_size_gb
    if gib is None or gib * 1024**3 >= version.virtual_size:
        return None
    return ModelProblem(
        "$.virtualMachineProfile.storageProfile.osDisk.diskSizeGB",
        "InvalidParameter",
        f"is {gib} GiB, smaller than the {version.virtual_size / 1024**3:.1f} GiB of the image "
        f"{version.definition} {version.version}; give a larger one, or leave it out",
    )


def model_problems(
    document: ScaleSetDocument,
    *,
    sizes: Mapping[str, tuple[int, int]],
    own_size: VmSize | None = None,
    left_out: Collection[str] = (),
) -> list[ModelProblem]:
    """Returns what is wrong with a model, wherever it is to run.

    Args:
        document: The model, loaded.
        sizes: VM sizes besides the built-in ones: name to (vCPUs, MiB).
        own_size: The size that its instances get whatever it says.
        left_out: Names of extensions, in lower case, that may be left out.
    """
    problems = check_model(
        document.model,
        probe=document.probe,
        sizes=sizes,
        extension_types=known_types(),
        clusters=list(document.clusters),
        balancer=document.balancer,
        own_size=own_size,
        left_out=left_out,
        unread_settings=document.unread_settings,
    )
    return problems + _check_settings(document.model.extensions, document.unread_settings)


def _check_settings(
    extensions: list[Extension], unread: Sequence[ModelProblem]
) -> list[ModelProblem]:
    """Checks the extensions' settings, unless some have no value here, which is told already."""
    incomplete = {problem.path.partition(".settings")[0] for problem in unread}
    incomplete |= {problem.path.partition(".protectedSettings")[0] for problem in unread}
    return [
        problem
        for problem in check_settings(extensions)
        if problem.path.partition(".settings")[0] not in incomplete
    ]


def _own_size(environment: Environment, current: Revision | None) -> VmSize | None:
    """The size of the lab's own that a set is made in, or was made in (A3)."""
    if current is None:
        return environment.own_size
    size = environment.set_record(current.model.name).own_size
    return None if size is None else VmSize(*size)


def left_out_of(
    environment: Environment, model: ScaleSetModel, current: Revision | None
) -> tuple[str, ...]:
    """The names, in lower case, of extensions that are left out (P4).

    These are the ones that were left out so far, and new ones if unknown ones are skipped: what
    has run is never left out later, in a process that lacks its handler.
    """
    before: tuple[str, ...] = ()
    known: set[str] = set()
    if current is not None:
        before = environment.set_record(current.model.name).left_out
        known = {extension.name.lower() for extension in current.model.extensions}
    skips = environment.unknown_extensions == "skip"
    return tuple(
        name
        for extension in model.extensions
        if not is_known(extension)
        and ((name := extension.name.lower()) in before or (skips and name not in known))
    )


def _check_custom_data(environment: Environment, model: ScaleSetModel) -> list[ModelProblem]:
    """Rejects custom data that needs the lab's files: isolated guests reach them only over SSH."""
    custom = model.virtual_machine_profile.os_profile.custom_data
    if environment.guest_network == "outbound" or custom is None:
        return []
    if not names_server(custom.get_secret_value(), None):
        return []
    return [
        ModelProblem(
            "$.virtualMachineProfile.osProfile.customData",
            "InvalidParameter",
            f"asks for a file of the lab's at {GUEST_VIEW}, which an isolated guest cannot reach "
            "while cloud-init runs; put the file into the custom data itself, let an extension "
            "download it by fileUris, or let guests out with --vmss-guest-network outbound "
            "(vmss --guest-network outbound)",
        )
    ]


def _ports_of(document: ScaleSetDocument) -> set[int]:
    """The guest ports of the load balancer's rules and their probes, and of the set's own."""
    ports = {document.probe.port} if document.probe else set()
    balancer = document.balancer
    if balancer is None:
        return ports
    for rule in served_rules(balancer, document.model):
        ports.add(rule.backend_port)
        if (probe := balancer.probe_of(rule)) is not None:
            ports.add(probe.port)
    return ports


def _check_ports(
    environment: Environment, model: ScaleSetModel, document: ScaleSetDocument
) -> list[ModelProblem]:
    known = environment.set_record(model.name).ports
    return [
        ModelProblem(
            "the load balancer",
            "InvalidParameter",
            f"the port {port} is not forwarded to the instances of this set (forwarded are: "
            f"{', '.join(str(number) for number in known)}); name it when the set is created "
            "(ports=)",
        )
        for port in sorted(_ports_of(document) - set(known))
    ]


def register_scale_set(
    environment: Environment,
    document: ScaleSetDocument,
    *,
    ports: Sequence[int],
    health_timeout: float | None,
    health_command: str | None = None,
    health_function: bool = False,
    approver_url: str | None = None,
    approver_function: bool = False,
) -> ScaleSetRecord:
    """Registers a new set.

    Args:
        environment: The lab's environment.
        document: Its model, validated.
        ports: Guest ports to forward besides those of SSH, the probe, the load balancer's rules and
            the Application Health extension.
        health_timeout: Seconds to wait for health, in place of the lab's timeout.
        health_command: A command as custom health source (F4).
        health_function: Whether this process has a function as custom health source.
        approver_url: The endpoint that approves update domains (I3).
        approver_function: Whether a function of this process does.

    Raises:
        ConflictError: There is already a set of that name.
    """
    model, now = document.model, environment.clock.now()
    forwarded = {SSH_PORT, *ports, *_ports_of(document)}
    if (extension := application_health(model)) is not None and extension.port is not None:
        forwarded.add(extension.port)
    record = ScaleSetRecord(
        name=model.name,
        unique_id=str(uuid.uuid4()),
        created=now,
        automatic_since=_automatic_since(model, None, now),
        ports=tuple(sorted(forwarded)),
        frontend=_frontend(environment, None, document),
        health_command=health_command,
        health_function=health_function,
        approver_url=approver_url,
        approver_function=approver_function,
        overrides={} if health_timeout is None else {"health": health_timeout},
        own_size=None if environment.own_size is None else astuple(environment.own_size),
        left_out=left_out_of(environment, model, None),
    )
    with environment.store.transaction():
        if (taken := environment.store.get(ScaleSetRecord, model.name.lower())) is not None:
            raise ConflictError(
                f"there is a scale set {taken.name!r} already; delete it first, or take another "
                "name",
                code="Conflict",
            )
        environment.store.put(record)
        _put_revision(environment, record, document)
    return record


def add_revision(environment: Environment, document: ScaleSetDocument) -> ScaleSetRecord:
    """Records a new, validated revision of a set's model.

    Returns:
        The set's updated record.

    Raises:
        ConflictError: It was made from a revision that is not the set's any more, for opting out
            and in needs no lock; nothing was changed.
    """
    now = environment.clock.now()
    with environment.store.transaction():
        record = environment.set_record(document.model.name)
        if document.base not in (None, record.revision):
            raise ConflictError(
                f"the model of the scale set {record.name!r} was changed while this change of it "
                f"was checked (revision {document.base} to {record.revision}); nothing of this one "
                "was done: repeat it"
            )
        current = environment.revisions.get(record.unique_id, record.revision)
        before = current.model
        number = record.revision + 1
        same = profile_of(before) == profile_of(document.model)
        record = environment.store.amend(
            record,
            revision=number,
            profile_revision=record.profile_revision if same else number,
            automatic_since=_automatic_since(document.model, record.automatic_since, now),
            frontend=_frontend(environment, record.frontend, document),
            left_out=left_out_of(environment, document.model, current),
        )
        _put_revision(environment, record, document)
        environment.store.event(record.name, "model", f"model changed (revision {number})")
    return record


def _put_revision(
    environment: Environment, record: ScaleSetRecord, document: ScaleSetDocument
) -> None:
    model = document.model.full()
    environment.store.put(
        ModelRecord(
            set_id=record.unique_id,
            revision=record.revision,
            created=environment.clock.now(),
            model=model,
            secrets=list(own_secrets(model)),
            probe=None if document.probe is None else document.probe.full(),
            balancer=None if document.balancer is None else document.balancer.full(),
            clusters=[cluster.full() for cluster in document.clusters],
        )
    )
    for warning in model_warnings(document.probe):
        environment.store.event(record.name, "warning", warning)


def _frontend(
    environment: Environment, before: str | None, document: ScaleSetDocument
) -> str | None:
    """The address of the set's load balancer; once assigned, it never changes."""
    if before is None and document.balancer is not None and document.balancer.load_balancing_rules:
        return environment.free_addresses(1)[0]
    return before


def _automatic_since(
    model: ScaleSetModel, before: datetime | None, now: datetime
) -> datetime | None:
    """When automatic OS upgrades were first enabled: opting out and in again is no first time."""
    enabled = model.automatic_os_upgrade.enable_automatic_os_upgrade
    return before or (now if enabled else None)


def has_latest_model(environment: Environment, record: InstanceRecord) -> bool:
    """Azure's ``latestModelApplied``."""
    return record.revision >= environment.set_record(record.scale_set).profile_revision


def is_behind(environment: Environment, record: InstanceRecord) -> bool:
    """Whether an instance lacks the set's latest model, or its provisioning failed."""
    return not has_latest_model(environment, record) or record.provisioning != "Succeeded"
