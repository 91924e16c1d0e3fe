"""``python -m benchmarks.planner``: what the engine itself costs, without guests.

A simulated set goes through a whole upgrade with the real planner, engine and
journal, the journal on disk. Guests and hypervisor are simulated, on a virtual
clock, so what is measured is the product's own work. Sets of 10, 100 and 1,000
instances are taken in turns, and the CPU seconds of each round are compared.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from pytest_vmss.settings import Settings
from pytest_vmss.simulation.lab import SimulatedLab
from tests.models import LOAD_BALANCER, web_model

_SIZES = (10, 100, 1000)
_LIMIT_S = 5.0


def upgrade(instances: int, folder: Path) -> tuple[float, int]:
    """CPU seconds of one whole upgrade, and its number of batches."""
    lab = SimulatedLab.session(Settings(state_dir=folder, cache_dir=folder / "cache"))
    try:
        body = web_model(capacity=instances)
        body["properties"]["singlePlacementGroup"] = instances <= 100
        web = lab.start(body, LOAD_BALANCER)
        lab.publish("1.1.0")
        start = time.process_time()
        lab.run_due()
        elapsed = time.process_time() - start
        done = web.history()[0]
        if not done.completed or {i.image_version for i in web} != {"1.1.0"}:
            sys.exit(f"the upgrade of {instances} did not complete:\n{done.explain()}")
        return elapsed, len(done.batches)
    finally:
        lab.destroy()


def main() -> None:
    """Runs the rounds and prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the journals are (default: a new one)")
    arguments = parser.parse_args()
    seconds: dict[int, list[float]] = {size: [] for size in _SIZES}
    batches = {}
    for number in range(1, arguments.rounds + 1):
        for size in _SIZES:
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                elapsed, batches[size] = upgrade(size, Path(folder))
            seconds[size].append(elapsed)
            print(f"round {number}: {size:5} instances: {elapsed:6.2f} s CPU", flush=True)
    medians = {size: statistics.median(found) for size, found in seconds.items()}
    for size, median in medians.items():
        print(
            f"instances={size} batches={batches[size]} cpu={median:.2f}s "
            f"per_instance={1000 * median / size:.2f}ms"
        )
    small, middle, large = (medians[size] / size for size in _SIZES)
    print(f"growth per instance: 10→100 x{middle / small:.2f}, 100→1000 x{large / middle:.2f}")
    if medians[_SIZES[-1]] >= _LIMIT_S:
        sys.exit(f"1,000 instances took {medians[_SIZES[-1]]:.2f} s; the aim is {_LIMIT_S:.0f} s")


if __name__ == "__main__":
    main()
