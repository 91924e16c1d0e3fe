"""L2: every `vmss …` that a document shows is a command that there is, with the options shown."""

from __future__ import annotations

import re
import shlex
import warnings
from itertools import takewhile
from pathlib import Path

import click
import pytest

from pytest_vmss.cli import main
from tests.simulation.documents import blocks, commands
from tests.simulation.typed import in_the_table

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "images/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)
#: What stands for a value of the reader's.
VALUES = {"ID": "0", "CAPACITY": "1", "N": "1", "VERSION": "1.0.0", "URL": "http://127.0.0.1:1/"}


def problem(command: str) -> click.ClickException | None:
    """What is wrong with a command, as click says before it runs anything."""
    try:
        typed = takewhile(lambda word: word not in {"|", ">"}, shlex.split(command, comments=True))
        words = [VALUES.get(word, word) for word in typed][1:]
        context = main.make_context("vmss", words)
        rest = _rest(context)
        group: click.Command = main
        while isinstance(group, click.Group) and rest:
            name, found, rest = group.resolve_command(context, rest)
            assert found is not None
            group = found
            context = group.make_context(name, rest, parent=context)
            rest = _rest(context)
    except click.exceptions.Exit:
        return None
    except click.ClickException as error:
        return error
    return None


def _rest(context: click.Context) -> list[str]:
    """The words that a group leaves to its command; click 8 keeps the first of them apart."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return [*context.protected_args, *context.args]


def is_missing_file(error: click.ClickException) -> bool:
    """Whether only the reader's own file is not there."""
    return isinstance(error, click.BadParameter) and isinstance(
        getattr(error.param, "type", None), click.Path | click.File
    )


@pytest.mark.parametrize("page", PAGES)
def test_commands_to_type(page: str) -> None:
    for block in blocks(page):
        if block.language == "sh":
            for line in commands(block.text):
                inner = re.findall(r"\$\((vmss [^)]*)\)", line)
                outer = re.findall(r"^vmss .*", re.sub(r'"\$\([^)]*\)"', "FILE", line))
                for command in [*inner, *outer]:
                    error = problem(command)
                    assert error is None or is_missing_file(error), f"{line}: {error}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_named_in_a_sentence(page: str) -> None:
    """There what is left out may be left out."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for span in re.findall(r"`(vmss [^`]+)`", text):
        command = re.sub(r"\s*(\[[^\]]*\]|…|\\\|.*)", "", " ".join(span.split()))
        error = problem(command)
        if error is None or is_missing_file(error) or command == "vmss COMMAND":
            continue
        left_out = (
            "Missing command",
            "Missing argument",
            "Missing parameter",
            "requires an argument",
        )
        assert any(words in error.message for words in left_out) or isinstance(
            error, click.MissingParameter
        ), f"{span}: {error!r}"


def test_a_wrong_one_would_be_noticed() -> None:
    for command in ("vmss creat web.json", "vmss image build web --fast", "vmss show web more"):
        error = problem(command)
        assert error is not None
        assert not is_missing_file(error)
    assert "--fast" not in options_of(["image", "build", "NAME"])
    assert "--recipes" in options_of(["image", "build", "NAME"])


def options_of(words: list[str]) -> set[str]:
    """The options of a command, and of what stands before it."""
    command: click.Command = main
    found: set[str] = set()
    for word in [*words, ""]:
        for parameter in command.params:
            found |= {*parameter.opts, *parameter.secondary_opts}
        below = command.commands if isinstance(command, click.Group) else {}
        command = below.get(word, command)
    return found | {"--help", "--version"}


@pytest.mark.parametrize("page", PAGES)
def test_options_that_may_be_left_out(page: str) -> None:
    """Of a synopsis: each is one of its command's."""
    found = re.findall(r"`(vmss [^`]*\[[^`]+)`", (ROOT / page).read_text())
    if page == "docs/reference.md":
        found += [whole for _, whole in in_the_table()]
    for whole in found:
        words = re.sub(r"\[.*", "", whole).split()[1:]
        for option in re.findall(r"(?<![\w-])--?[a-z[][\w\]-]*", whole):
            both = [re.sub(r"\[(.*)\]", r"\1", option), re.sub(r"\[.*\]", "", option)]
            assert {part.strip("[]") for part in both} <= options_of(words), f"{whole}: {option}"


def test_the_table_of_commands_is_whole() -> None:
    text = (ROOT / "docs/reference.md").read_text()
    table = text.partition("## Command line")[2].partition("\n## ")[0]
    for name, command in main.commands.items():
        below = command.commands if isinstance(command, click.Group) else {"": command}
        for word in below:
            assert re.search(rf"`{f'{name} {word}'.strip()}\b", table), f"{name} {word}"
