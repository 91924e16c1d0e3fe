"""MkDocs' hooks: pages that are no files of ``docs/``, and the links to them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

from documentation.generated import api_page, command_page, options_page

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

__all__ = ["on_files", "on_page_markdown"]

ROOT = Path(__file__).resolve().parents[1]

#: Pages of the site that are kept elsewhere in the repository, where readers of it expect them.
PLACED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "images/README.md": "recipes.md",
    "examples/README.md": "examples.md",
}
_LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are kept elsewhere, the examples' among them, and those generated."""
    for source, target in placed().items():
        text = (ROOT / source).read_text()
        files.append(File.generated(config, target, content=_relinked(text, source)))
    for target, content in (
        ("api.md", api_page()),
        ("options.md", options_page()),
        ("command-line.md", command_page()),
    ):
        files.append(File.generated(config, target, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links from ``docs/`` to other parts of the repository to their pages here."""
    del config, files
    if page.file.generated_by:
        return markdown
    return _relinked(markdown, f"docs/{page.file.src_uri}")


def placed() -> dict[str, str]:
    """Files of the repository that become pages, by their path; the pages' paths in the site."""
    examples = {
        path.relative_to(ROOT).as_posix(): f"example-{path.parent.name}.md"
        for path in sorted((ROOT / "examples").glob("*/README.md"))
    }
    return PLACED | examples


def _relinked(text: str, source: str) -> str:
    """The text of a file of the repository, with links as the site has them.

    Args:
        text: Markdown.
        source: The file's path in the repository.
    """
    pages = placed()
    folder = (ROOT / source).parent

    def replaced(match: re.Match[str]) -> str:
        link, anchor = match[1], match[2] or ""
        if ":" in link:
            return match[0]
        path = (folder / link).resolve()
        if not path.is_relative_to(ROOT):
            return match[0]
        inside = path.relative_to(ROOT).as_posix()
        target = pages.get(inside) or inside.removeprefix("docs/")
        return f"]({target}{anchor})"

    return _LINK.sub(replaced, text)
