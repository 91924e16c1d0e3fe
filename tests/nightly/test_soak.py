"""``make test-nightly``: longer soaks, and kills at random moments on real VMs."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.simulation.suite_kills import kill_a_suite, left_by
from tests.simulation.test_machine import live
from tests.vm.command import Command
from tests.vm.shop import Shop, create

pytestmark = pytest.mark.nightly

#: Minutes of random kills on real VMs.
MINUTES = float(os.environ.get("VMSS_SOAK_MINUTES", "60"))


def test_random_lives() -> None:
    """M1-M4, G2, G4, E4: other lives each night, and more of them."""
    live(4000, 60)


@pytest.mark.vm
def test_kills_at_random_moments(
    tmp_path_factory: pytest.TempPathFactory, built: Callable[[str], Path]
) -> None:
    """M1: SIGKILL at any moment of an upgrade, of a rollback, and of resumes."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    command = Command(tmp_path_factory.mktemp("state"))
    try:
        create(command, tmp_path_factory.mktemp("model"), built("1.0.0"), capacity=2)
        shop = Shop(command, 2)
        end = time.monotonic() + 60 * MINUTES
        number, on = 0, "1.0.0"
        while time.monotonic() < end:
            number += 1
            good = chance.random() < 0.5
            image = built("1.1.0" if good else "1.2.0")
            process = command.start("image", "publish", "web", f"1.{number}.9", image)
            for _ in range(chance.randrange(4)):
                time.sleep(chance.uniform(0.0, 60.0))
                process.kill()
                process.wait()
                process = command.start("resume", "shop")
            process.communicate(timeout=600)
            command("resume", "shop", ok=False)
            history = shop.history()
            if history and history[0]["runningStatus"]["code"] == "Completed":
                on = "1.1.0"
            shop.check([on, on])
    finally:
        command("delete", "--yes", "shop", ok=False)


def test_twenty_killed_parallel_suites(tmp_path: Path) -> None:
    """L5, Q2: each at a random moment, and cleared by one start; the cache is shared by all."""
    for seed in range(20):
        kill_a_suite(tmp_path, seed, within=20.0)
        assert left_by(tmp_path) == [], f"after the kill of seed {seed}"
