"""``vmss help`` and ``vmss completion``: what the command says of itself."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import click
from click.shell_completion import get_completion_class
from rich.markdown import Markdown

from pytest_vmss.cli.base import console, main
from pytest_vmss.errors import NotFoundError
from pytest_vmss.host.shipped import shipped

__all__: list[str] = []

_HEADING = re.compile(r"^(#{1,3}) (.+)$")
_FENCE = "```"


@dataclass(frozen=True)
class _Section:
    """A heading of a document, with what stands under it.

    Attributes:
        document: The document's name.
        title: The heading.
        text: The section in Markdown, with its heading.
    """

    document: str
    title: str
    text: str


@main.command("help")
@click.argument("topic", nargs=-1)
@click.pass_context
def show_help(ctx: click.Context, topic: tuple[str, ...]) -> None:
    """Show what the documents say of TOPIC, or the help of a command.

    TOPIC is a command (`vmss help image publish`), a document (`vmss help tutorial`), or words of
    a heading (`vmss help data disk`). Without it, the documents and their headings are listed; if
    nothing is named like it, the headings under which its words stand.
    """
    if not topic:
        _list_topics()
        return
    if _show_command(ctx, topic):
        return
    words = " ".join(topic).lower()
    documents = _documents()
    if words in documents:
        _print(documents[words])
        return
    found = [section for section in _all_sections() if words in section.title.lower()]
    if found:
        _print("\n".join(section.text for section in found))
    else:
        _list_mentions(words)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that makes SHELL complete commands, options and labs.

    For bash, in ~/.bashrc: eval "$(vmss completion bash)". For zsh likewise in ~/.zshrc; for fish:
    vmss completion fish > ~/.config/fish/completions/vmss.fish
    """
    made = get_completion_class(shell)
    if made is None:  # click knows each of them
        raise NotFoundError(f"there is no completion for {shell}")
    click.echo(made(main, {}, "vmss", "_VMSS_COMPLETE").source())


def _show_command(ctx: click.Context, words: tuple[str, ...]) -> bool:
    """Shows the help of a command; False if the words name none."""
    command: click.Command = main
    parent = ctx.find_root()
    for word in words:
        found = command.get_command(parent, word) if isinstance(command, click.Group) else None
        if found is None:
            return False
        parent = click.Context(found, info_name=word, parent=parent)
        command = found
    click.echo(command.get_help(parent))
    return True


def _documents() -> dict[str, str]:
    """The documents by name."""
    folder: Path = shipped("docs")
    return {path.stem: path.read_text() for path in sorted(folder.glob("*.md"))}


def _all_sections() -> list[_Section]:
    return [section for name, text in _documents().items() for section in _sections(name, text)]


def _sections(document: str, text: str) -> list[_Section]:
    """The sections of a document, each without those beneath it of the same or a higher level."""
    lines, in_fence = text.splitlines(), False
    heads: list[tuple[int, int, str]] = []
    for number, line in enumerate(lines):
        if line.lstrip().startswith(_FENCE):
            in_fence = not in_fence
        heading = None if in_fence else _HEADING.match(line)
        if heading:
            heads.append((number, len(heading[1]), heading[2]))
    found = []
    for index, (start, level, title) in enumerate(heads):
        if level == 1:
            continue  # the document's own
        ends = [number for number, other, _ in heads[index + 1 :] if other <= level]
        end = ends[0] if ends else len(lines)
        found.append(_Section(document, title, "\n".join(lines[start:end])))
    return found


def _list_topics() -> None:
    for name in _documents():
        click.echo(name)
        for section in _all_sections():
            if section.document == name and section.text.startswith("## "):
                click.echo(f"    {section.title}")


def _list_mentions(words: str) -> None:
    """Lists the headings under which all the words stand.

    Raises:
        NotFoundError: There are none.
    """
    found = [
        section
        for section in _all_sections()
        if section.text.startswith("## ")
        and all(word in section.text.lower() for word in words.split())
    ]
    told = f"no command, document or heading is named like {words!r}"
    if not found:
        raise NotFoundError(f"{told}; `vmss help` lists them")
    click.echo(f"{told}; it is spoken of under")
    for section in found:
        click.echo(f"    vmss help {section.title.lower()}  ({section.document})")


def _print(text: str) -> None:
    """Prints Markdown: drawn on a terminal, page by page, and as it is elsewhere."""
    if not sys.stdout.isatty():
        click.echo(text)
        return
    with console.pager(styles=True):
        console.print(Markdown(text))
