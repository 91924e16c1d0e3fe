"""Q4: the planted defects fit the sources as they are now, so that none is stale."""

from __future__ import annotations

from pathlib import Path

import pytest

import pytest_vmss
from benchmarks.defects import MUTANTS, Mutant


def test_there_are_enough() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 30


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_its_place_is_there_once(mutant: Mutant) -> None:
    package = Path(pytest_vmss.__file__).parent
    for patch in mutant.patches:
        assert (package / patch.path).read_text().count(patch.old) == 1, patch.old
        assert patch.new != patch.old
