"""The part of the pytest plugin that explains failed tests: artifacts, messages, properties (L3).

A failure here is told, and never becomes a test's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_vmss.api.lab import Lab
    from pytest_vmss.report.artifacts import Collected

__all__ = ["ArtifactsPlugin", "artifacts_of", "artifacts_root", "register"]

#: The folder below pytest's rootdir, if none is named.
_FOLDER = "vmss-artifacts"
_OFF = "off"
_TITLE = "pytest-vmss"
_PLUGIN = "vmss-artifacts"


def register(config: pytest.Config) -> None:
    """Adds this part to pytest's plugins."""
    part = config.stash[_PART] = ArtifactsPlugin(config)
    config.pluginmanager.register(part, _PLUGIN)


def artifacts_of(config: pytest.Config) -> ArtifactsPlugin:
    """This part; pytest does not call it where it is blocked (``-p no:vmss-artifacts``)."""
    return config.stash[_PART]


def artifacts_root(config: pytest.Config) -> Path | None:
    """The folder that has a folder for each failed test; None if there is to be none."""
    given: str = config.getoption("--vmss-artifacts") or str(config.getini("vmss_artifacts"))
    if given.strip().lower() == _OFF:
        return None
    return config.rootpath / (given.strip() or _FOLDER)


@dataclass
class _Known:
    """What is known of the running test.

    Attributes:
        since: Id of the lab's last event before the test.
        collected: What was collected of it.
        trouble: Why nothing could be collected.
        told: Whether its message names that.
        failed: Whether it has failed.
        names: The sets that it had to do with.
        mask: Masks the lab's secrets as they were when it failed; the lab may be gone by the time
            that is reported.
    """

    since: int = 0
    collected: Collected | None = None
    trouble: str = ""
    told: bool = False
    failed: bool = False
    names: list[str] = field(default_factory=list)
    mask: Callable[[str], str] | None = None


_KNOWN: pytest.StashKey[_Known] = pytest.StashKey()
_PART: pytest.StashKey[ArtifactsPlugin] = pytest.StashKey()
#: Set for a class or module of which a test has failed that had to do with a lab's sets.
_FAILED: pytest.StashKey[bool] = pytest.StashKey()


