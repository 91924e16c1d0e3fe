"""L3: a test that fails explains itself, in its message and in a folder of its own."""

from __future__ import annotations

import json
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pytest_vmss.environment.masking import mask_lines
from pytest_vmss.errors import LabError
from pytest_vmss.report.artifacts import collect, folder_name
from pytest_vmss.report.artifacts import guests as asked
from pytest_vmss.report.artifacts.folder import ArtifactFolder
from pytest_vmss.settings import Settings
from pytest_vmss.simulation.guest import Behaviour
from tests.models import LOAD_BALANCER, custom_script, web_model
from tests.simulation.conftest import SimulatedLab
from tests.simulation.test_fixture import CONFTEST, TESTS

FAILS = """
def test_fails(vmss, scale_set):
    log = vmss.paths.console("web", 0, 1)
    log.write_text("[    1.0] Linux version 6.1\\n")
    vmss.publish("1.1.0", Behaviour.PANICS)
    upgrade = scale_set.wait_for_upgrade()
    assert upgrade.completed, f"whole console log: {log}"
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(CONFTEST)
    return pytester


def run(suite: pytest.Pytester, tests: str, *options: str) -> pytest.RunResult:
    suite.makepyfile(test_it=TESTS + tests)
    return suite.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist", *options)


def test_a_failure_names_what_happened_and_where_the_rest_is(suite: pytest.Pytester) -> None:
    """The console log that the message names is there when the message is read."""
    result = run(suite, FAILS)
    result.assert_outcomes(failed=1)
    folder = suite.path / "vmss-artifacts" / "test_it.py--test_fails"
    result.stdout.fnmatch_lines(
        [
            "E *whole console log: */test_it.py--test_fails/web/web_0/console-1.log*",
            "*- pytest-vmss -*",
            "OS upgrade of web from 1.0.0 to 1.1.0 failed after *: web_0 failed at “boot” *",
            "  web_0: OSProvisioningKernelPanic: the kernel panicked",
            "timeline: vmss-artifacts/test_it.py--test_fails/web/timeline.html",
            "logs and records: vmss-artifacts/test_it.py--test_fails",
        ]
    )
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found >= {
        "summary.txt", "host.json", "web/timeline.html", "web/events.jsonl", "web/steps.jsonl",
        "web/model.json", "web/haproxy-stat.csv", "web/web_0/console-1.log",
        "web/web_0/domain.xml", "web/web_0/disks.json", "web/web_1/instance.json",
    }  # fmt: skip
    assert "Linux version" in (folder / "web" / "web_0" / "console-1.log").read_text()
    assert "failed at “boot”" in (folder / "web" / "timeline.html").read_text()
    steps = [json.loads(line) for line in (folder / "web" / "steps.jsonl").read_text().splitlines()]
    assert {step["end"] for step in steps} == {"done", "failed"}
    assert (folder / "web" / "web_1" / "guest" / "journal.log").stat().st_size
    for path in (folder, *folder.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
    assert "*" in (folder.parent / ".gitignore").read_text()


def test_a_set_that_never_came_up_leaves_its_artifacts_too(suite: pytest.Pytester) -> None:
    """Before the fixture deletes it."""
    result = run(
        suite,
        """
        @pytest.fixture
        def broken(vmss):
            vmss.behaviours["1.0.0"] = Behaviour.PANICS

        def test_never(broken, scale_set):
            pass

        def test_mends(vmss):
            vmss.behaviours["1.0.0"] = Behaviour.GOOD
        """.replace("\n        ", "\n"),
    )
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines(["Creation of web * failed after *", "timeline: vmss-artifacts/*"])
    folder = suite.path / "vmss-artifacts" / "test_it.py--test_never"
    assert (folder / "web" / "web_0" / "domain.xml").is_file()
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


@pytest.mark.parametrize(
    "options", [["--vmss-artifacts", "off"], ["-o", "vmss_artifacts=off"], ["--vmss-artifacts=Off"]]
)
def test_no_artifacts_where_none_are_wanted(suite: pytest.Pytester, options: list[str]) -> None:
    result = run(suite, FAILS, *options)
    result.assert_outcomes(failed=1)
    assert {"vmss-artifacts", "Off"}.isdisjoint(path.name for path in suite.path.iterdir())


def test_the_set_of_a_module_that_never_came_up_leaves_its_artifacts_too(
    suite: pytest.Pytester,
) -> None:
    """L3: before the fixture deletes it, although that is the module's."""
    result = run(
        suite,
        """
        @pytest.fixture(scope="module")
        def broken():
            def wait_boot(self, previous):
                raise HypervisorError("it does not boot")

            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(SimulatedGuest, "wait_boot", wait_boot)
                yield

        def test_never(broken, module_scale_set):
            pass
        """.replace("\n        ", "\n"),
    )
    result.assert_outcomes(errors=1)
    folder = suite.path / "vmss-artifacts" / "test_it.py--test_never"
    assert (folder / "web" / "web_0" / "instance.json").is_file()


