"""The pytest plugin: options, fixtures, the marker.

The rest of the package is imported only when a test requests a fixture, so that
suites which do not use the plugin pay next to nothing for it (L1).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import reprlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar, cast

import pytest

from pytest_vmss.plugin_artifacts import ArtifactsPlugin

if TYPE_CHECKING:
    from rich.console import Console

    from pytest_vmss.api.instance import Instance
    from pytest_vmss.api.lab import Lab
    from pytest_vmss.api.publications import StartImages
    from pytest_vmss.api.scale_set import ScaleSet
    from pytest_vmss.gallery import Gallery
    from pytest_vmss.interrupts import Interrupts
    from pytest_vmss.model import ScaleSetModel
    from pytest_vmss.settings import Accelerator, ImageLimits, Settings
    from pytest_vmss.store import ScaleSetRecord

__all__ = ["gallery", "instance", "module_scale_set", "scale_set", "vmss"]

_T = TypeVar("_T")

_SUMMARIES: pytest.StashKey[list[str]] = pytest.StashKey()
#: Sets that could not be deleted, and why.
_LEFTOVERS: pytest.StashKey[dict[str, str]] = pytest.StashKey()
#: Names of sets of earlier tests that are kept, in lower case.
_KEPT: pytest.StashKey[set[str]] = pytest.StashKey()
_TERMINAL: pytest.StashKey[TextIO] = pytest.StashKey()
#: Standard error as it was before pytest captured it.
_ERRORS: pytest.StashKey[TextIO] = pytest.StashKey()
#: Name in pytest-xdist's ``workeroutput`` of what a worker tells the controller.
_OUTPUT = "vmss_upgrades"
#: What markers have published, by the lab's id.
_START_IMAGES: pytest.StashKey[dict[str, StartImages]] = pytest.StashKey()

#: Name of the plugin that explains failed tests.
_ARTIFACTS = "vmss-artifacts"

_MARKER = (
    "vmss(model, *, images, name, capacity, parameters, load_balancer, custom_data, ports, "
    "health_timeout, health, pristine): the scale set that the fixture scale_set creates for the "
    "test, and the versions of its image that there are when it does"
)


def _factor(text: str) -> float:
    """Parses a multiplier of timeouts."""
    from pytest_vmss.settings import check_factor

    return _checked(float, text, check_factor)


def _gib(text: str) -> int:
    """Parses a number of GiB."""
    from pytest_vmss.settings import check_gib

    return _checked(int, text, lambda value: check_gib(value, "in GiB"))


def _checked(parse: Callable[[str], _T], text: str, check: Callable[[object], None]) -> _T:
    """Parses an option's value, and checks it as the settings do.

    Raises:
        argparse.ArgumentTypeError: It is refused.
    """
    from pytest_vmss.errors import LabError

    try:
        value: _T | str = parse(text)
    except ValueError:
        value = text
    try:
        check(value)
    except LabError as error:
        raise argparse.ArgumentTypeError(error.message) from error
    return cast("_T", value)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options."""
    group = parser.getgroup("vmss", "VM scale sets on QEMU")
    group.addoption(
        "--vmss-connect",
        metavar="URI",
        help="libvirt connection; chosen by user and host otherwise",
    )
    group.addoption(
        "--vmss-accel", choices=["kvm", "tcg"], help="force the accelerator; what works otherwise"
    )
    group.addoption(
        "--vmss-guest-network",
        choices=["isolated", "outbound"],
        help="what guests reach: nothing (the default), or whatever the host can",
    )
    group.addoption(
        "--vmss-timeout-factor",
        type=_factor,
        metavar="N",
        help="multiply the limits of waits for guests (1 with KVM and 10 without)",
    )
    group.addoption(
        "--vmss-set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other setting, in TOML, such as timeouts.boot=120; again for another "
        "(ini: vmss_settings; pyproject.toml: [tool.vmss])",
    )
    group.addoption(
        "--vmss-state-dir", type=Path, metavar="DIR", help="folder of all labs (VMSS_STATE_DIR)"
    )
    group.addoption(
        "--vmss-cache-dir", type=Path, metavar="DIR", help="folder of images (VMSS_CACHE_DIR)"
    )
    group.addoption(
        "--vmss-keep",
        choices=["never", "failed", "always"],
        default="never",
        help="whether VMs outlive the session: those of failed tests, or all; the summary has the "
        "commands to get in",
    )
    group.addoption(
        "--vmss-artifacts",
        metavar="DIR",
        help="folder that gets a folder for each failed test, with logs, records and timelines; "
        "`off` for none (ini: vmss_artifacts; vmss-artifacts below rootdir)",
    )
    group.addoption(
        "--vmss-no-checkpoints",
        action="store_true",
        help="boot the set of every test, rather than restore it as it was when it first booted",
    )
    group.addoption(
        "--vmss-size",
        metavar="NAME",
        help="make every set in this VM size, whatever its model says (ini: vmss_size)",
    )
    group.addoption(
        "--vmss-unknown-extensions",
        choices=["refuse", "skip"],
        help="extensions that nobody registered: refuse the model (the default), or leave them "
        "out (ini: vmss_unknown_extensions)",
    )
    group.addoption(
        "--vmss-live",
        choices=["auto", "on", "off"],
        default="auto",
        help="show what the VMs do while tests run (auto: on a terminal)",
    )
    group.addoption(
        "--vmss-max-image-gib",
        type=_gib,
        metavar="GIB",
        help="largest disk that an image may have for a guest (VMSS_MAX_IMAGE_GIB; 4095)",
    )
    group.addoption(
        "--vmss-max-image-file-gib",
        type=_gib,
        metavar="GIB",
        help="most that an image's file may hold, holes not counted (VMSS_MAX_IMAGE_FILE_GIB; 64)",
    )
    parser.addini("vmss_artifacts", "folder of failed tests' artifacts; see --vmss-artifacts")
    parser.addini("vmss_size", "a VM size for every set; see --vmss-size")
    parser.addini("vmss_unknown_extensions", "refuse or skip; see --vmss-unknown-extensions")
    parser.addini("vmss_guest_network", "isolated or outbound; see --vmss-guest-network")
    parser.addini(
        "vmss_settings",
        "settings, a line each, in TOML: timeouts.boot = 120; see --vmss-set",
        type="linelist",
        default=[],
    )
    parser.addini(
        "vmss_sizes",
        "VM sizes of your own, a line each: NAME = VCPUS, MEMORY_MIB",
        type="linelist",
        default=[],
    )


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Adds the hooks."""
    from pytest_vmss import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker, and duplicates descriptors: pytest captures the originals."""
    config.addinivalue_line("markers", _MARKER)
    with contextlib.suppress(OSError):
        config.stash[_ERRORS] = os.fdopen(os.dup(2), "w", encoding="utf-8")
    config.pluginmanager.register(ArtifactsPlugin(config), _ARTIFACTS)
    wanted = config.getoption("--vmss-live")
    if wanted == "on" or (wanted == "auto" and sys.stdout.isatty()):
        # While tests run, pytest captures what is written to descriptor 1 itself.
        with contextlib.suppress(OSError, ValueError):
            descriptor = os.dup(sys.stdout.fileno())
            config.stash[_TERMINAL] = os.fdopen(descriptor, "w", encoding="utf-8")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Closes the duplicated descriptors."""
    for key in (_TERMINAL, _ERRORS):
        stream = config.stash.get(key, None)
        if stream is not None:
            stream.close()


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


def _sizes(config: pytest.Config) -> dict[str, tuple[int, int]]:
    sizes = {}
    for line in cast("list[str]", config.getini("vmss_sizes")):
        name, _, value = line.partition("=")
        try:
            vcpus, memory = (int(part) for part in value.split(","))
        except ValueError as error:
            raise pytest.UsageError(
                f"vmss_sizes: {line!r} is not of the form NAME = VCPUS, MEMORY_MIB"
            ) from error
        sizes[name.strip()] = (vcpus, memory)
    return sizes


def _image_limits(config: pytest.Config, limits: ImageLimits) -> ImageLimits:
    given = {
        "virtual_gib": config.getoption("--vmss-max-image-gib"),
        "stored_gib": config.getoption("--vmss-max-image-file-gib"),
    }
    return replace(limits, **{name: value for name, value in given.items() if value is not None})


def _configured(config: pytest.Config) -> dict[str, Any]:
    """The settings of ``[tool.vmss]``, over them the ini-file's, over them ``--vmss-set``'s."""
    from pytest_vmss.configuration import configured, overlay, read_assignments, read_project

    table = read_project(config.rootpath / "pyproject.toml")
    for lines, source in (
        (config.getini("vmss_settings"), "the ini-file's vmss_settings"),
        (config.getoption("--vmss-set"), "--vmss-set"),
    ):
        table = overlay(table, read_assignments(lines, source))
    return configured(table)


def _guest_network(config: pytest.Config) -> str | None:
    wanted: str | None = config.getoption("--vmss-guest-network")
    if wanted is not None:
        return wanted
    wanted = cast("str", config.getini("vmss_guest_network")).strip()
    if wanted not in ("", "isolated", "outbound"):
        raise pytest.UsageError(
            f"vmss_guest_network is {wanted!r}; it must be isolated or outbound"
        )
    return wanted or None


def _settings(config: pytest.Config) -> Settings:
    from pytest_vmss.errors import LabError
    from pytest_vmss.settings import ImageLimits, Settings

    given: dict[str, Any] = {
        "connect": config.getoption("--vmss-connect"),
        "accelerator": cast("Accelerator | None", config.getoption("--vmss-accel")),
        "timeout_factor": config.getoption("--vmss-timeout-factor"),
        "state_dir": config.getoption("--vmss-state-dir"),
        "cache_dir": config.getoption("--vmss-cache-dir"),
        "guest_network": _guest_network(config),
        "size": config.getoption("--vmss-size") or config.getini("vmss_size") or None,
        "unknown_extensions": config.getoption("--vmss-unknown-extensions")
        or config.getini("vmss_unknown_extensions")
        or None,
    }
    for name in ("state_dir", "cache_dir"):
        if given[name] is not None:
            given[name] = given[name].absolute()
    try:
        arguments = _configured(config)
        arguments.update((name, value) for name, value in given.items() if value is not None)
        arguments["sizes"] = arguments.get("sizes", {}) | _sizes(config)
        arguments["images"] = _image_limits(config, arguments.get("images") or ImageLimits())
        settings = Settings(**arguments, keep=config.getoption("--vmss-keep"))
    except LabError as error:
        raise pytest.UsageError(str(error)) from error
    changed: Settings | None = config.hook.pytest_vmss_settings(config=config, settings=settings)
    return changed or settings


def _console(config: pytest.Config) -> Console | None:
    """The console of the live view; None if it is off."""
    terminal = config.stash.get(_TERMINAL, None)
    if terminal is None:
        return None
    from rich.console import Console

    return Console(file=terminal, force_terminal=terminal.isatty())


@pytest.fixture(scope="session")
def vmss(pytestconfig: pytest.Config) -> Iterator[Lab]:
    """The session's lab; removed with all its VMs at the end of the session."""
    from pytest_vmss.api.lab import Lab
    from pytest_vmss.interrupts import Interrupts
    from pytest_vmss.labs.reap import reap
    from pytest_vmss.report import LiveView
    from pytest_vmss.settings import OUTBOUND

    settings = _settings(pytestconfig)
    reap(settings)
    interrupts = Interrupts(partial(_tell, pytestconfig))
    pytestconfig.pluginmanager.register(interrupts)
    pytestconfig.add_cleanup(interrupts.uninstall)
    interrupts.install()
    lab: Lab | None = None
    try:
        with interrupts.held():
            lab = Lab.session(settings)
    except KeyboardInterrupt:
        if lab is not None:
            lab.destroy()
        raise
    lab.backends.listeners.append(partial(_tell, pytestconfig))
    if settings.guest_network == "outbound":
        warnings.warn(OUTBOUND, stacklevel=1)
    with contextlib.ExitStack() as ends:  # each runs, even if another fails
        ends.callback(_end, lab, pytestconfig, interrupts)
        ends.callback(_keep_summary, lab, pytestconfig)
        console = _console(pytestconfig)
        if console is not None:
            ends.enter_context(LiveView(lab.store, console))
        lab.watch()
        pytestconfig.hook.pytest_vmss_configure_lab(config=pytestconfig, lab=lab)
        yield lab


