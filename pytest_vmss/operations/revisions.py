"""A set's model: checked before anything is touched, recorded before anything exists."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime

from pytest_vmss.environment.environment import Environment
from pytest_vmss.environment.revisions import Revision
from pytest_vmss.errors import ConflictError, ModelError, ModelProblem
from pytest_vmss.file_server.blobs import GUEST_VIEW, names_server
from pytest_vmss.guest.extensions import check_settings, known_types
from pytest_vmss.model import (
    ScaleSetDocument,
    ScaleSetModel,
    check_model,
    check_update,
    model_warnings,
    profile_of,
)
from pytest_vmss.store import InstanceRecord, ModelRecord, ScaleSetRecord, VersionRecord

__all__ = [
    "add_revision",
    "check_document",
    "has_latest_model",
    "is_behind",
    "register_scale_set",
]

_SSH_PORT = 22


def check_document(
    environment: Environment, document: ScaleSetDocument, *, current: Revision | None = None
) -> VersionRecord:
    """Everything that can be known to be wrong before anything is touched.

    Args:
        environment: Where the set is, or is to be.
        document: The model.
        current: What the set has now, where it is there.

    Returns:
        The image version that the model asks for.

    Raises:
        ModelError: The model is not valid; every problem has its path and Azure's code.
        NotFoundError: There is no such image.
    """
    model = document.model
    problems = check_model(
        model,
        probe=document.probe,
        sizes=environment.sizes,
        extension_types=known_types(),
        clusters=list(document.clusters),
        balancer=document.balancer,
    )
    problems += check_settings(model.extensions)
    problems += _check_custom_data(environment, model)
    if current is not None:
        problems += check_update(current.model, model)
        problems += _check_ports(environment, model, document)
    if problems:
        raise ModelError(problems, source=document.source)
    version = environment.images.resolve(environment.images.address_of(model.image_reference))
    environment.images.path_of(version)
    gib = model.virtual_machine_profile.storage_profile.os_disk.disk_size_gb
    if gib is not None and gib * 1024**3 < version.virtual_size:
        problem = ModelProblem(
            "$.virtualMachineProfile.storageProfile.osDisk.diskSizeGB",
            "InvalidParameter",
            f"is {gib} GiB, smaller than the image's {version.virtual_size / 1024**3:.1f} GiB",
        )
        raise ModelError([problem], source=document.source)
    return version


def _check_custom_data(environment: Environment, model: ScaleSetModel) -> list[ModelProblem]:
    """Isolated guests have no way to the lab's files before SSH answers; cloud-init asks then."""
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
    """Guest ports that the probe and the load balancer's rules lead to."""
    rules = document.balancer.load_balancing_rules if document.balancer else []
    ports = {rule.backend_port for rule in rules if rule.protocol != "Udp"}
    return ports | ({document.probe.port} if document.probe else set())


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
) -> ScaleSetRecord:
    """Records a new set.

    Args:
        environment: Where it will be.
        document: Its model, checked.
        ports: Guest ports to forward besides SSH's and the probe's.
        health_timeout: Seconds to wait for health, in place of the lab's limit.
        health_command: A health source of the lab's own (F4).
        health_function: Whether this process has a function that is one.

    Raises:
        ConflictError: There is a set of that name.
    """
    model, now = document.model, environment.clock.now()
    forwarded = {_SSH_PORT, *ports, *_ports_of(document)}
    record = ScaleSetRecord(
        name=model.name,
        unique_id=str(uuid.uuid4()),
        created=now,
        automatic_since=_automatic_since(model, None, now),
        ports=tuple(sorted(forwarded)),
        frontend=_frontend(environment, None, document),
        health_command=health_command,
        health_function=health_function,
        overrides={} if health_timeout is None else {"health": health_timeout},
    )
    with environment.store.transaction():
        if environment.store.get(ScaleSetRecord, model.name.lower()) is not None:
            raise ConflictError(
                f"there is a scale set {model.name!r} already; delete it first, or take another "
                "name",
                code="Conflict",
            )
        environment.store.put(record)
        _put_revision(environment, record, document)
    return record


def add_revision(environment: Environment, document: ScaleSetDocument) -> ScaleSetRecord:
    """Records a new revision of a set's model, checked.

    Returns:
        The set's record, changed.
    """
    now = environment.clock.now()
    with environment.store.transaction():
        record = environment.set_record(document.model.name)
        before = environment.revisions.get(record.unique_id, record.revision).model
        number = record.revision + 1
        same = profile_of(before) == profile_of(document.model)
        record = environment.store.amend(
            record,
            revision=number,
            profile_revision=record.profile_revision if same else number,
            automatic_since=_automatic_since(document.model, record.automatic_since, now),
            frontend=_frontend(environment, record.frontend, document),
        )
        _put_revision(environment, record, document)
        environment.store.event(record.name, "model", f"model changed (revision {number})")
    return record


def _put_revision(
    environment: Environment, record: ScaleSetRecord, document: ScaleSetDocument
) -> None:
    environment.store.put(
        ModelRecord(
            set_id=record.unique_id,
            revision=record.revision,
            created=environment.clock.now(),
            model=document.model.full(),
            probe=None if document.probe is None else document.probe.full(),
            balancer=None if document.balancer is None else document.balancer.full(),
        )
    )
    for warning in model_warnings(document.probe):
        environment.store.event(record.name, "warning", warning)


def _frontend(
    environment: Environment, before: str | None, document: ScaleSetDocument
) -> str | None:
    """The address of the set's load balancer, which stays once it has one."""
    if before is None and document.balancer is not None and document.balancer.load_balancing_rules:
        return environment.free_addresses(1)[0]
    return before


def _automatic_since(
    model: ScaleSetModel, before: datetime | None, now: datetime
) -> datetime | None:
    if not model.automatic_os_upgrade.enable_automatic_os_upgrade:
        return None
    return before or now


def has_latest_model(environment: Environment, record: InstanceRecord) -> bool:
    """Azure's ``latestModelApplied``."""
    return record.revision >= environment.set_record(record.scale_set).profile_revision


def is_behind(environment: Environment, record: InstanceRecord) -> bool:
    """Whether the set's model is still to be brought to an instance, or failed on it."""
    return not has_latest_model(environment, record) or record.provisioning != "Succeeded"