class ArtifactsPlugin:
    """Collects artifacts of failed tests, and adds properties to all that use a lab.

    Args:
        config: pytest's configuration.

    Attributes:
        any_failed: Whether a test failed that had to do with a lab's sets.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._lab: Lab | None = None
        self._running: pytest.Item | None = None
        self.any_failed = False

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any]
    ) -> Generator[None, object, object]:
        """Learns of the session's lab, also where a suite replaces the fixture ``vmss``.

        Learns of what fails at a fixture's end, too: pytest reports that when all have ended, and
        by then the set is deleted that this one was about.
        """
        value = yield
        if fixturedef.argname != "vmss":  # at whose end there is nothing left to collect
            # pytest has no hook for it; without its list, the set is looked at when it is reported
            finalizers = getattr(fixturedef, "_finalizers", None)
            if isinstance(finalizers, list):
                finalizers[:] = map(self._noting, finalizers)
        if fixturedef.argname == "vmss":
            from pytest_vmss.api.lab import Lab

            self._lab = value if isinstance(value, Lab) else None
        return value

    def _noting(self, finalizer: Callable[[], object]) -> Callable[[], object]:
        """A fixture's finalizer that notes the failure of the running test if it fails."""

        def noted() -> None:
            try:
                finalizer()
            except (Exception, pytest.fail.Exception):
                self.note_failure()
                raise

        return noted

    def pytest_fixture_post_finalizer(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        """Forgets the lab, which is closed now."""
        if fixturedef.argname == "vmss":
            self._lab = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Notes what has happened before the test."""
        self._running = item
        known = item.stash[_KNOWN] = _Known()
        if self._lab is not None:
            try:
                known.since = max(
                    (one.id for one in self._lab.store.last_events(None, 1)), default=0
                )
            except Exception as error:  # noqa: BLE001 - the test itself will meet it
                known.trouble = _words(error)

    def collect_now(self) -> None:
        """Collects what explains the running test's failure, whatever its fixture's scope."""
        if self._running is not None:
            self.collect(self._running)

    def note_failure(self) -> None:
        """Notes that the running test has failed, and collects what explains it."""
        known = None if self._running is None else self._running.stash.get(_KNOWN, None)
        if self._running is None or known is None or self._lab is None:
            return
        known.failed = True
        known.mask = self._masker(known) or known.mask
        self.collect(self._running)
        if known.names:
            self.any_failed = True
            for node in self._running.listchain():
                node.stash[_FAILED] = True

    def collect(self, item: pytest.Item) -> None:
        """Collects what explains the test's failure now, before what it made is deleted."""
        known = item.stash.get(_KNOWN, None)
        lab, root = self._lab, artifacts_root(self._config)
        if lab is None or known is None or known.collected is not None:
            return
        try:
            from pytest_vmss.report.artifacts import collect, folder_name

            if not known.names:
                known.names = _sets_of(lab, item, known.since)
            if root is not None and known.names:
                path = root / folder_name(item.nodeid)
                known.collected = collect(lab, path, test=item.nodeid, names=known.names)
        except Exception as error:  # noqa: BLE001 - what is reported is the test's own failure
            known.trouble = _words(error)

    @staticmethod
    def has_failed(node: pytest.Item | pytest.Collector) -> bool:
        """Whether a test has failed so far, or one of a class or module."""
        known = node.stash.get(_KNOWN, None)
        return node.stash.get(_FAILED, False) if known is None else known.failed

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Adds to the report of a failure what explains it, and where the rest is."""
        report = yield
        known = item.stash.get(_KNOWN, None)
        if known is None or (self._lab is None and not known.failed):
            return report
        if report.when == "call" or report.failed:
            self._add_properties(item, report)
        if report.failed or known.failed:
            self._mask(known, report)
        if report.failed:
            self.note_failure()
            if not known.told:
                self._explain(known, report)
        return report

    def _mask(self, known: _Known, report: pytest.TestReport) -> None:
        """Masks the lab's secrets in the failure, whoever has quoted them (M5)."""
        mask = self._masker(known) or known.mask
        if mask is None:
            return
        try:
            report.longrepr = _masked(report.longrepr, mask)
            report.sections = _masked(report.sections, mask)
        except Exception as error:  # noqa: BLE001 - what is reported is the test's own failure
            known.trouble = _words(error)

    def _masker(self, known: _Known) -> Callable[[str], str] | None:
        """What masks the lab's secrets; None if there is no lab, or it cannot be read."""
        if self._lab is None:
            return None
        try:
            from pytest_vmss.environment.lab_secrets import value_masker_of

            return value_masker_of(self._lab.environment)
        except Exception as error:  # noqa: BLE001 - what is reported is the test's own failure
            known.trouble = _words(error)
            return None

    def _explain(self, known: _Known, report: pytest.TestReport) -> None:
        """Adds the few lines that matter, and names the folder."""
        lines: list[str] = []
        collected = known.collected
        if collected is not None:
            _rename_logs(report, collected)
            lines += collected.lines
            lines += [f"timeline: {_relative(page)}" for page in collected.pages]
            lines.append(f"logs and records: {_relative(collected.folder)}")
        if known.trouble:
            lines.append(f"artifacts could not be collected: {known.trouble}")
        if not lines:
            return
        known.told = True
        text = "\n".join(lines)
        add = getattr(report.longrepr, "addsection", None)
        if add is None:
            report.sections.append((_TITLE, text))
        else:
            add(_TITLE, text)
        self._add_extras(report, collected, text)

    def _add_extras(
        self, report: pytest.TestReport, collected: Collected | None, text: str
    ) -> None:
        """Adds links to the report of pytest-html, if that is installed and in use."""
        if collected is None or not self._config.pluginmanager.hasplugin("html"):
            return
        try:
            from pytest_html import extras
        except ImportError:
            return
        own: list[Any] = [extras.text(text, name=_TITLE)]
        own += [extras.url(page.as_uri(), name=f"timeline of {page.parent.name}")
                for page in collected.pages]  # fmt: skip
        report.extras = [*getattr(report, "extras", []), *own]  # type: ignore[attr-defined]

    def _add_properties(self, item: pytest.Item, report: pytest.TestReport) -> None:
        """Adds JUnit properties: versions, digests, the accelerator, seconds by stage."""
        known, lab = item.stash[_KNOWN], self._lab
        if lab is None or any(name.startswith("vmss.") for name, _ in item.user_properties):
            return
        try:
            from pytest_vmss.report.properties import properties_of

            names = _sets_of(lab, item, known.since)
            if not names:
                return
            found = properties_of(lab, names, since=known.since)
        except Exception as error:  # noqa: BLE001 - no test fails because it cannot be described
            found = [("vmss.error", _words(error))]
        item.user_properties += found
        report.user_properties += found


def _sets_of(lab: Lab, item: pytest.Item, since: int) -> list[str]:
    """The sets that a test had to do with.

    These are all that there are, if it uses the lab, and those of which events tell since it began.
    """
    from pytest_vmss.store import ScaleSetRecord

    told = [event.scale_set for event in lab.store.events(after=since) if event.scale_set]
    if "vmss" not in getattr(item, "fixturenames", ()):
        return list(dict.fromkeys(told))
    there = [record.name for record in lab.store.select(ScaleSetRecord)]
    return list(dict.fromkeys([*there, *told]))


def _rename_logs(report: pytest.TestReport, collected: Collected) -> None:
    """Replaces the paths of logs that will be deleted by those of their copies."""
    for lines in _texts(report):
        for index, line in enumerate(lines):
            for log, copy in collected.copies.items():
                if log in line:
                    lines[index] = line = line.replace(log, copy)  # noqa: PLW2901


def _texts(report: pytest.TestReport) -> Iterable[list[str]]:
    """The lines of a failure as pytest shows it."""
    for traceback, *_ in getattr(report.longrepr, "chain", ()):
        for entry in getattr(traceback, "reprentries", ()):
            if isinstance(getattr(entry, "lines", None), list):
                yield entry.lines


def _masked(part: Any, mask: Callable[[str], str]) -> Any:
    """Masks the texts in what pytest shows of a failure, in place where it has attributes."""
    if isinstance(part, str):
        return mask(part)
    if isinstance(part, (list, tuple)):
        return type(part)(_masked(each, mask) for each in part)
    if is_dataclass(part) and not isinstance(part, type):
        for each in fields(part):
            setattr(part, each.name, _masked(getattr(part, each.name), mask))
    return part


def _relative(path: Path) -> str:
    """A path as one may paste it into the shell that started pytest."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]