def _tell(config: pytest.Config, message: str) -> None:
    """Tells at once what the lab waits for, although pytest captures what tests print."""
    stream = config.stash.get(_ERRORS, None)
    if stream is not None:
        worker = os.environ.get("PYTEST_XDIST_WORKER")
        with contextlib.suppress(OSError, ValueError):
            print(f"\n{f'[{worker}] ' if worker else ''}vmss {message}", file=stream, flush=True)


def _end(lab: Lab, config: pytest.Config, interrupts: Interrupts) -> None:
    """Removes the session's lab, or marks it as kept and closes it."""
    if not _kept_sets(lab, config):
        with interrupts.held():
            lab.destroy()
        return
    try:
        lab.paths.kept.touch()
    finally:
        lab.close()


def _kept_sets(lab: Lab, config: pytest.Config) -> list[str]:
    """Names of the sets that outlive the session: those that are left, if any may be."""
    keep = lab.settings.keep
    if keep == "never" or (keep == "failed" and not _artifacts(config).any_failed):
        return []
    return [record.name for record in _records(lab)]


def _keep_summary(lab: Lab, config: pytest.Config) -> None:
    """Stores the summary that is shown after the lab is gone: by a worker's controller, if any."""
    lines = _summarise(lab, _kept_sets(lab, config))
    output: dict[str, object] | None = getattr(config, "workeroutput", None)
    if output is None:
        config.stash[_SUMMARIES] = lines
    else:
        output[_OUTPUT] = lines


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:  # noqa: ARG001 - pytest-xdist's
    """Takes the summary of a worker of pytest-xdist that has ended."""
    lines = getattr(node, "workeroutput", {}).get(_OUTPUT)
    if lines:
        summaries = node.config.stash.setdefault(_SUMMARIES, [])
        summaries += [f"{node.gateway.id}:", *lines]


