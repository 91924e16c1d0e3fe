"""C7, I3: a Service Fabric cluster approves each update domain, and is told of the result."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.cli import main
from pytest_vmss.engine.approval import Approvals
from pytest_vmss.errors import InterruptedOperationError, ModelError
from pytest_vmss.model import RepairTask
from pytest_vmss.settings import Settings, Timeouts
from pytest_vmss.simulation.guest import Behaviour
from tests.http_server import HttpServer
from tests.models import LOAD_BALANCER, application_health, node_type, service_fabric, web_model
from tests.simulation.conftest import SimulatedLab
from tests.simulation.kills import Killed


class Cluster:
    """Plays the cluster: remembers what it is told, and approves after some questions.

    Args:
        patience: How often it answers "not yet" for each update domain.
    """

    def __init__(self, patience: int = 0) -> None:
        self.heard: list[RepairTask] = []
        self.patience = patience
        self.scale_set: ScaleSet | None = None
        self.versions: list[set[str | None]] = []

    def __call__(self, task: RepairTask) -> object:
        self.heard.append(task)
        if self.scale_set is not None:
            mine = [one for one in self.scale_set if one.name in task.instances]
            self.versions.append({one.image_version for one in mine})
        asked = [
            old for old in self.heard if (old.task_id, old.state) == (task.task_id, task.state)
        ]
        return task.state == "Preparing" and len(asked) > self.patience

    @property
    def told(self) -> list[tuple[str, int, str]]:
        return [(task.state, task.update_domain, task.result_status) for task in self.heard]


def start(lab: SimulatedLab, approver: Any, capacity: int = 5, **policy: Any) -> ScaleSet:
    lab.publish("1.0.0")
    return lab.create(node_type(capacity, policy=policy), approver=approver)


def test_domain_after_domain_with_approval_before_and_report_after(lab: SimulatedLab) -> None:
    """I3; the stand-in of the extension ran like any other."""
    cluster = Cluster()
    web = start(lab, cluster, capacity=10)
    assert [result.name for result in web[0].extensions] == ["register", "fabric"]
    cluster.scale_set = web
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.completed, upgrade.explain()
    assert [len(ids) for ids in upgrade.batches] == [2] * 5
    assert cluster.told == [
        entry
        for domain in range(5)
        for entry in (("Preparing", domain, "Pending"), ("Completed", domain, "Succeeded"))
    ]
    assert cluster.versions == [{"1.0.0"}, {"1.1.0"}] * 5
    first, report = cluster.heard[:2]
    assert first.instances == report.instances == ("web_0", "web_5")
    assert (first.action, first.target, first.task_id) == ("upgrade", "1.1.0", report.task_id)
    assert report.outcomes == {"web_0": "succeeded", "web_5": "succeeded"}


def test_several_batches_of_a_domain_need_one_approval(lab: SimulatedLab) -> None:
    cluster = Cluster()
    web = start(lab, cluster, capacity=10, maxBatchInstancePercent=10)
    upgrade = lab.roll(web, "1.1.0")
    assert [len(ids) for ids in upgrade.batches] == [1] * 10
    assert len(cluster.heard) == 10


def test_it_is_asked_until_it_approves(lab: SimulatedLab) -> None:
    cluster = Cluster(patience=30)
    web = start(lab, cluster, capacity=1)
    begin = lab.virtual.monotonic()
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.completed
    assert lab.virtual.monotonic() - begin >= 30
    assert len(cluster.heard) == 32
    told = [event.message for event in upgrade.events if event.kind == "approval"]
    assert told == [
        "the cluster is asked for update domain 0",
        "update domain 0 is not approved yet: it returned False",
        "update domain 0 is approved: it returned True",
        "update domain 0 is reported to the cluster: Succeeded",
    ]


def test_health_is_read_again_after_the_wait(lab: SimulatedLab) -> None:
    """D1: what happened while the cluster hesitated counts."""

    def approve(_: RepairTask) -> bool:
        for number in (1, 2):
            lab.simulated.running.discard(f"vmss-{lab.identity.id}-web_{number}")
        return True

    web = start(lab, approve)
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.error is not None
    assert upgrade.error.code == "MaxUnhealthyInstancePercentExceededBeforeRollingUpgrade"
    assert upgrade.batches == []


@pytest.fixture
def short(settings: Settings) -> Iterator[SimulatedLab]:
    """A lab whose clusters have ten seconds to approve."""
    simulated = SimulatedLab.session(replace(settings, timeouts=Timeouts(approval=10)))
    yield simulated
    simulated.destroy()


def test_no_approval_stops_before_the_domain(short: SimulatedLab) -> None:
    """Those done stay done, the rest is not touched, and the cluster knows."""
    heard: list[RepairTask] = []

    def approve(task: RepairTask) -> bool:
        heard.append(task)
        return task.update_domain == 0

    web = start(short, approve)
    upgrade = short.roll(web, "1.1.0")
    assert upgrade.error is not None
    assert upgrade.error.code == "UpdateDomainNotApproved"
    assert "no approval within 10 s; the last answer: it returned False" in upgrade.error.message
    assert [instance.image_version for instance in web] == ["1.1.0"] + ["1.0.0"] * 4
    assert (heard[-1].state, heard[-1].result_status) == ("Completed", "Cancelled")


def _fails(_: RepairTask) -> object:
    pytest.fail("the quorum is lost")


async def _awaited(_: RepairTask) -> bool:
    return True


@pytest.mark.parametrize(
    ("approver", "words"), [(_fails, "the quorum is lost"), (_awaited, "use a plain function")]
)
def test_an_approver_that_fails_stops_the_upgrade_at_once(
    lab: SimulatedLab, approver: Any, words: str
) -> None:
    """Q3: it is never taken for an approval."""
    web = start(lab, approver)
    begin = lab.virtual.monotonic()
    upgrade = lab.roll(web, "1.1.0")
    assert lab.virtual.monotonic() - begin < 60
    assert upgrade.error is not None
    assert upgrade.error.code == "UpdateDomainNotApproved"
    assert words in upgrade.error.message
    assert any("was not told" in event.message for event in upgrade.events)
    lab.run_due()
    assert len(web.history()) == 1  # C1: it is not asked again and again


def test_a_bad_version_is_reported_as_failed(lab: SimulatedLab) -> None:
    cluster = Cluster()
    web = start(lab, cluster)
    upgrade = lab.roll(web, "1.1.0", Behaviour.EXTENSION_FAILS)
    assert upgrade.faulted
    assert cluster.told == [("Preparing", 0, "Pending"), ("Completed", 0, "Failed")]
    assert cluster.heard[-1].outcomes == {"web_0": "rolled back"}


def test_cancelled_while_the_cluster_hesitates(lab: SimulatedLab) -> None:
    """D8."""
    cluster = Cluster(patience=10**6)
    web = start(lab, cluster)
    sleep = lab.virtual.sleep

    def cancelling(seconds: float) -> None:
        if len(cluster.heard) == 3:
            web.cancel()
        sleep(seconds)

    lab.virtual.sleep = cancelling  # type: ignore[method-assign]
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.cancelled
    assert upgrade.batches == []
    assert cluster.told[-1] == ("Completed", 0, "Cancelled")


def test_killed_while_it_asks_the_same_is_asked_again(lab: SimulatedLab) -> None:
    """M1: with the same task id."""
    cluster = Cluster(patience=5)
    web = start(lab, cluster)
    sleep = lab.virtual.sleep

    def killing(seconds: float) -> None:
        if len(cluster.heard) == 2:
            raise Killed
        sleep(seconds)

    lab.virtual.sleep = killing  # type: ignore[method-assign]
    lab.publish("1.1.0")
    with pytest.raises(Killed):
        lab.run_due()
    lab.virtual.sleep = sleep  # type: ignore[method-assign]
    upgrade = web.resume()
    assert upgrade is not None
    assert upgrade.completed
    assert len({task.task_id for task in cluster.heard}) == 5


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("begun", "result"), [(False, "Cancelled"), (True, "Failed")])
def test_a_deletion_in_mid_upgrade_is_told(
    lab: SimulatedLab, begun: bool, result: str, known: bool
) -> None:
    """I3: whoever approved is told of the end; without the function it is a warning."""
    cluster = Cluster(patience=0 if begun else 10**6)
    web = start(lab, cluster)
    lab.publish("1.1.0")
    with pytest.MonkeyPatch.context() as patch:

        def kill(*_: object) -> None:
            if cluster.heard:
                raise Killed

        patch.setattr(lab.virtual, "sleep", kill)
        patch.setattr(lab.simulated, "create_os_disk", kill)
        with pytest.raises(Killed):
            web.upgrade()
    assert cluster.told == [("Preparing", 0, "Pending")]
    if not known:
        lab.environment.approvers.clear()
    web.delete()
    assert cluster.told[1:] == ([("Completed", 0, result)] if known else [])
    warnings = [event.message for event in lab.store.events() if event.kind == "warning"]
    assert any("the cluster was not told of update domain 0" in text for text in warnings) is (
        not known
    )


def test_a_process_without_the_function_approves_nothing(lab: SimulatedLab) -> None:
    """The upgrade waits for one who knows it, or for another approver."""
    web = start(lab, Cluster())
    lab.environment.approvers.clear()
    lab.publish("1.1.0")
    with pytest.raises(InterruptedOperationError, match="set-approver web"):
        lab.run_due()
    assert web.history()[0].batches == []
    web.set_approver(None)
    upgrade = web.resume()
    assert upgrade is not None
    assert upgrade.completed
    assert "nobody is asked" in " ".join(event.message for event in upgrade.events)


def test_an_endpoint_approves(lab: SimulatedLab) -> None:
    """I3: JSON in Service Fabric's words; a server that restarts is asked again."""
    posted: list[dict[str, Any]] = []
    answers = [(503, b"busy"), (200, b'{"State": "Preparing"}'), (200, b"[")]

    def take(path: str, content: bytes) -> tuple[int, bytes]:
        assert path == "/approve?code=secret"
        posted.append(json.loads(content))
        if posted[-1]["State"] == "Completed":
            return 204, b""
        return answers.pop(0) if answers else (200, b'{"State": "Approved"}')

    server = HttpServer(take=take)
    try:
        web = start(lab, f"http://127.0.0.1:{server.port}/approve?code=secret", capacity=2)
        assert "secret" not in repr(web.record)
        upgrade = lab.roll(web, "1.1.0")
    finally:
        server.close()
    assert upgrade.completed, upgrade.explain()
    assert [entry["State"] for entry in posted] == (
        ["Preparing"] * 4 + ["Completed", "Preparing", "Completed"]
    )
    assert posted[4]["Target"] == {"Kind": "Node", "NodeNames": ["_web_0"]}
    assert posted[4]["ResultStatus"] == "Succeeded"
    assert posted[4]["Outcomes"] == {"_web_0": "succeeded"}
    told = " ".join(event.message for event in upgrade.events)
    assert "HTTP status 503" in told
    assert "secret" not in told


