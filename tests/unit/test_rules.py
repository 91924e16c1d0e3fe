"""docs/rules.md and the sources agree: codes, paths and tests."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = "docs/rules.md"
FOLDERS = ("pytest_vmss", "tests", "benchmarks")
RINGS = ("unit", "simulation", "vm", "nightly")
NO_TEST = "no test of its own"

CODE = re.compile(r"\b[A-R]\d{1,2}\b")
RANGE = re.compile(r"\b([A-R])(\d{1,2})-\1?(\d{1,2})\b")
#: What looks like a code, and is none.
FALSE_FRIENDS = (
    re.compile(r"azure-arm\.md,?(?: [\d.]+ and)? Q\d+"),  # a quirk in our notes on Azure
    re.compile(r"\bC0(?:, DEL)? and C1\b"),  # sets of control characters
    re.compile(r"\bL1 and of the refcount table"),  # tables of a qcow2 image
)


@dataclass(frozen=True)
class Row:
    """A rule, as the page has it."""

    code: str
    demands: str
    source: str
    decided: str
    proved: str
    ring: str
    heading: str

    @property
    def modules(self) -> list[str]:
        return re.findall(r"`([^`]+)`", self.decided)

    @property
    def tests(self) -> list[tuple[str, str]]:
        """Files, each with the name of a test in it, or none where all of them count."""
        found = [entry.partition("::") for entry in re.findall(r"`([^`]+)`", self.proved)]
        return [(path, name) for path, _, name in found]


def read_rows(text: str) -> Iterator[Row]:
    heading = ""
    for line in text.splitlines():
        if line.startswith("## "):
            heading = line[3:]
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if CODE.fullmatch(cells[0]):
            assert len(cells) == 6, f"{PAGE}: the row of {cells[0]} has not six cells"
            code, demands, source, decided, proved, ring = cells
            yield Row(code, demands, source, decided, proved, ring, heading)


ROWS = list(read_rows((ROOT / PAGE).read_text()))


def codes_in(text: str) -> set[str]:
    for friend in FALSE_FRIENDS:
        text = friend.sub("", text)
    ranges = {
        f"{letter}{number}"
        for letter, first, last in RANGE.findall(text)
        for number in range(int(first), int(last) + 1)
    }
    return ranges | set(CODE.findall(text))


def words_of(source: str) -> Iterator[tuple[int, str]]:
    """Comments and docstrings, line by line; no other text of a program cites rules."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        docstring = ast.get_docstring(node, clean=False)
        if docstring is not None:
            first = node.body[0].lineno
            yield from enumerate(docstring.splitlines(), first)


def cited_in(source: str) -> dict[str, int]:
    """Codes, each with the first line that cites it."""
    found: dict[str, int] = {}
    for line, text in words_of(source):
        for code in codes_in(text):
            found[code] = min(line, found.get(code, line))
    return found


@cache
def citations() -> dict[str, dict[str, int]]:
    """Codes that each file cites; this one says nothing of rules."""
    files = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return {
        path.relative_to(ROOT).as_posix(): cited_in(path.read_text())
        for path in files
        if path != Path(__file__).resolve()
    }


@cache
def functions_in(path: str) -> set[str]:
    """What a file defines itself: tests that it writes for an inner run are text, and not here."""
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("Health counts (C8, H3)", {"C8", "H3"}),
        ("F1-F4, and D9-D11: a range", {"F1", "F2", "F3", "F4", "D9", "D10", "D11"}),
        ("M5-7", {"M5", "M6", "M7"}),
        ("Standard_B1s, 0xA1, PT5M, P1D, Q123, E501, azure-arm.md 6.3", set()),
        ("(azure-arm.md, Q1), azure-arm.md Q5, azure-arm.md 6.7 and Q1", set()),
        ("C0, DEL and C1; C0 and C1", set()),
        ("the L1 and of the refcount table (L1)", {"L1"}),
    ],
)
def test_what_is_a_code(text: str, codes: set[str]) -> None:
    assert codes_in(text) == codes


def test_only_comments_and_docstrings_cite() -> None:
    source = '"""One (A1)."""\nx = "A2"  # three (A3)\ndef f():\n    """Four.\n\n    A4.\n    """\n'
    assert cited_in(source) == {"A1": 1, "A3": 2, "A4": 6}


def test_the_page_is_in_order() -> None:
    codes = [row.code for row in ROWS]
    places = [(code[0], int(code[1:])) for code in codes]
    assert places == sorted(set(places)), (
        f"{PAGE} has a code twice, or out of order; sort the rows by letter and number"
    )
    for row in ROWS:
        assert row.heading.startswith(f"{row.code[0]}. "), (
            f"{PAGE}: {row.code} stands under the heading {row.heading!r}; move the row"
        )


def test_every_cited_code_has_a_row() -> None:
    known = {row.code for row in ROWS}
    missing = [
        f"{code}, cited by {path}:{line}"
        for path, codes in citations().items()
        for code, line in sorted(codes.items())
        if code not in known
    ]
    assert not missing, (
        f"{PAGE} lacks rows for: {'; '.join(missing)}. Add a row for each code, mend the citation, "
        "or, where the word is no code at all, add it to FALSE_FRIENDS here"
    )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.code)
class TestRow:
    def test_is_cited(self, row: Row) -> None:
        assert any(row.code in codes for codes in citations().values()), (
            f"{PAGE} has the rule {row.code}, and nothing in {', '.join(FOLDERS)} cites it any "
            "more: cite it where it is decided and proved, or remove the row"
        )

    def test_is_decided_where_it_says(self, row: Row) -> None:
        assert row.modules, f"{PAGE}: the row of {row.code} names no module that decides it"
        for path in row.modules:
            assert (ROOT / path).is_file(), (
                f"{PAGE}: {row.code} is decided in {path}, which is not there; "
                "name the module that decides it now"
            )

    def test_is_proved_where_it_says(self, row: Row) -> None:
        assert row.tests or row.proved.startswith(NO_TEST), (
            f"{PAGE}: the row of {row.code} names no test; name one, or say {NO_TEST!r}"
        )
        for path, name in row.tests:
            assert (ROOT / path).is_file(), (
                f"{PAGE}: {row.code} is proved by {path}, which is not there; "
                "name the file that proves it now"
            )
            assert not name or name in functions_in(path), (
                f"{PAGE}: {row.code} is proved by {name}, and {path} defines no such test; "
                "name the test that proves it now"
            )
            assert row.code in citations().get(path, {}), (
                f"{PAGE}: {row.code} is proved by {path}, which does not cite it; "
                f"write {row.code} in that test's docstring, or name another test"
            )

    def test_has_the_rings_of_its_tests(self, row: Row) -> None:
        found = {path.split("/")[1] for path, _ in row.tests}
        rings = ", ".join(ring for ring in RINGS if ring in found) or "—"
        assert row.ring == rings, (
            f"{PAGE}: the ring of {row.code} is {rings!r}, by its tests' paths"
        )

    def test_says_what_it_demands_and_where_from(self, row: Row) -> None:
        assert row.demands.endswith("."), f"{PAGE}: {row.code} demands no whole sentence"
        assert row.source.startswith(("Azure: ", "ours")), (
            f"{PAGE}: the source of {row.code} is neither 'Azure: TOPIC' nor 'ours'"
        )
