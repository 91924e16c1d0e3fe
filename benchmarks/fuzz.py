"""``python -m benchmarks.fuzz SUBJECT --count N --seed S --jobs J``: inputs that nobody means well with.

A subject is a module ``benchmarks.fuzz_SUBJECT`` with a function ``cases(random, count)`` that
yields calls. A call feeds one input to the product, and returns or raises one of its own errors
(:class:`~pytest_vmss.errors.VmssError`, or what the module names in ``ALLOWED``). Everything else
that it raises counts as a traceback; 2 s of CPU, or 256 MiB more memory, as slow.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from types import ModuleType

from pytest_vmss.errors import VmssError

__all__ = ["Found", "Subject", "fuzz", "fuzz_in_processes", "load"]

#: What an input may cost: CPU seconds, and growth of the process's peak memory in MiB.
LIMIT_S = 2.0
LIMIT_MIB = 256
#: Failures that are shown in full.
_SHOWN = 10

Case = Callable[[], object]


@dataclass(frozen=True)
class Subject:
    """What is fuzzed.

    Attributes:
        cases: Yields so many calls, the same for the same random numbers.
        allowed: Exceptions that a call may raise besides the product's own.
    """

    cases: Callable[[random.Random, int], Iterator[Case]]
    allowed: tuple[type[Exception], ...] = ()


@dataclass
class Found:
    """What came of a run.

    Attributes:
        inputs: How many there were.
        tracebacks: For each that raised something else, its number, seed and traceback.
        slow: For each that cost too much, its number, seed, CPU seconds and MiB.
    """

    inputs: int = 0
    tracebacks: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"inputs={self.inputs} tracebacks={len(self.tracebacks)} slow={len(self.slow)}"


def load(name: str) -> Subject:
    """A subject by name.

    Raises:
        ModuleNotFoundError: There is no such module.
    """
    module: ModuleType = importlib.import_module(f"benchmarks.fuzz_{name}")
    return Subject(module.cases, tuple(getattr(module, "ALLOWED", ())))


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def fuzz(subject: Subject, *, count: int, seed: int) -> Found:
    """Feeds inputs to a subject.

    Args:
        subject: The subject.
        count: How many inputs.
        seed: The same seed gives the same inputs.
    """
    found = Found()
    expected: tuple[type[Exception], ...] = (VmssError, *subject.allowed)
    for case in subject.cases(random.Random(seed), count):
        memory, begun = _peak_mib(), time.process_time()
        try:
            case()
        except expected:
            pass
        except Exception:  # noqa: BLE001 - that is what is looked for
            found.tracebacks.append(
                f"input {found.inputs} of seed {seed}:\n{traceback.format_exc()}"
            )
        elapsed, grown = time.process_time() - begun, _peak_mib() - memory
        if elapsed > LIMIT_S or grown > LIMIT_MIB:
            found.slow.append(f"input {found.inputs} of seed {seed}: {elapsed:.1f} s, {grown} MiB")
        found.inputs += 1
    return found


def _share(name: str, count: int, seed: int) -> Found:
    return fuzz(load(name), count=count, seed=seed)


def fuzz_in_processes(name: str, *, count: int, seed: int, jobs: int) -> Found:
    """Feeds inputs to a subject in several processes, each with a seed of its own.

    Args:
        name: The subject.
        count: How many inputs in all.
        seed: Of the first process; the next ones count on from it.
        jobs: How many processes.
    """
    if jobs == 1:
        return _share(name, count, seed)
    shares = [count // jobs + (number < count % jobs) for number in range(jobs)]
    total = Found()
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for found in pool.map(_share, [name] * jobs, shares, range(seed, seed + jobs)):
            total.inputs += found.inputs
            total.tracebacks += found.tracebacks
            total.slow += found.slow
    return total


def main() -> None:
    """Runs one subject, and ends with status 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject", help="e.g. guests")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="processes, with seeds from S on")
    arguments = parser.parse_args()
    begun = time.monotonic()
    found = fuzz_in_processes(
        arguments.subject, count=arguments.count, seed=arguments.seed, jobs=arguments.jobs
    )
    for told in found.tracebacks[:_SHOWN]:
        print(told)
    for slow in found.slow[:_SHOWN]:
        print(slow)
    print(f"{found}  ({time.monotonic() - begun:.0f} s)")
    if found.tracebacks or found.slow:
        sys.exit(1)


if __name__ == "__main__":
    main()
