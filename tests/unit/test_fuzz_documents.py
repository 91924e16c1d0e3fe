"""R3: a seeded part of the fuzzing of model documents."""

from __future__ import annotations

import random
import time

from benchmarks.fuzz_documents import cases
from pytest_vmss.errors import VmssError


def test_nothing_but_the_projects_own_errors_comes_out() -> None:
    refused = 0
    for case in cases(random.Random(12), 300):
        begun = time.process_time()
        try:
            case()
        except VmssError:
            refused += 1
        assert time.process_time() - begun < 2
    assert 0 < refused < 300
