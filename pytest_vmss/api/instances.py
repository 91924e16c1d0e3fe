"""The handles of a set's instances, and the choice of some of them by id."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from pytest_vmss.api.instance import Instance
from pytest_vmss.clock import run_concurrently
from pytest_vmss.engine.engine import Engine
from pytest_vmss.environment.environment import Environment
from pytest_vmss.errors import ModelError, ModelProblem
from pytest_vmss.model.arguments import check_instance_ids
from pytest_vmss.model.extension_result import ExtensionResult
from pytest_vmss.store import InstanceRecord

__all__ = ["Choice", "Ids", "Instances"]

#: Instance ids, as numbers or as Azure's strings; None for all instances of the set.
Ids = Iterable[int | str] | None


class Choice(NamedTuple):
    """The instances of an operation, by number.

    Attributes:
        numbers: Those to act on.
        skipped: Those that a set-wide call leaves out, since they are protected.
    """

    numbers: list[int]
    skipped: list[int]


class Instances:
    """The instances of one set; each keeps its handle, and so its connection, until it is gone.

    Args:
        environment: The lab's environment.
        engine: The set's.
    """

    def __init__(self, environment: Environment, engine: Engine) -> None:
        self._environment = environment
        self._engine = engine
        self._handles: dict[int, Instance] = {}

    def records(self) -> list[InstanceRecord]:
        """The records of the instances, by number."""
        return self._engine.instances()

    def all(self) -> list[Instance]:
        """The instances, by number."""
        return [
            self._handles.setdefault(
                record.instance_id,
                Instance(self._environment, self._engine.name, record.instance_id),
            )
            for record in self.records()
        ]

    def get(self, instance_id: int | str) -> Instance:
        """Returns an instance by Azure's instance id.

        Raises:
            ModelError: There is no instance with that id.
        """
        (number,) = self.numbers([instance_id])
        return next(one for one in self.all() if one.instance_id == str(number))

    def numbers(self, ids: Ids) -> list[int]:
        """Validates instance ids and returns them as numbers; all instances' for None.

        Raises:
            ModelError: There is no such instance; with Azure's code and wording.
        """
        wanted = check_instance_ids(ids)
        known = [record.instance_id for record in self.records()]
        if wanted is None:
            return known
        problems = [
            ModelProblem(
                "instanceIds",
                "InvalidParameter",
                f"The provided instanceId {given} is not an active Virtual Machine Scale Set VM "
                f"instanceId. (active are: {', '.join(str(n) for n in known) or 'none'})",
            )
            for given in wanted
            if given not in known
        ]
        if problems:
            raise ModelError(problems, source="what was asked for", expected="possible")
        return list(wanted)

    def choose(
        self,
        ids: Ids,
        *,
        spares: bool = False,
        takes: Callable[[InstanceRecord], bool] | None = None,
    ) -> Choice:
        """Chooses the instances of an operation.

        Args:
            ids: Instance ids; None for a set-wide call.
            spares: Whether a set-wide call skips protected instances.
            takes: Whether a set-wide call includes a given unprotected instance; if set, such
                a call skips protected instances too.

        Raises:
            ModelError: There is no such instance.
        """
        numbers = self.numbers(ids)
        if ids is not None or not (spares or takes is not None):
            return Choice(numbers, [])
        records = self.records()
        return Choice(
            [
                record.instance_id
                for record in records
                if not record.protected and (takes is None or takes(record))
            ],
            [record.instance_id for record in records if record.protected],
        )

    def extensions(self) -> dict[str, list[ExtensionResult]]:
        """The results of every extension on the instances that have an OS disk, by its name."""
        found: dict[str, list[ExtensionResult]] = {}
        for instance in self.all():
            if instance.record.generation:
                for result in instance.extensions:
                    found.setdefault(result.name, []).append(result)
        return found

    def resources(self) -> list[dict[str, Any]]:
        """Azure's ``VirtualMachineScaleSetVM`` of each instance; queries all concurrently."""
        found: dict[str, dict[str, Any]] = {}

        def look(instance: Instance) -> None:
            found[instance.instance_id] = instance.resource()

        instances = self.all()
        run_concurrently(instances, look, clock=self._environment.clock)
        return [found[instance.instance_id] for instance in instances]

    def close_removed(self) -> None:
        """Closes the connections to instances that are gone."""
        left = {record.instance_id for record in self.records()}
        for number in self._handles.keys() - left:
            self._handles.pop(number).close()

    def close(self) -> None:
        """Closes the connections to all instances."""
        while self._handles:
            self._handles.popitem()[1].close()
