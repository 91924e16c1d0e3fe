"""H2, H4: packaged handlers in Azure's layout; the guest's part runs here, in another root."""

from __future__ import annotations

import base64
import json
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, pkcs7
from cryptography.x509 import load_pem_x509_certificate

from pytest_vmss.checkpoints import checkpoint_key
from pytest_vmss.errors import ImageError
from pytest_vmss.guest.extensions import PackagedHandler, registry
from pytest_vmss.guest.extensions.package import handler_settings
from pytest_vmss.guest.in_guest import handler_agent
from pytest_vmss.guest.in_guest.handler_agent import Agent
from pytest_vmss.model import Extension, VmSize, load_document
from tests.handlers import write_handler
from tests.models import LOAD_BALANCER, custom_script, web_model
from tests.processes import wait_until_ended, with_argument

NAME = {"publisher": "Contoso", "type": "Sample"}


def extension(**fields: Any) -> Extension:
    return Extension(
        name="sample", publisher="Contoso", type="Sample", type_handler_version="1.2", **fields
    )


class Guest:
    """The agent's part in a folder, and packages for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.agent = Agent("Contoso.Sample", root=str(self.root))

    def package(self, version: str, **options: Any) -> Path:
        path = self.folder / f"{version}.zip"
        if not path.exists():
            source = write_handler(self.folder / version, **options)
            path.write_bytes(PackagedHandler(source, **NAME, version=version)._package)
        return path

    def enable(
        self, run: str, version: str = "1.2.0", *, name: str = "sample", **settings: Any
    ) -> dict[str, Any]:
        """Enables an extension; what it reports."""
        told, certificate = handler_settings(extension(settings=settings))
        spec = {
            "name": "Contoso.Sample", "extension": name, "version": version, "run": run,
            "handlerSettings": told, "certificate": certificate,
        }  # fmt: skip
        succeeded = self.agent.enable(spec, str(self.package(version)))
        found = self.agent.report(name)
        assert found is not None
        assert succeeded == (found["status"]["status"] == "success")
        return found

    def message(self, *arguments: Any, **options: Any) -> str:
        message = self.enable(*arguments, **options)["status"]["formattedMessage"]["message"]
        assert isinstance(message, str)
        return message

    def path(self, version: str = "1.2.0") -> Path:
        return self.root / f"var/lib/waagent/Contoso.Sample-{version}"

    @property
    def calls(self) -> list[str]:
        return (self.root / "var/log/azure/Contoso.Sample/calls").read_text().splitlines()


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


def test_a_handler_is_run_as_the_agent_runs_it(guest: Guest) -> None:
    """Installed once, enabled for each run, with Azure's files; the same run is the same number."""
    assert guest.message("1", greeting="hello") == "hello from Contoso.Sample 1.2.0, run 0"
    assert guest.message("1", greeting="hello") == "hello from Contoso.Sample 1.2.0, run 0"
    assert guest.message("2", greeting="bye") == "bye from Contoso.Sample 1.2.0, run 1"
    assert guest.calls == ["install 1.2.0", "enable 1.2.0", "enable 1.2.0", "enable 1.2.0"]
    (environment,) = json.loads((guest.path() / "HandlerEnvironment.json").read_text())
    assert set(environment["handlerEnvironment"]) == {
        "logFolder", "configFolder", "statusFolder", "heartbeatFile",
    }  # fmt: skip
    assert (guest.path() / "config/1.settings").stat().st_mode & 0o777 == 0o600
    assert (guest.path() / "config/HandlerState").read_text() == "Enabled"
    found = guest.agent.report("sample")
    assert found is not None
    assert found["handler"] == {"status": "Ready", "message": "Plugin enabled"}
    assert [part["name"] for part in found["status"]["substatus"]] == ["Greeting", "Rest"]


def test_failures_are_told(guest: Guest) -> None:
    """In the words of Azure's agent, and in its status file."""
    assert guest.message("1", fail="status") == "it was told to fail"
    assert guest.message("2", fail="exit") == (
        f"Non-zero exit code: 3, {guest.path()}/bin/handler.py enable\n[stdout]\n\n\n[stderr]\n"
    )
    assert json.loads((guest.path() / "status/1.status").read_text())[0]["status"]["code"] == 1009
    assert guest.message("3", greeting="well") == "well from Contoso.Sample 1.2.0, run 2"


def test_what_cannot_be_installed_is_tried_again(guest: Guest) -> None:
    guest.package("1.2.0", fails={"install": 4})
    found = guest.enable("1")
    assert found["status"]["formattedMessage"]["message"].startswith("Non-zero exit code: 4, ")
    assert "[stdout]\nabout to fail" in found["status"]["formattedMessage"]["message"]
    assert found["handler"]["status"] == "NotReady"
    assert guest.message("2").startswith("Non-zero exit code: 4, ")
    assert guest.calls == ["install 1.2.0", "install 1.2.0"]


