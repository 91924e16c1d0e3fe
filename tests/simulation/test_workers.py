"""L4: the workers of pytest-xdist share a host, and tell the terminal what each of them did."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from pytest_vmss.api.lab import Lab
from pytest_vmss.errors import CapacityError
from pytest_vmss.host.paths import LabPaths
from pytest_vmss.labs.identity import labs_folder
from pytest_vmss.labs.room import SharedRoom
from pytest_vmss.settings import Settings, Timeouts
from tests.models import LOAD_BALANCER, web_model
from tests.simulation.conftest import SimulatedLab
from tests.simulation.suite_kills import kill_a_suite, left_by

CONFTEST = """
import pytest_vmss.api.lab
from pytest_vmss.simulation.lab import SimulatedLab

pytest_vmss.api.lab.Lab = SimulatedLab


def pytest_vmss_configure_lab(lab):
    lab.publish("1.0.0")
"""

TESTS = """
import time

import pytest

from tests.models import LOAD_BALANCER, web_model

pytestmark = pytest.mark.vmss(model=web_model(capacity=2), load_balancer=LOAD_BALANCER)
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A suite on simulated labs, with folders of its own."""
    for name in ("state", "cache"):
        monkeypatch.setenv(f"VMSS_{name.upper()}_DIR", str(pytester.path / name))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    pytester.makeconftest(CONFTEST)
    return pytester


def run(suite: pytest.Pytester, tests: str, *options: str) -> pytest.RunResult:
    suite.makepyfile(TESTS + tests.replace("\n        ", "\n"))
    return suite.runpytest_subprocess("-p", "no:cacheprovider", *options)


def left(folder: Path) -> list[str]:
    """What labs have left in a state directory."""
    kept = [path for path in folder.rglob("*") if not path.is_dir()]
    return sorted(str(path.relative_to(folder)) for path in [*kept, *folder.glob("labs/*")])


@pytest.mark.parametrize("workers", ["2", "3"])
def test_workers_have_labs_of_their_own_and_one_summary(
    suite: pytest.Pytester, workers: str
) -> None:
    result = run(
        suite,
        """
        @pytest.mark.parametrize("number", range(6))
        def test_upgrade(vmss, scale_set, number):
            vmss.publish(f"1.{number + 1}.0")
            assert scale_set.wait_for_upgrade().completed
            assert scale_set.is_healthy()
        """,
        "-n",
        workers,
    )
    result.assert_outcomes(passed=6)
    text = result.stdout.str()
    assert "upgrades" in text
    for number in range(6):
        assert f" → 1.{number + 1}.0  Completed" in text
    for worker in range(int(workers)):
        assert f"gw{worker}:" in text.splitlines()
    assert left(suite.path / "state") == []


def test_a_worker_waits_for_room_and_says_so(suite: pytest.Pytester) -> None:
    """Two sets of 2 x (1024 + 384) MiB do not fit at once."""
    result = run(
        suite,
        """
        @pytest.mark.parametrize("number", range(4))
        def test_it(scale_set, number, tmp_path_factory):
            log = tmp_path_factory.getbasetemp().parent / "times"
            with log.open("a") as file:
                file.write(f"in {time.time()}\\n")
            time.sleep(0.5)
            with log.open("a") as file:
                file.write(f"out {time.time()}\\n")
        """,
        "-n",
        "2",
        "--vmss-set",
        "memory_mib=4000",
        f"--basetemp={suite.path / 'base'}",
    )
    result.assert_outcomes(passed=4)
    entries = (suite.path / "base/times").read_text().split()[::2]
    assert entries == ["in", "out"] * 4
    told = [line for line in result.stderr.lines if "waits for room" in line]
    assert told
    assert "[gw" in told[0]
    assert "of the 4000 MiB that all labs may have (setting memory_mib), this lab has 0" in told[0]


@pytest.fixture
def others(tmp_path: Path) -> Iterator[list[SimulatedLab]]:
    """Two labs that may have 3300 MiB together, and wait for a moment."""
    settings = Settings(
        tmp_path / "state", tmp_path / "cache", memory_mib=3300, timeouts=Timeouts(room=0.2)
    )
    labs = [SimulatedLab.session(settings) for _ in range(2)]
    for lab in labs:
        lab.publish("1.0.0")
    yield labs
    for lab in labs:
        lab.destroy()


def create(lab: Lab, capacity: int = 2, name: str = "web") -> None:
    lab.create(web_model(name, capacity=capacity), load_balancer=LOAD_BALANCER)


def test_a_wait_for_room_ends(others: list[SimulatedLab]) -> None:
    """M7: it says who has what, and nothing was made; memory is given back by any removal."""
    one, two = others
    create(one)
    with pytest.raises(CapacityError, match=r"gave no memory back within 0 s") as refused:
        create(two)
    assert f"{one.paths.folder.name} (process {os.getpid()}) 2816 MiB" in str(refused.value)
    assert two.scale_sets() == []
    one.scale_set("web").delete_instances([0])
    create(two, 1)
    with pytest.raises(CapacityError, match="this lab has 1408 MiB"):
        two.scale_set("web").scale(2)
    one.delete("web")
    two.scale_set("web").scale(2)
    told = [event.message for event in two.store.events() if "room" in event.message]
    assert any(message.startswith("waits for room, up to 0 s: 2816 MiB") for message in told)


def test_what_never_fits_is_refused_at_once(others: list[SimulatedLab]) -> None:
    one, two = others
    create(one)
    start = time.monotonic()
    with pytest.raises(CapacityError, match="use a smaller size or fewer instances"):
        create(two, 3)
    assert time.monotonic() - start < 0.2


def test_a_surge_waits_for_room_with_the_store_free(others: list[SimulatedLab]) -> None:
    """D9, L4: nothing else in its lab waits with it, for it may be what gives the room back."""
    one, two = others
    for lab in others:
        lab.create(
            web_model(capacity=1, automatic=False, policy={"maxSurge": True}),
            load_balancer=LOAD_BALANCER,
        )
    free: list[bool] = []

    def listen(message: str) -> None:
        free.append(not one.store.in_transaction)
        if message.startswith("waits for room"):
            two.delete("web")

    one.backends.listeners.append(listen)
    one.publish("1.1.0")
    upgrade = one.scale_set("web").upgrade()
    assert upgrade.completed
    assert free == [True, True]
    assert "no room for more" not in upgrade.explain()


def room(settings: Settings, name: str, lab_id: str) -> SharedRoom:
    paths = LabPaths(labs_folder(settings) / name)
    paths.folder.mkdir(parents=True, exist_ok=True)
    return SharedRoom(settings, paths, lab_id)


def test_what_was_promised_counts_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M7, Q2: of labs that live, less what their machines have taken already."""
    settings = Settings(tmp_path / "state", tmp_path / "cache")
    one, two = room(settings, "one", "aaa"), room(settings, "two", "bbb")
    resident = {"aaa": 0}
    monkeypatch.setattr("pytest_vmss.labs.room._resident_mib", lambda _: resident)
    monkeypatch.setattr("pytest_vmss.labs.room.is_locked", lambda path: "one" in path.name)
    assert one.take(3000, 0, available=4000) is None
    shortage = two.take(1000, 0, available=4000)
    assert shortage is not None
    assert not shortage.hopeless
    assert "3000 MiB are promised" in shortage.message
    resident["aaa"] = 2500  # and that much less is available
    assert two.take(1000, 0, available=1500) is not None
    resident["aaa"] = 3000
    assert two.take(700, 0, available=1000) is None
    shortage = two.take(9000, 0, available=1000)
    assert shortage is not None
    assert shortage.hopeless
    one.give_back(0)
    assert two.take(700, 700, available=1700) is None
    (tmp_path / "state/labs/one/room.json").write_text("{")
    assert two.take(700, 0, available=1000) is None
    monkeypatch.setattr("pytest_vmss.labs.room.is_locked", lambda _: False)
    one.take(3000, 0, available=4000)
    assert two.take(700, 0, available=1000) is None  # the lab is dead
    assert json.loads((tmp_path / "state/labs/two/room.json").read_text())["mib"] == 700
    assert not (tmp_path / "state/room.lock").exists()


def test_a_claim_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M7, Q1: on a full disk its file was empty, and the memory of its machines nobody's."""
    settings = Settings(tmp_path / "state", tmp_path / "cache", memory_mib=4000)
    one, two = room(settings, "one", "aaa"), room(settings, "two", "bbb")
    monkeypatch.setattr("pytest_vmss.labs.room.is_locked", lambda path: "one" in path.name)
    assert one.take(3000, 0, available=None) is None
    with monkeypatch.context() as patched:
        full = OSError(errno.ENOSPC, "No space left on device")
        patched.setattr("os.write", Mock(side_effect=full))
        patched.setattr("os.fdopen", Mock(side_effect=full))
        one.give_back(1500)
    assert two.take(1500, 0, available=None) is not None


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_parallel_suite_is_cleared_by_one_start(tmp_path: Path, seed: int) -> None:
    """L5, Q2: with checkpoints and several labs; the soak in tests/nightly kills twenty."""
    kill_a_suite(tmp_path, seed)
    assert left_by(tmp_path) == []
