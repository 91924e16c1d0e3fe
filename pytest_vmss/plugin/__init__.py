"""The pytest plugin: hooks and fixtures.

The rest of the package is imported only when a test requests a fixture, so that
suites which do not use the plugin pay next to nothing for it (L1).
"""

from __future__ import annotations

import contextlib
import reprlib
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_vmss.plugin.artifacts import artifacts_of, register
from pytest_vmss.plugin.marker import MARKER, capacity_of
from pytest_vmss.plugin.options import add_options, settings_of
from pytest_vmss.plugin.sets import kept_sets, marked_set
from pytest_vmss.plugin.summary import keep_summary, show_summary, take_summary
from pytest_vmss.plugin.terminal import close_streams, live_view, open_streams, tell

if TYPE_CHECKING:
    from pytest_vmss.api.instance import Instance
    from pytest_vmss.api.lab import Lab
    from pytest_vmss.api.scale_set import ScaleSet
    from pytest_vmss.gallery import Gallery
    from pytest_vmss.interrupts import Interrupts
    from pytest_vmss.plugin.hooks import HookCaller

__all__ = ["gallery", "instance", "module_scale_set", "scale_set", "vmss"]

#: The folder of the running test.
_FOLDER: pytest.StashKey[Path] = pytest.StashKey()
_RUNNING: pytest.StashKey[str] = pytest.StashKey()
#: Why the session's lab could not be set up.
_BROKEN: pytest.StashKey[str] = pytest.StashKey()
_HOOKS: pytest.StashKey[HookCaller] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options."""
    add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Adds the hooks."""
    from pytest_vmss import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker, and what explains failed tests."""
    config.addinivalue_line("markers", MARKER)
    open_streams(config)
    register(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Closes what was opened for the terminal."""
    close_streams(config)


@pytest.hookimpl(tryfirst=True)
def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Explains a comparison of secrets with the secrets masked (M5).

    pytest's own explanation compares strings character by character, whatever their ``repr``
    shows.
    """
    secrecy = sys.modules.get("pytest_vmss.secrecy")
    if secrecy is None:
        return None  # no secret exists yet
    if not any(secrecy.has_secret(side) for side in (left, right)):
        return None
    short = reprlib.Repr()
    short.maxstring = short.maxother = 120
    return [f"{short.repr(left)} {op} {short.repr(right)}", "what is secret in it is masked"]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Notes where the test's files are, and skips it if the lab that it needs is not there."""
    stash = item.config.stash
    stash[_FOLDER], stash[_RUNNING] = item.path.parent, item.nodeid
    broken = stash.get(_BROKEN, "")
    if broken and "vmss" in getattr(item, "fixturenames", ()):
        pytest.skip(broken)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Notes why the session's lab could not be set up, for the tests behind the first one."""
    try:
        return (yield)
    except (Exception, pytest.fail.Exception) as error:
        if fixturedef.argname == "vmss":
            stash = request.config.stash
            told = (str(error).splitlines() or [""])[0]
            stash[_BROKEN] = (
                f"the lab could not be set up, see the error of {stash.get(_RUNNING, 'the first')}: "
                f"{type(error).__name__}: {told}"
            )
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Fails a test during which a hook has failed, and never a later one.

    Raises:
        BaseException: What the hook raised.
    """
    __tracebackhide__ = True
    hooks = item.config.stash.get(_HOOKS, None)
    if hooks is not None and hooks.failures:
        artifacts_of(item.config).note_failure()  # while what the test made is there
    try:
        result = yield
    except BaseException as error:
        if (hooks := item.config.stash.get(_HOOKS, None)) is not None:
            hooks.add_failures(error)
        raise
    if (hooks := item.config.stash.get(_HOOKS, None)) is not None:
        hooks.raise_failures()
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> None:
    """Hides this package's frames in the traceback of an error of its own, and of its causes.

    Those of the libraries that this package calls are hidden too; what a suite's own function
    calls is shown. The error says what was wrong; where the suite's code caused it is what is left
    to show.
    ``--full-trace`` shows all frames.
    """
    if call.excinfo is None or not _explains_itself(call.excinfo):
        return
    package, between = Path(__file__).parents[1], Path(contextlib.__file__)
    for error in _chain(call.excinfo.value):
        inside = False  # whether the package has called this frame
        for frame, _ in traceback.walk_tb(error.__traceback__):
            path = Path(frame.f_code.co_filename)
            own = package in path.parents or path == between
            inside = own or (inside and _is_library(path))
            if inside:
                frame.f_locals["__tracebackhide__"] = True


def _is_library(path: Path) -> bool:
    """Whether a file is one of Python's own, or of what this package waits by."""
    if {"site-packages", "dist-packages"}.isdisjoint(path.parts):
        return Path(sysconfig.get_path("stdlib")) in path.parents
    return path.parent.name == "tenacity"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an exception, and those that pytest shows as its causes."""
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _explains_itself(raised: pytest.ExceptionInfo[BaseException] | None) -> bool:
    """Whether an exception is one of this package, a warning made an error among them."""
    kinds: tuple[type[BaseException], ...] = (pytest.UsageError,)
    if (errors := sys.modules.get("pytest_vmss.errors")) is not None:
        kinds += (errors.VmssError, errors.NotModelledWarning)
    return raised is not None and raised.errisinstance(kinds)


@pytest.fixture(scope="session")
def vmss(pytestconfig: pytest.Config) -> Iterator[Lab]:
    """The session's lab, a pytest_vmss.Lab; removed with all its VMs at the end of the session.

    ``vmss.create("web.json", capacity=3)`` creates a scale set of VMs and returns it once it is
    healthy; ``vmss.gallery("other")`` is another gallery. Automatic upgrades run by themselves.
    """
    from pytest_vmss.api.lab import Lab
    from pytest_vmss.interrupts import Interrupts
    from pytest_vmss.labs.reap import reap
    from pytest_vmss.plugin.hooks import HookCaller
    from pytest_vmss.settings import OUTBOUND

    settings = settings_of(pytestconfig)
    reap(settings)
    interrupts = Interrupts(partial(tell, pytestconfig))
    pytestconfig.pluginmanager.register(interrupts)
    pytestconfig.add_cleanup(interrupts.uninstall)
    interrupts.install()
    with contextlib.ExitStack() as ends:  # each runs, even if another fails
        with interrupts.held():
            lab = Lab.session(settings)
            ends.callback(_end, lab, pytestconfig, interrupts)
        lab.backends.listeners.append(partial(tell, pytestconfig))
        if settings.guest_network == "outbound":
            warnings.warn(OUTBOUND, stacklevel=1)
        ends.callback(lambda: keep_summary(lab, pytestconfig, kept_sets(lab, pytestconfig)))
        ends.enter_context(live_view(lab, pytestconfig))
        lab.environment.folder = lambda: pytestconfig.stash.get(_FOLDER, None)
        hooks = pytestconfig.stash[_HOOKS] = HookCaller(lab, pytestconfig)
        lab.environment.observers.add(hooks)
        lab.watch()
        pytestconfig.hook.pytest_vmss_configure_lab(config=pytestconfig, lab=lab)
        yield lab


def _end(lab: Lab, config: pytest.Config, interrupts: Interrupts) -> None:
    """Removes the session's lab, or marks it as kept and closes it."""
    if not kept_sets(lab, config):
        with interrupts.held():
            lab.destroy()
        return
    try:
        lab.paths.kept.touch()
    finally:
        lab.close()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:  # noqa: ARG001 - pytest-xdist's
    """Takes the summary of a worker of pytest-xdist that has ended."""
    take_summary(node)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Prints the session's upgrades."""
    show_summary(terminalreporter, config)


