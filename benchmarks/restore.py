"""``python -m benchmarks.restore``: how long a new, healthy set takes, booted and restored.

Both are created by the same call, in turns, in one lab: with ``pristine=False``, and with
``pristine=True`` once there is a checkpoint. The first boot of all, which makes the checkpoint,
does not count. The medians and their ratio are printed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from pytest_vmss.api.lab import Lab
from pytest_vmss.cli.demo import example
from pytest_vmss.image_builder import ImageBuilder
from pytest_vmss.settings import Settings

__all__ = ["main"]


def create(lab: Lab, capacity: int, *phases: str, pristine: bool) -> float:
    """Creates a set, deletes it, and returns the seconds until it was healthy.

    Args:
        lab: Where.
        capacity: How many instances.
        phases: How it is to come up; else the benchmark ends.
        pristine: From a checkpoint, if there is one.
    """
    begun = time.monotonic()
    web = lab.create(
        example("template.yaml"),
        custom_data=example("custom-data.yaml"),
        capacity=capacity,
        pristine=pristine,
    )
    took = time.monotonic() - begun
    operations = web._engine.journal.operations()
    run = {step.phase for record in operations for step in lab.store.steps(record.id)}
    if not web.is_healthy() or run != set(phases):
        sys.exit(f"the set did not come up as it should: {sorted(run)}")
    web.delete()
    return took


def main() -> None:
    """Runs rounds, and prints the times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--capacity", type=int, default=5)
    options = parser.parse_args()
    settings = Settings()
    disk = ImageBuilder.named("web", settings.cache_dir, say=print).build("1.0.0").path
    with tempfile.TemporaryDirectory(dir=settings.cache_dir, prefix="bench-") as cache:
        lab = Lab.session(replace(settings, cache_dir=Path(cache)))
        try:
            lab.gallery().publish("web", "1.0.0", disk)
            first = create(lab, options.capacity, "create", "checkpoint", pristine=True)
            print(f"first: {first:.1f} s, a boot and its checkpoint")
            booted, restored = [], []
            for number in range(1, options.rounds + 1):
                booted.append(create(lab, options.capacity, "create", pristine=False))
                restored.append(create(lab, options.capacity, "restore", pristine=True))
                print(f"round {number}: booted {booted[-1]:.1f} s, restored {restored[-1]:.1f} s")
        finally:
            lab.destroy()
    slow, fast = statistics.median(booted), statistics.median(restored)
    print(
        f"instances={options.capacity} accelerator={settings.accelerator or 'auto'} "
        f"booted={slow:.1f} restored={fast:.1f} ratio={slow / fast:.1f}"
    )


if __name__ == "__main__":
    main()
