"""The documentation's site: built strictly, whole, and readable without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click
import pytest

import pytest_vmss
from documentation.hooks import PLACED, placed
from pytest_vmss import hookspecs
from pytest_vmss.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site. No warning comes by: a broken link, an omitted page, a docstring griffe doubts."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout + done.stderr == ""
    return folder


class Page(HTMLParser):
    """A page's anchors, what it loads, and where it leads.

    Attributes:
        anchors: Its ids.
        loads: Scripts, styles, pictures and frames.
        links: What a reader may follow.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if found := values.get("id"):
            self.anchors.add(found)
        if tag == "a" and (link := values.get("href")):
            self.links.append(link)
        elif tag in {"script", "img", "iframe"} and (source := values.get("src")):
            self.loads.append(source)
        elif tag == "link" and "canonical" not in (values.get("rel") or ""):
            self.loads.append(values.get("href") or "")


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {path.name: Page(path) for path in site.glob("*.html")}


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        for source in page.loads:
            assert not urlsplit(source).netloc, f"{name} loads {source}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?https?:", style.read_text()), style


def test_each_link_inside_leads_somewhere(site: Path, pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        if name == "404.html":  # its links begin at the server's root
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = unquote(parts.path) or name
            assert (site / target).is_file(), f"{name} leads to {link}"
            if parts.fragment and target in pages:
                anchor = unquote(parts.fragment)
                assert anchor in pages[target].anchors | {"__search", "__drawer"}, f"{name}: {link}"


def test_the_api_is_whole(pages: dict[str, Page]) -> None:
    for name in pytest_vmss.__all__:
        assert f"pytest_vmss.{name}" in pages["api.html"].anchors
    for name in hookspecs.__all__:
        assert f"pytest_vmss.hookspecs.{name}" in pages["api.html"].anchors


def test_every_command_is_there(site: Path, pages: dict[str, Page]) -> None:
    """With its options as `--help` prints them, not with click's own marks for no default."""
    assert "UNSET" not in (site / "command-line.html").read_text()

    def anchors(command: click.Command, name: str) -> list[str]:
        below = command.commands if isinstance(command, click.Group) else {}
        return [name] + [a for word, c in below.items() for a in anchors(c, f"{name}-{word}")]

    assert set(anchors(main, "vmss")) <= pages["command-line.html"].anchors


def test_every_option_is_there(site: Path, pytester: pytest.Pytester) -> None:
    """As pytest itself tells them."""
    text = (site / "options.html").read_text()
    told = pytester.runpytest("--help").stdout.str()
    options = set(re.findall(r"--vmss-[a-z-]+[a-z]", told))
    assert len(options) > 10
    for option in options | set(re.findall(r"^  (vmss_\w+)", told, re.MULTILINE)):
        assert f"<code>{option}" in text, option


def test_what_vmss_help_shows_is_on_the_site(pages: dict[str, Page]) -> None:
    """Both are made of ``docs/``, and the site has what lies elsewhere besides."""
    for path in (ROOT / "docs").glob("*.md"):
        assert f"{path.stem}.html" in pages
    assert set(PLACED) <= set(placed())
    for target in placed().values():
        assert target.replace(".md", ".html") in pages
