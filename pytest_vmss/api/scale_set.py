"""A scale set, as tests and the command line use it: a sequence of its instances."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

from pytest_vmss.api.custom_data import CustomData, encode_custom_data, located
from pytest_vmss.api.instance import Instance
from pytest_vmss.api.instance_view import set_instance_view
from pytest_vmss.api.instances import Ids, Instances
from pytest_vmss.api.model_change import ModelChange, apply_model
from pytest_vmss.api.operation import Operation, Upgrade
from pytest_vmss.api.polling_condition import Always
from pytest_vmss.api.set_checkpoints import SetCheckpoints
from pytest_vmss.api.suite_functions import replace_approver, replace_health_check
from pytest_vmss.api.upgrade_status import history_info, status_info
from pytest_vmss.api.upgrades import Upgrades
from pytest_vmss.controller.controller import Controller
from pytest_vmss.controller.repairs import Repairs
from pytest_vmss.engine.engine import Engine
from pytest_vmss.environment.environment import Environment
from pytest_vmss.environment.revisions import Revision
from pytest_vmss.environment.set_health import observe_instances
from pytest_vmss.errors import ConflictError, LabError, NotFoundError, UpgradeError
from pytest_vmss.guest import Check
from pytest_vmss.model import (
    Approver,
    Parameters,
    ScaleSetModel,
    Source,
    read_change,
    seal_parameters,
)
from pytest_vmss.model.arguments import (
    check_approver,
    check_choice,
    check_flag,
    check_function,
    check_health,
    check_instance_count,
    check_instance_ids,
    check_seconds,
    check_text,
)
from pytest_vmss.operations import (
    Deallocate,
    ExtensionUpgrade,
    Kind,
    OSUpgrade,
    Redeploy,
    Reimage,
    ReimageAll,
    Restart,
    StartInstances,
    StopInstances,
    UpdateInstances,
)
from pytest_vmss.operations.revisions import is_behind
from pytest_vmss.operations.scale import check_capacity_change, removal_of, scaling_to
from pytest_vmss.secrecy import seal
from pytest_vmss.store import InstanceRecord, ScaleSetRecord

__all__ = ["Ids", "ScaleSet"]

#: Seconds for an operation that has just ended to give back its lock.
_JUST_ENDED_S = 1.0


class ScaleSet:
    """A scale set; a sequence of its instances."""

    def __init__(self, environment: Environment, controller: Controller, name: str) -> None:
        self._environment = environment
        self._controller = controller
        self.name = name
        self._engine = Engine(environment, name)
        self._instances = Instances(environment, self._engine)
        self._upgrades = Upgrades(environment, controller, self._engine)

    def __repr__(self) -> str:
        try:
            self._engine.require_own()
            count = len(self)
        except NotFoundError:
            return f"<ScaleSet {self.name}, deleted>"
        except LabError:
            return f"<ScaleSet {self.name} of a lab that is closed>"
        return f"<ScaleSet {self.name}: {count} instance{'s' * (count != 1)}>"

    def __iter__(self) -> Iterator[Instance]:
        return iter(self.instances)

    def __len__(self) -> int:
        return len(self._instances.records())

    def __getitem__(self, index: int) -> Instance:
        return self.instances[index]

    # Its properties.

    @property
    def record(self) -> ScaleSetRecord:
        """Its record in the store.

        Raises:
            NotFoundError: It was deleted.
        """
        self._engine.require_own()
        return self._environment.set_record(self.name)

    @property
    def _revision(self) -> Revision:
        record = self.record
        return self._environment.revisions.get(record.unique_id, record.revision)

    @property
    def model(self) -> ScaleSetModel:
        """Its model."""
        return self._revision.model

    @property
    def instances(self) -> list[Instance]:
        """Its instances, by number."""
        return self._instances.all()

    @property
    def capacity(self) -> int:
        """Number of its instances."""
        return len(self)

    def instance(self, instance_id: int | str) -> Instance:
        """Returns an instance by Azure's instance id, which never changes.

        An index counts positions instead: ``web[0]`` is the first instance.

        Raises:
            ModelError: There is no instance with that id.
        """
        return self._instances.get(instance_id)

    def is_healthy(self) -> bool:
        """Whether all its instances are healthy now; queries each of them."""
        records = self._instances.records()
        seen = observe_instances(self._environment, self.name, records)
        return all(observation.healthy for observation in seen.values())

    @property
    def url(self) -> str:
        """The URL of the first rule that the load balancer serves.

        Raises:
            NotFoundError: The set has no load balancer with a rule.
        """
        self._engine.require_own()
        return self._environment.traffic.url(self.name)

    def instance_view(self) -> dict[str, Any]:
        """Azure's instance view of the set: how many instances are in which state (J3)."""
        return set_instance_view(
            self.record,
            self._instances.records(),
            self._instances.extensions(),
            self.orchestration_services,
        )

    def virtual_machines(self) -> list[dict[str, Any]]:
        """Azure's ``VirtualMachineScaleSetVM`` of each instance, with its instance view (J3)."""
        return self._instances.resources()

    def repair(self) -> Operation | None:
        """Checks all instances once, and repairs those that are due for automatic repair (K1).

        A lab whose control loop runs, as in pytest, does this on its own.

        Returns:
            The repair operation; None if nothing was due.

        Raises:
            ConflictError: Another operation is in progress.
            UpgradeError: Another operation was interrupted.
        """
        with self._engine.lock():
            self._engine.journal.ensure_idle()
            report = self._repairs.repair()
        return None if report is None else self._upgrades.operation(report.record)

    @property
    def orchestration_services(self) -> list[dict[str, Any]]:
        """Azure's ``orchestrationServices`` of the set's instance view."""
        return [self._repairs.view()]

    def set_orchestration_service_state(self, action: Literal["Suspend", "Resume"]) -> None:
        """Suspends automatic repairs, or resumes them (Azure's ``setOrchestrationServiceState``)."""
        check_choice(action, "action", ("Suspend", "Resume"))
        if action == "Suspend":
            self._repairs.suspend("someone asked for it")
        else:
            self._repairs.resume()
            self._controller.wake()

    @property
    def _repairs(self) -> Repairs:
        self._engine.require_own()
        return self._controller.repairs(self.name)

    def set_health_check(self, check: Check | None) -> None:
        """Sets the set's custom health source, or removes it (F4).

        Args:
            check: A command that is run over SSH and judged by its exit status, or a function
                that takes a testinfra host and asserts, and applies in this process only;
                None for none.
        """
        check_health(check, "check")
        replace_health_check(self._environment, self.record, check)

    def set_approver(self, approver: Approver | None) -> None:
        """Sets who approves each update domain before a rolling operation changes it (I3).

        That is for Service Fabric node types of durability Silver or Gold, whose cluster does so
        in Azure.

        Args:
            approver: A function that takes a :class:`~pytest_vmss.RepairTask` and returns True to
                approve; with anything else it is asked again, once a second, and what it raises
                stops the upgrade. Or the URL of an endpoint on loopback that is sent the task as
                JSON and replies ``{"State": "Approved"}``. Both are told of the result too, with
                the state ``Completed``. None approves everything. A function applies in this
                process only.

        Raises:
            ModelError: It is neither; or nobody would ask it. Nothing was changed.
        """
        check_approver(approver)
        replace_approver(self._environment, self.record, approver)

    def always(self, check: Callable[[], object], *, every: float = 0.5) -> Always:
        """Runs a check repeatedly during a ``with`` block, throughout which it must hold.

        Args:
            check: Holds if it returns a true value or None; anything it raises is a
                violation. It must have a timeout of its own.
            every: Seconds from the start of one check to the start of the next.

        Returns:
            A context manager. On exit it raises ViolationError if the check did not hold, with
            the time, the instances' states and the operation's step of every violation.
        """
        check_function(check, "check")
        check_seconds(every, "every", zero=True)
        return Always(self._environment.store, self.name, check, every=every)

    # Rolling upgrades.

    def upgrade(self, *, wait: bool = True) -> Upgrade:
        """Starts a manual OS upgrade to the latest version (C3).

        As in Azure, there is no automatic rollback, and instances already on that
        version are not touched.

        Args:
            wait: Return when it has ended; if false, a thread runs it.

        Raises:
            ConflictError: Another operation is in progress; nothing was changed.
        """
        check_flag(wait, "wait")
        self._engine.require_own()
        kind = OSUpgrade(self._controller.latest(self.name))
        return self._upgrades.take(self._controller.run(self._engine, kind, wait=wait))

    def upgrade_extensions(self, *, wait: bool = True) -> Operation:
        """Rolls newer versions of extension handlers through the set.

        Instances whose extensions all ran with the latest handlers are not touched.

        Args:
            wait: Return when it has ended; if false, a thread runs it.

        Raises:
            ConflictError: Another operation is in progress; nothing was changed.
        """
        check_flag(wait, "wait")
        self._engine.require_own()
        operation = self._controller.run(self._engine, ExtensionUpgrade(), wait=wait)
        return Operation(self._environment, self.name, operation)

    def resume(self) -> Operation | None:
        """Resumes an operation that a killed process left unfinished (M1).

        Returns:
            The operation as it ended; None if there was none to resume.

        Raises:
            ConflictError: Another operation is in progress.
        """
        with self._engine.journal.outside("resume"):
            self._engine.require_own()
        report = self._engine.recover()
        self._controller.wake()
        return None if report is None else self._upgrades.operation(report.record)

    def cancel(self) -> None:
        """Cancels the running upgrade; it ends after its current batch (D8).

        Raises:
            ConflictError: No upgrade is running.
        """
        self._engine.cancel()

    def wait_for_upgrade(self, *, timeout: float | None = None) -> Upgrade:
        """Waits for the automatic upgrade that a publication triggered.

        Args:
            timeout: Seconds; None for the setting ``timeouts.wait``, a day.

        Returns:
            The oldest upgrade that no earlier call has returned, once it has ended and its hooks
            have been called.

        Raises:
            InterruptedOperationError: The host could not continue it; use :meth:`resume`.
            UpgradeError: None is due, or it could not be started; the message says why.
            WaitTimeoutError: It did not end in time.
        """
        timeout = check_seconds(timeout, "timeout", none=True)
        limit = self._environment.base_timeouts.wait if timeout is None else timeout
        return self._upgrades.wait(timeout=limit)

    @property
    def unfinished(self) -> Operation | None:
        """The operation that is in progress or was interrupted; None if there is none."""
        self._engine.require_own()
        record = self._engine.journal.unfinished()
        return None if record is None else Operation(self._environment, self.name, record.id)

    @property
    def creation(self) -> Operation:
        """Its creation, which may have failed."""
        self._engine.require_own()
        first = self._engine.journal.operations()[0]
        return Operation(self._environment, self.name, first.id)

    def history(self, *, limit: int | None = 5) -> list[Upgrade]:
        """The set's OS upgrades, newest first; Azure keeps five, for two months (J2).

        Args:
            limit: The most to return; None for all, however old.
        """
        if limit is not None:
            check_instance_count(limit, "limit")
        return self._upgrades.history(limit=limit)

    def rolling_upgrade_status(self) -> dict[str, Any]:
        """Azure's ``RollingUpgradeStatusInfo`` of the latest rolling upgrade, of any kind (J1).

        Raises:
            NotFoundError: There has been none yet.
        """
        reports = self._upgrades.reports(lambda entry: entry.rolling)
        return status_info(self._environment, self.name, reports)

    def os_upgrade_history(self) -> list[dict[str, Any]]:
        """Azure's ``UpgradeOperationHistoricalStatusInfo``, newest first (J2)."""
        reports = self._upgrades.reports(lambda entry: entry.action == OSUpgrade.action)
        return history_info(self._environment, self.name, reports)

    # Its model.

    def update(
        self,
        change: Source,
        *,
        replace: bool = False,
        parameters: Parameters | None = None,
        load_balancer: Source | None = None,
        custom_data: CustomData | None = None,
    ) -> Operation | None:
        """Changes the model, and applies it to the instances as ``upgradePolicy.mode`` says (C9).

        Manual: not at all, see :meth:`update_instances`. Rolling: batch by batch, without
        rollback unless ``rollbackFailedInstancesOnPolicyBreach``. Automatic: to all at once.
        A changed capacity scales the set.

        While another operation is in progress, or was interrupted, a change of nothing but
        ``automaticOSUpgradePolicy`` is still taken: what runs ends as it began, and no new
        automatic upgrade begins once it is off (C1).

        Args:
            change: The model or a part of it, which is merged into the set's current model.
            replace: Take ``change`` as the whole model, and drop what it lacks, except
                write-only values.
            parameters: Values for a template's parameters: a parameters file, ``name=value``, an
                object, or a list of these (P1).
            load_balancer: Azure's JSON of the load balancer, if the probe changes.
            custom_data: Replaces the custom data: a file, bytes, text or base64; see
                :func:`~pytest_vmss.api.custom_data.encode_custom_data`.

        Returns:
            The operation that applied it to the instances; None if none was needed.

        Raises:
            ModelError: The model is not valid, or changes something that Azure does not
                allow to change; nothing was changed.
            ConflictError: Another operation is in progress; nothing was changed.
            ProvisioningError: New instances did not come up.
        """
        # Sealed first, so that no error message shows secrets (M5).
        beside = self._environment.folder()
        change, load_balancer = located(seal(change), beside), located(seal(load_balancer), beside)
        encoded = custom_data = encode_custom_data(custom_data, beside)
        parameters = seal_parameters(parameters)
        check_flag(replace, "replace")
        wanted = ModelChange(
            self._environment,
            self.name,
            read_change(change, parameters, self.name),
            replace=replace,
            load_balancer=load_balancer,
            custom_data=encoded,
        )
        with contextlib.ExitStack() as locked:
            try:
                locked.enter_context(self._engine.lock())
                self._engine.journal.ensure_idle()
            except (ConflictError, UpgradeError):
                self._engine.require_own()
                if not wanted.record_automatic_policy():
                    raise
                self._controller.wake()
                return None
            document = wanted.applied_to(self._revision)
            report = apply_model(self._environment, self._engine, document)
            capacity = document.model.sku.capacity
            self._scale(scaling_to(self._environment, self.name, capacity))
        self._controller.wake()
        return None if report is None else self._upgrades.operation(report.record)

    def update_instances(self, ids: Ids = None) -> Operation:
        """Brings instances to the latest model, all at once (Azure's ``manualupgrade``, C9).

        A changed image replaces the OS disk; a changed size or changed data disks require a
        restart; changed extensions run again. Changed custom data reaches an instance with
        its next OS disk, as in Azure. An instance that never came up on its OS disk, because it
        did not boot or its custom data did not run to its end, gets a fresh one.

        Args:
            ids: Instance ids; None for all.

        Raises:
            ModelError: There is no such instance; nothing was changed.
            ConflictError: Another operation is in progress; nothing was changed.
            ProvisioningError: It failed on an instance.
        """
        version = self._environment.images.version_for(self.model.image_reference)
        return self._perform(
            ids,
            lambda chosen, skipped: UpdateInstances(chosen, skipped, version=version),
            takes=lambda record: is_behind(self._environment, record),
        )

    # Its size.

    def scale(self, capacity: int) -> None:
        """Scales the set out, with the current model, or in (A2).

        Scaling in follows ``scaleInPolicy``; protected instances stay. Data disks are deleted
        with their instances unless ``deleteOption`` is Detach.

        Args:
            capacity: The new number of instances.

        Raises:
            ModelError: Azure does not accept that capacity; nothing was changed.
            CapacityError: The host has no room; nothing was changed.
            ConflictError: Too many instances are protected, or another operation is in
                progress; nothing was changed.
            ProvisioningError: New instances did not come up; they are kept for inspection.
        """
        check_instance_count(capacity)
        with self._engine.lock():
            self._engine.journal.ensure_idle()
            check_capacity_change(self._environment, self.name, capacity)
            self._scale(scaling_to(self._environment, self.name, capacity))
        self._controller.wake()

    def delete_instances(self, ids: Iterable[int | str]) -> None:
        """Deletes instances, and reduces the set's capacity accordingly.

        Args:
            ids: Instance ids; protected instances may be named too.

        Raises:
            ModelError: There is no such instance; nothing was changed.
            ConflictError: Another operation is in progress; nothing was changed.
        """
        numbers = check_instance_ids(ids, none=False)
        with self._engine.lock():
            self._engine.journal.ensure_idle()
            chosen = self._instances.numbers(numbers)
            self._scale(removal_of(self._environment, self.name, chosen))

    def _scale(self, kind: Kind | None) -> None:
        """Runs a scaling operation, and closes the connections to deleted instances.

        Raises:
            ProvisioningError: It failed on an instance.
        """
        if kind is None:
            return
        report = self._engine.perform(kind)
        self._instances.close_removed()
        report.raise_for_status()

    # Its instances' power and disks (K1).

    def start(self, ids: Ids = None) -> Operation:
        """Starts instances, and waits until they have booted.

        Args:
            ids: Instance ids; None for all.

        Raises:
            ModelError: There is no such instance; nothing was changed.
            ConflictError: Another operation is in progress; nothing was changed.
            ProvisioningError: It failed on an instance.
        """
        return self._perform(ids, StartInstances)

    def stop(self, ids: Ids = None, *, skip_shutdown: bool = False) -> Operation:
        """Stops instances; raises as :meth:`start`.

        Args:
            ids: Instance ids; None for all.
            skip_shutdown: Cut the power instead of asking the guest to shut down.
        """
        check_flag(skip_shutdown, "skip_shutdown")
        return self._perform(
            ids,
            lambda chosen, skipped: StopInstances(chosen, skipped, skip_shutdown=skip_shutdown),
        )

    def deallocate(self, ids: Ids = None) -> Operation:
        """Stops and deallocates instances; locally the same as :meth:`stop`.

        A set-wide call (without ids) skips instances with protectFromScaleSetActions.
        """
        return self._perform(ids, Deallocate, spares=True)

    def restart(self, ids: Ids = None) -> Operation:
        """Restarts instances; raises as :meth:`start`."""
        return self._perform(ids, Restart)

    def reimage(self, ids: Ids = None) -> Operation:
        """Gives instances a fresh OS disk from their current image and model (E3).

        Data disks stay. A set-wide call (without ids) skips instances with
        protectFromScaleSetActions. Raises as :meth:`start`.
        """
        return self._perform(ids, Reimage, spares=True)

    def reimage_all(self, ids: Ids = None) -> Operation:
        """Gives instances a fresh OS disk and fresh, empty data disks; as :meth:`reimage`."""
        return self._perform(ids, ReimageAll, spares=True)

    def redeploy(self, ids: Ids = None) -> Operation:
        """Stops instances, starts new machines on the same disks, and waits for health.

        A set-wide call (without ids) skips instances with protectFromScaleSetActions.
        Raises as :meth:`start`.
        """
        return self._perform(ids, Redeploy, spares=True)

    # Its checkpoints (L1).

    def checkpoint(self, name: str = "") -> Operation:
        """Saves the whole set, so that :meth:`restore` puts it back as it is now.

        Its instances are saved all at once, with memory and disks, and go on from there. A
        checkpoint lives as long as the set; another of the same name replaces it.

        Args:
            name: By which it is asked for; one may have none.

        Raises:
            ConflictError: An instance is stopped or failed, so that it cannot be saved, or
                another operation is in progress; nothing was changed.
            CapacityError: The disk has no room for it; nothing was changed.
            CheckpointError: An instance could not be saved; it was booted again, if it could be.
            ProvisioningError: An instance came up neither from what was saved nor by a boot.
        """
        check_text(name, "name")
        with self._engine.lock(wait=_JUST_ENDED_S):
            report = self._checkpoints.make(name)
        self._controller.wake()
        report.raise_for_status()
        return self._upgrades.operation(report.record)

    def restore(self, name: str = "") -> Operation:
        """Puts the set back as it was at a checkpoint; what was written since is gone.

        That is its model, its instances with their memory, OS disks and data disks, and the load
        balancer. Instances that were removed since come back, and added ones are removed.
        Publications, the history, protections, and who checks or approves stay as they are now.
        What this process is doing to the set is stopped, and an unfinished operation ends with it.
        The instances are restored all at once; one whose memory cannot be restored boots on its
        restored disks, and an event says why.

        Args:
            name: As it was given to :meth:`checkpoint`.

        Raises:
            NotFoundError: There is no such checkpoint; nothing was changed.
            ConflictError: Another process is working on it; nothing was changed.
            UpgradeError: It is being deleted; nothing was changed.
            CapacityError: There is no room for instances that are to come back; nothing was
                changed.
            HostError: Files of the checkpoint are not there; nothing was changed.
            ProvisioningError: An instance did not come up; it is kept for inspection.
        """
        check_text(name, "name")
        self._engine.require_own()
        with self._controller.stopped(self._engine):
            report = self._checkpoints.restore(name)
            self._instances.close_removed()
        self._controller.wake()
        report.raise_for_status()
        return self._upgrades.operation(report.record)

    @property
    def checkpoints(self) -> list[str]:
        """The names of its checkpoints, the oldest first."""
        self._engine.require_own()
        return self._checkpoints.labels()

    @property
    def _checkpoints(self) -> SetCheckpoints:
        return SetCheckpoints(self._environment, self._engine)

    def _perform(
        self,
        ids: Ids,
        kind: Callable[[Sequence[int], Sequence[int]], Kind],
        *,
        spares: bool = False,
        takes: Callable[[InstanceRecord], bool] | None = None,
    ) -> Operation:
        """Performs an operation on instances.

        Args:
            ids: Instance ids; None for all.
            kind: Creates the request from the numbers to act on and those skipped.
            spares: Whether a set-wide call skips protected instances.
            takes: Whether a set-wide call includes a given unprotected instance; if set, such
                a call skips protected instances too.

        Raises:
            ProvisioningError: It failed on an instance.
        """
        with self._engine.lock():
            chosen = self._instances.choose(ids, spares=spares, takes=takes)
            report = self._engine.perform(kind(chosen.numbers, chosen.skipped))
        self._controller.wake()  # an upgrade may have been waiting for this
        report.raise_for_status()
        return self._upgrades.operation(report.record)

    def delete(self) -> None:
        """Deletes the set, its machines and all their disks.

        Operations of this process on the set are stopped first.

        Raises:
            ConflictError: An operation of another process is in progress on it.
            InterruptedOperationError: The host could not remove everything; call this again,
                or resume.
        """
        self._engine.require_own()
        self.close()
        self._controller.delete(self._engine)

    def close(self) -> None:
        """Closes the connections to its instances."""
        self._instances.close()
