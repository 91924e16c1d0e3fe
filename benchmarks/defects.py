"""Deliberate defects, each with what should notice it; `benchmarks.mutants` plants them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["MUTANTS", "Mutant", "Patch"]

_DISKS = "steps/disks.py"
_HOST_FAULTS = "tests/simulation/test_host_faults.py"
_UPGRADE = "tests/simulation/test_upgrade.py"


@dataclass(frozen=True)
class Patch:
    """A change of one file of the package.

    Attributes:
        path: Below ``pytest_vmss``.
        old: Text that is there once.
        new: Text in its place.
    """

    path: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """A deliberate defect.

    Attributes:
        name: What is wrong, in words.
        patches: How it is made.
        checks: Arguments of ``python -m`` of what should notice; one is enough.
    """

    name: str
    patches: tuple[Patch, ...]
    checks: tuple[tuple[str, ...], ...]


def _tests(*nodes: str) -> tuple[str, ...]:
    return ("pytest", "-x", "-q", "-p", "no:cacheprovider", *nodes)


def _kills(scenario: str, every: int = 3) -> tuple[str, ...]:
    return (
        "benchmarks.crash_points", "--only", scenario, "--every", str(every), "--stride", "1000",
        "--real", "1000", "--host", "1000",
    )  # fmt: skip


def _faults(play: str, stride: int) -> tuple[str, ...]:
    return ("benchmarks.fault_points", "--only", play, "--stride", str(stride))


def _mutant(
    name: str, path: str, old: str, new: str, *checks: tuple[str, ...], also: Sequence[Patch] = ()
) -> Mutant:
    return Mutant(name, (Patch(path, old, new), *also), checks)


MUTANTS: tuple[Mutant, ...] = (
    # Disks.
    _mutant(
        "what a saved machine wrote since it went on is dropped",
        "operations/checkpoint.py",
        ", goes_on=True",
        "",
        _tests(
            "tests/simulation/test_checkpoints.py"
            "::test_memory_is_restored_on_disks_as_they_were_frozen_also_after_a_crash"
        ),
    ),
    _mutant(
        "the old seed is not removed",
        _DISKS,
        "                context.environment.paths.seed(*place),\n",
        "",
        _tests(f"{_UPGRADE}::test_a_good_version_rolls_through"),
    ),
    _mutant(
        "the old UEFI variables are not removed",
        _DISKS,
        "                context.environment.paths.nvram(*place),\n",
        "",
        _tests(f"{_UPGRADE}::test_uefi_variables_follow_the_os_disk"),
    ),
    _mutant(
        "the blocks of a VHD may overlap",
        "gallery/vhd.py",
        "sector < last_end or ",
        "",
        _tests("tests/unit/test_image_formats.py::test_a_dynamic_vhd_that_is_not_sound"),
    ),
    _mutant(
        "the old disk is discarded before the commit",
        "operations/disk_swap.py",
        "        Commit(new),\n        Discard(new),",
        "        Discard(new),\n        Commit(new),",
        _kills("upgrade of one", 2),
        also=[Patch(_DISKS, "if context.record.generation != self.keep:", "if False:")],
    ),
    _mutant(
        "the old disk is discarded though the new one is not there",
        _DISKS,
        "        _require_disk(context, self.keep)\n",
        "",
        _tests(
            f"{_HOST_FAULTS}::test_no_disk_is_removed_while_the_one_to_keep_is_not_there",
            f"{_HOST_FAULTS}::test_a_file_in_the_place_of_a_disk_is_no_disk",
        ),
    ),
    _mutant(
        "a discard does not ask which disk the record names",
        _DISKS,
        "if context.record.generation != self.keep:",
        "if False:",
        _tests(f"{_HOST_FAULTS}::test_only_the_instances_own_disk_is_kept"),
    ),
    _mutant(
        "a disk that is not there is committed",
        _DISKS,
        "        _require_disk(context, self.generation)\n",
        "",
        _tests(
            f"{_HOST_FAULTS}::test_a_file_in_the_place_of_a_disk_is_no_disk",
            "tests/simulation/test_defects.py",
        ),
    ),
    _mutant(
        "a data disk that has gone is made anew, empty",
        _DISKS,
        "if disk.lun in had:",
        "if False:",
        _tests(f"{_HOST_FAULTS}::test_a_data_disk_that_has_gone_is_never_replaced_by_an_empty_one"),
    ),
    _mutant(
        "a swap replaces the data disks too",
        "operations/disk_swap.py",
        "ReplaceDataDisks(revision) if data_disks else CreateDataDisks(revision)",
        "ReplaceDataDisks(revision)",
        _kills("upgrade of one", 20),
    ),
    _mutant(
        "what the guest wrote is not synchronised before the old disk goes",
        "operations/disk_swap.py",
        "AwaitHealth(generation, flush=True)",
        "AwaitHealth(generation)",
        _tests("tests/simulation/test_defects.py"),
    ),
    _mutant(
        "a guest that could not write out at once is not asked again",
        "steps/guest.py",
        "        if not is_flushed:\n            guest.sync()\n",
        "",
        _tests("tests/simulation/test_defects.py"),
    ),
    _mutant(
        "an extension's command is marked as started before it is",
        "guest/extensions/command.py",
        "        flock 8\n        mv ",
        "        flock 8\n        : > ../started\n        mv ",
        _tests("tests/unit/test_command.py"),
    ),
    _mutant(
        "a file has its name before it is written",
        "host/files.py",
        "    sync(part)\n",
        "",
        _tests("tests/unit/test_files.py"),
    ),
    _mutant(
        "the folder of a new file is not synchronised",
        "host/files.py",
        "        part.unlink()\n    sync_folder(path.parent)",
        "        part.unlink()",
        _tests("tests/unit/test_files.py"),
    ),
    _mutant(
        "commits are not synchronised",
        "store/database.py",
        "PRAGMA synchronous=FULL",
        "PRAGMA synchronous=OFF",
        _tests("tests/unit/test_store.py"),
    ),
    _mutant(
        "a machine is stopped before that is synchronised",
        "steps/power.py",
        'name: ClassVar[str] = "stop"\n    timed: ClassVar[bool] = False\n'
        "    durable: ClassVar[bool] = True",
        'name: ClassVar[str] = "stop"\n    timed: ClassVar[bool] = False\n'
        "    durable: ClassVar[bool] = False",
        _tests("tests/simulation/test_durability.py"),
    ),
    _mutant(
        "a data disk is made before that is synchronised",
        _DISKS,
        'context.event("disk", f"makes its data disks at LUN {luns}")',
        "pass",
        _tests("tests/simulation/test_durability.py"),
    ),
    # The journal, and what is told.
    _mutant(
        "the outcome is told before the commit",
        "journal/work.py",
        "        self._journal.run_phase(self._timed(self.context), phase, steps, outcome=outcome)",
        "        self._journal.outcome(self.context, outcome)\n"
        "        self._journal.run_phase(self._timed(self.context), phase, steps)",
        _kills("upgrade of one", 5),
    ),
    _mutant(
        "a resume begins a phase anew",
        "journal/journal.py",
        "return {step.sequence for step in known if step.done is not None and step.error is None}",
        "return set()",
        _kills("upgrade of one", 5),
    ),
    _mutant(
        "a resume takes a step that failed for done",
        "journal/journal.py",
        "if step.done is not None and step.error is None}",
        "if step.done is not None}",
        _faults("upgrade by hand", 97),
    ),
    _mutant(
        "a resume goes on with steps of another name",
        "journal/journal.py",
        "step.sequence >= len(names) or names[step.sequence] != step.name",
        "step.sequence >= len(names)",
        _tests(f"{_HOST_FAULTS}::test_another_versions_journal_is_not_gone_on_with"),
    ),
    _mutant(
        "what a step found out is not written with its end",
        "journal/journal.py",
        "            if conclude is not None:\n                conclude()\n",
        "",
        _tests(f"{_UPGRADE}::test_a_good_version_rolls_through"),
    ),
    _mutant(
        "an operation ends in the middle of an instance",
        "journal/journal.py",
        "            raise self._interrupted(operation_id, action, error_summary(error)[1]) from error\n\n"
        "    @contextlib.contextmanager\n    def outside",
        '            self.end(operation_id, "Faulted", code="Failed", message=str(error))\n'
        "            raise\n\n    @contextlib.contextmanager\n    def outside",
        _faults("upgrade by hand", 97),
        also=[
            Patch(
                "journal/journal.py",
                "            if unsettled := self.report(operation_id).unsettled:\n                raise",
                "            if unsettled := []:\n                raise",
            )
        ],
    ),
    _mutant(
        "a new operation begins while another is unfinished",
        "engine/engine.py",
        "operation = self.journal.unfinished()\n        if operation is None:\n            return None",
        "return None\n        operation = self.journal.unfinished()",
        _kills("upgrade of one", 20),
    ),
    _mutant(
        "an instance that failed is told to be well",
        "journal/work.py",
        '                provisioning="Failed",\n',
        "",
        _tests(f"{_UPGRADE}::test_started_by_hand_there_is_no_rollback", _UPGRADE),
    ),
    # Who judges, and what goes back.
    _mutant(
        "what the host cannot do counts against the image",
        "errors.py",
        "return isinstance(error, InstanceError | WaitTimeoutError | HypervisorError)",
        "return True",
        _faults("upgrade by hand", 97),
    ),
    _mutant(
        "an instance goes back after its commit",
        "operations/disk_swap.py",
        "if work.context.record.generation == plan.result != plan.source:",
        "if False:",
        _faults("upgrade of one", 3),
        _tests(f"{_HOST_FAULTS}::test_a_deadline_that_passes_at_the_commit_takes_nothing_back"),
        also=[
            Patch(
                _DISKS,
                'name: ClassVar[str] = "discard old disk"\n    timed: ClassVar[bool] = False',
                'name: ClassVar[str] = "discard old disk"\n    timed: ClassVar[bool] = True',
            )
        ],
    ),
    _mutant(
        "a surge removes the healthy replacement",
        "operations/replace.py",
        "                _require_healthy(work, new)\n",
        "                _require_healthy(work, new)\n"
        "                begin_removal(old)\n"
        "                steps = delete_steps(plan.source_revision)\n"
        '                work.run_untimed("delete", steps, Outcome.SUCCEEDED)\n',
        _tests(f"{_HOST_FAULTS}::test_the_healthy_replacement_is_never_the_one_to_go"),
    ),
    _mutant(
        "a replacement that died meanwhile takes the place all the same",
        "operations/replace.py",
        "    if not seen.healthy:\n        raise UnhealthyError(",
        "    if False:\n        raise UnhealthyError(",
        _tests(
            f"{_HOST_FAULTS}::test_a_replacement_that_died_before_a_resume_does_not_take_the_place"
        ),
    ),
    _mutant(
        "a way back is not proved",
        "operations/disk_swap.py",
        "        Start(old),\n        ProveBoot(old),\n        AwaitHealth(old),\n        Undrain(),",
        "        Start(old),\n        Undrain(wait=False),",
        _tests("tests/simulation/test_defects.py"),
    ),
    _mutant(
        "the deadline of an instance is ignored",
        "journal/journal.py",
        "self._environment.clock.monotonic() > context.deadline:",
        "False:",
        _tests("tests/simulation/test_defects.py", "tests/simulation/test_rollout.py"),
    ),
    # Guests.
    _mutant(
        "an extension is run again after a kill",
        "steps/extensions.py",
        'first = "1" if earlier is None else',
        "first = str(clock.monotonic()) if earlier is None else",
        _kills("upgrade of one", 2),
    ),
    _mutant(
        "the boot before counts as the new one",
        "guest/boot.py",
        "if facts.boot_id == previous_boot_id:",
        "if False:",
        _tests("tests/unit/test_guest.py", "tests/unit/test_boot_proof.py"),
    ),
    _mutant(
        "the boot before is forgotten",
        "steps/power.py",
        "boot_before=generation.boot_id",
        "boot_before=None",
        _tests("tests/simulation/test_defects.py"),
    ),
    _mutant(
        "health of an earlier boot counts",
        "health/tracker.py",
        "if seen.boot != self.last.boot:",
        "if False:",
        _tests("tests/unit/test_application_health.py"),
    ),
    _mutant(
        "a guest that does not shut down is left running",
        "steps/power.py",
        "        hypervisor.power_off(context.domain)\n",
        "",
        _tests("tests/simulation/test_defects.py"),
    ),
    _mutant(
        "secrets of extensions are shown",
        "guest/extensions/command.py",
        '        text = text.replace(secret, "***")\n',
        "        pass\n",
        _tests("tests/unit/test_extensions.py", "tests/unit/test_command.py"),
    ),
    # Availability.
    _mutant(
        "a batch is too large",
        "engine/planner.py",
        "return max(1, total * percent // 100)",
        "return max(1, total * percent // 100) + 1",
        _tests("tests/unit/test_planner.py"),
    ),
    _mutant(
        "instances that are down do not count against the batch",
        "engine/planner.py",
        "room = max(limit - down, 0)",
        "room = limit",
        _tests("tests/unit/test_planner.py"),
    ),
    _mutant(
        "who is unknown counts as healthy",
        "engine/planner.py",
        "return self.health is not Health.HEALTHY",
        "return self.health is Health.UNHEALTHY",
        _tests("tests/unit/test_planner.py", "tests/simulation/test_health.py"),
    ),
    _mutant(
        "who was rolled back counts as well",
        "engine/rollout.py",
        "if outcomes[n] is not Outcome.SUCCEEDED}",
        "if outcomes[n] is Outcome.FAILED}",
        _tests(f"{_UPGRADE}::test_a_bad_version_is_stopped_and_undone"),
    ),
    _mutant(
        "protection is ignored",
        "engine/planner.py",
        "out = member.protected or member.instance_id in progress.skipped",
        "out = member.instance_id in progress.skipped",
        _tests("tests/unit/test_planner.py"),
    ),
    _mutant(
        "instances are not drained",
        "operations/disk_swap.py",
        "        *notice,\n        Drain(),\n",
        "        *notice,\n",
        _tests("tests/simulation/test_traffic.py"),
    ),
    _mutant(
        "a guest that reported that it is not ready is waited for",
        "guest/boot.py",
        '        if seen.health.state == "Ready":\n',
        '        if seen.health.state in ("Ready", "NotReady"):\n',
        _tests("tests/unit/test_platform_process.py"),
    ),
    _mutant(
        "a scheduled event is another one after a resume",
        "steps/notice.py",
        'uuid.uuid5(_NAMESPACE, f"{context.operation} {context.record.uuid}")',
        "uuid.uuid4()",
        _tests("tests/simulation/test_azure_images.py"),
    ),
    _mutant(
        "a closed guest's datagrams leave its network",
        "guest_platform/network.py",
        "        elif self._leads_out(frame) if self._outbound else is_tcp(frame):\n",
        "        elif True:\n",
        _tests("tests/unit/test_platform_network.py"),
    ),
    _mutant(
        "an instance serves before it is healthy",
        "steps/traffic.py",
        "            if self.wait and balancer.judges:\n                self._wait(context, balancer)\n",
        "",
        _tests("tests/simulation/test_defects.py"),
    ),
    _mutant(
        "who is out of service is served after a restart of the load balancer",
        "environment/traffic.py",
        "return Member(record.name, record.address, record.forwards, record.in_service)",
        "return Member(record.name, record.address, record.forwards, True)",
        _kills("upgrade of one", 1),
    ),
    # Processes.
    _mutant(
        "the lock of a set is freed early",
        "engine/engine.py",
        "            with stoppable(signal):\n                yield",
        "            lock.release()\n            with stoppable(signal):\n                yield",
        _tests(f"{_UPGRADE}::test_a_second_upgrade_is_refused"),
    ),
    _mutant(
        "a lab lives no longer because its process has it open",
        "labs/reap.py",
        "yield not is_locked(paths.in_use)",
        "yield True",
        _tests("tests/simulation/test_labs.py::test_a_lab_lives_as_long_as_its_process"),
    ),
    _mutant(
        "a lab's identity is removed first",
        "labs/removal.py",
        "        _empty(paths.folder, keep={paths.identity})\n        for claim",
        "        paths.identity.unlink()\n        _empty(paths.folder)\n        for claim",
        _tests("tests/simulation/test_labs.py"),
    ),
    _mutant(
        "a lab's networks stay claimed",
        "labs/removal.py",
        "            if claim.lab_id == identity.id:\n"
        "                release_network(networks_folder(settings), claim.network)\n",
        "            pass\n",
        _tests("tests/simulation/test_labs.py"),
    ),
    # Service Fabric, and instances that are stopped.
    _mutant(
        "a cluster that hesitates is taken to approve",
        "engine/approval.py",
        "            if answer.approved:\n",
        "            if True:\n",
        _tests("tests/simulation/test_service_fabric.py"),
    ),
    _mutant(
        "an update domain that was left is not reported",
        "engine/approval.py",
        "        self._report(task, {self._name(n): str(outcome) for n, outcome in outcomes.items()})\n",
        "",
        _tests("tests/simulation/test_service_fabric.py"),
    ),
    _mutant(
        "a stopped instance counts as unhealthy",
        "engine/planner.py",
        "self.health is not Health.HEALTHY and not self.stopped",
        "self.health is not Health.HEALTHY or self.stopped",
        _tests("tests/simulation/test_stopped.py"),
    ),
    _mutant(
        "a stopped instance is proved before it was started",
        "operations/disk_swap.py",
        "        Commit(new, stopped=True),\n",
        "        Commit(new),\n",
        _tests("tests/simulation/test_stopped.py"),
    ),
    _mutant(
        "a property that nothing reads is not listed",
        "model/scale_set.py",
        '                yield f"{path}.{alias}"\n',
        "                pass\n",
        _tests("tests/simulation/test_not_modelled.py"),
    ),
    # What users hand over, and what runs by itself.
    _mutant(
        "a check that ends by pytest.fail holds",
        "guest/check.py",
        "        return error_text(error)  # whatever it is, it does not hold",
        '        return error_text(error) if isinstance(error, Exception) else ""',
        _tests("tests/unit/test_checks.py"),
    ),
    _mutant(
        "the loop ends with the first error",
        "controller/loop.py",
        "                with contextlib.suppress(Exception):\n"
        "                    self._failed(error)\n",
        "                return\n",
        _tests("tests/simulation/test_sessions.py"),
    ),
)
