"""E4, H1-H5, M5 on real VMs: order, tokens that expire, and secrets that stay secret.

The tests share one set and run in the order of the file.
"""

from __future__ import annotations

import base64
import gzip
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_vmss.clock import SystemClock
from pytest_vmss.errors import ProvisioningError
from pytest_vmss.guest.extensions import register_package, registry
from pytest_vmss.instance import Instance
from pytest_vmss.lab import Lab
from pytest_vmss.scale_set import ScaleSet
from pytest_vmss.store import Outcome
from tests.custom_data import FORMATS, every_format, included
from tests.handlers import write_handler
from tests.models import CUSTOM_DATA, LOAD_BALANCER, custom_script, encode, web_model

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


def test_an_expired_token_stops_the_upgrade_and_is_undone(
    web: ScaleSet, vmss: Lab, built: Callable[[str], Path]
) -> None:
    """H5: the first batch fails; nothing is run again on the old disk (E4)."""
    before = runs(web[0])
    vmss.blobs._clock = Ahead()
    vmss.gallery("extensions").publish("web", "1.1.0", built("1.1.0"))
    upgrade = web.wait_for_upgrade()
    assert upgrade.faulted, upgrade.explain()
    assert upgrade.outcomes == {0: Outcome.ROLLED_BACK, 1: Outcome.NOT_STARTED}
    assert upgrade.errors[0].code == "VMExtensionProvisioningError"
    assert (
        "Enable failed: processing file downloads failed: failed to download file[0]: unexpected "
        "status code: actual=403 expected=200" in upgrade.errors[0].message
    )
    told = [event.message for event in upgrade.events if event.kind == "extension"]
    assert sorted(told) == ["base: error", "left: error", "right: error", "top: error"]
    assert web.healthy
    assert {i.image_version for i in web} == {"1.0.0"}
    assert runs(web[0]) == before


def test_by_hand_it_stays_failed_until_a_new_token_mends_it(web: ScaleSet, vmss: Lab) -> None:
    """H5: after the model gets a new token, deploying the set mends every instance."""
    upgrade = web.upgrade()
    assert upgrade.outcomes == {0: Outcome.FAILED, 1: Outcome.NOT_STARTED}
    assert web[0].record.provisioning == "Failed"
    assert web[0].image_version == "1.1.0"
    assert [entry.skipped for entry in web[0].extensions] == [True, True, True, False]
    web.update(extensions(vmss.blobs.url("record.sh", expires_in=3600)))
    web.update_instances()
    assert web.healthy
    assert [i.record.provisioning for i in web] == ["Succeeded", "Succeeded"]
    assert [i.image_version for i in web] == ["1.1.0", "1.0.0"]
    check_order(runs(web[0])[web[0].generation.cloud_instance_id])
    # On the other only what changed was run again.
    assert runs(web[1])[web[1].generation.cloud_instance_id][4:] == ["base"]
    assert web.upgrade().completed
    assert {i.image_version for i in web} == {"1.1.0"}


def test_every_disk_has_each_extension_once_in_order(web: ScaleSet) -> None:
    """E4: after upgrades, a rollback and a reimage, by counters on the data disk."""
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


def test_a_packaged_handler_runs_in_the_guest(
    web: ScaleSet, vmss: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H2: Azure's layout, run as its agent runs it."""
    monkeypatch.setattr(registry, "_handlers", dict(registry._handlers))
    register_package(
        write_handler(tmp_path / "sample"), publisher="Contoso", type="Sample", version="1.2.0"
    )
    changed = extensions(vmss.blobs.url("record.sh"))
    listed = changed["virtualMachineProfile"]["extensionProfile"]["extensions"]
    properties = {
        "publisher": "Contoso", "type": "Sample", "typeHandlerVersion": "1.2",
        "settings": {"greeting": "hello"}, "protectedSettings": {"key": SECRETS["package"]},
        "provisionAfterExtensions": ["top"],
    }  # fmt: skip
    web.update({"virtualMachineProfile": {"extensionProfile": {"extensions": [
        *listed, {"name": "sample", "properties": properties},
    ]}}})  # fmt: skip
    web.update_instances([0])
    assert web[0].extensions[-1].message == "hello from Contoso.Sample 1.2.0, run 0"
    secret = web[0].host.run("grep -r %s /var/lib/waagent/Contoso.Sample-1.2.0", SECRETS["package"])
    assert secret.rc == 1, "protected settings are encrypted in the guest, as in Azure"


def test_secrets_are_found_only_where_they_are_allowed(web: ScaleSet, vmss: Lab) -> None:
    """M5: after a failure that shows them, in every field, file, process and message."""
    uri = vmss.blobs.url("record.sh")
    token = uri.rpartition("sig=")[2]
    failing = f"echo {SECRETS['failing']}; ls {SECRETS['failing']}; sh -c 'exit 9'"
    web.update(extensions(uri, failing))
    with pytest.raises(ProvisioningError) as failed:
        web.update_instances()
    assert "exit status=9" in failed.value.evidence
    secrets = {**SECRETS, "token": token}

    def shows(text: str, where: str) -> None:
        for field, secret in secrets.items():
            assert secret not in text, f"the secret of {field} is in {where}"

    shows(str(failed.value) + failed.value.evidence + repr(failed.value), "the exception")
    shows(json.dumps(web.model.wire()) + repr(web.model), "the model, as it is shown")
    shows(json.dumps(web.instance_view()), "the instance view")
    shows(json.dumps([web.os_upgrade_history(), web.rolling_upgrade_status()]), "the history")
    shows(" ".join(upgrade.explain() for upgrade in web.history()), "the explanations")
    for process in psutil.process_iter(["cmdline"]):
        shows(" ".join(process.info["cmdline"] or ()), f"the arguments of process {process.pid}")
    with closing(sqlite3.connect(vmss.paths.database)) as database:
        for table, rest in (("event", ""), ("step", ""), ("record", "WHERE kind != 'model'")):
            rows = database.execute(f"SELECT * FROM {table} {rest}").fetchall()
            shows(str(rows), f"the table {table}")
    # Disks and seeds are the guests' own, the database is the lab's memory: all 0600.
    allowed = {".qcow2", ".iso", ".db", ".db-wal", ".db-shm"}
    seen = 0
    for path in vmss.paths.folder.rglob("*"):
        if not path.is_file() or path.is_symlink():
            continue
        if path.suffix in allowed:
            assert path.stat().st_mode & 0o077 == 0 or path.parent == vmss.paths.images, path
            continue
        seen += 1
        shows(path.read_bytes().decode(errors="replace"), str(path))
    assert seen > 4