def _summarise(lab: Lab, kept: Sequence[str]) -> list[str]:
    """Summarises the session's upgrades, their stages' durations, and where kept VMs are."""
    from rich.console import Console

    from pytest_vmss.report import stage_table, upgrade_summary

    out = StringIO()
    console = Console(file=out, width=120)
    for report in lab.finished_upgrades():
        console.print(upgrade_summary(report))
        console.print(stage_table(report.record, lab.store.steps(report.record.id)))
    lines = out.getvalue().splitlines()
    if kept:
        from pytest_vmss.report.artifacts import ways_in

        lines += ["VMs are kept:", *(f"  {line}" for name in kept for line in ways_in(lab, name))]
    return lines


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Prints the session's upgrades."""
    lines = config.stash.get(_SUMMARIES, [])
    if lines:
        terminalreporter.section("upgrades")
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture
def gallery(vmss: Lab) -> Iterator[Gallery]:
    """The lab's default gallery; versions that the test publishes with it are deleted afterwards.

    For publications that outlive the test, and for other galleries, call ``vmss.gallery(name)``.
    """
    from pytest_vmss.api.publications import OwnGallery

    own = OwnGallery(vmss)
    yield own
    own.delete_published()


@pytest.fixture
def scale_set(vmss: Lab, request: pytest.FixtureRequest) -> Iterator[ScaleSet]:
    """The scale set that the test's marker ``vmss`` describes; deleted after the test.

    The first one on this host is booted, and the same set of any later test is restored as that
    was when it had come up, in seconds (``--vmss-no-checkpoints`` boots each).

    It is deleted even if an operation on it is running, so that the next test can use its name.
    """
    yield from _marked_set(vmss, request)