def test_a_suite_may_block_what_explains_failures(suite: pytest.Pytester) -> None:
    """L1: its sets are made and deleted all the same."""
    result = run(
        suite,
        "def test_it(scale_set):\n    check(scale_set)\n",
        "-p",
        "no:vmss-artifacts",
    )
    result.assert_outcomes(passed=1)


def test_a_folder_that_cannot_be_made_is_told_beside_the_failure(suite: pytest.Pytester) -> None:
    """The test fails of its own, and of nothing else."""
    (suite.path / "taken").write_text("")
    result = run(suite, FAILS, "--vmss-artifacts", "taken")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*AssertionError: whole console log*", "artifacts could not be collected: *"]
    )


def test_what_passes_or_is_expected_to_fail_leaves_nothing(suite: pytest.Pytester) -> None:
    result = run(
        suite,
        """
        def test_passes(scale_set):
            check(scale_set)

        @pytest.mark.xfail(reason="known", strict=True)
        def test_known(scale_set):
            assert False

        @pytest.fixture(scope="module")
        def lasting(vmss):
            return vmss.create(web_model("lasting", capacity=1), load_balancer=LOAD_BALANCER)

        def test_shared(lasting):
            assert lasting.is_healthy()

        def test_without_a_lab():
            assert False
        """.replace("\n        ", "\n"),
    )
    result.assert_outcomes(passed=2, xfailed=1, failed=1)
    assert not (suite.path / "vmss-artifacts").exists()


def test_junit_properties_say_what_ran_and_how_long(suite: pytest.Pytester) -> None:
    run(suite, FAILS, "--junitxml", "out.xml", "--vmss-artifacts", "off")
    tree = ElementTree.parse(suite.path / "out.xml")
    found = [(one.get("name"), one.get("value")) for one in tree.iter("property")]
    names = dict(found)
    assert names["vmss.accelerator"] == "tcg"
    # Others take their turns on the same clock.
    assert 30 <= float(names["vmss.seconds.web.upgrade.boot"] or 0) < 60
    assert "vmss.seconds.web.upgrade.rollback-boot" in names
    images = [value or "" for name, value in found if name == "vmss.image.web"]
    assert [image.split()[0:2] for image in images] == [
        ["gallery/web", "1.0.0"],
        ["gallery/web", "1.1.0"],
    ]
    assert all(len(image.split()[2]) >= 32 for image in images)


def test_pytest_html_shows_the_timeline_where_it_is_installed(suite: pytest.Pytester) -> None:
    """Its hook is used as its manual says: ``report.extras``."""
    suite.makepyfile(
        pytest_html="""
        class extras:
            @staticmethod
            def text(content, name):
                return {"name": name, "content": content}

            @staticmethod
            def url(content, name):
                return {"name": name, "content": content}
        """
    )
    suite.makepyfile(
        html_plugin="""
        def pytest_configure(config):
            config.pluginmanager.register(object(), "html")

        def pytest_runtest_logreport(report):
            for extra in getattr(report, "extras", []):
                print("EXTRA", extra["name"], extra["content"].splitlines()[0])
        """
    )
    suite.syspathinsert()
    result = run(suite, FAILS, "-s", "-p", "html_plugin")
    result.stdout.fnmatch_lines(
        [
            "*EXTRA pytest-vmss OS upgrade of web *",
            "*EXTRA timeline of web file://*/web/timeline.html",
        ]
    )


