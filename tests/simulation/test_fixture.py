"""L1, Q1: the fixture scale_set leaves each test a free name, whatever the one before did."""

from __future__ import annotations

import subprocess
import textwrap

import pytest

CONFTEST = """
import subprocess

import pytest

from pytest_vmss.settings import Settings
from pytest_vmss.simulation.lab import SimulatedLab


@pytest.fixture(scope="session")
def vmss(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    lab = SimulatedLab.session(Settings(folder / "state", folder / "cache"))
    lab.publish("1.0.0")
    lab.watch()
    yield lab
    lab.destroy()
"""

TESTS = """
import threading, time

import subprocess

import pytest

from pytest_vmss.errors import HostError, HypervisorError
from pytest_vmss.simulation.guest import Behaviour, SimulatedGuest
from pytest_vmss.simulation.lab import SimulatedLab
from tests.models import LOAD_BALANCER, web_model

pytestmark = pytest.mark.vmss(model=web_model(capacity=2), load_balancer=LOAD_BALANCER)


def check(scale_set):
    assert scale_set.is_healthy()
    assert len(scale_set) == 2


"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(CONFTEST)
    return pytester


def run(suite: pytest.Pytester, tests: str) -> pytest.RunResult:
    suite.makepyfile(TESTS + tests)
    return suite.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist")


def test_a_test_that_fails_in_mid_upgrade_leaves_a_free_name(suite: pytest.Pytester) -> None:
    result = run(
        suite,
        """
        def test_fails(vmss, scale_set, monkeypatch):
            inside = threading.Event()
            real = SimulatedGuest.wait_boot

            def slow(self, previous):
                inside.set()
                end = time.monotonic() + 20
                while time.monotonic() < end:
                    self._clock.sleep(0.01)
                    time.sleep(0.01)
                return real(self, previous)

            monkeypatch.setattr(SimulatedGuest, "wait_boot", slow)
            vmss.publish("1.1.0")
            assert inside.wait(10)
            assert False, "in mid-upgrade"

        def test_next(scale_set):
            check(scale_set)
            assert scale_set[0].image_version == "1.1.0"
        """.replace("\n        ", "\n"),
    )
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*in mid-upgrade*"])


def test_what_cannot_be_deleted_is_told_and_tried_again(suite: pytest.Pytester) -> None:
    result = run(
        suite,
        """
        def test_passes(vmss, scale_set):
            vmss.broken, vmss.real = True, vmss.simulated.remove

            def remove(name):
                if vmss.broken:
                    raise HypervisorError("libvirt refuses")
                vmss.real(name)

            vmss.simulated.remove = remove

        def test_needs_the_name(scale_set):
            raise AssertionError("there is no such set")

        def test_next(vmss, request):
            vmss.broken = False
            check(request.getfixturevalue("scale_set"))

        def test_after(scale_set):
            check(scale_set)
        """.replace("\n        ", "\n"),
    )
    result.assert_outcomes(passed=3, errors=2)
    text = result.stdout.str()
    assert "ERROR at teardown of test_passes" in text
    assert "ERROR at setup of test_needs_the_name" in text
    assert "could not be deleted (" in text
    assert "libvirt refuses" in text
    assert "before the next test that needs a set: web_0, web_1, under " in text
    assert "there is a scale set 'web' already" in text


def test_a_set_that_fails_to_come_up_in_any_way_goes(suite: pytest.Pytester) -> None:
    """Also where a time-out of pytest's raises something that is no Exception."""
    result = run(
        suite,
        """
        @pytest.mark.parametrize("failure", ["boot", "host", "outcome"])
        def test_fails(failure, vmss, request, monkeypatch):
            def wait_boot(self, previous):
                if failure == "boot":
                    raise HypervisorError("it does not boot")
                if failure == "host":
                    raise HostError("libvirt has gone")
                pytest.fail("Timeout >300.0s")

            monkeypatch.setattr(SimulatedGuest, "wait_boot", wait_boot)
            request.getfixturevalue("scale_set")

        def test_next(scale_set):
            check(scale_set)

        def test_deletes_it_itself(scale_set):
            scale_set.delete()

        def test_ends_with_another_of_that_name(vmss, scale_set):
            scale_set.delete()
            vmss.create(web_model(capacity=1), load_balancer=LOAD_BALANCER)

        def test_last(scale_set):
            check(scale_set)
        """.replace("\n        ", "\n"),
    )
    result.assert_outcomes(failed=3, passed=4)