@pytest.fixture(scope="module")
def module_scale_set(vmss: Lab, request: pytest.FixtureRequest) -> Iterator[ScaleSet]:
    """The scale set that the module's ``pytestmark`` describes; deleted after its last test.

    All tests of the module share it, and each finds it as the one before has left it, unless
    they restore it: ``checkpoint()`` in the first place, ``restore()`` afterwards.
    """
    yield from _marked_set(vmss, request)


@pytest.fixture
def instance(scale_set: ScaleSet, request: pytest.FixtureRequest) -> Instance:
    """One instance of ``scale_set``; the test runs once for each instance that the marker asks for."""
    index: int = request.param
    return scale_set[index]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrises tests that use ``instance`` over the instances of their set.

    Raises:
        pytest.UsageError: The marker's model cannot be read.
    """
    if "instance" not in metafunc.fixturenames or _is_given(metafunc, "instance"):
        return
    marker = metafunc.definition.get_closest_marker("vmss")
    if marker is None:
        return  # scale_set says what is missing
    from pytest_vmss.errors import VmssError

    try:
        capacity = _capacity(metafunc.definition, marker)
    except VmssError as error:
        raise pytest.UsageError(f"{metafunc.definition.nodeid}: {error}") from error
    metafunc.parametrize("instance", range(capacity), indirect=True)


def _is_given(metafunc: pytest.Metafunc, name: str) -> bool:
    """Whether a fixture is the suite's own, or its values are."""
    found = metafunc._arg2fixturedefs.get(name)
    given = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize") if mark.args]
    named = [
        one for names in given for one in (names.split(",") if isinstance(names, str) else names)
    ]
    return not found or found[-1].func.__module__ != __name__ or name in map(str.strip, named)


