"""M4, C4: two processes start an upgrade of the same set at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_vmss.settings import Settings
from pytest_vmss.store import Outcome
from tests.models import LOAD_BALANCER, web_model
from tests.simulation.conftest import SimulatedLab

ROOT = Path(__file__).parents[2]

#: Starts an upgrade as soon as the other is ready too. Whoever wins goes on only after
#: the other has got its answer, so that they do overlap.
PROCESS = """
import json, sys, time
from pathlib import Path
from pytest_vmss.errors import VmssError
from pytest_vmss.host.paths import LabPaths
from pytest_vmss.labs.place import open_place
from pytest_vmss.settings import Settings
from tests.simulation.conftest import SimulatedLab

me, other, state, name = sys.argv[1:]
state = Path(state)
settings = Settings(state, state / "cache")
lab = open_place(settings, LabPaths(state / "labs" / name), "session", SimulatedLab)

def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"waited 60 s for {path}, in vain"
        time.sleep(0.001)

probe = lab.environment.probe
def slow(*arguments):
    wait_for(state / f"answered-{other}")
    return probe(*arguments)
lab.environment.probe = slow

web = lab.scale_set("web")
(state / f"ready-{me}").touch()
wait_for(state / f"ready-{other}")
try:
    answer = {"status": web.upgrade().status}
except VmssError as refused:
    answer = {"code": refused.code, "message": refused.message}
(state / f"answered-{me}").touch()
print(json.dumps(answer))
"""


@pytest.mark.parametrize("_attempt", range(5))
def test_exactly_one_wins(tmp_path: Path, _attempt: int) -> None:
    """409 OperationNotAllowed for the other, which changes nothing."""
    settings = Settings(tmp_path, tmp_path / "cache")
    lab = SimulatedLab.session(settings)
    web = lab.start(web_model(capacity=3, automatic=False), LOAD_BALANCER)
    lab.publish("1.1.0")
    before = lab.store.events()[-1].id
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, me, other, str(tmp_path), lab.paths.folder.name],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for me, other in ("ab", "ba")
    ]
    answers = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        answers.append(json.loads(out))
    won = [answer for answer in answers if answer.get("status") == "Completed"]
    lost = [answer for answer in answers if answer.get("code") == "OperationNotAllowed"]
    assert (len(won), len(lost)) == (1, 1), answers
    assert "another operation is in progress" in lost[0]["message"]
    (upgrade,) = web.history()
    assert set(upgrade.outcomes.values()) == {Outcome.SUCCEEDED}
    # All that happened belongs to the one upgrade; health is whoever's who looks.
    happened = [event for event in lab.store.events(after=before) if event.kind != "health"]
    assert {event.operation for event in happened} == {upgrade.id}
    lab.destroy()
