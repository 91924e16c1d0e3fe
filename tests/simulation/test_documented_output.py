"""L1, L3: what README and docs show as output is what is printed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from rich.console import Console

from pytest_vmss.cli import demo
from pytest_vmss.report import upgrade_summary
from pytest_vmss.report.artifacts import collect
from pytest_vmss.simulation.guest import Behaviour
from tests.models import LOAD_BALANCER, web_model
from tests.simulation.conftest import SimulatedLab
from tests.simulation.documents import ROOT, blocks
from tests.simulation.typed import PAGES

#: Drawings; they are all in one page.
DRAWN = {"docs/explanation.md": 3, "CONTRIBUTING.md": 1}
#: Words of the blocks that the tests here compare with what is printed.
COMPARED = ("logs and records: ", "✓ all three are healthy")


def shown(page: str, word: str) -> list[str]:
    """The lines of the page's block of output that has a word."""
    (found,) = (block for block in blocks(page) if block.language == "text" and word in block.text)
    return found.text.splitlines()


def test_no_output_is_left_out() -> None:
    for page in PAGES:
        texts = [block.text for block in blocks(page) if block.language == "text"]
        known = [text for text in texts if any(word in text for word in COMPARED)]
        assert len(texts) - len(known) == DRAWN.get(page, 0), page


def test_a_failed_test(lab: SimulatedLab, tmp_path: Path) -> None:
    """The how-to's: what the failure of a test ends with."""
    lab.roll(lab.start_web(), "1.1.0", Behaviour.PANICS)
    path = tmp_path / "vmss-artifacts/tests-test_web.py--test_upgrade"
    found = collect(lab, path, test="test_upgrade", names=["web"])
    printed = [*found.lines, *(f"timeline: {page}" for page in found.pages)]
    title, *lines, folder = shown("docs/how-to.md", "logs and records: ")
    assert re.fullmatch("-+ pytest-vmss -+", title)
    assert len(title) == 80
    for line, whole in zip(lines, printed, strict=True):
        pattern = re.escape(line).replace("…", ".*").replace(r"1\ min\ 01\ s", r"\d+ min \d\d s")
        assert re.fullmatch(pattern, whole.replace(f"{tmp_path}/", ""))
    assert folder == f"logs and records: {path.relative_to(tmp_path)}"


def test_the_demo(lab: SimulatedLab) -> None:
    """The README's, of which a word stands for the guests': stage, events, summary, claims."""
    title, *lines = shown("README.md", "✓ all three are healthy")
    source = Path(demo.__file__).read_text()
    assert f'"{title.strip("─ ")}"' in source
    lab.publish("1.1.0")
    web = lab.create(web_model(), load_balancer=LOAD_BALANCER, health_timeout=20)
    upgrade = lab.roll(web, "1.2.0", Behaviour.UNHEALTHY)
    console = Console(width=240)
    with console.capture() as caught:
        console.print(upgrade_summary(upgrade.report))
    printed = [*(event.message for event in upgrade.events), *caught.get().splitlines()]
    claims = list(_claims(source))
    for line in lines:
        if line.startswith("  ✓ "):
            assert any(re.fullmatch(claim, line[4:]) for claim in claims), line
        else:
            told = re.sub(r"^ +[\d.]+ s  \w+ +", "", line).partition("…")[0]
            told = re.sub(r"(within 20 s: ).*", r"\1", told)
            assert any(each.startswith(told) for each in printed), line


def _claims(source: str) -> Iterator[str]:
    """The claims that the demo checks, as regular expressions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "check":
            parts = (
                node.args[0].values if isinstance(node.args[0], ast.JoinedStr) else [node.args[0]]
            )
            yield "".join(
                re.escape(str(part.value)) if isinstance(part, ast.Constant) else r"\S+"
                for part in parts
            )


def test_custom_data_is_that_of_the_examples() -> None:
    """The how-to's; real guests are given the examples' in ``tests/vm/test_examples.py``."""
    (block,) = (block for block in blocks("docs/how-to.md") if "fs_setup:" in block.text)
    part = yaml.safe_load(block.text)
    for name in ("web", "redis"):
        whole = yaml.safe_load((ROOT / "examples" / name / "custom-data.yaml").read_text())
        assert part == {key: whole[key] for key in part}
