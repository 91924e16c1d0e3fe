"""``python -m benchmarks.inert``: what the plugin costs a suite that does not use it.

The same suite of plain tests is collected with the plugin and without it, in turns, each time by a
pytest of its own; the least CPU times of each are compared, which other load disturbs least (the aim
is 10 ms or less).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_SUITE = (
    "import pytest\n\n@pytest.mark.parametrize('number', range(200))\ndef test_it(number): pass\n"
)
_AIM_MS = 10.0


def collect(folder: Path, *options: str) -> float:
    """CPU seconds of one collection."""
    argv = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider"]
    process = subprocess.Popen([*argv, *options, folder], stdout=subprocess.DEVNULL, cwd=folder)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"pytest ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Runs the rounds and prints the least times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    with tempfile.TemporaryDirectory(prefix="inert-") as name:
        folder = Path(name)
        (folder / "test_plain.py").write_text(_SUITE)
        options = {"with": (), "without": ("-p", "no:vmss")}
        for chosen in options.values():  # compiles what is to be imported
            collect(folder, *chosen)
        for number in range(rounds):
            for which in ("with", "without") if number % 2 else ("without", "with"):
                seconds[which].append(collect(folder, *options[which]))
    least = {which: min(found) * 1000 for which, found in seconds.items()}
    print(
        f"rounds={rounds} with={least['with']:.1f}ms without={least['without']:.1f}ms "
        f"added={least['with'] - least['without']:.1f}ms (the aim is {_AIM_MS:.0f} ms or less)"
    )


if __name__ == "__main__":
    main()