def test_a_set_that_was_there_before_stays(suite: pytest.Pytester) -> None:
    """The test's own mistake costs nobody else's set."""
    result = run(
        suite,
        """
        @pytest.fixture(scope="session")
        def mine(vmss):
            return vmss.create(web_model(capacity=2), load_balancer=LOAD_BALANCER)

        def test_wants_its_name(mine, scale_set):
            pass

        def test_it_is_there(mine):
            check(mine)
        """.replace("\n        ", "\n"),
    )
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines(["*there is a scale set 'web' already*"])


def test_publications_are_the_tests_own(suite: pytest.Pytester) -> None:
    """L1: each test passes alone, in any order, whatever others have published."""
    tests = """
        import subprocess

        def disk(folder, number):
            path = folder / f"{number}.qcow2"
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, f"{number}M"], check=True)
            return path

        @pytest.fixture(scope="session")
        def disks(tmp_path_factory, vmss):
            folder = tmp_path_factory.mktemp("disks")
            found = {number: disk(folder, number) for number in (101, 102, 103)}
            return found

        def test_a(gallery, vmss, disks):
            gallery.publish("other", "1.0.0", disks[101])
            gallery.publish("other", "1.1.0", disks[102])
            gallery.delete("other", "1.1.0")
            assert gallery.publish("web", "1.0.0", vmss.paths.folder / "source-1.0.0.qcow2")
            assert gallery.versions("other") == ["1.0.0"]

        def test_b(gallery, disks):
            assert gallery.versions("other") == []
            gallery.publish("other", "1.0.0", disks[102])
            assert gallery.versions("web") == ["1.0.0"]  # the session's

        def test_c(scale_set, gallery, disks):
            gallery.publish("web", "1.1.0", disks[103])

        def test_d(scale_set, gallery):
            assert gallery.versions("web") == ["1.0.0"]
            assert scale_set[0].image_version == "1.0.0"
        """.replace("\n        ", "\n")
    run(suite, tests).assert_outcomes(passed=4)
    reverse = "def pytest_collection_modifyitems(items):\n    items.reverse()\n"
    suite.makeconftest(CONFTEST + reverse)
    run(suite, tests).assert_outcomes(passed=4)


def test_a_marker_names_what_the_set_starts_from(suite: pytest.Pytester) -> None:
    """L1: and tests that start from the same files share the publication."""
    for number in (201, 202):
        disk = str(suite.path / f"{number}.qcow2")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, f"{number}M"], check=True)
    model = """
        def model():
            body = web_model(capacity=1)
            profile = body["properties"]["virtualMachineProfile"]
            image = profile["storageProfile"]["imageReference"]
            image["id"] = image["id"].replace("images/web", "images/mine")
            return body

        def starts(**images):
            named = {version.strip("v").replace("_", "."): path for version, path in images.items()}
            return pytest.mark.vmss(
                model=model(), images=named, load_balancer=LOAD_BALANCER,
                custom_data=b"#cloud-config\\n",
            )

        def known(vmss):
            return [(r.version, r.published) for r in vmss.images.versions("gallery", "mine")]

        FIRST = {}

        @starts(v1_0_0="201.qcow2")
        def test_one(scale_set, vmss):
            FIRST.update(known(vmss))
            assert list(FIRST) == ["1.0.0"]

        @starts(v1_0_0="201.qcow2")
        def test_the_same(scale_set, vmss):
            assert dict(known(vmss)) == FIRST

        @starts(v1_0_0="202.qcow2", v1_1_0="201.qcow2")
        def test_others(scale_set, vmss):
            assert [version for version, _ in known(vmss)] == ["1.0.0", "1.1.0"]
            assert scale_set[0].record.version == "1.1.0"

        @starts(v2_0_0="201.qcow2")
        def test_another(scale_set, vmss):
            assert [version for version, _ in known(vmss)] == ["2.0.0"]

        @pytest.fixture
        def another(vmss):
            lab = SimulatedLab.session(vmss.settings)
            yield lab
            lab.destroy()

        class TestAnotherLab:
            @pytest.fixture
            def vmss(self, another):
                return another

            @starts(v2_0_0="201.qcow2")
            def test_its_own(self, scale_set, vmss):
                assert [version for version, _ in known(vmss)] == ["2.0.0"]

        @starts(v1_0_0=7)
        def test_no_path(scale_set):
            pass

        @starts(v1_0_0="gone.qcow2")
        def test_no_file(scale_set):
            pass
        """.replace("\n        ", "\n")
    result = run(suite, model)
    result.assert_outcomes(passed=5, errors=2)
    result.stdout.fnmatch_lines(["*images*paths by version*", "*gone.qcow2 cannot be read*"])


