"""E4, H1-H5, M5 on real VMs: order, tokens that expire, and secrets that stay secret.

The tests share one set and run in the order of the file.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import psutil
import pytest

from pytest_vmss.api.instance import Instance
from pytest_vmss.api.lab import Lab
from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.clock import SystemClock
from pytest_vmss.errors import ModelError, ProvisioningError
from pytest_vmss.guest.extensions import register_package, registry
from pytest_vmss.store import Outcome
from tests.custom_data import FORMATS, every_format, included
from tests.handlers import write_handler
from tests.models import CUSTOM_DATA, LOAD_BALANCER, custom_script, encode, web_model
from tests.vm.permissions import permissions

#: What must show itself nowhere but where SPEC M5 allows; each in another field.
SECRETS = {
    "customData": "zebra-custom-data-7141",
    "userData": "zebra-user-data-7140",
    "adminPassword": "zebra-admin-password-7142",
    "commandToExecute": "zebra-command-7143",
    "script": "zebra-script-7144",
    "package": "zebra-package-7146",
    "failing": "zebra-failing-7145",
}
TOKEN_S = 1800.0
RECORD = """\
#!/bin/sh\r
echo "$(cat /var/lib/cloud/data/instance-id) $1" >> /data/order\r
"""


def script(name: str, *after: str) -> dict[str, Any]:
    text = f'echo "$(cat /var/lib/cloud/data/instance-id) {name}" >> /data/order # '
    packed = gzip.compress((text + SECRETS["script"]).encode(), mtime=0)  # the same each time
    protected = {"script": base64.b64encode(packed).decode()}
    return custom_script(name, *after, settings={}, protectedSettings=protected)


def base(uri: str, command: str = "./record.sh base") -> dict[str, Any]:
    protected = {
        "commandToExecute": f"{command} # {SECRETS['commandToExecute']}",
        "fileUris": [uri],
    }
    return custom_script("base", settings={"timestamp": 1}, protectedSettings=protected)


def extensions(uri: str, command: str = "./record.sh base") -> dict[str, Any]:
    listed = [
        script("top", "left", "right"),
        script("left", "base"),
        script("right", "base"),
        base(uri, command),
    ]
    return {"virtualMachineProfile": {"extensionProfile": {"extensions": listed}}}


def runs(instance: Instance) -> dict[str, list[str]]:
    """The extensions that ran, in order, by OS disk."""
    found: dict[str, list[str]] = {}
    for line in instance.host.check_output("cat /data/order").splitlines():
        disk, name = line.split()
        found.setdefault(disk, []).append(name)
    return found


def check_order(names: list[str]) -> None:
    assert (names[0], sorted(names[1:3]), names[3:]) == ("base", ["left", "right"], ["top"])


class Ahead(SystemClock):
    """The time at which the first token is no longer valid."""

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=TOKEN_S + 1)


class Fast(SystemClock):
    """Time flies from some moment on: limits are over sooner.

    Attributes:
        rate: How many times as fast.
    """

    rate = 1.0
    begun = 0.0

    def monotonic(self) -> float:
        return self.begun + (super().monotonic() - self.begun) * self.rate

    def hurry(self, rate: float) -> None:
        self.begun, self.rate = super().monotonic(), rate


@pytest.fixture(scope="module", autouse=True)
def arguments() -> Iterator[set[str]]:
    """The command lines of all processes that there were while the tests ran."""
    seen: set[str] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.25):
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    seen.add(" ".join(process.cmdline()))

    looker = threading.Thread(target=look, name="arguments", daemon=True)
    looker.start()
    yield seen
    ended.set()
    looker.join()


@pytest.fixture(scope="module")
def vmss(vmss: Lab) -> Iterator[Lab]:
    """A lab whose guests are let out, for custom data that includes one of its files."""
    lab = Lab.session(replace(vmss.settings, guest_network="outbound"))
    lab.watch()
    yield lab
    lab.destroy()


@pytest.fixture(scope="module")
def web(vmss: Lab, built: Callable[[str], Path]) -> Iterator[ScaleSet]:
    vmss.gallery("extensions").publish("web", "1.0.0", built("1.0.0"))
    vmss.blobs.put("record.sh", RECORD)
    body = web_model("ext", capacity=2, extensions=False)
    profile = body["properties"]["virtualMachineProfile"]
    image = profile["storageProfile"]["imageReference"]
    image["id"] = image["id"].replace("/galleries/gallery/", "/galleries/extensions/")
    vmss.blobs.put("included.sh", included())
    include = vmss.blobs.url("included.sh", expires_in=10 * TOKEN_S)
    config = CUSTOM_DATA.partition("\n")[2] + f"# {SECRETS['customData']}\n"
    profile["osProfile"]["customData"] = base64.b64encode(every_format(config, include)).decode()
    profile["userData"] = encode(SECRETS["userData"])
    profile["osProfile"]["adminPassword"] = SECRETS["adminPassword"]
    uri = vmss.blobs.url("record.sh", expires_in=TOKEN_S)
    profile["extensionProfile"] = extensions(uri)["virtualMachineProfile"]["extensionProfile"]
    clock = vmss.blobs._clock
    created = vmss.create(body, load_balancer=LOAD_BALANCER, health_timeout=20)
    yield created
    created.delete()
    vmss.blobs._clock = clock


def test_extensions_run_in_the_declared_order(web: ScaleSet) -> None:
    """H2, H3: files by fileUris with Unix line ends, scripts by gzip, side by side where they may."""
    for instance in web:
        ((disk, names),) = runs(instance).items()
        assert disk == instance.generation.cloud_instance_id
        check_order(names)
        view = instance.extensions
        assert [entry.name for entry in view] == ["top", "left", "right", "base"]
        assert {entry.status for entry in view} == {"success"}
        assert view[0].message.startswith("Enable succeeded: ")


def test_custom_data_in_every_format(web: ScaleSet) -> None:
    """H1: passed unchanged; cloud-init finds nothing wrong with it."""
    for instance in web:
        host = instance.host
        told = {name: host.file(f"/var/lib/formats/{name}").content_string for name in FORMATS}
        assert told == {
            **{name: name for name in FORMATS}, "jinja": host.check_output("hostname"),
        }  # fmt: skip
        assert instance.generation.cloud_init == "done"
        assert host.file("/var/lib/waagent/UserData").content_string == SECRETS["userData"]
        assert host.file("/var/lib/waagent/UserData").mode == 0o600


@pytest.mark.nightly  # two minutes; test_eligibility.py has it in each run
def test_an_expired_token_stops_the_upgrade_and_is_undone(
    web: ScaleSet, vmss: Lab, built: Callable[[str], Path]
) -> None:
    """H5: the first batch fails; nothing is run again on the old disk (E4)."""
    before = runs(web[0])
    vmss.blobs._clock = Ahead()
    vmss.gallery("extensions").publish("web", "1.1.0", built("1.1.0"))
    upgrade = web.wait_for_upgrade()
    assert upgrade.faulted, upgrade.explain()
    assert upgrade.outcomes == {"ext_0": Outcome.ROLLED_BACK, "ext_1": Outcome.NOT_STARTED}
    assert upgrade.errors["ext_0"].code == "VMExtensionProvisioningError"
    assert (
        "Enable failed: processing file downloads failed: failed to download file[0]: unexpected "
        "status code: actual=403 expected=200" in upgrade.errors["ext_0"].message
    )
    told = [event.message for event in upgrade.events if event.kind == "extension"]
    assert sorted(told) == ["base: error", "left: error", "right: error", "top: error"]
    assert web.is_healthy()
    assert {i.image_version for i in web} == {"1.0.0"}
    assert runs(web[0]) == before


@pytest.mark.nightly  # two minutes; after the test above
def test_by_hand_it_stays_failed_until_a_new_token_mends_it(web: ScaleSet, vmss: Lab) -> None:
    """H5: after the model gets a new token, deploying the set mends every instance."""
    upgrade = web.upgrade()
    assert upgrade.outcomes == {"ext_0": Outcome.FAILED, "ext_1": Outcome.NOT_STARTED}
    assert web[0].record.provisioning == "Failed"
    assert web[0].image_version == "1.1.0"
    assert [entry.skipped for entry in web[0].extensions] == [True, True, True, False]
    change = extensions(vmss.blobs.url("record.sh", expires_in=3600))
    # Otherwise the version is due again by itself, as the model has changed (C1).
    automatic = {"enableAutomaticOSUpgrade": False}
    web.update({**change, "upgradePolicy": {"automaticOSUpgradePolicy": automatic}})
    web.update_instances()
    assert web.is_healthy()
    assert [i.record.provisioning for i in web] == ["Succeeded", "Succeeded"]
    assert [i.image_version for i in web] == ["1.1.0", "1.0.0"]
    check_order(runs(web[0])[web[0].generation.cloud_instance_id])
    # On the other only what changed was run again.
    assert runs(web[1])[web[1].generation.cloud_instance_id][4:] == ["base"]
    assert web.upgrade().completed
    assert {i.image_version for i in web} == {"1.1.0"}


def test_every_disk_has_each_extension_once_in_order(web: ScaleSet) -> None:
    """E4: after a reimage, nightly after upgrades and a rollback too, by counters on the data disk."""
    web.reimage([0])
    for instance in web:
        disk = instance.generation.cloud_instance_id
        check_order(runs(instance)[disk])
        custom = instance.host.check_output("cat /data/custom-data-runs").split()
        assert len(custom) == len(set(custom))
        assert disk in custom


def test_run_command(web: ScaleSet) -> None:
    """H2, K1: Azure's answer."""
    (status,) = web[0].run_command("echo out; echo err >&2")["value"]
    assert status == {
        "code": "ProvisioningState/succeeded",
        "level": "Info",
        "displayStatus": "Provisioning succeeded",
        "message": "Enable succeeded: \n[stdout]\nout\n\n[stderr]\nerr",
    }
    (status,) = web[0].run_command("exit 3")["value"]
    assert status["code"] == "ProvisioningState/failed"
    assert "exit status=3" in status["message"]