def test_a_command_that_hangs_is_ended(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has WALinuxAgent's limit; what it started goes with it."""
    source = write_handler(guest.folder / "1.2.0", enableCommand="bin/hang.sh now")
    mark = f"61.{os.getpid()}"
    (source / "bin/hang.sh").write_text(f"echo begun $1\nsleep {mark} & sleep {mark}\n")
    (source / "bin/hang.sh").chmod(0o755)
    content = PackagedHandler(source, **NAME, version="1.2.0")._package
    (guest.folder / "1.2.0.zip").write_bytes(content)
    monkeypatch.setitem(handler_agent._COMMANDS_S, "enable", 1)
    begun = time.monotonic()
    told = f"Timeout(1): {guest.path()}/bin/hang.sh now\n[stdout]\nbegun now"
    assert guest.message("1").startswith(told)
    assert time.monotonic() - begun < 30
    for process in with_argument(mark):
        wait_until_ended(process.pid)


def test_commands_are_the_packages_own(guest: Guest) -> None:
    """As for Azure's agent, which looks for them nowhere else."""
    guest.package("1.2.0", enableCommand="true")
    assert guest.message("1").startswith(f"Non-zero exit code: 127, {guest.path()}/true\n")


def test_a_newer_version_takes_the_place_of_an_older_one(guest: Guest) -> None:
    """As WALinuxAgent does it: disable, update, uninstall; what was done is remembered."""
    guest.enable("1")
    (guest.path() / "mrseq").write_text("0")
    guest.package("1.10.0", updateMode="UpdateWithInstall")
    assert guest.message("2", "1.10.0", greeting="new") == "new from Contoso.Sample 1.10.0, run 1"
    told = "DISABLE_CMD_EXIT_CODE=0"
    assert guest.calls[2:] == [
        "disable 1.2.0",
        f"update 1.10.0 {told} UPDATING_FROM_VERSION=1.2.0",
        "uninstall 1.2.0",
        f"install 1.10.0 {told} UNINSTALL_CMD_EXIT_CODE=0",
        "enable 1.10.0",
    ]
    assert not guest.path().exists()
    assert (guest.path("1.10.0") / "mrseq").read_text() == "0"
    assert (guest.path("1.10.0") / "status/0.status").is_file()
    # Back to the older one: its own update command runs in the version that goes.
    guest.enable("3", "1.2.0")
    assert guest.calls[7:] == [
        "disable 1.10.0",
        f"update 1.10.0 {told} UPDATING_FROM_VERSION=1.2.0",
        "uninstall 1.10.0",
        "enable 1.2.0",
    ]


@pytest.mark.parametrize("tolerant", [False, True])
def test_an_old_version_that_does_not_go(guest: Guest, tolerant: bool) -> None:
    """``continueOnUpdateFailure`` decides."""
    guest.package("1.2.0", fails={"disable": 5})
    guest.package("1.3.0", continueOnUpdateFailure=tolerant)
    guest.enable("1")
    message = guest.message("2", "1.3.0", greeting="new")
    if tolerant:
        assert message == "new from Contoso.Sample 1.3.0, run 1"
        assert guest.calls[3].startswith("update 1.3.0 DISABLE_CMD_EXIT_CODE=5 ")
        assert not guest.path().exists()
    else:
        assert message.startswith(f"Non-zero exit code: 5, {guest.path()}/bin/handler.py disable")
        assert guest.path().exists()
        assert guest.calls[2:] == ["disable 1.2.0"]


def test_it_is_uninstalled_with_its_last_extension(guest: Guest) -> None:
    """Numbers are not used again; asked twice it is the same."""
    guest.enable("1")
    assert guest.message("1", name="other", greeting="hi") == "hi from Contoso.Sample 1.2.0, run 1"
    assert guest.agent.uninstall("sample") == []
    assert guest.calls == ["install 1.2.0", "enable 1.2.0", "enable 1.2.0"]
    assert guest.agent.report("sample") is None
    assert guest.agent.uninstall("other") == []
    assert guest.agent.uninstall("other") == []
    assert guest.calls[3:] == ["disable 1.2.0", "uninstall 1.2.0"]
    assert not guest.path().exists()
    assert guest.message("1", greeting="again") == "again from Contoso.Sample 1.2.0, run 2"
    assert guest.calls[5:] == ["install 1.2.0", "enable 1.2.0"]


def test_one_that_cannot_be_uninstalled_goes_all_the_same(guest: Guest) -> None:
    guest.package("1.2.0", fails={"disable": 2, "uninstall": 6})
    guest.enable("1")
    disabled, uninstalled = guest.agent.uninstall("sample")
    assert disabled.startswith(f"Non-zero exit code: 2, {guest.path()}/bin/handler.py disable")
    assert uninstalled.startswith(f"Non-zero exit code: 6, {guest.path()}/bin/handler.py uninstall")
    assert not guest.path().exists()


def test_one_that_hangs_while_it_goes_is_ended(guest: Guest) -> None:
    source = write_handler(guest.folder / "1.2.0", uninstallCommand="bin/hang.sh")
    (source / "bin/hang.sh").write_text("sleep 62\n")
    (source / "bin/hang.sh").chmod(0o755)
    content = PackagedHandler(source, **NAME, version="1.2.0")._package
    (guest.folder / "1.2.0.zip").write_bytes(content)
    guest.enable("1")
    (hung,) = Agent("Contoso.Sample", limit=6.0, root=str(guest.root)).uninstall("sample")
    assert hung.startswith(f"Timeout(6): {guest.path()}/bin/hang.sh")
    assert not guest.path().exists()


def test_other_handlers_are_left_alone(guest: Guest) -> None:
    """The names of two may begin alike."""
    guest.enable("1")
    more = Agent("Contoso.Sample-More", root=str(guest.root))
    spec: dict[str, Any] = {
        "name": "Contoso.Sample-More", "extension": "more", "version": "1.0", "run": "1",
        "handlerSettings": {"publicSettings": {}}, "certificate": None,
    }  # fmt: skip
    assert more.enable(spec, str(guest.package("1.2.0")))
    assert guest.agent.uninstall("sample") == []
    assert more.report("more") is not None
    assert guest.agent.installed() is None


def test_heartbeats_say_how_the_handler_is(guest: Guest) -> None:
    """Where the manifest promises one; without it, or too old, the handler is not ready."""
    guest.package("1.2.0", reportHeartbeat=True)
    found = guest.enable("1", heartbeat="Ready")
    assert found["handler"] == {"status": "Ready", "message": "as it was told"}

    def handler() -> Any:
        found = guest.agent.report("sample")
        assert found is not None
        return found["handler"]

    beat = guest.path() / "heartbeat.log"
    beat.write_text(beat.read_text().replace("Ready", "notready"))
    assert handler() == {"status": "NotReady", "message": "as it was told"}
    old = time.time() - 601
    os.utime(beat, (old, old))
    assert handler() == {
        "status": "Unresponsive", "message": "Extension heartbeat is not responsive",
    }  # fmt: skip
    beat.write_text("{")
    assert handler() == {"status": "NotReady", "message": "Malformed heartbeat file"}
    beat.unlink()
    assert handler() == {"status": "NotReady", "message": "Failed to get heart beat file"}


def test_protected_settings_are_an_envelope_for_the_agents_key() -> None:
    """M5: in the guest's files they are encrypted, as Azure's are."""
    settings, certificate = handler_settings(
        extension(settings={"a": 1}, protected_settings={"key": "secret-value"})
    )
    assert certificate is not None
    assert settings["publicSettings"] == {"a": 1}
    assert settings["protectedSettingsCertThumbprint"] == certificate["thumbprint"]
    key = load_pem_private_key(certificate["private"].encode(), None)
    assert isinstance(key, RSAPrivateKey)
    opened = pkcs7.pkcs7_decrypt_der(
        base64.b64decode(settings["protectedSettings"]),
        load_pem_x509_certificate(certificate["public"].encode()),
        key,
        [],
    )
    assert json.loads(opened) == {"key": "secret-value"}
    assert handler_settings(extension()) == ({"publicSettings": {}}, None)


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    def refuse(path: Path, words: str) -> None:
        with pytest.raises(ImageError, match=words):
            PackagedHandler(path, **NAME, version="1.0")

    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "has no HandlerManifest.json")
    (tmp_path / "text").write_text("hello")
    refuse(tmp_path / "text", "is no zip file")
    lacking = "lacks enableCommand, updateCommand, disableCommand, uninstallCommand"
    for number, (content, words) in enumerate(
        [("[]", "must be a list with one object"), ("{}", "is no packaged handler"),
         ('[{"handlerManifest": {"installCommand": "a"}}]', lacking)]
    ):  # fmt: skip
        path = tmp_path / f"{number}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("HandlerManifest.json", content)
        refuse(path, words)
    source = write_handler(tmp_path / "sample")
    with pytest.raises(ImageError, match="is no version of a handler"):
        PackagedHandler(source, **NAME, version="1.x")