def test_only_what_a_test_published_goes_with_it(suite: pytest.Pytester) -> None:
    """L1: what was there before stays, and so does what is published otherwise in its place."""
    for number in (201, 202):
        disk = str(suite.path / f"{number}.qcow2")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, f"{number}M"], check=True)
    tests = """
        import types

        def starts(definition, images, gallery="gallery"):
            body = web_model(capacity=1)
            profile = body["properties"]["virtualMachineProfile"]
            image = profile["storageProfile"]["imageReference"]
            image["id"] = image["id"].replace("s/web", f"s/{definition}").replace(
                "s/gallery", f"s/{gallery}"
            )
            return pytest.mark.vmss(model=body, images=images, load_balancer=LOAD_BALANCER)

        def test_a_republished(gallery, vmss):
            gallery.publish("one", "1.0.0", "201.qcow2")
            vmss.gallery().delete("one", "1.0.0")
            vmss.gallery().publish("one", "1.0.0", "202.qcow2")
            vmss.gallery().publish("hooked", "1.0.0", "201.qcow2")

        @starts("hooked", {"1.0.0": "201.qcow2"})
        def test_b_named(scale_set, vmss):
            assert vmss.gallery().versions("one") == ["1.0.0"]

        @starts("Hooked", types.MappingProxyType({"2.0.0": "202.qcow2"}))
        def test_c_others(scale_set, vmss):
            assert vmss.gallery().versions("hooked") == ["1.0.0", "2.0.0"]

        @starts("hooked", {"2.0.0": "201.qcow2"}, gallery="GALLERY")
        def test_d_in_another_case(scale_set, vmss):
            (_, second) = vmss.images.versions("gallery", "hooked")
            assert second.virtual_size == 201 * 2**20
            vmss.gallery().delete("hooked", "2.0.0")
            vmss.gallery().publish("hooked", "2.0.0", "202.qcow2")

        @starts("hooked", {"2.0.0": "201.qcow2"})
        def test_e_is_not_what_the_marker_names(scale_set):
            pass

        @starts("hooked", {"2.0.0": "202.qcow2"})
        def test_f_is_what_the_marker_names(scale_set):
            pass

        def test_g_failing_deletions(monkeypatch, gallery, vmss):
            gallery.publish("two", "1.0.0", "201.qcow2")
            gallery.publish("two", "1.1.0", "202.qcow2")
            real, failed = vmss.images.delete, []

            def delete(*named):
                if not failed:
                    failed.append(named)
                    raise HostError("the database is busy")
                real(*named)

            monkeypatch.setattr(vmss.images, "delete", delete)

        def test_h_harm_no_other(gallery):
            assert len(gallery.versions("two")) == 1
        """.replace("\n        ", "\n")
    result = run(suite, tests)
    result.assert_outcomes(passed=7, errors=2)
    result.stdout.fnmatch_lines(["*hooked 2.0.0 is published already*"])


def test_a_module_shares_a_set_and_restores_it(suite: pytest.Pytester) -> None:
    """L1: it is deleted after the module's last test."""
    result = run(
        suite,
        """
        @pytest.fixture(autouse=True)
        def restored(module_scale_set):
            if "fresh" not in module_scale_set.checkpoints:
                module_scale_set.checkpoint("fresh")
            yield
            module_scale_set.restore("fresh")

        SEEN = []

        @pytest.mark.parametrize("version", ["1.1.0", "1.2.0"])
        def test_it(vmss, module_scale_set, version):
            check(module_scale_set)
            assert module_scale_set[0].image_version == "1.0.0"
            SEEN.append(module_scale_set.record.unique_id)
            vmss.publish(version)
            assert module_scale_set.wait_for_upgrade().completed

        def test_the_same(module_scale_set):
            assert {module_scale_set.record.unique_id} == set(SEEN)
            assert module_scale_set[0].image_version == "1.0.0"
        """.replace("\n        ", "\n"),
    )
    result.assert_outcomes(passed=3)
    suite.makepyfile(
        test_zz="""
        def test_it_is_gone(vmss):
            assert vmss.scale_sets() == []
        """
    )
    suite.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist").assert_outcomes(passed=4)


