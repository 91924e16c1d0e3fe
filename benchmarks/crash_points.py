"""``python -m benchmarks.crash_points``: kills the engine everywhere, and resumes.

In simulation, with the real engine, planner, journal and gallery: the engine is
killed before, in the middle of and after every durable write of the journal,
every call of hypervisor, guest and load balancer, and every operation on a file; in
an upgrade, in a rollback, in the other operations, and in the resume after such a kill.
Sets are of four, two of which are swapped at once on threads that are preempted at every
effect. A part of the kills are SIGKILLs of processes, so that no ``finally`` runs.

At others the host crashes: files stay, no machine runs any more, and the database is as it was
when it was last synchronized. What guests had written to their data disks by then must be there
after a resume, and their instances run after a restart.

After a kill the set must be where an undisturbed run leaves it, with every data
disk and OS disk there, no file or machine that the records do not know, nothing that a
guest was made to do twice, and never more instances out than a batch holds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from benchmarks.effects import Effect, observing
from benchmarks.invariants import (
    OutageMonitor,
    Tally,
    being_removed,
    lost,
    orphans,
    repeated,
    state_of,
)
from benchmarks.stage import SCENARIOS, Stage, use_memory
from pytest_vmss.simulation.lab import SimulatedLab
from pytest_vmss.simulation.scheduler import Killed

__all__ = ["Ground", "Points", "Synchronized", "judge", "killing", "plan", "run"]

How = Literal["killed", "SIGKILL", "host crash"]

#: SQLite's level at which commits are not synchronized to the disk.
_NORMAL = 1
#: Orders of events that are tried.
_SEEDS = 3


class Synchronized:
    """Remembers what a crash of the host is sure to leave of a lab's database.

    Args:
        lab: The lab.

    Attributes:
        files: The contents of the database's files after the last commit that was synchronized to
            the disk, by their paths; None where there was no such file.
        lost: How many commits there were since.
    """

    def __init__(self, lab: SimulatedLab) -> None:
        self._lab = lab
        self.files: dict[Path, bytes | None] = {}
        self.lost = 0
        self._look()

    def __call__(self, effect: Effect) -> None:
        """Tells of an effect."""
        if (effect.family, effect.name, effect.when) != ("store", "commit", "after"):
            return
        (level,) = self._lab.store._db.execute("PRAGMA synchronous").fetchone()
        if level == _NORMAL:
            self.lost += 1
        else:
            self._look()

    def _look(self) -> None:
        database = self._lab.paths.database
        log, shared = (database.with_name(f"{database.name}-{name}") for name in ("wal", "shm"))
        self.files = {
            path: path.read_bytes() if path.exists() else None for path in (database, log)
        }
        self.files[shared] = None  # SQLite makes it anew
        self.lost = 0

    def put_back(self) -> None:
        """Lets the database be so again; nobody may have it open."""
        for path, content in self.files.items():
            if content is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(content)


class Killer:
    """Counts the moments at which a kill would make a difference, and kills at one of them.

    Args:
        moment: At which one; 0 for none.
        die: What a kill is.
        watch: Looks at the world at each.
        synchronized: Is told of all effects until then.
    """

    def __init__(
        self,
        moment: int,
        *,
        die: Callable[[], object] = lambda: None,
        watch: OutageMonitor | None = None,
        synchronized: Synchronized | None = None,
    ) -> None:
        self.count = 0
        self.dead = False
        self._moment, self._die, self._watch = moment, die, watch
        self._synchronized = synchronized

    def __call__(self, effect: Effect) -> None:
        """Tells of an effect; the dead have none."""
        if self.dead:
            raise Killed
        if self._synchronized is not None:
            self._synchronized(effect)
        if effect.reads or (effect.family == "store" and effect.name != "commit"):
            return
        self.count += 1
        if self._watch is not None:
            self._watch.look(effect)
        if self.count == self._moment:
            self._die()
            self.dead = True
            raise Killed


@contextlib.contextmanager
def killing(lab: SimulatedLab, moment: int, **options: Any) -> Iterator[Killer]:
    """Kills at the moment-th chance; a moment of 0 only counts."""
    killer = Killer(moment, **options)
    with observing(lab, killer), contextlib.suppress(Killed):
        yield killer


@dataclass(frozen=True)
class Points:
    """Some kills of one scenario.

    Attributes:
        scenario: Its name.
        kills: The moments of each: of what is done, of its resume, of that one's resume.
        how: By an exception, by SIGKILL of a process, or by a crash of the host.
    """

    scenario: str
    kills: tuple[tuple[int, ...], ...]
    how: How = "killed"


class Ground:
    """A scenario's stage, and what undisturbed runs of it come to.

    Args:
        scenario: Its name.
        folder: For it alone.
    """

    def __init__(self, scenario: str, folder: Path) -> None:
        self.stage = Stage(SCENARIOS[scenario], folder)
        self._folder = folder
        self.moments: list[int] = []
        self.told: list[str] = []
        self.ideal: dict[str, Any] = {}
        self.operations = 0
        for seed in range(_SEEDS):
            lab = self.stage.fresh(seed)
            with killing(lab, 0, watch=self.watch(lab)) as killer:
                self.stage.scenario.act(lab)
            self.moments.append(killer.count)
            ideal = state_of(lab, self.stage.reports(lab))
            if seed and ideal != self.ideal:
                self.told.append(f"{scenario}: undisturbed runs differ: {ideal}, {self.ideal}")
            self.ideal, self.operations = ideal, len(self.stage.reports(lab))
            lab.close()

    def watch(self, lab: SimulatedLab) -> OutageMonitor:
        """Watches M2 where it applies."""
        scenario = self.stage.scenario
        return OutageMonitor(
            lab, scenario.capacity, scenario.most_out if scenario.rolling else None
        )

    def kill(
        self, kills: Sequence[int], *, real: bool = False, crash: bool = False
    ) -> tuple[SimulatedLab, list[OutageMonitor], bool]:
        """Kills what is done at the first moment, its resume at the second, and so on.

        Args:
            kills: The moments.
            real: By SIGKILL of a process.
            crash: What is not synchronized at the last kill is lost from the database.

        Returns:
            The lab after the last kill, what was seen meanwhile, and whether a kill came.
        """
        seed = kills[0] % _SEEDS
        if real:
            self.stage.lay()
            left, dead = self._kill_process(kills[0], seed)
            return self.stage.open(left, seed), [], dead
        watches, lab = list[OutageMonitor](), self.stage.fresh(seed)
        act: Callable[[SimulatedLab], object] = self.stage.scenario.act
        dead = False
        for number, moment in enumerate(kills, start=1):
            watches.append(self.watch(lab))
            last = Synchronized(lab) if crash and number == len(kills) else None
            with killing(lab, moment, watch=watches[-1], synchronized=last) as killer:
                act(lab)
            dead = dead or killer.dead
            lab = self.stage.succeed(lab, seed, last.put_back if last else lambda: None)
            act = resume
        return lab, watches, dead

    def crash_host(
        self, kills: Sequence[int]
    ) -> tuple[SimulatedLab, list[OutageMonitor], bool, dict[Path, str]]:
        """Kills as :meth:`kill` does; at the last kill the host crashes.

        Returns:
            As there, and what guests had written by then to the data disks that there were at the
            beginning, as far as it must be kept.
        """
        lab, watches, dead = self.kill(kills, crash=True)
        written = dict[Path, str]()
        for name in sorted(lab.simulated.running):
            for disk in lab.simulated.defined[name].data_disks:
                if str(disk.path) in self.stage.data_disks and self.stage.scenario.keeps_writes:
                    written[disk.path] = f"{disk.path.read_text()}, and more at {list(kills)}"
                    disk.path.write_text(written[disk.path])
        lab.simulated.crash_host()
        return lab, watches, dead, written

    def _kill_process(self, moment: int, seed: int) -> tuple[bytes, bool]:
        """Does it in a process that ends by SIGKILL.

        Returns:
            What is left of machines and guests, and whether the kill came.
        """
        path = self._folder / "left"
        child = os.fork()
        if not child:
            try:
                lab = self.stage.open(seed=seed)

                def die() -> None:
                    path.write_bytes(lab.snapshot())
                    os.kill(os.getpid(), signal.SIGKILL)

                with killing(lab, moment, die=die):
                    self.stage.scenario.act(lab)
                path.write_bytes(lab.snapshot())
            except BaseException as error:  # noqa: BLE001 - nothing of the parent runs in it
                print(f"{self.stage.scenario.name}, {moment}: {error!r}", file=sys.stderr)
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) not in (0, -signal.SIGKILL):
            raise RuntimeError(f"the process ended with status {status} at {moment}")
        return path.read_bytes(), os.WIFSIGNALED(status)


def resume(lab: SimulatedLab) -> None:
    """Goes on with everything that was interrupted, as a user does."""
    for web in lab.scale_sets():
        web.resume()


def judge(points: Points, ground: Ground) -> Tally:
    """Kills at some points, and compares where each ends with an undisturbed run."""
    tally = Tally()
    for kills in points.kills:
        what = f"{points.scenario}, {points.how} at {list(kills)}"
        if points.how == "host crash":
            lab, watches, killed, written = ground.crash_host(kills)
            if killed:
                _judge_crash(tally, ground, lab, written, what)
        else:
            lab, watches, killed = ground.kill(kills, real=points.how == "SIGKILL")
            if killed:
                watches.append(ground.watch(lab))
                _judge(tally, ground, lab, watches, what)
        lab.close()
    return tally


def _judge_crash(
    tally: Tally, ground: Ground, lab: SimulatedLab, written: dict[Path, str], what: str
) -> None:
    """Goes on as a user does whose host crashed, and looks for what guests had written."""
    tally.points += 1
    wrong = []
    try:
        resume(lab)
        for web in lab.scale_sets():
            web.restart()
            wrong += [
                f"{instance.name} is {instance.record.provisioning} and {instance.health()}"
                for instance in web
                if instance.record.provisioning == "Succeeded"
                and str(instance.health()) != "Healthy"
            ]
    except Exception as error:  # noqa: BLE001 - it is what is told
        wrong.append(f"did not go on: {error!r}")
    tally.converged += not wrong
    kept = {path for web in lab.scale_sets() for one in web for path in one.data_disks.values()}
    gone = [
        f"what a guest had written to {path}: it has {path.read_text()!r}"
        for path, text in written.items()
        if path in kept and not (path.exists() and path.read_text().startswith(text))
    ]
    gone += lost(lab, {} if ground.stage.scenario.replaces_data_disks else ground.stage.data_disks)
    left = orphans(lab) + repeated(lab)
    tally.lost += len(gone)
    tally.orphans += len(left)
    tally.told += [f"{what}: {thing}" for thing in wrong]
    tally.told += [f"{what}: lost {thing}" for thing in gone]
    tally.told += [f"{what}: left over or wrong: {thing}" for thing in left]


def _judge(
    tally: Tally, ground: Ground, lab: SimulatedLab, watches: Sequence[OutageMonitor], what: str
) -> None:
    tally.points += 1
    replaced = ground.stage.scenario.replaces_data_disks
    meanwhile = lost(  # whoever looks after a kill finds every disk, too
        lab, None if replaced else ground.stage.data_disks, going=being_removed(lab)
    )
    broke = ""
    try:
        with killing(lab, 0, watch=watches[-1]):
            resume(lab)
            if len(ground.stage.reports(lab)) < ground.operations:  # not recorded before the kill
                ground.stage.scenario.act(lab)
    except Exception as error:  # noqa: BLE001 - it is what is told
        broke = f" ({error!r})"
    reached = state_of(lab, ground.stage.reports(lab))
    if reached == ground.ideal and not broke:
        tally.converged += 1
    else:
        tally.told.append(f"{what}: did not converge: {reached}, not {ground.ideal}{broke}")
    before = {} if replaced else ground.stage.data_disks
    gone, left = meanwhile + lost(lab, before), orphans(lab) + repeated(lab)
    left += [wrong for watch in watches for wrong in watch.wrong]
    tally.lost += len(gone)
    tally.orphans += len(left)
    tally.told += [f"{what}: lost {thing}" for thing in gone]
    tally.told += [f"{what}: left over or wrong: {thing}" for thing in left]


# Many points, two processes side by side.


@lru_cache(maxsize=2)
def _ground(scenario: str) -> Ground:
    return Ground(scenario, Path(tempfile.mkdtemp(prefix="vmss-kills-")))


def _work(points: Points) -> Tally:
    return judge(points, _ground(points.scenario))


def plan(ground: Ground, *, every: int, stride: int, real: int, host: int = 0) -> list[Points]:
    """Which kills are tried.

    Args:
        ground: Of which scenario.
        every: One of so many moments is one at which it is killed.
        stride: One of so many is one whose resume is killed too.
        real: One of so many is one at which a process is killed.
        host: One of so many is one at which the host crashes; 0 for none.
    """
    name, total = ground.stage.scenario.name, min(ground.moments)
    single = [(moment,) for moment in range(1, total + 1, every)]
    more: list[tuple[int, ...]] = []
    for moment in range(1, total + 1, stride):
        for second in range(1 + moment % stride, total - moment + 1, stride):
            more += [(moment, second), (moment, second, second // 2 + 1)]
    killed = [(moment,) for moment in range(1 + real // 2, total + 1, real)]
    crashed = [(moment,) for moment in range(1 + host // 2, total + 1, host)] if host else []
    return [
        *_chunks(name, single), *_chunks(name, more), *_chunks(name, killed, "SIGKILL"),
        *_chunks(name, crashed, "host crash"),
    ]  # fmt: skip


def _chunks(
    name: str, kills: Sequence[tuple[int, ...]], how: How = "killed", *, size: int = 40
) -> Iterator[Points]:
    for start in range(0, len(kills), size):
        yield Points(name, tuple(kills[start : start + size]), how)


def run(
    names: Sequence[str], *, every: int, stride: int, real: int, host: int, jobs: int = 2
) -> Tally:
    """Kills at many points of scenarios, and prints what came of each scenario."""
    whole = Tally()
    with tempfile.TemporaryDirectory(prefix="vmss-kills-") as folder:
        tempfile.tempdir, outer = folder, tempfile.tempdir
        try:
            with ProcessPoolExecutor(jobs, initializer=_ground.cache_clear) as pool:
                for name in names:
                    ground = _ground(name)
                    tally = Tally(told=list(ground.told))
                    points = plan(ground, every=every, stride=stride, real=real, host=host)
                    for part in pool.map(_work, points):
                        tally.add(part)
                    for line in tally.told:
                        print(line, file=sys.stderr)
                    kills = f"{tally.points} points of {min(ground.moments)} moments"
                    print(f"{name}: {kills}", flush=True)
                    whole.add(tally)
        finally:
            tempfile.tempdir = outer
            _ground.cache_clear()
    return whole


def main() -> None:
    """Runs all points and prints the tally."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=2, help="of moments (default 2)")
    parser.add_argument("--stride", type=int, default=60, help="of kills of resumes (default 60)")
    parser.add_argument("--real", type=int, default=19, help="of kills of processes (default 19)")
    parser.add_argument("--host", type=int, default=19, help="of crashes of the host (default 19)")
    parser.add_argument("--only", choices=list(SCENARIOS), help="one scenario by name")
    arguments = parser.parse_args()
    use_memory()
    names = [arguments.only] if arguments.only else list(SCENARIOS)
    tally = run(
        names, every=arguments.every, stride=arguments.stride, real=arguments.real,
        host=arguments.host,
    )  # fmt: skip
    print(
        f"points={tally.points} converged={tally.converged} "
        f"lost={tally.lost} orphans={tally.orphans}"
    )
    if tally.converged != tally.points or tally.lost or tally.orphans or tally.told:
        sys.exit(1)


if __name__ == "__main__":
    main()