class Own(PackagedHandler):
    """A suite's own, which may do more than its package."""


def test_what_tells_handlers_apart_in_checkpoints(tmp_path: Path) -> None:
    """L1: guests are told the version too; and what a suite's own class does may change."""
    source = write_handler(tmp_path / "sample")
    one, same, other = (
        PackagedHandler(source, **NAME, version=version).fingerprint
        for version in ("1.2.0", "1.2.0", "1.3.0")
    )
    assert one == same
    assert one is not None
    assert other not in (None, one)
    assert Own(source, **NAME, version="1.2.0").fingerprint is None


def test_the_key_says_which_extensions_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L1: not only by which handlers the others are run."""
    handler = PackagedHandler(write_handler(tmp_path / "sample"), **NAME, version="1.2.0")
    model = web_model(extensions=False)
    profile = model["properties"]["virtualMachineProfile"]["extensionProfile"]
    for name in ("first", "second"):
        profile["extensions"].append(custom_script(name, publisher="Contoso", type=name))
    document = load_document(model, load_balancer=LOAD_BALANCER)
    found = set()
    for known in ("first", "second"):
        with monkeypatch.context() as patch:
            patch.setitem(registry._handlers, ("contoso", known), handler)
            found.add(
                checkpoint_key(
                    document.model,
                    digest="1",
                    size=VmSize("S", 1, 512),
                    hypervisor="",
                    guest_network="isolated",
                )
            )
    assert len(found) == 2
