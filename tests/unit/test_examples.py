"""Each example is a folder to copy: told in its README, listed, with sound recipes and models."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pytest_vmss.cli import main
from pytest_vmss.image_builder import ImageBuilder

ROOT = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(path for path in ROOT.iterdir() if path.is_dir())
by_name = pytest.mark.parametrize("folder", EXAMPLES, ids=lambda path: path.name)


@by_name
def test_it_is_listed_and_told(folder: Path) -> None:
    assert f"]({folder.name}/README.md)" in (ROOT / "README.md").read_text()
    assert f"example-{folder.name}.md" in (ROOT.parent / "mkdocs.yml").read_text()
    text = (folder / "README.md").read_text()
    for path in folder.iterdir():
        if path.suffix in {".json", ".yaml", ".py"}:
            assert f"`{path.name}`" in text, f"the README does not tell of {path.name}"


@by_name
def test_its_recipes_are_sound(folder: Path) -> None:
    """B5: each version's kernel is one of its base's."""
    for path in folder.glob("images/*/image.yaml"):
        recipe = ImageBuilder(path.parent).recipe
        assert "1.0.0" in recipe.versions()
        for version in recipe.versions():
            assert recipe.version(version).kernel in recipe.base_recipe().kernels
            assert recipe.version(version).description


@by_name
def test_its_model_is_valid(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A6: by the README's own command; and nothing is told as left out."""
    monkeypatch.chdir(folder)
    commands = re.findall(
        r"^vmss (validate [^#\n]+)", (folder / "README.md").read_text(), re.MULTILINE
    )
    assert commands
    for command in commands:
        done = CliRunner().invoke(main, shlex.split(command))
        assert done.exit_code == 0, done.output
        assert "left out" not in done.output


@by_name
def test_its_suite_needs_the_package_alone(folder: Path) -> None:
    """What it imports is Python's, pytest's or ours, or its README tells to install it."""
    installed = re.findall(r"^pip install (.*)$", (folder / "README.md").read_text(), re.MULTILINE)
    known = {"pytest", "pytest_vmss", *sys.stdlib_module_names, *" ".join(installed).split()}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            local = {other.stem for other in folder.glob("*.py")}
            assert {name.partition(".")[0] for name in names} <= known | local, path