def test_an_endpoint_that_is_gone_is_a_warning_after_the_work(short: SimulatedLab) -> None:
    """The report could not be told; the upgrade is what it is."""
    server = HttpServer(take=lambda *_: (200, b'{"State": "Approved"}'))
    web = start(short, f"http://localhost:{server.port}/", capacity=1)
    create = short.simulated.create_os_disk

    def closing(path: Path, image: Path, size_gib: int | None) -> None:
        server.close()
        create(path, image, size_gib)

    short.simulated.create_os_disk = closing  # type: ignore[method-assign]
    upgrade = short.roll(web, "1.1.0")
    assert upgrade.completed
    warnings = [event.message for event in upgrade.events if event.kind == "warning"]
    assert any("the cluster was not told of update domain 0" in text for text in warnings)


def test_the_command_line_names_an_endpoint(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L2: and takes it away again."""
    web = start(lab, None, capacity=1)

    @contextlib.contextmanager
    def open_lab() -> Iterator[SimulatedLab]:
        yield lab

    monkeypatch.setattr("pytest_vmss.cli.sets.open_lab", open_lab)
    runner = CliRunner()
    for url in ("http://127.0.0.1:8080/approve", None):
        words = ["set-approver", "web", *([url] if url else [])]
        assert runner.invoke(main, words).exit_code == 0
        assert web.record.approver_url == url
    refused = runner.invoke(main, ["set-approver", "web", "http://example.org/?code=secret"])
    assert refused.exit_code == 1
    assert "the URL of an endpoint on loopback" in refused.output
    assert "secret" not in refused.output


def test_killed_while_it_reports_it_is_reported_again(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M1: the same result, and no other question before it."""
    cluster = Cluster()
    web = start(lab, cluster, capacity=2)
    lab.publish("1.1.0")

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Approvals, "_report", killed)
        with pytest.raises(Killed):
            lab.run_due()
    web[1].protect(from_scale_set_actions=True)
    upgrade = web.resume()
    assert upgrade is not None
    assert upgrade.completed
    assert cluster.told == [("Preparing", 0, "Pending"), ("Completed", 0, "Succeeded")]


