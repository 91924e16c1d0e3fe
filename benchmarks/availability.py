"""``python -m benchmarks.availability``: what users of a service notice of an upgrade.

A set of real VMs behind its load balancer serves a steady load of HTTP requests,
each on a connection of its own, from before until after a whole rolling upgrade
to the good version 1.1.0, and then during one to the broken 1.2.0 with its
rollback. Prints requests, failures, the slowest request, and the longest time
without an answer.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import sys
import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

from pytest_vmss.images import ImageBuilder
from pytest_vmss.lab import Lab
from pytest_vmss.report import LiveView
from pytest_vmss.scale_set import ScaleSet
from pytest_vmss.settings import Settings

EXAMPLE = Path(__file__).parents[1] / "examples/web"
_TIMEOUT_S = 10.0


@dataclass
class Load:
    """Steady load on a URL, from several clients.

    Attributes:
        answered: Moments of answers and how long each took.
        failures: What went wrong, and when.
    """

    url: str
    clients: int
    rate: float
    answered: list[tuple[float, float]] = field(default_factory=list)
    failures: list[tuple[float, str]] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        """Begins."""
        for _ in range(self.clients):
            thread = threading.Thread(target=self._run, daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        """Ends, after the requests that are under way."""
        self._ended.set()
        for thread in self._threads:
            thread.join(_TIMEOUT_S * 2)

    def _run(self) -> None:
        host, port = urlsplit(self.url).hostname or "", urlsplit(self.url).port
        pause = self.clients / self.rate
        while not self._ended.is_set():
            start = time.monotonic()
            try:
                link = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
                try:
                    link.request("GET", "/version", headers={"Connection": "close"})
                    status = link.getresponse().status
                finally:
                    link.close()
                if status != 200:
                    self.failures.append((start, f"HTTP status {status}"))
                else:
                    self.answered.append((time.monotonic(), time.monotonic() - start))
            except (OSError, http.client.HTTPException) as failed:
                self.failures.append((start, f"{type(failed).__name__}: {failed}"))
            self._ended.wait(max(pause - (time.monotonic() - start), 0.0))

    def report(self, what: str) -> bool:
        """Prints what was seen; whether nothing failed."""
        moments = sorted(moment for moment, _ in self.answered)
        gaps = [after - before for before, after in pairwise(moments)]
        print(
            f"{what}: requests={len(self.answered) + len(self.failures)} "
            f"failed={len(self.failures)} "
            f"slowest={max((took for _, took in self.answered), default=0.0):.2f}s "
            f"longest_gap={max(gaps, default=0.0):.2f}s",
            flush=True,
        )
        for moment, failure in self.failures[:10]:
            print(f"  after {moment - moments[0]:.1f} s: {failure}", file=sys.stderr)
        return not self.failures


def upgrade(
    lab: Lab, web: ScaleSet, version: str, image: Path, arguments: argparse.Namespace
) -> bool:
    """One upgrade under load; whether nobody noticed and it ended as it should."""
    with Load(web.url, arguments.clients, arguments.rate) as load:
        time.sleep(5.0)
        lab.gallery().publish("web", version, image)
        lab.run_due()
        done = web.history()[0]
        time.sleep(5.0)
        while len(load.answered) < arguments.least:
            time.sleep(0.5)
    print(f"upgrade to {version}: {done.status}, batches {done.batches}")
    unnoticed = load.report(version)
    return unnoticed and done.completed == (version == "1.1.0")


def main() -> None:
    """Runs both upgrades."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capacity", type=int, default=5)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rate", type=float, default=45.0, help="requests a second, in all")
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
