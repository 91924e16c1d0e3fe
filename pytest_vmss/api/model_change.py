"""Changes of a set's model: makes a document of them, records it and applies it (C9)."""

from __future__ import annotations

import dataclasses
from typing import Any

from pytest_vmss.api.announcement import announce
from pytest_vmss.engine.engine import Engine
from pytest_vmss.environment.environment import Environment
from pytest_vmss.environment.revisions import Revision
from pytest_vmss.errors import ModelError, ModelProblem
from pytest_vmss.journal.report import OperationReport
from pytest_vmss.model import (
    ScaleSetDocument,
    Source,
    keep_secrets,
    load_document,
    merge,
)
from pytest_vmss.model.document import Change
from pytest_vmss.operations import ModelUpdate
from pytest_vmss.operations.model_update import behind_after
from pytest_vmss.operations.revisions import add_revision, check_document
from pytest_vmss.operations.scale import check_capacity_change
from pytest_vmss.secrecy import SecretText

__all__ = ["ModelChange", "apply_model"]


class ModelChange:
    """A change of the model of one set.

    Args:
        environment: The lab's environment.
        scale_set: Name of the set.
        change: The model or a part of it, as it was read.
        replace: Whether that is the whole model.
        load_balancer: Azure's JSON of the load balancer, sealed.
        custom_data: Replaces the custom data, in base64.

    Raises:
        ModelError: It would change the name.
    """

    def __init__(
        self,
        environment: Environment,
        scale_set: str,
        change: Change,
        *,
        replace: bool = False,
        load_balancer: Source | None = None,
        custom_data: SecretText | None = None,
    ) -> None:
        self._environment = environment
        self._name = scale_set
        self._change = change
        self._replace = replace
        self._load_balancer = load_balancer
        self._custom_data = custom_data
        self._require_own_name(change.body)

    def applied_to(self, current: Revision) -> ScaleSetDocument:
        """Returns the whole document that the change makes of the current one.

        Raises:
            ModelError: It is not valid.
        """
        found, stored = self._change, current.model.full()
        body = keep_secrets(stored, found.body) if self._replace else merge(stored, found.body)
        document = load_document(
            {**body, "name": self._name},
            load_balancer=self._load_balancer, custom_data=self._custom_data,
            known_balancer=current.balancer, keep_balancer=current.probe is None,
            known_clusters=found.clusters or current.clusters,
            known_resources=found.balancers,
            is_stored=True,
        )  # fmt: skip
        return dataclasses.replace(
            document, unevaluated=found.unevaluated, unread_settings=found.unread_settings,
            base=current.number,
        )  # fmt: skip

    def record_automatic_policy(self) -> bool:
        """Records a change of nothing but ``automaticOSUpgradePolicy`` beside a running operation.

        Returns:
            False if something else changes too, or has just been changed.
        """
        environment = self._environment
        record = environment.set_record(self._name)
        current = environment.revisions.get(record.unique_id, record.revision)
        wanted = self.applied_to(current)
        if not _changes_automatic_policy_alone(current, wanted):
            return False
        check_document(environment, wanted, current=current)
        with environment.store.transaction():
            now = environment.set_record(self._name)
            if (now.unique_id, now.revision) != (record.unique_id, current.number):
                return False
            if now.state == "Deleting":
                return False
            add_revision(environment, wanted)
        return True

    def _require_own_name(self, part: dict[str, Any]) -> None:
        """Refuses a change of the name: in Azure it is the resource's.

        Raises:
            ModelError: Another name is given.
        """
        given = part.get("name", self._name)
        if not isinstance(given, str) or given.lower() != self._name.lower():
            problem = ModelProblem(
                "$.name",
                "PropertyChangeNotAllowed",
                f"cannot be changed: it is {self._name!r}; leave it out, or create another set",
            )
            raise ModelError([problem], source="the change")


def apply_model(
    environment: Environment, engine: Engine, wanted: ScaleSetDocument
) -> OperationReport | None:
    """Records a model, and applies it to the instances as its ``upgradePolicy.mode`` says.

    Call it with the set locked and idle. The capacity is checked, but not applied.

    Args:
        environment: The lab's environment.
        engine: The set's.
        wanted: The whole new document.

    Returns:
        The report of the operation that applied it; None if none was needed.

    Raises:
        ModelError: Azure does not allow the change; nothing was changed.
    """
    current = environment.revisions.current(engine.name)
    version = check_document(environment, wanted, current=current)
    announce(environment, wanted, current)
    check_capacity_change(environment, engine.name, wanted.model.sku.capacity)
    mode, report = wanted.model.upgrade_policy.mode, None
    if mode == "Manual" or not behind_after(environment, engine.name, wanted):
        add_revision(environment, wanted)
    else:  # recorded by the transaction that opens the operation
        report = engine.perform(ModelUpdate(wanted, version, rolling=mode == "Rolling"))
    with engine.journal.outside("update"):
        environment.traffic.serve(engine.name)
    return report


def _changes_automatic_policy_alone(current: Revision, wanted: ScaleSetDocument) -> bool:
    if wanted.model.automatic_os_upgrade == current.model.automatic_os_upgrade:
        return False
    policy = {"upgrade_policy": current.model.upgrade_policy.model_copy(
        update={
            "automatic_os_upgrade_policy": wanted.model.upgrade_policy.automatic_os_upgrade_policy
        }
    )}  # fmt: skip
    same = current.model.model_copy(update=policy)
    return (same.full(), current.probe, current.balancer) == (
        wanted.model.full(), wanted.probe, wanted.balancer
    )  # fmt: skip