@pytest.fixture
def handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is known in it alone."""
    monkeypatch.setattr(registry, "_handlers", dict(registry._handlers))


def sample(greeting: str) -> dict[str, Any]:
    properties = {
        "publisher": "Contoso", "type": "Sample", "typeHandlerVersion": "1.2",
        "settings": {"greeting": greeting, "heartbeat": "ready", "length": 3000},
        "protectedSettings": {"key": SECRETS["package"]},
        "provisionAfterExtensions": ["top"],
    }  # fmt: skip
    return {"name": "sample", "properties": properties}


def with_sample(change: dict[str, Any]) -> dict[str, Any]:
    listed_in(change).append(sample("hello"))
    return change


@pytest.mark.usefixtures("handlers")
def test_a_packaged_handler_lives_in_the_guest(web: ScaleSet, vmss: Lab, tmp_path: Path) -> None:
    """H2, H4: Azure's layout, run, updated and uninstalled as Azure's agent does it."""
    folder = "/var/lib/waagent/Contoso.Sample-"
    register_package(
        write_handler(tmp_path / "1.2.0"), publisher="Contoso", type="Sample", version="1.2.0"
    )
    changed = extensions(vmss.blobs.url("record.sh"))
    web.update(with_sample(changed))
    web.update_instances([0])
    found = web[0].extensions[-1]
    assert found.message == "hello from Contoso.Sample 1.2.0, run 0"
    assert [(part.name, len(part.message)) for part in found.substatuses] == [
        ("Greeting", 3000), ("Rest", 5),
    ]  # fmt: skip
    secret = web[0].host.run(f"grep -r %s {folder}1.2.0", SECRETS["package"])
    assert secret.rc == 1, "protected settings are encrypted in the guest, as in Azure"

    newer = write_handler(tmp_path / "1.3.0", reportHeartbeat=True)
    register_package(newer, publisher="Contoso", type="Sample", version="1.3.0")
    assert web.upgrade_extensions().completed
    assert web[0].extensions[-1].message == "hello from Contoso.Sample 1.3.0, run 1"
    view = web[0].instance_view()
    assert [part["code"] for part in view["extensions"][-1]["substatuses"]] == [
        "ComponentStatus/Greeting/succeeded", "ComponentStatus/Rest/transitioning",
    ]  # fmt: skip
    assert handler_of(web[0]) == ("Ready", "as it was told")
    web[0].host.check_output(f"sed -i s/ready/notready/ {folder}1.3.0/heartbeat.log")
    assert handler_of(web[0]) == ("Not Ready", "as it was told")

    web.update({"virtualMachineProfile": {"extensionProfile": {"extensions": [
        entry for entry in listed_in(changed) if entry["name"] != "sample"
    ]}}})  # fmt: skip
    web.update_instances([0])
    assert [line.split()[:2] for line in calls(web[0])] == [
        ["install", "1.2.0"], ["enable", "1.2.0"],
        ["disable", "1.2.0"], ["update", "1.3.0"], ["uninstall", "1.2.0"], ["enable", "1.3.0"],
        ["disable", "1.3.0"], ["uninstall", "1.3.0"],
    ]  # fmt: skip
    assert not web[0].host.run(f"ls -d {folder}*").stdout
    assert "sample" not in {entry.name for entry in web[0].extensions}


def listed_in(change: dict[str, Any]) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = change["virtualMachineProfile"]["extensionProfile"]["extensions"]
    return listed


def handler_of(instance: Instance) -> tuple[str, str]:
    """How the sample's handler is, in the instance view."""
    (status,) = (
        entry["status"] for entry in instance.instance_view()["vmAgent"]["extensionHandlers"]
        if entry["type"] == "Contoso.Sample"
    )  # fmt: skip
    return status["displayStatus"], status["message"]