def _capacity(node: pytest.Item, marker: pytest.Mark) -> int:
    """How many instances the set of a marker has."""
    from pytest_vmss.model import load_document

    source, arguments = _arguments_of(node, marker)
    return load_document(source, **_of_document(arguments)).model.sku.capacity


def _marked_set(vmss: Lab, request: pytest.FixtureRequest) -> Iterator[ScaleSet]:
    """Creates the set that a marker describes, and deletes it afterwards."""
    source, arguments = _arguments(request)
    images = arguments.pop("images", None)
    arguments.setdefault("pristine", not request.config.getoption("--vmss-no-checkpoints"))
    leftovers = request.config.stash.setdefault(_LEFTOVERS, {})
    _clear(vmss, leftovers)
    _make_way(vmss, request, source, arguments)
    before = {record.unique_id for record in _records(vmss)}
    try:
        if images is not None:
            _publish_images(vmss, request, images, source, arguments)
        created = vmss.create(source, **arguments)
    except (KeyboardInterrupt, SystemExit):
        raise  # the session ends, and the lab with it
    except BaseException as error:
        _artifacts(request.config).collect(request.node)
        for record in _records(vmss):
            if record.unique_id in before:
                continue
            if vmss.settings.keep == "never":
                _delete(vmss, record.name, request, error)
            else:
                _keep(request, record.name)
        for left in leftovers.values():
            error.add_note(left)
        raise
    yield created
    keep, failed = vmss.settings.keep, _artifacts(request.config).has_failed(request.node)
    if keep == "always" or (keep == "failed" and failed):
        _keep(request, created.name)
    else:
        _delete(vmss, created.name, request)


def _keep(request: pytest.FixtureRequest, name: str) -> None:
    """Notes that a test's set is kept, until another test needs its name."""
    request.config.stash.setdefault(_KEPT, set()).add(name.lower())


def _make_way(
    lab: Lab, request: pytest.FixtureRequest, source: Any, arguments: Mapping[str, Any]
) -> None:
    """Deletes the set of an earlier test that is kept, if this one needs its name."""
    from pytest_vmss.errors import LabError

    kept = request.config.stash.get(_KEPT, set())
    if not kept:
        return
    try:
        name = _model_of(source, arguments).name
    except LabError:
        return  # it is reported where the set is created
    if name.lower() in kept:
        kept.discard(name.lower())
        _delete(lab, name, request)


def _artifacts(config: pytest.Config) -> ArtifactsPlugin:
    return cast("ArtifactsPlugin", config.pluginmanager.getplugin(_ARTIFACTS))


def _publish_images(
    lab: Lab, request: pytest.FixtureRequest, images: Any, source: Any, arguments: dict[str, Any]
) -> None:
    """Publishes the versions that a test's marker names, of the image in its model."""
    from pytest_vmss.api.publications import StartImages

    model = _model_of(source, arguments)
    known = request.config.stash.setdefault(_START_IMAGES, {})
    of_lab = known.setdefault(lab.identity.id, StartImages(lab))
    of_lab.publish(model.image_reference, images)


def _model_of(source: Any, arguments: Mapping[str, Any]) -> ScaleSetModel:
    """The model that a test's marker describes."""
    from pytest_vmss.model import load_document

    return load_document(source, **_of_document(arguments)).model


