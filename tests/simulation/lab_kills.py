"""Kills, failures and other processes at every file operation of a lab's making, removal and reaping.

Run as a process of its own, which has no threads: each attempt is a fork of it, so that a
SIGKILL is a real one and no `finally` runs. Prints JSON: how many points, what did not hold.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_vmss.api.lab import Lab
from pytest_vmss.errors import VmssError
from pytest_vmss.host import addresses
from pytest_vmss.host.paths import LabPaths
from pytest_vmss.host.process import run
from pytest_vmss.labs import reap as reap_module
from pytest_vmss.labs.identity import labs_folder, networks_folder, read_identity
from pytest_vmss.settings import Settings
from pytest_vmss.store import DefinitionRecord, Store

EFFECTS = ("open", "unlink", "rename", "replace", "link", "rmdir", "mkdir", "fsync", "chmod")


@dataclass
class Machines:
    """A hypervisor whose machines are files, so that they outlive the process that made them.

    Attributes:
        folder: Of the machines.
        paths: Of their lab.
    """

    folder: Path
    paths: LabPaths

    def machines(self, prefix: str) -> list[str]:
        return sorted(entry.name for entry in self.folder.glob(f"{prefix}*"))

    def remove(self, name: str) -> None:
        os.unlink(self.folder / name)  # noqa: PTH108 - counted

    def close(self) -> None:
        pass


class Place:
    """A state directory, and what lives outside of it."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="vmss-kills-", dir="/dev/shm"))
        self.settings = Settings(state_dir=self.root / "state", cache_dir=self.root / "cache")
        self.machines = self.root / "machines"
        self.machines.mkdir()
        os.environ["VMSS_STATE_DIR"] = str(self.settings.state_dir)
        os.environ["VMSS_CACHE_DIR"] = str(self.settings.cache_dir)

    def connect(self, settings: Settings, identity: Any) -> Machines:
        assert settings
        return Machines(self.machines, LabPaths(Path(identity.embedded)))

    def reap(self) -> list[str]:
        return reap_module.reap(self.settings)

    def left(self) -> list[str]:
        """Every file, and every folder of a lab."""
        found = [path for path in self.root.rglob("*") if not path.is_dir()]
        found += labs_folder(self.settings).glob("*")
        return sorted(str(path.relative_to(self.root)) for path in found)

    def remove(self) -> None:
        shutil.rmtree(self.root)


class Counter:
    """Counts effects, and does something at the n-th."""

    def __init__(self, number: int, act: Callable[[], None], *, lasting: bool = False) -> None:
        self.count, self._number, self._act, self._lasting = 0, number, act, lasting

    def hit(self) -> None:
        self.count += 1
        if self.count == self._number or (self._lasting and self.count > self._number):
            self._act()


@contextmanager
def counted(counter: Counter, *, before: bool) -> Iterator[None]:
    """Wraps what has an effect: file operations and the database's commits."""

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if real is real_open and not arguments[1] & os.O_CREAT:
                return real(*arguments, **named)
            if before:
                counter.hit()
            result = real(*arguments, **named)
            if not before:
                counter.hit()
            return result

        return call

    real_open = os.open
    saved = {name: getattr(os, name) for name in EFFECTS}
    commit = Store._commit
    for name, real in saved.items():
        setattr(os, name, wrap(real))
    if not before:
        Store._commit = wrap(commit)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for name, real in saved.items():
            setattr(os, name, real)
        Store._commit = commit  # type: ignore[method-assign]


