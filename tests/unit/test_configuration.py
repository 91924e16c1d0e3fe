"""G4, L1, L2: every limit can be set in a project, in the ini-file and on the command line."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pytest_vmss.api.lab import Lab
from pytest_vmss.cli import main
from pytest_vmss.configuration import (
    configured,
    find_project,
    overlay,
    read_assignments,
    read_project,
)
from pytest_vmss.errors import LabError
from pytest_vmss.settings import ImageLimits, Settings, Timeouts

TABLE = """
[tool.vmss]
timeout_factor = 2.5
first_rollout_delay = 10800
rollout_delay = [1800, 3600]
repair_grace = 60
degraded_is_fatal = true
guest_network = "isolated"
accelerator = "tcg"
timeouts.boot = 120
timeouts.extension = 600
images = { virtual_gib = 100 }
sizes.Tiny = [1, 256]
"""


def project(folder: Path, text: str = TABLE) -> Path:
    path = folder / "pyproject.toml"
    path.write_text(text)
    return path


def test_a_projects_table(tmp_path: Path) -> None:
    settings = Settings(tmp_path, tmp_path, **configured(read_project(project(tmp_path))))
    assert settings == Settings(
        tmp_path,
        tmp_path,
        timeout_factor=2.5,
        first_rollout_delay=10800,
        rollout_delay=(1800, 3600),
        repair_grace=60,
        degraded_is_fatal=True,
        guest_network="isolated",
        accelerator="tcg",
        timeouts=Timeouts(boot=120, extension=600),
        images=ImageLimits(virtual_gib=100),
        sizes={"Tiny": (1, 256)},
    )


@pytest.mark.parametrize("name", [entry.name for entry in fields(Timeouts)])
def test_every_timeout_can_be_set(name: str) -> None:
    """G4, H3: by name, and what is given counts."""
    table = read_assignments([f"timeouts.{name} = 7"], "--set")
    assert getattr(configured(table)["timeouts"], name) == 7


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("timeouts.boots = 1", r"no setting timeouts.boots; did you mean timeouts.boot\?"),
        ("first_rollout = 1", r"did you mean first_rollout_delay\?"),
        ("zzz = 1", "there are: accelerator, timeout_factor"),
        ("timeouts = 1", "timeouts must be a table; given 1"),
        ("sizes = []", "sizes must be a table"),
        ("state_dir = '/'", "give it on the command line"),
        ("connect = 'qemu:///system'", "give it on the command line"),
        ("timeouts.boot = ", "is not of the form NAME = VALUE in TOML"),
        ("120", "is not of the form NAME = VALUE in TOML"),
        ("[tool]", "there is no setting tool"),
    ],
)
def test_what_is_no_setting(assignment: str, message: str) -> None:
    with pytest.raises(LabError, match=message) as refused:
        read_assignments([assignment], "--vmss-set")
    assert "--vmss-set" in str(refused.value)


@pytest.mark.parametrize(
    "assignment",
    [
        "timeouts.boot = -1",
        "timeouts.health = '5'",
        "timeouts.wait = inf",
        "rollout_delay = 5",
        "rollout_delay = [1]",
        "degraded_is_fatal = 1",
        "sizes.Tiny = 5",
        "sizes.Tiny = ['a', 'b']",
        "images.virtual_gib = 0",
        "first_rollout_delay = 2026-01-01",
        "guest_network = 'open'",
        "size = 5",
        "unknown_extensions = 'keep'",
        "checkpoints_gib = -1",
    ],
)
def test_a_value_that_no_setting_can_have(assignment: str, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="must be"):
        Settings(tmp_path, tmp_path, **configured(read_assignments([assignment], "--set")))


@pytest.mark.parametrize(
    "value", [f"0x{'f' * 5000}", "9" * 5000, f"{'[' * 5000}"], ids=["hex", "decimal", "nested"]
)
def test_a_value_that_cannot_be_written_down(value: str, tmp_path: Path) -> None:
    """It is refused like any other, and not with an error of Python's own."""
    for name in ("timeouts.boot", "size", "images", "sizes.Tiny"):
        with pytest.raises(LabError) as refused:
            Settings(tmp_path, tmp_path, **configured(read_assignments([f"{name}={value}"], "")))
        assert len(str(refused.value)) < 1000


def test_the_last_one_counts_and_the_others_stay() -> None:
    first = read_assignments(["timeouts.boot=1", "timeouts.boot=2", "timeouts.stop=3"], "one")
    table = overlay(first, read_assignments(["timeouts.stop=4"], "other"))
    assert configured(table)["timeouts"] == Timeouts(boot=2, stop=4)


