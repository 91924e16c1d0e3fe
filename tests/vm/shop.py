"""A set of the name ``shop`` by the command line, and all that must be true of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.models import LOAD_BALANCER, web_model
from tests.vm.command import Command
from tests.vm.conftest import qemu_processes

__all__ = ["BREACH", "Facts", "Shop", "create", "write_model"]

BREACH = "MaxUnhealthyUpgradedInstancePercentExceededInRollingUpgrade"

_FACTS = (
    "cat /proc/sys/kernel/random/boot_id; redis-cli get order; "
    "xargs < /data/custom-data-runs; xargs < /data/extension-runs"
)


@dataclass(frozen=True)
class Facts:
    """What a guest says of itself, asked for by one login.

    Attributes:
        boot_id: The kernel's, new with every boot.
        order: What its Redis keeps on the data disk.
        custom_data_runs: cloud-init's instance ids for which the custom data ran.
        extension_runs: The same of the extension.
    """

    boot_id: str
    order: str
    custom_data_runs: list[str]
    extension_runs: list[str]

    @classmethod
    def of(cls, text: str) -> Facts:
        """Reads what :data:`_FACTS` printed."""
        boot_id, order, custom_data, extension = text.splitlines()
        return cls(boot_id, order, custom_data.split(), extension.split())


def write_model(
    folder: Path, *, fields: dict[str, Any] | None = None, **options: Any
) -> tuple[Path, Path]:
    """A set with a used and an idle data disk, as files.

    Args:
        folder: Where to.
        fields: More of the model's first level.
        options: See :func:`~tests.models.web_model`.

    Returns:
        The files of the model and of its load balancer.
    """
    body = {**web_model("shop", **options), **(fields or {})}
    storage = body["properties"]["virtualMachineProfile"]["storageProfile"]
    storage["dataDisks"].append({"lun": 1, "createOption": "Empty", "diskSizeGB": 1})
    model, balancer = folder / "shop.yaml", folder / "lb.json"
    model.write_text(yaml.safe_dump(body))
    balancer.write_text(json.dumps(LOAD_BALANCER))
    return model, balancer


def create(
    command: Command, folder: Path, image: Path, *, pristine: bool = False, **options: Any
) -> None:
    """Publishes 1.0.0 and makes the set of it, or restores it if it is to be pristine (L1)."""
    model, balancer = write_model(folder, **options)
    restored = ["--pristine"] if pristine else []
    command("image", "publish", "web", "1.0.0", image)
    command("create", model, "--load-balancer", balancer, "--health-timeout", "15", *restored)


class Shop:
    """The set, its guests' facts and its files.

    Its instances are numbered from 0. Of its two data disks one is used by the guest
    and one is idle, whose bytes must never change.

    Args:
        command: How it is reached; its lab has the set.
        count: Its instances.
    """

    def __init__(self, command: Command, count: int) -> None:
        self.command = command
        self.numbers = range(count)
        self.folder = command.state / "labs/default/sets/shop"
        self.idle = self.digests()
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda n: self.ssh(n, f"redis-cli set order {n} && sync"), self.numbers))

    def ssh(self, number: int, *words: str) -> str:
        """What a command in a guest prints."""
        return self.command("ssh", "shop", str(number), *words).stdout.strip()

    def facts(self) -> list[Facts]:
        """Of all guests, asked for side by side."""
        with ThreadPoolExecutor() as pool:
            told = pool.map(lambda number: self.ssh(number, _FACTS), self.numbers)
            return [Facts.of(text) for text in told]

    def digests(self) -> list[str]:
        """Of the idle data disks."""
        paths = [self.folder / str(number) / "lun1.qcow2" for number in self.numbers]
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]

    def instances(self) -> list[dict[str, Any]]:
        """The instances, as Azure's virtual machines."""
        view = json.loads(self.command("show", "shop", "--json").stdout)
        found: list[dict[str, Any]] = view["virtualMachines"]
        return found

    def versions(self) -> list[str]:
        """The image version that was found in each guest."""
        return [instance["lab"]["imageVersionFound"] for instance in self.instances()]

    def disks(self, number: int) -> set[str]:
        """Names of an instance's disks, and of what is left of unfinished ones."""
        folder = self.folder / str(number)
        return {path.name for kind in ("*.qcow2", "*.part") for path in folder.glob(kind)}

    def pids(self) -> list[int]:
        """The machines' processes, by instance.

        Raises:
            ValueError: An instance has none, or more than one.
        """
        found = []
        for number in self.numbers:
            (pid,) = self.processes(number)
            found.append(pid)
        return found

    def processes(self, number: int) -> list[int]:
        """Pids of an instance's machines; one, where all is well."""
        return qemu_processes(f"{self.folder}/{number}/os-")

    def check(self, versions: Iterable[str]) -> list[Facts]:
        """All is well: versions, health, data, files, processes; nothing run twice.

        Returns:
            What the guests say of themselves, for comparison with a later time.
        """
        wanted, instances = list(versions), self.instances()
        assert [instance["lab"]["imageVersionFound"] for instance in instances] == wanted
        shown = self.command("show", "shop", "--health").stdout
        assert shown.count("Healthy") == len(wanted), shown
        assert self.digests() == self.idle
        told = self.facts()
        for number, facts in enumerate(told):
            assert facts.order == str(number)
            for runs in (facts.custom_data_runs, facts.extension_runs):
                assert len(runs) == len(set(runs)), runs
            generation = instances[number]["lab"]["osDiskGeneration"]
            assert self.disks(number) == {f"os-{generation}.qcow2", "lun0.qcow2", "lun1.qcow2"}
        assert sorted(self.pids()) == sorted(qemu_processes(str(self.folder)))
        return told

    def history(self) -> list[dict[str, Any]]:
        """Azure's properties of each upgrade, newest first."""
        value = json.loads(self.command("history", "shop", "--json").stdout)["value"]
        return [entry["properties"] for entry in value]