def in_child(act: Callable[[], None]) -> int:
    """Runs something in a fork; what it ended with, as waitpid has it."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - this is the end of the process
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Done:
    """What subprocess.run returns."""

    returncode: int
    stderr: str


class Forks:
    """In place of the module subprocess in reap: the same program, without starting Python."""

    DEVNULL = None
    TimeoutExpired = TimeoutError

    @staticmethod
    def run(argv: list[Any], **_: Any) -> Done:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            sys.argv = argv[2:]
            os.dup2(write, 2)
            try:
                reap_module.main()
            except SystemExit as error:
                if isinstance(error.code, str):
                    print(error.code, file=sys.stderr, flush=True)
                os._exit(error.code if isinstance(error.code, int) else 1)
            os._exit(3)
        os.close(write)
        with os.fdopen(read) as told:
            text = told.read()
        return Done(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text)


def furnish(lab: Lab, place: Place) -> None:
    """Gives a lab what a real one has: an image, a set with machines, a second network."""
    source = place.root / "source.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", source, "1M"], what="an image")
    lab.gallery().publish("web", "1.0.0", source)
    for number in range(2):
        folder = lab.paths.instance("web", number)
        folder.mkdir(parents=True)
        (folder / "os-1.qcow2").touch()
        (place.machines / f"vmss-{lab.identity.id}-web_{number}").touch()
    lab.networks.free_addresses(300)
    lab.environment.connect = lambda: place.connect(lab.settings, lab.identity)  # type: ignore[assignment,return-value]


def check_machines(place: Place, problems: list[str], where: str) -> None:
    """A machine that is left is found again: its lab has its identity, and its own disk."""
    for labs in labs_folder(place.settings).glob("*"):
        paths = LabPaths(labs)
        if paths.identity.exists():
            known = read_identity(paths).id
            for machine in place.machines.glob(f"vmss-{known}-web_*"):
                number = int(machine.name.rpartition("_")[2])
                if not (paths.instance("web", number) / "os-1.qcow2").exists():
                    problems.append(f"{where}: {machine.name} lost its disk")
            return
    problems.extend(f"{where}: {machine.name} is nobody's" for machine in place.machines.iterdir())


def making_a_session(place: Place) -> None:
    Lab.session(place.settings)


def making_a_lasting_lab(place: Place) -> None:
    Lab.open(place.settings, "Web").close()


def removing_a_session(place: Place) -> None:
    lab = Lab.session(place.settings)
    furnish(lab, place)
    with scope():
        lab.destroy()


def removing_a_lasting_lab(place: Place) -> None:
    lab = Lab.open(place.settings, "web")
    furnish(lab, place)
    with scope():
        lab.destroy()


def reaping(place: Place) -> None:
    def make() -> None:
        furnish(Lab.session(place.settings), place)

    in_child(make)
    with scope():
        (folder,) = labs_folder(place.settings).iterdir()
        with contextlib.suppress(SystemExit):  # it says so and ends
            sys.argv[1:] = [str(folder)]
            reap_module.main()
        reap_module.reap(place.settings)


def publishing(place: Place) -> None:
    lab = Lab.open(place.settings, "web")
    source = place.root / "source.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", source, "1M"], what="an image")
    with scope():
        lab.gallery().publish("web", "1.0.0", source)


def serving(place: Place) -> None:
    lab = Lab.open(place.settings, "web")
    with scope():
        lab.blobs.put("a", "a")
        lab.blobs.url("a")


SCENARIOS = {
    act.__name__: act
    for act in (
        making_a_session, making_a_lasting_lab, removing_a_session, removing_a_lasting_lab,
        reaping, publishing, serving,
    )
}  # fmt: skip

#: Where effects count: everything, unless a scenario enters a part of it.
_current: list[tuple[Counter, bool]] = []


@contextmanager
def scope() -> Iterator[None]:
    counter, before = _current[0]
    with counted(counter, before=before):
        yield


def check(name: str, place: Place, problems: list[str], where: str) -> None:
    """After whatever happened, and its cause is cured."""
    check_machines(place, problems, where)
    lines = place.reap()
    problems.extend(f"{where}: reap: {line}" for line in lines if not line.startswith("removed"))
    if name in ("removing_a_lasting_lab", "making_a_lasting_lab", "publishing", "serving"):
        before = [read_identity(LabPaths(e)).id for e in labs_folder(place.settings).glob("*")]
        lab = Lab.open(place.settings, "WEB")
        if lab.store.select(DefinitionRecord) and name == "removing_a_lasting_lab":
            # Not begun yet, or only its machines are gone: whole, so that it can go on.
            if [lab.identity.id] != before or not lab.paths.images.exists():
                problems.append(f"{where}: half a lab was opened")
        elif name == "publishing":
            lab.gallery().publish("web", "1.0.0", place.root / "source.qcow2")
            stored = [path.name for path in lab.paths.images.iterdir()]
            (record,) = lab.images.versions("gallery", "web")
            if stored != [f"{record.digest}.qcow2"]:
                problems.append(f"{where}: stored are {stored}")
        elif name == "serving":
            lab.blobs.put("a", "b")
            lab.blobs.url("a")
        claims = {claim.lab_id for claim in addresses.claims(networks_folder(place.settings))}
        lab.environment.connect = lambda: place.connect(lab.settings, lab.identity)  # type: ignore[assignment,return-value]
        if claims - {lab.identity.id}:
            problems.append(f"{where}: networks of nobody are claimed")
        lab.destroy()
    left = [entry for entry in place.left() if entry != "source.qcow2"]
    if left:
        problems.append(f"{where}: left: {left}")


def check_whole(place: Place) -> None:
    """The lab is there, and its network is its own."""
    (folder,) = labs_folder(place.settings).iterdir()
    made = read_identity(LabPaths(folder))
    claims = addresses.claims(networks_folder(place.settings))
    assert [(claim.lab_id, claim.network) for claim in claims] == [(made.id, made.network)]
    assert LabPaths(folder).database.exists()


def fail(code: int) -> Callable[[], None]:
    def raise_it() -> None:
        raise OSError(code, os.strerror(code))

    return raise_it


def meet(place: Place) -> Callable[[], None]:
    """Another process reaps at this very moment."""

    def reap() -> None:
        told = [line for line in place.reap() if not line.startswith("removed")]
        assert told == [], told

    def act() -> None:
        if in_child(reap) != 0:
            os._exit(1)

    return act


def act_of(how: str, place: Place) -> Callable[[], None]:
    return {
        "kill": die,
        "once": fail(errno.EIO),
        "full": fail(errno.ENOSPC),
        "meet": meet(place),
    }[how]


def attempt(name: str, number: int, how: str, problems: list[str]) -> bool:
    """One point; False where the scenario has no so many."""
    place = Place()
    vars(reap_module)["open_hypervisor"] = place.connect
    where = f"{name}: {how} at {number}"
    counter = Counter(number, act_of(how, place), lasting=how == "full")

    def act() -> None:
        _current[:] = [(counter, how in ("once", "full"))]
        whole = name.startswith("making")
        try:
            with scope() if whole else contextlib.nullcontext():
                SCENARIOS[name](place)
        except VmssError:
            if how == "meet":
                raise
        if how == "meet" and whole:
            check_whole(place)
        os._exit(0 if counter.count < number else 7)

    status = in_child(act)
    reached = os.WIFSIGNALED(status) or os.WEXITSTATUS(status) != 0
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) not in (0, 7):
        problems.append(f"{where}: an error of another kind ended it")
    check(name, place, problems, where)
    place.remove()
    return reached


def main() -> None:
    name, how, stride = sys.argv[1:]
    vars(reap_module)["subprocess"] = Forks
    problems: list[str] = []
    tried, number = 0, 1
    while attempt(name, number, how, problems):
        tried += 1
        number += int(stride)
    print(json.dumps({"points": tried, "problems": problems}))


if __name__ == "__main__":
    main()
