"""Creates a scale set from a document: checks everything first, then runs the operation (A1, Q3)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from pytest_vmss.api.announcement import announce
from pytest_vmss.api.backends import LocalBackends
from pytest_vmss.api.checkpoints import Checkpoints, Sought
from pytest_vmss.api.suite_functions import keep_functions, require_durable
from pytest_vmss.engine.engine import Engine
from pytest_vmss.environment.environment import Environment
from pytest_vmss.errors import ConflictError
from pytest_vmss.guest import Check
from pytest_vmss.model import Approver, ScaleSetDocument
from pytest_vmss.operations import CreateScaleSet
from pytest_vmss.operations.revisions import check_document
from pytest_vmss.store import ScaleSetRecord, VersionRecord

__all__ = ["create_scale_set"]


def create_scale_set(
    environment: Environment,
    backends: LocalBackends,
    checkpoints: Checkpoints,
    document: ScaleSetDocument,
    *,
    ports: Sequence[int],
    health_timeout: float | None,
    check: Check | None,
    approver: Approver | None,
    pristine: bool,
) -> None:
    """Creates a set and waits until all its instances are healthy; see :meth:`Lab.create`.

    Args:
        environment: The lab's environment.
        backends: Its hypervisor, guests and load balancers.
        checkpoints: Its checkpoints of newly created sets.
        document: The set's document, validated.
        ports: Guest ports to forward besides those that are always.
        health_timeout: Seconds to wait for health; None for Azure's.
        check: The set's custom health source.
        approver: Who approves its update domains.
        pristine: Whether to restore the instances from a checkpoint, or to make one.
    """
    model = document.model
    version = _checked(environment, backends, document, approver)
    with contextlib.ExitStack() as making:
        sought = (
            making.enter_context(checkpoints.sought(document, version)) if pristine else Sought()
        )
        kind = CreateScaleSet(
            document,
            version,
            ports=ports,
            health_timeout=health_timeout,
            health_command=check if isinstance(check, str) else None,
            health_function=callable(check),
            approver_url=approver if isinstance(approver, str) else None,
            approver_function=callable(approver),
            checkpoint=sought.name,
        )
        engine = Engine(environment, model.name)
        with engine.lock():
            operation = engine.open(kind)
            if sought.obstacle:
                environment.store.event(model.name, "warning", f"boots: {sought.obstacle}")
            set_id = environment.set_record(model.name).unique_id
            keep_functions(environment, set_id, check=check, approver=approver)
            report = engine.run(operation)
            if sought.name:
                checkpoints.check(engine, sought)
            report.raise_for_status()
            if sought.key and not sought.name:
                checkpoints.make(engine, sought)


def _checked(
    environment: Environment,
    backends: LocalBackends,
    document: ScaleSetDocument,
    approver: Approver | None,
) -> VersionRecord:
    """Checks that a set can be created, and returns the image version that it starts with.

    Raises:
        ConflictError: There is already a set of that name.
        ModelError: The model cannot be used here.
        NotFoundError: There is no such image.
        HostError: The host cannot run VMs or load balancers.
        CapacityError: The host has no room for it.
    """
    model = document.model
    if (taken := environment.store.get(ScaleSetRecord, model.name.lower())) is not None:
        raise ConflictError(
            f"there is a scale set {taken.name!r} already; delete it first, or take another name",
            code="Conflict",
        )
    require_durable(model, approver)
    version = check_document(environment, document)
    announce(environment, document)
    if document.balancer is not None and document.balancer.load_balancing_rules:
        backends.require_balancer()
    if version.provisioning == "Azure":
        backends.require_platform()
    environment.require_room(model.sku.capacity, model)
    return version