def calls(instance: Instance) -> list[str]:
    text: str = instance.host.check_output("cat /var/log/azure/Contoso.Sample/calls")
    return text.splitlines()


@pytest.mark.usefixtures("handlers")
def test_a_handler_of_the_suites_own(web: ScaleSet, vmss: Lab) -> None:
    """H2: the how-to's, as it is written there; gone with the model's next revision."""
    text = (Path(__file__).parents[2] / "docs/how-to.md").read_text()
    section = text.partition("## Run an extension of your own\n")[2]
    exec(section.partition("```python\n")[2].partition("```")[0], {})
    properties = {"publisher": "Contoso", "type": "Motd", "typeHandlerVersion": "1.0"}
    change = extensions(vmss.blobs.url("record.sh"))
    motd = {"name": "motd", "properties": {**properties, "settings": {"text": "welcome"}}}
    listed_in(change).append(motd)
    web.update(change)
    web.update_instances([0])
    assert web[0].host.file("/etc/motd").content_string == "welcome"
    motd["properties"] = {**properties, "settings": {}}
    with pytest.raises(ModelError, match="text is not specified"):
        web.update(change)
    web.update(extensions(vmss.blobs.url("record.sh")))
    web.update_instances([0])
    assert not web[0].host.file("/etc/motd").exists


