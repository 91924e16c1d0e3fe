"""L1, L2: what pytest and ``vmss`` say of options, fixtures, markers, commands and topics."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pytest_vmss.api.lab import Lab
from pytest_vmss.cli import main
from pytest_vmss.cli.base import SECTIONS
from pytest_vmss.model.arguments import argument_names
from pytest_vmss.plugin import marker
from pytest_vmss.plugin import options as plugin_options


def said(*arguments: str) -> str:
    result = CliRunner().invoke(main, list(arguments), prog_name="vmss")
    assert result.exit_code == 0, result.output
    return result.output


def test_each_command_is_in_one_section_and_told_whole() -> None:
    placed = [name for names in SECTIONS.values() for name in names]
    assert sorted(placed) == sorted(main.commands)
    text = said("--help")
    for title in SECTIONS:
        assert f"\n{title}:\n" in text
    assert not re.search(r"\w\.\.\.$", text, re.MULTILINE)


def test_each_command_and_option_says_what_it_is() -> None:
    left: list[tuple[str, click.Command]] = list(main.commands.items())
    while left:
        name, command = left.pop()
        assert command.help, name
        assert re.match(r"[A-Z].*\.", command.help.replace("\n", " ")), name
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, f"{name} {option.name}"
        if isinstance(command, click.Group):
            left += [(f"{name} {key}", value) for key, value in command.commands.items()]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    assert "_VMSS_COMPLETE" in said("completion", shell)


def test_labs_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMSS_STATE_DIR", str(tmp_path))
    for name in ("shop", "shed", "other"):
        (tmp_path / "labs" / name).mkdir(parents=True)
    done = CliRunner().invoke(
        main,
        env={"_VMSS_COMPLETE": "bash_complete", "COMP_WORDS": "vmss --lab sh", "COMP_CWORD": "2"},
        prog_name="vmss",
    )
    assert done.output.split() == ["plain,shed", "plain,shop"]


def test_topics() -> None:
    listed = said("help")
    assert "how-to\n" in listed
    assert "    Write a recipe\n" in listed
    assert "Usage: vmss image publish" in said("help", "image", "publish")
    section = said("help", "format", "a", "data", "disk")
    assert section.startswith("## Mount and format a data disk safely")
    assert section.count("\n## ") == 0
    assert said("help", "tutorial").startswith("# ")
    unknown = CliRunner().invoke(main, ["help", "nothing-such"])
    assert unknown.exit_code == 1
    assert "`vmss help` lists them" in unknown.output


def test_the_marker_names_each_argument() -> None:
    names = re.findall(r"\w+", marker.MARKER.partition("(")[2].partition(")")[0])
    assert set(names) == {"model", "images", *argument_names(Lab.create)}


def test_pytest_says_what_options_fixtures_and_marker_are(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): pass")
    options = pytester.runpytest("--help").stdout.str()
    for name in re.findall(r'"(--vmss-[a-z-]+)"', inspect.getsource(plugin_options.add_options)):
        assert name in options
    for name in re.findall(r'addini\(\s*"(\w+)"', inspect.getsource(plugin_options.add_options)):
        assert name in options
    fixtures = pytester.runpytest("--fixtures", "-v").stdout.str()
    for words in ("vmss.create(", "gallery.publish(", "scale_set.wait_for_upgrade()"):
        assert words in fixtures
    marker = pytester.runpytest("--markers").stdout.str()
    assert "{version: file}" in marker


def test_the_documents_are_in_the_wheel() -> None:
    root = Path(__file__).parents[2]
    text = (root / "pyproject.toml").read_text()
    assert re.search(r'"docs" = "pytest_vmss/_docs"', text)