def test_secrets_are_in_no_artifact(lab: SimulatedLab, tmp_path: Path) -> None:
    """M5: neither what looks like one, nor what the model declares to be one."""
    body = web_model(capacity=1)
    profile = body["properties"]["virtualMachineProfile"]
    profile["osProfile"]["adminPassword"] = "Correct-Horse-1"
    profile["extensionProfile"]["extensions"] = [
        custom_script("setup", protectedSettings={"commandToExecute": "join --code Zebra4711"})
    ]
    web = lab.start(body, LOAD_BALANCER)
    log = lab.paths.console("web", 0, 1)
    log.write_text("login with Correct-Horse-1\nZebra4711\npassword=hunter2hunter2\nplain\n")
    lab.store.event("web", "warning", "it says Zebra4711")
    found = collect(lab, tmp_path / "all" / "it", test="it", names=[web.name])
    texts = {path: path.read_text() for path in found.folder.rglob("*") if path.is_file()}
    assert texts
    for path, text in texts.items():
        for secret in ("Correct-Horse-1", "Zebra4711", "hunter2hunter2"):
            assert secret not in text, path
    copied = texts[found.folder / "web" / "web_0" / "console-1.log"]
    assert copied.endswith("plain\n")


def test_secrets_of_a_set_that_is_deleted_by_now_are_in_no_artifact(
    lab: SimulatedLab, tmp_path: Path
) -> None:
    """M5: a test may delete its set before it fails; events and steps are kept."""
    body = web_model(capacity=1)
    profile = body["properties"]["virtualMachineProfile"]
    profile["osProfile"]["adminPassword"] = "Correct-Horse-1"
    web = lab.start(body, LOAD_BALANCER)
    lab.store.event("web", "warning", "the guest says Correct-Horse-1")
    web.delete()
    found = collect(lab, tmp_path / "all" / "it", test="it", names=["web"])
    texts = {path.name: path.read_text() for path in found.folder.rglob("*") if path.is_file()}
    assert "the guest says ***" in texts["events.jsonl"]
    assert [name for name, text in texts.items() if "Correct-Horse-1" in text] == []


