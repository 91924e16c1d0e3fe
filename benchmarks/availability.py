"""``python -m benchmarks.availability``: what users of a service notice of an upgrade.

A set of real VMs behind its load balancer serves HTTP requests, each on a
connection of its own, from before until after a whole rolling upgrade to the
good version 1.1.0, and then during one to the broken 1.2.0 with its rollback.
They are sent at a fixed rate whether or not answers come (an open loop). Prints
requests, failures, the slowest answer counted from the moment at which its
request was due, and the longest time without an answer.
"""

from __future__ import annotations

import argparse
import base64
import sys
import time
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks.open_loop import Load, get
from pytest_vmss.api.lab import Lab
from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.image_builder import ImageBuilder
from pytest_vmss.report import LiveView
from pytest_vmss.settings import Settings

EXAMPLE = Path(__file__).parents[1] / "examples/web"
_AROUND_S = 5.0


def upgrade(
    lab: Lab, web: ScaleSet, version: str, image: Path, arguments: argparse.Namespace
) -> bool:
    """One upgrade under load; whether nobody noticed and it ended as it should."""
    with Load(partial(get, f"{web.url}/version"), arguments.rate) as load:
        time.sleep(_AROUND_S)
        lab.gallery().publish("web", version, image)
        lab.run_due()
        done = web.history()[0]
        left = (arguments.least - load.sent) / arguments.rate
        time.sleep(max(left, _AROUND_S))
    print(f"upgrade to {version}: {done.status}, batches {done.batches}")
    print(f"{version}: {load.report()}", flush=True)
    for failure in load.explain():
        print(f"  {failure}", file=sys.stderr)
    return not load.failures and done.completed == (version == "1.1.0")


def main() -> None:
    """Runs both upgrades."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capacity", type=int, default=5)
    parser.add_argument("--rate", type=float, default=45.0, help="requests a second")
    parser.add_argument("--least", type=int, default=10_000, help="requests for each upgrade")
    arguments = parser.parse_args()
    settings = Settings()
    builder = ImageBuilder.named("web", settings.cache_dir, say=print)
    images = {version: builder.build(version).path for version in ("1.0.0", "1.1.0", "1.2.0")}
    custom = base64.b64encode((EXAMPLE / "custom-data.yaml").read_bytes()).decode()
    lab = Lab.session(settings)
    try:
        with LiveView(lab.store, Console()):
            lab.gallery().publish("web", "1.0.0", images["1.0.0"])
            web = lab.create(
                EXAMPLE / "template.yaml",
                capacity=arguments.capacity,
                custom_data=custom,
                health_timeout=20,
            )
            fine = [
                upgrade(lab, web, version, images[version], arguments)
                for version in ("1.1.0", "1.2.0")
            ]
    finally:
        lab.destroy()
    sys.exit(0 if all(fine) else 1)


if __name__ == "__main__":
    main()
