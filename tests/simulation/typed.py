"""What README and docs tell to type: the commands of their blocks, sentences and tables."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.simulation.documents import ROOT, blocks, commands

__all__ = ["PAGES", "PROGRAMS", "in_blocks", "in_sentences", "in_the_table", "synopsis"]

#: Every page for readers; the tutorial has a test of its own, and rules are no instructions.
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "images/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
    if path.name not in {"tutorial.md", "rules.md"}
)

#: Programs whose commands stand in sentences.
PROGRAMS = (
    "vmss", "pytest", "make", "python", "pip", "sudo", "apt-get", "az", "qemu-img",
    "qemu-system-x86_64", "virsh", "eval", "vagrant", "scripts/setup",
)  # fmt: skip

_OPTIONAL = re.compile(r"\s*\[(?!no-)[^\]]*\]")


def synopsis(text: str) -> str:
    """A command with what may be left out left out, and the first of alternatives."""
    text = _OPTIONAL.sub("", " ".join(text.split()))
    return re.sub(r"\\?\|\S+|\[no-\]|…", "", text).strip()


def in_blocks(page: str) -> Iterator[str]:
    """The commands of a page's blocks for the shell, in order, without their comments.

    A block with a here-document is one command.
    """
    for block in blocks(page):
        if block.language == "sh":
            if "<<" in block.text:
                yield block.text
            else:
                yield from (_without_comment(line) for line in commands(block.text))


def _without_comment(line: str) -> str:
    return " ".join(re.sub(r"\s#.*", "", line).split())


def in_sentences(page: str) -> Iterator[str]:
    """The commands that a page names in its sentences, in order."""
    text = re.sub(r"^ *```.*?^ *```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    for span in re.findall(r"`([^`]+)`", text):
        if span.startswith(tuple(f"{program} " for program in PROGRAMS)):
            yield synopsis(span)


def in_the_table() -> Iterator[tuple[str, str]]:
    """The commands of the reference's table: each as it is to be typed, and its whole synopsis."""
    text = (ROOT / "docs/reference.md").read_text()
    table = text.partition("## Command line")[2].partition("\n## ")[0]
    for row in re.findall(r"^\| (`.*?) \| ", table, re.MULTILINE):
        spans = re.findall(r"`([^`]+)`", row)
        shared = f" {spans.pop()}" if spans[-1].startswith("NAME") else ""
        for span in spans:
            whole = f"vmss {span}{shared}"
            yield synopsis(whole), whole