def test_a_test_runs_for_each_instance(suite: pytest.Pytester) -> None:
    """L1: as many as the marker or its model says; a suite's own fixture stays the suite's own."""
    result = run(
        suite,
        """
        def test_each(instance, scale_set):
            assert instance is scale_set[int(instance.instance_id)]
            print("seen:", instance.name)

        @pytest.mark.vmss(model=web_model(), load_balancer=LOAD_BALANCER, capacity=1)
        def test_one(instance):
            assert instance.instance_id == "0"

        @pytest.mark.parametrize("instance", [1], indirect=True)
        def test_chosen(instance):
            assert instance.instance_id == "1"

        class TestOwn:
            @pytest.fixture
            def instance(self):
                return "mine"

            def test_own(self, instance):
                assert instance == "mine"

            @pytest.mark.parametrize("instance, x", [("a", 1), ("b", 2)])
            def test_values(self, instance, x):
                assert instance in "ab"

        @pytest.mark.parametrize(("instance", "x"), [("a", 1)])
        def test_direct(instance, x):
            assert instance == "a"

        @pytest.mark.parametrize(argnames="instance", argvalues=["a"])
        def test_named(instance):
            assert instance == "a"
        """.replace("\n        ", "\n"),
    )
    result.assert_outcomes(passed=9)
    suite.makepyfile(
        "import pytest\n@pytest.mark.vmss(model='gone.json')\ndef test_it(instance): pass"
    )
    result = suite.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist")
    text = result.stdout.str() + result.stderr.str()
    assert "test_it" in text
    assert "gone.json" in text


def test_a_marker_of_one_parameter_comes_too_late_for_instance(suite: pytest.Pytester) -> None:
    """L1: it describes the set, and not how often the test runs."""
    result = run(
        suite,
        """
        small = pytest.param(1, marks=pytest.mark.vmss(
            model=web_model(capacity=1), load_balancer=LOAD_BALANCER))
        pytestmark = []

        @pytest.mark.parametrize("x", [small])
        def test_set(scale_set, x):
            assert len(scale_set) == 1

        @pytest.mark.parametrize("x", [small])
        def test_each(instance, x):
            pass
        """.replace("\n        ", "\n"),
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*mark the test, its class or its module, or use scale_set*"])


def test_a_position_that_no_instance_has_is_told(suite: pytest.Pytester) -> None:
    """L1: what was given, what there is, and no line of the plugin."""
    result = run(
        suite,
        """
        @pytest.mark.parametrize("instance", [2, "web_0"], indirect=True)
        def test_chosen(instance):
            pass
        """.replace("\n        ", "\n"),
    )
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(
        [
            "E *UsageError: instance was parametrised with 2, but 'web' has 2 instances; give *",
            "E *UsageError: instance was parametrised with 'web_0', but 'web' has 2 instances; *",
        ]
    )
    assert "def instance(" not in result.stdout.str()


@pytest.mark.parametrize(
    ("marker", "told"),
    [
        ("model='none.json'", "*/none.json is not a valid scale set:"),
        ("capacity=2", "the set needs a model: *"),
    ],
)
def test_instances_of_a_model_that_cannot_be_read_are_told_in_words(
    suite: pytest.Pytester, marker: str, told: str
) -> None:
    """L1: once, and without the way there through pytest."""
    result = run(suite, f"@pytest.mark.vmss({marker})\ndef test_each(instance):\n    pass\n")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"test_*.py::test_each: {told}"])
    text = result.stdout.str()
    assert text.count(told.strip("*: ")) == 1
    assert "_hookexec" not in text
    assert "capacity_of" not in text