@pytest.mark.parametrize(
    "text",
    [
        "[tool", "tool.vmss = 5", "[tool.vmss]\nboot = 1", "\udcff", "tool = 'vmss'", "[[tool]]",
        pytest.param(f"a = {'[' * 5000}", id="nested too deeply"),
        pytest.param(f"tool.vmss.timeouts = 0x{'f' * 5000}", id="thousands of digits"),
    ],
    ids=str,
)  # fmt: skip
def test_a_project_that_cannot_be_read(text: str, tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(LabError, match=r"pyproject\.toml"):
        read_project(path)


def test_where_a_project_is_looked_for(tmp_path: Path) -> None:
    below = tmp_path / "a/b"
    below.mkdir(parents=True)
    path = project(tmp_path)
    assert find_project(below) == path
    assert read_project(None) == {}
    assert read_project(tmp_path / "a/pyproject.toml") == {}
    assert read_project(project(tmp_path / "a", "[tool.other]\nx = 1")) == {}


def test_the_environment_counts_more_than_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M6: what the user has closed, a project's file does not open."""
    text = "[tool.vmss]\nguest_network = 'outbound'\ncheckpoints_gib = 5\nimages = {virtual_gib = 9, stored_gib = 8}\n"
    path = project(tmp_path, text)
    monkeypatch.setenv("VMSS_GUEST_NETWORK", "isolated")
    monkeypatch.setenv("VMSS_MAX_IMAGE_GIB", "7")
    monkeypatch.setenv("VMSS_MAX_CHECKPOINTS_GIB", "7")
    assert read_project(path) == {"images": {"stored_gib": 8}}


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """L2: the project's table, and over it what is given."""
    seen: list[Settings] = []

    def opened(settings: Settings, _: str) -> None:
        seen.append(settings)
        raise LabError("that is all")

    monkeypatch.setattr(Lab, "open", opened)
    monkeypatch.setenv("VMSS_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "state/labs/default").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    project(tmp_path)

    def vmss(*words: str) -> Result:
        return CliRunner().invoke(main, [*words, "list"])

    vmss("--accel", "kvm", "--set", "timeouts.boot=5", "--set", "first_rollout_delay=0")
    (settings,) = seen
    assert settings.timeouts == Timeouts(boot=5, extension=600)
    assert settings.first_rollout_delay == 0
    assert settings.accelerator == "kvm"
    assert settings.sizes == {"Tiny": (1, 256)}
    result = vmss("--set", "timeout.boot=5")
    assert result.exit_code == 1
    assert "did you mean timeouts?" in result.output


def test_in_pytest(pytester: pytest.Pytester) -> None:
    """L1: the project's table, over it the ini-file, over it the option."""
    pytester.makepyprojecttoml(TABLE)
    pytester.makeini(
        "[pytest]\nvmss_settings =\n    timeouts.stop = 3\n    timeouts.boot = 4\n"
        "vmss_sizes = Small = 1, 512\n"
    )
    pytester.makepyfile(
        """
        def test_it(vmss):
            settings = vmss.settings
            assert (settings.timeouts.stop, settings.timeouts.boot) == (3, 5)
            assert settings.timeouts.extension == 600
            assert settings.rollout_delay == (1800, 3600)
            assert settings.sizes == {"Tiny": (1, 256), "Small": (1, 512)}
            assert (settings.images.virtual_gib, settings.images.stored_gib) == (100, 7)
            assert settings.timeout_factor == 9
        """
    )
    options = ["--vmss-state-dir", "state", "--vmss-set", "timeouts.boot=5"]
    options += ["--vmss-max-image-file-gib", "7", "--vmss-timeout-factor", "9"]
    pytester.runpytest_subprocess(*options).assert_outcomes(passed=1)
    result = pytester.runpytest_subprocess(*options, "--vmss-set", "timeouts.boot=x")
    result.stdout.fnmatch_lines(["*UsageError: --vmss-set: 'timeouts.boot=x'*"])


def test_a_folder_above_that_may_not_be_entered_has_no_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L1: such as another account's home; what is further up counts."""
    closed = tmp_path / "closed"
    below = closed / "work"
    below.mkdir(parents=True)
    path = project(tmp_path)
    is_file = Path.is_file

    def asked(self: Path) -> bool:
        if self.parent in (closed, below):
            raise PermissionError(13, "Permission denied", str(self))
        return is_file(self)

    monkeypatch.setattr(Path, "is_file", asked)
    assert find_project(below) == path
