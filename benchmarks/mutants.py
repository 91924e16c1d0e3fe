"""``python -m benchmarks.mutants``: plants defects, one at a time, and runs what should notice.

Each is a defect that somebody could really make. It is planted in a copy of the
sources, and the narrowest selection of tests and benchmarks that should notice is run
there. One that nothing notices means that a test is missing. The selections must pass
without any defect first, and a defect whose place in the source is gone is an error.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.defects import MUTANTS, Mutant

__all__ = ["try_one"]

_ROOT = Path(__file__).parent.parent
_COPIED = ("pytest_vmss", "tests", "benchmarks", "examples", "images")
_FILES = ("pyproject.toml", "conftest.py", "README.md")
#: Seconds; a defect that makes something hang is noticed.
_LIMIT = 900.0


def _copy(folder: Path) -> Path:
    """The sources, in a folder of their own."""
    for name in _COPIED:
        shutil.copytree(
            _ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.qcow2")
        )
    for name in _FILES:
        shutil.copy2(_ROOT / name, folder / name)
    return folder


def _plant(folder: Path, mutant: Mutant) -> None:
    for patch in mutant.patches:
        path = folder / "pytest_vmss" / patch.path
        text = path.read_text()
        if text.count(patch.old) != 1:
            raise ValueError(
                f"{mutant.name}: {patch.path} has {text.count(patch.old)} times, instead of once:\n"
                f"{patch.old}\nwrite the defect anew for the source as it is now"
            )
        path.write_text(text.replace(patch.old, patch.new))


def _passes(folder: Path, check: Sequence[str]) -> tuple[bool, str]:
    """Whether a check passes in a copy of the sources, and what it said last."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", *check],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"it ran longer than {_LIMIT:.0f} s"
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{' '.join(check)} ended with {done.returncode}: {done.stdout[-2000:]}")
    return done.returncode == 0, (done.stdout + done.stderr)[-2000:]


def try_one(mutant: Mutant) -> str:
    """Plants a defect; what noticed it, empty where nothing did."""
    with tempfile.TemporaryDirectory(prefix="vmss-mutant-") as name:
        folder = _copy(Path(name))
        _plant(folder, mutant)
        for check in mutant.checks:
            if not _passes(folder, check)[0]:
                return " ".join(check)
    return ""


def _sound(check: tuple[str, ...]) -> str:
    """What is wrong with a check where there is no defect; empty for nothing."""
    with tempfile.TemporaryDirectory(prefix="vmss-mutant-") as name:
        passes, told = _passes(_copy(Path(name)), check)
    return "" if passes else f"{' '.join(check)} fails without any defect:\n{told}"


def main() -> None:
    """Plants all, two at a time, and prints what was noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="those whose name contains this")
    parser.add_argument("--no-baseline", action="store_true", help="leave the sound runs out")
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if (arguments.only or "") in mutant.name]
    with ThreadPoolExecutor(2) as pool:
        if not arguments.no_baseline:
            checks = dict.fromkeys(check for mutant in chosen for check in mutant.checks)
            wrong = [told for told in pool.map(_sound, checks) if told]
            if wrong:
                sys.exit("\n".join(wrong))
        caught = 0
        for mutant, by in zip(chosen, pool.map(try_one, chosen), strict=True):
            caught += bool(by)
            print(f"{'caught' if by else 'SURVIVED'}: {mutant.name}", flush=True)
    print(f"mutants={len(chosen)} caught={caught}")
    if caught != len(chosen):
        sys.exit(1)


if __name__ == "__main__":
    main()