@pytest.fixture
def gallery(vmss: Lab) -> Iterator[Gallery]:
    """The lab's default gallery; versions that the test publishes with it are deleted afterwards.

    ``gallery.publish("web", "1.1.0", "web-1.1.0.qcow2")`` publishes a version, and the sets whose
    model lets them upgrade to it.

    For publications that outlive the test, and for other galleries, call ``vmss.gallery(name)``.
    """
    from pytest_vmss.api.publications import OwnGallery

    own = OwnGallery(vmss)
    yield own
    own.delete_published()


@pytest.fixture
def scale_set(vmss: Lab, request: pytest.FixtureRequest) -> Iterator[ScaleSet]:
    """The scale set that the test's marker ``vmss`` describes; deleted after the test.

    A pytest_vmss.ScaleSet: a sequence of its instances, each of which has a testinfra ``host``.
    ``scale_set.wait_for_upgrade()`` returns the upgrade that a published version has started.

    The first one on this host is booted, and the same set of any later test is restored as that
    was when it had come up, in seconds (``--vmss-no-checkpoints`` boots each).

    It is deleted even if an operation on it is running, so that the next test can use its name.
    """
    yield from marked_set(vmss, request)


@pytest.fixture(scope="module")
def module_scale_set(vmss: Lab, request: pytest.FixtureRequest) -> Iterator[ScaleSet]:
    """The scale set that the module's ``pytestmark`` describes; deleted after its last test.

    All tests of the module share it, and each finds it as the one before has left it, unless
    they restore it: ``checkpoint()`` in the first place, ``restore()`` afterwards.
    """
    yield from marked_set(vmss, request)


@pytest.fixture
def instance(scale_set: ScaleSet, request: pytest.FixtureRequest) -> Instance:
    """One instance of ``scale_set``; the test runs once for each instance that the marker asks for."""
    if not hasattr(request, "param"):
        raise pytest.UsageError(
            "instance runs a test for each instance that its marker vmss asks for, and a marker of "
            "one parameter (pytest.param(..., marks=...)) is read too late for that: mark the "
            "test, its class or its module, or use scale_set"
        )
    index = request.param
    try:
        return scale_set[index]
    except (IndexError, TypeError):
        from pytest_vmss.report import counted

        raise pytest.UsageError(
            f"instance was parametrised with {index!r}, but {scale_set.name!r} has "
            f"{counted(len(scale_set), 'instance')}; give positions from 0 to the number of its instances "
            "less one, or a marker vmss of a larger capacity"
        ) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrises tests that use ``instance`` over the instances of their set.

    Raises:
        pytest.Collector.CollectError: The marker's model cannot be read. pytest shows this error's
            words alone, rather than the way there.
    """
    if "instance" not in metafunc.fixturenames or _is_given(metafunc, "instance"):
        return
    marker = metafunc.definition.get_closest_marker("vmss")
    if marker is None:
        return  # scale_set says what is missing
    from pytest_vmss.errors import VmssError

    try:
        capacity = capacity_of(metafunc.definition, marker)
    except (VmssError, pytest.UsageError) as error:
        told = f"{metafunc.definition.nodeid}: {error}"
        raise pytest.Collector.CollectError(told) from error
    metafunc.parametrize("instance", range(capacity), indirect=True)


def _is_given(metafunc: pytest.Metafunc, name: str) -> bool:
    """Whether a fixture is the suite's own, or its values are."""
    found = metafunc._arg2fixturedefs.get(name)
    given = [
        mark.args[0] if mark.args else mark.kwargs.get("argnames", ())
        for mark in metafunc.definition.iter_markers("parametrize")
    ]
    named = [
        one for names in given for one in (names.split(",") if isinstance(names, str) else names)
    ]
    return not found or found[-1].func.__module__ != __name__ or name in map(str.strip, named)