@pytest.mark.parametrize(
    "approver",
    [
        3, "", "approve", "https://127.0.0.1/", "http://192.0.2.1/", "http://example.org/",
        "http://user@127.0.0.1/", "http://127.0.0.1:99999/", "http://127.0.0.1/a b", Cluster,
    ],
)  # fmt: skip
def test_what_no_approver_is(lab: SimulatedLab, approver: Any) -> None:
    """A6: refused before anything is made."""
    lab.publish("1.0.0")
    with pytest.raises(ModelError, match="must be a function of a RepairTask"):
        lab.create(node_type(), approver=approver)
    assert lab.scale_sets() == []


def test_an_approver_that_nobody_would_ask_is_refused(lab: SimulatedLab) -> None:
    """C7: Bronze asks nobody, nor does a set without Service Fabric."""
    web = lab.start_web(1)
    with pytest.raises(ModelError, match="would never be asked"):
        web.set_approver(lambda _: True)
    with pytest.raises(ModelError, match="would never be asked"):
        lab.create(node_type(level="Bronze", automatic=False), name="b", approver=lambda _: True)


def test_what_the_cluster_said_is_kept_with_the_set(lab: SimulatedLab) -> None:
    """C7: a stateless Bronze node type, once accepted, is scaled and updated."""
    lab.publish("1.0.0")
    body = web_model(capacity=1)
    extensions = body["properties"]["virtualMachineProfile"]["extensionProfile"]["extensions"]
    extensions.append(service_fabric("Bronze"))
    cluster = {
        "type": "Microsoft.ServiceFabric/clusters",
        "name": "cluster",
        "properties": {"nodeTypes": [{"name": "nt0", "isStateless": True}]},
    }
    scale_set = {"type": "Microsoft.Compute/virtualMachineScaleSets", **body}
    template = {"resources": [scale_set, cluster]}
    web = lab.create(template, load_balancer=LOAD_BALANCER)
    web.scale(2)
    web.update({"tags": {"a": "b"}})
    web.update({"sku": {"capacity": 3}})
    assert [cluster.name for cluster in web._revision.clusters] == ["cluster"]
    assert len(web) == 3
    # The extension and the cluster must still say the same.
    silver = {
        "virtualMachineProfile": {
            "extensionProfile": {"extensions": [service_fabric("Silver")]},
        }
    }
    with pytest.raises(ModelError, match="must be the same in the extension and in the cluster"):
        web.update(silver)
    # Another cluster's word can be given with an update.
    cluster["properties"] = {"nodeTypes": [{"name": "nt0", "durabilityLevel": "Silver"}]}
    scale_set["properties"]["virtualMachineProfile"]["extensionProfile"]["extensions"] = [
        service_fabric("Silver")
    ]
    del scale_set["properties"]["virtualMachineProfile"]["networkProfile"]
    with pytest.raises(ModelError, match="beside the Service Fabric extension"):
        web.update(template)  # merged: its probe stays
    web.update(template, replace=True)
    assert web._revision.clusters[0].node_types[0].durability_level == "Silver"


def test_rolling_model_updates_are_approved_too(lab: SimulatedLab) -> None:
    """C9: whatever goes batch after batch."""
    cluster = Cluster()
    web = start(lab, cluster, capacity=2)
    size = {"sku": {"name": "Standard_B1s"}, "upgradePolicy": {"mode": "Rolling"}}
    health = {"extensionProfile": {"extensions": [service_fabric(), application_health()]}}
    update = web.update({**size, "virtualMachineProfile": health})
    assert update is not None
    assert update.completed, update.explain()
    assert cluster.told == [
        entry
        for domain in range(2)
        for entry in (("Preparing", domain, "Pending"), ("Completed", domain, "Succeeded"))
    ]
    assert (cluster.heard[0].action, cluster.heard[0].target) == ("update", "1.0.0")