def test_a_mistake_in_waiting_shows_no_line_between(suite: pytest.Pytester) -> None:
    """L1: neither of what waits nor of what that waits by."""
    result = run(suite, "def test_waits(scale_set):\n    scale_set.wait_for_upgrade()\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *UpgradeError: no upgrade of 'web' is due: *"])
    text = result.stdout.str()
    assert "tenacity" not in text
    assert "concurrent" not in text


def test_an_impossible_fault_shows_no_line_of_the_plugin(suite: pytest.Pytester) -> None:
    """A6: as any other mistake in a call."""
    tests = "def test_slows(scale_set):\n    with scale_set[0].faults.slowed(2):\n        pass\n"
    result = run(suite, tests)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E *ModelError: what was asked for is not possible:",
            "E * share: must be a number*given 2*",
        ]
    )
    assert "def slowed" not in result.stdout.str()


def test_what_setups_and_teardowns_of_xunit_find(suite: pytest.Pytester) -> None:
    """L1: pytest makes fixtures of them that come before those which a test names."""
    tests = """
    LABS, FOUND = [], []

    @pytest.fixture(scope="session", autouse=True)
    def kept(vmss):
        LABS.append(vmss)

    def look():
        FOUND.append([web.name for web in LABS[0].scale_sets()])

    class TestMethods:
        def setup_method(self):
            look()

        def teardown_method(self):
            look()

        def test_own(self, scale_set):
            check(scale_set)

        def test_shared(self, module_scale_set):
            check(module_scale_set)

    def test_found():
        assert FOUND == [[], [], ["web"], ["web"]]
    """
    run(suite, textwrap.dedent(tests)).assert_outcomes(passed=3)


def test_a_set_that_is_in_the_way_is_told_with_its_fixture(suite: pytest.Pytester) -> None:
    """L1."""
    result = run(
        suite,
        """
        def test_shares(module_scale_set):
            check(module_scale_set)

        def test_has_its_own(scale_set):
            pass
        """.replace("\n        ", "\n"),
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            "E *ConflictError: there is a scale set 'web' already; *",
            "*'web' is the set of module_scale_set of test_*.py, until that ends; *",
        ]
    )


def test_the_name_in_a_conflict_is_that_of_the_set_that_is_there(suite: pytest.Pytester) -> None:
    result = run(
        suite,
        """
        def test_twice(vmss, scale_set):
            vmss.create(web_model("WEB", capacity=1), load_balancer=LOAD_BALANCER)

        def test_which(scale_set):
            scale_set.instance(7)
        """.replace("\n        ", "\n"),
    )
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "E *ConflictError: there is a scale set 'web' already; *",
            "E *ModelError: what was asked for is not possible:",
            "E *instanceId 7 is not an active *",
        ]
    )


def test_a_warning_made_an_error_shows_no_line_of_the_plugin(suite: pytest.Pytester) -> None:
    """L1, A6: of suites that run with -W error."""
    result = run(
        suite,
        """
        MODEL = web_model(capacity=1)
        MODEL["properties"]["doNotRunExtensionsOnOverprovisionedVMs"] = True

        @pytest.mark.filterwarnings("error")
        @pytest.mark.vmss(model=MODEL, load_balancer=LOAD_BALANCER)
        def test_strict(scale_set):
            pass
        """.replace("\n        ", "\n"),
    )
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E *NotModelledWarning: the model:", "*not modelled here: *"])
    assert "warnings.warn" not in result.stdout.str()


def test_a_conflict_with_the_tests_own_upgrade_blames_no_other_process(
    suite: pytest.Pytester,
) -> None:
    """L1: its causes spoke of another process, and of a wait of no time."""
    result = run(
        suite,
        """
        def test_both(vmss, scale_set, monkeypatch):
            inside, go_on = threading.Event(), threading.Event()
            real = SimulatedGuest.wait_boot

            def slow(self, previous):
                inside.set()
                go_on.wait(20)
                return real(self, previous)

            monkeypatch.setattr(SimulatedGuest, "wait_boot", slow)
            vmss.publish("1.1.0")
            assert inside.wait(20)
            try:
                scale_set.reimage()
            finally:
                go_on.set()
        """.replace("\n        ", "\n"),
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *ConflictError: Operation is not allowed on the scale set *"])
    text = result.stdout.str()
    assert "another process" not in text
    assert "WaitTimeoutError" not in text
