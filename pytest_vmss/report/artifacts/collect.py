"""Collects what explains a failure into a test's folder; itself it never fails a test."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pytest_vmss.api.instance import Instance
from pytest_vmss.api.lab import Lab
from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.concurrency import bounded
from pytest_vmss.environment.lab_secrets import masker_of
from pytest_vmss.errors import error_text
from pytest_vmss.report.artifacts.folder import ArtifactFolder, make_root
from pytest_vmss.report.artifacts.guests import ask_guest
from pytest_vmss.report.artifacts.host import host_facts
from pytest_vmss.report.timeline import Timeline, set_page, set_timelines
from pytest_vmss.report.timeline.words import headline, verdicts, why_it_stopped
from pytest_vmss.settings import default_state_dir
from pytest_vmss.store import ScaleSetRecord
from pytest_vmss.untrusted import one_line

__all__ = ["Collected", "collect", "ways_in"]

#: Seconds for all of it; guests have less.
_LIMIT_S = 90.0
#: The most sets, instances of each, and guests asked at a time.
_SETS = 8
_INSTANCES = 25
_THREADS = 8
_EVENTS = 20_000
_LINE_CHARS = 400


@dataclass
class Collected:
    """What was collected.

    Attributes:
        folder: The test's folder.
        pages: The pages of timelines in it.
        lines: The few lines that matter, for the failure's message.
        copies: Where each console log was copied to, and each folder of a failed guest's logs.
    """

    folder: Path
    pages: list[Path] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    copies: dict[str, str] = field(default_factory=dict)


def collect(lab: Lab, path: Path, *, test: str, names: Iterable[str]) -> Collected:
    """Collects what explains a test's failure; takes a bounded time.

    Args:
        lab: The lab, which the test has used.
        path: The test's folder; its parent is created too.
        test: The test's name.
        names: The scale sets that the test had to do with; they may be deleted by now.

    Raises:
        OSError: The folder cannot be created.
    """
    sets = list(dict.fromkeys(names))
    make_root(path.parent)
    folder = ArtifactFolder(path, masker_of(lab.environment))
    found = Collected(path)
    try:
        bounded(
            lambda: _Collector(lab, folder, found).run(sets[:_SETS], test),
            what="collecting artifacts",
            timeout=_LIMIT_S,
        )
    except Exception as error:  # noqa: BLE001 - what has been collected is of use
        folder.notes.append(error_text(error))
    folder.close("\n".join((test, "", *found.lines, "")))
    return found


def ways_in(lab: Lab, name: str) -> list[str]:
    """Returns the commands by which one gets at a set that is kept, and removes it."""
    program = lab.environment.program
    if lab.settings.state_dir != default_state_dir():
        program = f"VMSS_STATE_DIR={shlex.quote(str(lab.settings.state_dir))} {program}"
    instances = lab.scale_set(name).instances
    failed = [one for one in instances if one.record.provisioning == "Failed"]
    number = (failed or instances)[0].instance_id if instances else "ID"
    return [
        f"{program} show {name}",
        f"{program} ssh {name} {number}",
        f"{program} console {name} {number}",
        f"{program} delete {name}",
    ]


class _Collector:
    """Collects into one folder.

    Args:
        lab: The lab.
        folder: The folder.
        found: What was collected is added to it.
    """

    def __init__(self, lab: Lab, folder: ArtifactFolder, found: Collected) -> None:
        self._lab = lab
        self._folder = folder
        self._found = found

    def run(self, names: Sequence[str], test: str) -> None:
        """Collects all of it: what is on this host first, then what guests answer."""
        guests: list[tuple[Instance, str]] = []
        for name in names:
            self._try(f"{name}/timeline.html", partial(self._timeline, name, test))
            self._try(f"{name}/events.jsonl", partial(self._events, name))
            if self._lab.store.get(ScaleSetRecord, name.lower()) is None:
                continue
            scale_set = self._lab.scale_set(name)
            self._try(f"{name}/model.json", partial(self._set, scale_set))
            for instance in scale_set.instances[:_INSTANCES]:
                where = f"{name}/{instance.name}"
                self._try(where, partial(self._instance, instance, where))
                guests.append((instance, f"{where}/guest"))
        self._try("host.json", lambda: self._folder.json("host.json", host_facts(self._lab)))
        with ThreadPoolExecutor(_THREADS, "vmss-artifacts") as pool:
            for instance, where in guests:
                pool.submit(ask_guest, instance, self._folder, where)

    def _try(self, what: str, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - the other artifacts are of use
            self._folder.notes.append(f"{what}: {error_text(error)}")

    def _timeline(self, name: str, test: str) -> None:
        timelines = set_timelines(self._lab, name, masked=self._folder.masked)
        if timelines:
            self._found.lines += _lines_of(timelines, self._folder.masked)
        steps = [
            {
                "operation": one.record.action, "instance": row.name, "phase": bar.phase,
                "step": bar.name, "start": bar.start.isoformat(),
                "seconds": round(bar.seconds, 3) if bar.seconds >= 0 else None, "end": str(bar.state), "error": bar.error,
            }
            for one in timelines
            for row in one.rows
            for bar in row.bars
        ]  # fmt: skip
        self._folder.json_lines(f"{name}/steps.jsonl", steps)
        page = set_page(self._lab, name, title=f"{test}: operations of {name}")
        for row in {row for one in timelines for row in one.rows if row.error is not None}:
            # Beside the page are the copies of logs that go with the lab.
            folder = self._lab.paths.instance(name, row.instance_id)
            page = page.replace(f"{folder}/", f"{row.name}/")
        written = self._folder.page(f"{name}/timeline.html", page)
        if written is not None:
            self._found.pages.append(written)

    def _events(self, name: str) -> None:
        events = self._lab.store.last_events(name, _EVENTS)
        self._folder.json_lines(
            f"{name}/events.jsonl", (event.model_dump(mode="json") for event in events)
        )

    def _set(self, scale_set: ScaleSet) -> None:
        name, record = scale_set.name, scale_set.record
        self._folder.json(f"{name}/model.json", scale_set.model.wire())
        configuration = self._lab.paths.balancer(record.unique_id) / "haproxy.cfg"
        self._folder.copy(f"{name}/haproxy.cfg", configuration)
        balancer = self._lab.environment.traffic.balancer(name)
        if balancer is not None:
            self._try(
                f"{name}/haproxy-stat.csv",
                lambda: self._folder.text(f"{name}/haproxy-stat.csv", balancer.report()),
            )

    def _instance(self, instance: Instance, where: str) -> None:
        record, context = instance.record, instance._context
        logs = self._lab.paths.instance(record.scale_set, record.instance_id)
        for log in sorted(logs.glob("console-*.log")):
            copied = self._folder.copy(f"{where}/{log.name}", log)
            if copied is not None:
                self._found.copies[str(log)] = str(copied)
        for kept in sorted(logs.glob("guest-*/")):
            for log in sorted(kept.iterdir()):
                self._folder.copy(f"{where}/{kept.name}/{log.name}", log)
            self._found.copies[str(kept)] = str(self._folder.path / where / kept.name)
        hypervisor = self._lab.hypervisor
        xml = hypervisor.describe(context.domain)
        if xml:
            self._folder.text(f"{where}/domain.xml", xml)
        qemu = hypervisor.log(context.domain)
        if qemu is not None:
            self._folder.copy(f"{where}/qemu.log", qemu)
        self._folder.json(f"{where}/instance.json", record.model_dump(mode="json"))
        self._folder.json(
            f"{where}/disks.json",
            [generation.model_dump(mode="json") for generation in context.generations()],
        )


def _lines_of(timelines: Sequence[Timeline], masked: Callable[[str], str]) -> list[str]:
    """What matters of a set's operations: the last one that failed or did not end, else the last."""
    troubled = [
        one
        for one in timelines
        if one.record.status != "Completed" or any(row.error for row in one.rows)
    ]
    others = [one for one in timelines if one.record.action != "checkpoint"]
    chosen = (troubled or others or list(timelines))[-1]
    lines = [headline(chosen)]
    lines += [
        f"  {verdict.row.name}: {error.code}: {error.message}"
        for verdict in verdicts(chosen)
        if (error := verdict.row.error) is not None
    ][:_SETS]
    lines += [f"  {line}" for line in why_it_stopped(chosen)]
    return [
        f"{line[: len(line) - len(line.lstrip())]}{one_line(masked(line), _LINE_CHARS)}"
        for line in lines
    ]