def _of_document(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a marker's arguments that make the model."""
    names = ("name", "capacity", "parameters", "load_balancer")
    return {name: value for name, value in arguments.items() if name in names}


def _arguments(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Any]]:
    """The model and the other arguments of the marker; see :func:`_arguments_of`."""
    return _arguments_of(request.node, request.node.get_closest_marker("vmss"))


def _arguments_of(
    node: pytest.Item | pytest.Collector, marker: pytest.Mark | None
) -> tuple[Any, dict[str, Any]]:
    """The model and the other arguments of a marker.

    Raises:
        pytest.UsageError: It names no model.
    """
    from pytest_vmss.secrecy import SecretBytes, seal, seal_text

    # Sealed here already, so that no error message shows secrets (M5).
    named = dict(marker.kwargs) if marker else {}
    images = {"images": named.pop("images")} if "images" in named else {}
    arguments = {name: seal(value) for name, value in named.items()} | images
    if marker and marker.args:
        arguments["model"] = seal(marker.args[0])
    if isinstance(arguments.get("custom_data"), str):
        arguments["custom_data"] = seal_text(arguments["custom_data"])
    elif isinstance(arguments.get("custom_data"), bytes):
        arguments["custom_data"] = SecretBytes(arguments["custom_data"])
    if "model" not in arguments:
        raise pytest.UsageError("the set needs a model: @pytest.mark.vmss(model='web.json')")
    for name in ("model", "load_balancer", "custom_data"):
        if name in arguments:
            arguments[name] = _beside(node, arguments[name])
    given = arguments.get("parameters")
    if isinstance(given, (list, tuple)):
        arguments["parameters"] = [_beside(node, seal(entry)) for entry in given]
    elif given is not None:
        arguments["parameters"] = _beside(node, given)
    if isinstance(arguments.get("images"), Mapping):
        arguments["images"] = {
            version: _beside(node, path) for version, path in arguments["images"].items()
        }
    return arguments.pop("model"), arguments


def _beside(node: pytest.Item | pytest.Collector, value: Any) -> Any:
    """A file relative to the test's file, wherever pytest was started; other values as they are."""
    from pytest_vmss.api.custom_data import beside

    if isinstance(value, (str, Path)) and "\n" not in str(value):
        return beside(value, node.path.parent) or value
    return value


def _records(lab: Lab) -> list[ScaleSetRecord]:
    from pytest_vmss.store import ScaleSetRecord

    return lab.store.select(ScaleSetRecord)


def _delete(
    lab: Lab, name: str, request: pytest.FixtureRequest, failed: BaseException | None = None
) -> None:
    """Deletes a test's set; if that fails, reports what is left and notes it for another try.

    Args:
        lab: The lab.
        name: The set's name.
        request: The test's request.
        failed: What the test has already failed with; the report is then added to it as a note.
    """
    from pytest_vmss.errors import NotFoundError

    try:
        lab.delete(name)
    except NotFoundError:
        pass  # the test deleted it itself
    except Exception as error:
        left = (
            f"the scale set {name!r} of {request.node.nodeid} could not be deleted "
            f"({type(error).__name__}: {error}); what is left of it goes with the session, or "
            f"before the next test that needs a set: {_remains(lab, name)}"
        )
        request.config.stash[_LEFTOVERS][name] = left
        if failed is None:
            error.add_note(left)
            raise
        failed.add_note(left)


def _remains(lab: Lab, name: str) -> str:
    """Describes what is left of a set, for messages."""
    from pytest_vmss.store.queries import instances_of

    instances = [record.name for record in instances_of(lab.store, name)]
    return f"{', '.join(instances) or 'no instance'}, under {lab.paths.scale_set(name)}"


def _clear(lab: Lab, leftovers: dict[str, str]) -> None:
    """Tries again to delete the sets that earlier tests left."""
    from pytest_vmss.errors import NotFoundError

    for name in list(leftovers):
        try:
            lab.delete(name)
        except NotFoundError:
            del leftovers[name]
        except Exception as error:  # noqa: BLE001 - reported to the test that needs the name
            leftovers[name] += f"; tried again, in vain: {error}"
        else:
            del leftovers[name]