def test_one_whose_connection_breaks_is_run_once_and_asked_for_its_end(
    web: ScaleSet, vmss: Lab
) -> None:
    """E4, H2, Q1: it ends the lab's SSH sessions itself, and goes on."""
    slow = (
        "echo begun >> /data/slow; sleep 2; "
        "pkill -KILL -f '^sshd[^ ]*: azureuser' && echo cut >> /data/slow; "
        "sleep 4; echo ended >> /data/slow"
    )
    change = extensions(vmss.blobs.url("record.sh"))
    listed_in(change).append(custom_script("slow", settings={"commandToExecute": slow}))
    web.update(change)
    web.update_instances([1])
    assert web[1].extensions[-1].status == "success", web[1].extensions[-1].message
    told = web[1].host.check_output("cat /data/slow").split()
    assert told == ["begun", "cut", "ended"]


def test_one_that_hangs_past_the_budget_is_killed(
    web: ScaleSet, vmss: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H3: ``extensionsTimeBudget`` ends it, and what comes after it; only time is not real."""
    hang = custom_script("hang", settings={"commandToExecute": "sleep 12345 & sleep 12345"})
    change = extensions(vmss.blobs.url("record.sh"))
    listed_in(change).extend(
        [hang, custom_script("after", "hang", settings={"commandToExecute": "true"})]
    )
    change["virtualMachineProfile"]["extensionProfile"]["extensionsTimeBudget"] = "PT15M"
    web.update(change)
    clock = Fast()
    monkeypatch.setattr(vmss, "clock", clock)
    monkeypatch.setattr(vmss.environment, "clock", clock)
    monkeypatch.setattr(vmss.backends, "_clock", clock)
    vmss.store.amend(web.record, overrides={"extension": 1e6, "instance": 1e6, "health": 20.0})
    run = web[1].host.run
    clock.hurry(600.0)
    with pytest.raises(ProvisioningError) as failed:
        web.update_instances([1])
    clock.hurry(1.0)
    assert "VMExtensionProvisioningTimeout" in failed.value.evidence
    assert "Provisioning of VM extension hang has timed out." in failed.value.evidence
    hung, after = web[1].extensions[-2:]
    assert (hung.timed_out, hung.skipped) == (True, False)
    # The budget began before it did, and ending it took real seconds, which count 600-fold.
    budget = 900.0 * vmss.hypervisor.slow_factor
    assert budget / 2 < hung.seconds < budget + 11_000.0
    assert after.skipped
    assert run("pgrep -fx 'sleep 12345'").rc == 1
    assert web[0].record.provisioning == "Succeeded"
    web.update(extensions(vmss.blobs.url("record.sh")))
    web.update_instances([1])
    assert web.is_healthy()


def forms(secret: str) -> set[str]:
    """A secret as it is, and what base64 makes of it wherever it stands in a text."""
    shifted = (base64.b64encode(b"x" * n + secret.encode()).decode() for n in range(3))
    # The first and the last four characters depend on what is beside it.
    return {secret, *(text.rstrip("=")[4:-4] for text in shifted)}


@pytest.mark.usefixtures("handlers")
def test_secrets_are_found_only_where_they_are_allowed(
    web: ScaleSet, vmss: Lab, arguments: set[str], tmp_path: Path
) -> None:
    """M5: after a failure that shows them, in every field, file, process and message."""
    register_package(
        write_handler(tmp_path / "1.2.0"), publisher="Contoso", type="Sample", version="1.2.0"
    )
    uri = vmss.blobs.url("record.sh")
    token = uri.rpartition("sig=")[2]
    failing = f"echo {SECRETS['failing']}; ls {SECRETS['failing']}; sh -c 'exit 9'"
    web.update(with_sample(extensions(uri, failing)))
    with pytest.raises(ProvisioningError) as failed:
        web.update_instances()
    assert "exit status=9" in failed.value.evidence
    secrets = {field: forms(secret) for field, secret in SECRETS.items()}
    secrets["token"] = {token, quote(token), unquote(token)}
    secrets["script, packed"] = {script("top")["properties"]["protectedSettings"]["script"]}
    given = web.model.virtual_machine_profile.os_profile.custom_data
    assert given is not None
    secrets["customData, whole"] = {given.get_secret_value()}

    def shows(text: str, where: str) -> None:
        for field, shapes in secrets.items():
            assert not any(shape in text for shape in shapes), (
                f"the secret of {field} is in {where}"
            )

    shows(str(failed.value) + failed.value.evidence + repr(failed.value), "the exception")
    shows(json.dumps(web.model.wire()) + repr(web.model), "the model, as it is shown")
    shows(json.dumps([web.instance_view(), web.virtual_machines()]), "the instance view")
    shows(json.dumps([web.os_upgrade_history(), web.rolling_upgrade_status()]), "the history")
    shows(" ".join(upgrade.explain() for upgrade in web.history()), "the explanations")
    assert any("qemu-system" in line for line in arguments)
    for line in arguments:
        shows(line, f"the arguments of a process: {line[:80]}")
    with closing(sqlite3.connect(vmss.paths.database)) as database:
        tables = {
            name
            for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
        assert {"event", "step", "record"} <= tables
        for table in tables:
            rest = "WHERE kind != 'model'" if table == "record" else ""
            shows(
                str(database.execute(f"SELECT * FROM {table} {rest}").fetchall()), f"table {table}"
            )
        # So that what is searched for can be found: the model is where it is allowed to be.
        (models,) = database.execute("SELECT group_concat(body) FROM record WHERE kind = 'model'")
        for field in ("customData, whole", "userData", "script, packed"):
            assert any(shape in str(models) for shape in secrets[field]), field
    # Disks and seeds are the guests' own, the database is the lab's memory: closed to others.
    allowed = {".qcow2", ".iso", ".db", ".db-wal", ".db-shm"}
    seen = 0
    for path in vmss.paths.folder.rglob("*"):
        if not path.is_file() or path.is_symlink():
            continue
        if path.suffix in allowed:
            if path.parent != vmss.paths.images:
                permissions(vmss, path)
            continue
        seen += 1
        shows(path.read_bytes().decode(errors="replace"), str(path))
    assert seen > 4