def test_a_private_key_of_many_lines_is_masked_wherever_it_stands() -> None:
    """M5: also where a text is searched in parts."""
    key = (
        "-----BEGIN PRIVATE KEY-----\n" + "MIIEvQIBADANBgkq\n" * 40 + "-----END PRIVATE KEY-----\n"
    )
    for before in range(0, 24_200, 121):
        text = "x" * 60 + "\n"
        masked = mask_lines(text * (before // 61) + key + text * 300)
        assert "MIIEvQ" not in masked
        assert masked.endswith(text)


def test_sizes_are_bounded(tmp_path: Path) -> None:
    """R2: of a long log the start and the end are kept."""
    folder = ArtifactFolder(tmp_path / "it", lambda text: text)
    log = tmp_path / "console-1.log"
    log.write_bytes(b"first\n" + b"x" * 100 + b"\n" * 30_000_000 + b"last\n")
    copied = folder.copy("console-1.log", log)
    assert copied is not None
    text = copied.read_text()
    assert (text.startswith("first"), text.endswith("last\n")) == (True, True)
    assert "characters left out" in text
    assert copied.stat().st_size < 5_000_000
    for number in range(20):
        folder.text(f"more-{number}", "y" * 8_000_000)
    folder.close("done")
    assert sum(path.stat().st_size for path in folder.path.iterdir()) < 70_000_000
    assert "the folder is full" in (folder.path / "summary.txt").read_text()


def test_a_guest_that_hangs_costs_a_bounded_time(
    lab: SimulatedLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known without it is kept."""
    web = lab.start_web(2)
    monkeypatch.setattr(asked, "GUEST_S", 1.0)
    monkeypatch.setattr(type(web[0]), "logs", lambda *_, **__: time.sleep(20))
    began = time.monotonic()
    found = collect(lab, tmp_path / "it", test="it", names=["web"])
    assert time.monotonic() - began < 10
    summary = (found.folder / "summary.txt").read_text()
    assert summary.count("did not return within 1 s") == 2
    assert (found.folder / "web" / "timeline.html").is_file()


def test_a_broken_part_costs_no_other(
    lab: SimulatedLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = lab.start_web(1)
    lab.roll(web, "1.1.0", Behaviour.UNHEALTHY)

    def broken(*_: object) -> str:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(lab.simulated, "describe", broken)
    found = collect(lab, tmp_path / "it", test="it", names=["web", "never-was"])
    assert "ZeroDivisionError" in (found.folder / "summary.txt").read_text()
    assert (found.folder / "web" / "events.jsonl").is_file()
    assert any("web_0 failed at “health”" in line for line in found.lines)


def test_an_earlier_runs_folder_is_replaced_and_a_users_is_not(
    lab: SimulatedLab, tmp_path: Path
) -> None:
    lab.start_web(1)
    path = tmp_path / "all" / "it"
    collect(lab, path, test="it", names=["web"])
    (path / "old").write_text("")
    collect(lab, path, test="it", names=["web"])
    assert not (path / "old").exists()
    mine = tmp_path / "all" / "mine"
    mine.mkdir()
    (mine / "thesis").write_text("")
    with pytest.raises(FileExistsError):
        collect(lab, mine, test="it", names=["web"])
    assert (mine / "thesis").exists()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("test_a.py::test[1/2]", "test_a.py::test[1-2]"),
        ("test_a.py::test[" + "x" * 300 + "]", "test_a.py::test[" + "x" * 301 + "]"),
        ("a/test_b.py::test", "a-test_b.py::test[..]"),
    ],
)
def test_folders_of_tests_have_names_of_their_own(one: str, other: str) -> None:
    assert folder_name(one) != folder_name(other)
    for name in (folder_name(one), folder_name(other)):
        assert "/" not in name
        assert not name.startswith(".")
        assert len(name) < 140


KEEPS = """
import pytest

from pytest_vmss.api.lab import Lab
from pytest_vmss.simulation.lab import SimulatedLab


REAL = Lab.session


def pytest_configure(config):
    Lab.session = SimulatedLab.session


def pytest_unconfigure(config):
    Lab.session = REAL


def pytest_vmss_configure_lab(config, lab):
    lab.publish("1.0.0")
"""


@pytest.mark.parametrize(
    ("keep", "kept"),
    [("never", []), ("failed", ["web"]), ("always", ["other", "web"])],
)
def test_vms_are_kept_as_asked_and_only_then_said_to_be(
    pytester: pytest.Pytester, keep: str, kept: list[str]
) -> None:
    """A later test that needs the name of a set that is kept gets it."""
    pytester.makeconftest(KEEPS)
    result = run(
        pytester,
        """
        @pytest.mark.vmss(model=web_model("other", capacity=1), load_balancer=LOAD_BALANCER)
        def test_passes(scale_set):
            assert scale_set.name == "other"

        def test_fails(scale_set):
            assert False, "of its own"

        def test_needs_the_name(scale_set):
            check(scale_set)
            assert False, "again"
        """.replace("\n        ", "\n"),
        "--vmss-keep",
        keep,
        "--vmss-state-dir",
        "state",
        "--vmss-live",
        "off",
    )
    result.assert_outcomes(passed=1, failed=2)
    text = result.stdout.str()
    names = [line.split()[-1] for line in text.splitlines() if " show " in line]
    assert names == kept
    assert ("VMs are kept" in text) == bool(kept)
    labs = list((pytester.path / "state" / "labs").glob("*/vmss.db"))
    assert [(path.parent / "keep").is_file() for path in labs] == ([True] if kept else [])
    if kept:
        result.stdout.fnmatch_lines(["  VMSS_STATE_DIR=* vmss --lab s* ssh web 0"])


def test_the_set_of_a_module_is_kept_if_one_of_its_tests_failed(pytester: pytest.Pytester) -> None:
    """L3: whichever that was; a test that had nothing to do with a lab does not count."""
    pytester.makeconftest(KEEPS)
    pytester.makepyfile(
        test_other=TESTS.replace("web_model(capacity=2)", 'web_model("other", capacity=2)')
        + "def test_passes(module_scale_set):\n    pass\n\n\ndef test_alone():\n    assert False\n"
    )
    result = run(
        pytester,
        """
        def test_fails(module_scale_set):
            assert False, "of its own"

        def test_passes(module_scale_set):
            check(module_scale_set)
        """.replace("\n        ", "\n"),
        "--vmss-keep", "failed", "--vmss-state-dir", "state", "--vmss-live", "off",
    )  # fmt: skip
    result.assert_outcomes(passed=2, failed=2)
    names = [line.split()[-1] for line in result.stdout.lines if " show " in line]
    assert names == ["web"]


def test_nothing_is_kept_where_nothing_failed(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(KEEPS)
    result = run(
        pytester, "def test_passes(scale_set):\n    check(scale_set)\n",
        "--vmss-keep", "failed", "--vmss-state-dir", "state", "--vmss-live", "off",
    )  # fmt: skip
    result.assert_outcomes(passed=1)
    assert "VMs are kept" not in result.stdout.str()
    assert not list((pytester.path / "state" / "labs").glob("*/keep"))


@pytest.mark.parametrize("keep", [True, False, "Always", ""])
def test_only_the_three_ways_of_keeping_are_taken(keep: object) -> None:
    with pytest.raises(LabError, match="the setting keep must be never, failed or always"):
        Settings(keep=keep)  # type: ignore[arg-type]


ENDS = """
from tests.models import custom_script

MODEL = web_model(capacity=2)
MODEL["properties"]["virtualMachineProfile"]["extensionProfile"] = {
    "extensions": [
        custom_script("setup", protectedSettings={"commandToExecute": "join --code Zebra4711"})
    ]
}


@pytest.fixture
def watched(scale_set):
    yield scale_set
    assert False, "wrong at the end: Zebra4711"


@pytest.mark.vmss(model=MODEL, load_balancer=LOAD_BALANCER)
def test_ends(watched):
    check(watched)
"""


@pytest.mark.parametrize("behind", ["", "\ndef test_another(vmss):\n    pass\n"])
def test_what_fails_at_a_fixtures_end_is_explained_too(
    pytester: pytest.Pytester, behind: str
) -> None:
    """L3, M5: by the set as it was then, though it, and at a session's end the lab, is gone."""
    pytester.makeconftest(KEEPS)
    result = run(pytester, ENDS + behind, "--vmss-state-dir", "state", "--vmss-live", "off")
    result.assert_outcomes(passed=1 + bool(behind), errors=1)
    result.stdout.fnmatch_lines(
        [
            "scale_set = <ScaleSet web*>",
            "E  *wrong at the end: [*][*][*]",
            "Creation of web * completed in *: 2 of 2 instances succeeded.",
            "timeline: vmss-artifacts/test_it.py--test_ends/web/timeline.html",
        ]
    )
    text = result.stdout.str()
    assert "Zebra4711" not in "\n".join(line for line in text.splitlines() if line[:1] == "E")
    assert "raised in repr" not in text
    assert "0 instances" not in text
    folder = pytester.path / "vmss-artifacts" / "test_it.py--test_ends" / "web"
    assert (folder / "web_1" / "guest" / "journal.log").stat().st_size


def test_vms_are_kept_of_a_test_that_failed_at_a_fixtures_end(pytester: pytest.Pytester) -> None:
    """L3."""
    pytester.makeconftest(KEEPS)
    options = ("--vmss-keep", "failed", "--vmss-state-dir", "state", "--vmss-live", "off")
    result = run(pytester, ENDS, *options)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["VMs are kept:", "  VMSS_STATE_DIR=* vmss --lab s* ssh web 0"])
