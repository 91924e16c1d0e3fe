"""L1: options, fixtures and markers; inert in suites that do not use it."""

from __future__ import annotations

import pytest

import pytest_vmss


def test_help_and_marker(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest("--help")
    result.stdout.fnmatch_lines(["*--vmss-connect=URI*"])
    result = pytester.runpytest("--markers")
    result.stdout.fnmatch_lines(["*@pytest.mark.vmss(model*"])


def test_a_suite_that_does_not_use_it_imports_nothing_of_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_nothing():
            heavy = {"libvirt", "paramiko", "pydantic", "rich", "pytest_vmss.api.lab"}
            assert not heavy & set(sys.modules)
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)


def test_public_names_are_loaded_when_they_are_used() -> None:
    for name in pytest_vmss.__all__:
        assert getattr(pytest_vmss, name).__name__ == name
    assert set(pytest_vmss.__all__) <= set(dir(pytest_vmss))
    with pytest.raises(AttributeError, match="no attribute 'World'"):
        _ = pytest_vmss.World


def test_the_fixture_needs_a_model(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(scale_set): pass")
    result = pytester.runpytest_subprocess("--vmss-state-dir", "state")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*needs a model*"])
    assert list((pytester.path / "state/labs").iterdir()) == []


def test_bad_input_is_refused_before_anything_is_touched(pytester: pytest.Pytester) -> None:
    """A6: nothing is made, and the message names path and code."""
    pytester.makepyfile(
        """
        import pytest

        MODEL = {"name": "a/b", "sku": {"name": "Standard_B1s", "capacity": -1}}

        @pytest.mark.vmss(model=MODEL)
        def test_it(scale_set): pass
        """
    )
    result = pytester.runpytest_subprocess("--vmss-state-dir", "state")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*$.name*", "*$.sku.capacity*InvalidParameter*"])
    assert list((pytester.path / "state/labs").iterdir()) == []


def test_sizes_of_the_suites_own(pytester: pytest.Pytester) -> None:
    """A3."""
    pytester.makeini("[pytest]\nvmss_sizes =\n    Tiny = 1, 256\n")
    pytester.makepyfile("def test_it(vmss): assert vmss.settings.sizes == {'Tiny': (1, 256)}")
    pytester.runpytest_subprocess("--vmss-state-dir", "state").assert_outcomes(passed=1)
    pytester.makeini("[pytest]\nvmss_sizes = Tiny\n")
    result = pytester.runpytest_subprocess("--vmss-state-dir", "state")
    result.stdout.fnmatch_lines(["*NAME = VCPUS, MEMORY_MIB*"])


def test_a_suite_hooks_into_settings_and_lab(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        from dataclasses import replace

        def pytest_vmss_settings(config, settings):
            return replace(settings, timeout_factor=3.0)

        def pytest_vmss_configure_lab(config, lab):
            lab.store.event("", "hook", "called")
        """
    )
    pytester.makepyfile(
        """
        def test_it(vmss):
            assert vmss.settings.timeout_factor == 3.0
            assert [event.message for event in vmss.store.events()] == ["called"]
        """
    )
    pytester.runpytest_subprocess("--vmss-state-dir", "state").assert_outcomes(passed=1)


@pytest.mark.parametrize("factor", ["nan", "inf", "0", "-1", "x", "1e9"])
def test_a_factor_that_no_wait_can_have(pytester: pytest.Pytester, factor: str) -> None:
    result = pytester.runpytest_subprocess(f"--vmss-timeout-factor={factor}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*--vmss-timeout-factor: *must be a number above 0, up to 1000; given *"]
    )


@pytest.mark.parametrize("size", ["Tiny = 0, 256", "Tiny = 1, -1", "= 1, 256", "T = 1, 9999999999"])
def test_a_size_that_no_machine_can_have(pytester: pytest.Pytester, size: str) -> None:
    pytester.makeini(f"[pytest]\nvmss_sizes =\n    {size}\n")
    pytester.makepyfile("def test_it(vmss): pass")
    result = pytester.runpytest_subprocess("--vmss-state-dir", "state")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*UsageError: the setting sizes*must be*"])


def test_a_size_and_extensions_by_option_and_ini(pytester: pytest.Pytester) -> None:
    """A3, P4."""
    pytester.makeini("[pytest]\nvmss_size = Standard_B1s\nvmss_unknown_extensions = skip\n")
    pytester.makepyfile(
        """
        def test_it(vmss):
            settings = vmss.settings
            print(f"made in {settings.size}, {settings.unknown_extensions}")
        """
    )
    run = pytester.runpytest("-s")
    run.stdout.fnmatch_lines(["*made in Standard_B1s, skip*"])
    run = pytester.runpytest(
        "-s", "--vmss-size", "Standard_B2s", "--vmss-unknown-extensions", "refuse"
    )
    run.stdout.fnmatch_lines(["*made in Standard_B2s, refuse*"])


def test_the_markers_parameters_are_found_beside_the_test(pytester: pytest.Pytester) -> None:
    """P1, P3: and what is wrong with them is told before anything is made."""
    folder = pytester.mkdir("suite")
    (folder / "web.json").write_text(
        '{"resources": [{"type": "Microsoft.Compute/virtualMachineScaleSets", '
        '"name": "[parameters(\'n\')]"}], "parameters": {"n": {"type": "string"}}}'
    )
    (folder / "values.json").write_text('{"n": 3}')
    (folder / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.vmss(model='web.json', parameters=['values.json'])\n"
        "def test_it(scale_set): pass\n"
    )
    run = pytester.runpytest()
    run.stdout.fnmatch_lines(["*$.parameters.n: must be of type string, is int*"])
