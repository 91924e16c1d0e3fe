"""The metadata service and the wire server, as guests and their tools use them (O2, O3)."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pycdlib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vmss.errors import HostError
from pytest_vmss.guest_platform import http_server
from pytest_vmss.guest_platform.config import PlatformFiles
from pytest_vmss.guest_platform.description import describe
from pytest_vmss.guest_platform.events_file import (
    Approvals,
    ScheduledEvent,
    is_approved,
    publish,
    published,
    read_events,
)
from pytest_vmss.guest_platform.exchange import Request, Response
from pytest_vmss.guest_platform.http_server import HttpServer
from pytest_vmss.guest_platform.metadata_service import API_VERSIONS, MetadataService
from pytest_vmss.guest_platform.provisioning import OVF_FILE, ovf_env
from pytest_vmss.guest_platform.scheduled_events import ScheduledEvents
from pytest_vmss.guest_platform.sightings import Recorder, Sightings, read_sightings
from pytest_vmss.guest_platform.wire_server import (
    HealthReport,
    WireServer,
    read_health,
    read_json_health,
)
from pytest_vmss.hypervisor.disks import write_provisioning_dvd
from pytest_vmss.model import ScaleSetModel, load_document
from pytest_vmss.store import GenerationRecord, InstanceRecord
from tests.models import LOAD_BALANCER, web_model

UUID = "406a9d04-57d7-48fb-9e7b-f19fe24fd39e"
USER_DATA = base64.b64encode(b"the application's own").decode()
ADDRESS = "/metadata/instance/network/interface/0/ipv4/ipAddress/0/privateIpAddress"
WA = "{http://schemas.microsoft.com/windowsazure}"


def model() -> ScaleSetModel:
    body = web_model()
    body["location"] = "westeurope"
    body["tags"] = {"team": "shop", "cost": "42"}
    profile = body["properties"]["virtualMachineProfile"]
    profile["userData"] = USER_DATA
    profile["osProfile"]["customData"] = base64.b64encode(b"#!/bin/sh\necho <&> \xff").decode()
    return load_document(body, load_balancer=LOAD_BALANCER).model


def instance(number: int = 0, version: str = "1.0.0") -> dict[str, Any]:
    """The document of an instance."""
    record = InstanceRecord(
        scale_set="web", instance_id=number, uuid=UUID, computer_name=f"web{number:06}",
        mac=f"52:54:00:00:00:{number:02x}", address="127.64.0.1", forwards={22: 10022},
        update_domain=number, zone=str(number + 1), created=datetime.now(UTC),
    )  # fmt: skip
    generation = GenerationRecord(
        scale_set="web", instance_id=number, number=1, gallery="gallery", definition="web",
        version=version, digest="0", revision=1, cloud_instance_id=UUID, host_key="",
        created=datetime.now(UTC),
    )  # fmt: skip
    document: dict[str, Any] = json.loads(
        describe(model(), record, generation, lab="lab", lab_key="ssh-ed25519 LAB lab")
    )
    return document


def service(number: int = 0) -> MetadataService:
    return MetadataService(
        lambda: instance(number),
        ScheduledEvents(lambda: {"DocumentIncarnation": 1, "Events": []}, lambda _: None),
    )


def get(
    target: str,
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: bytes = b"",
    number: int = 0,
) -> tuple[int, Any]:
    """Status and content of a response; JSON where it is that."""
    asked = Request(method, target, {"metadata": "true"} if headers is None else headers, body)
    answer = service(number).answer(asked)
    text = answer.body.decode()
    return answer.status, json.loads(text) if "json" in answer.content_type else text


INSTANCE = "/metadata/instance?api-version=2023-11-15"


def test_each_instance_is_told_its_own_truth() -> None:
    """O3: compute and network, from the model and the instance."""
    for number in (0, 3):
        status, told = get(INSTANCE, number=number)
        assert status == 200
        compute = told["compute"]
        assert compute["name"] == f"web_{number}"
        assert compute["vmId"] == UUID
        assert compute["vmScaleSetName"] == "web"
        assert compute["osProfile"]["computerName"] == f"web{number:06}"
        assert (compute["zone"], compute["platformUpdateDomain"]) == (str(number + 1), str(number))
        assert compute["location"] == "westeurope"
        assert compute["tags"] == "team:shop;cost:42"
        assert compute["tagsList"][0] == {"name": "team", "value": "shop"}
        assert compute["userData"] == USER_DATA
        assert compute["customData"] == ""
        image = compute["storageProfile"]["imageReference"]
        assert image["id"].endswith("/versions/1.0.0")
        assert image["exactVersion"] == "1.0.0"
        assert compute["publicKeys"][-1]["keyData"] == "ssh-ed25519 LAB lab"
        assert compute["resourceId"].endswith(
            f"/virtualMachineScaleSets/web/virtualMachines/{number}"
        )
        (card,) = told["network"]["interface"]
        assert card["macAddress"] == f"5254000000{number:02X}"
        assert card["ipv4"]["ipAddress"][0]["privateIpAddress"] == f"10.0.0.{number + 4}"


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, "Bad request. Required metadata header not specified"),
        ({"metadata": "false"}, "Bad request. Required metadata header not specified"),
        (
            {"metadata": "true", "x-forwarded-for": "10.0.0.1"},
            "Bad request. The request contains the header X-Forwarded-For",
        ),
    ],
)
def test_requests_that_a_proxy_may_have_made_are_refused(
    headers: dict[str, str], message: str
) -> None:
    """O3."""
    assert get(INSTANCE, headers=headers) == (400, {"error": message})


def test_the_api_version_is_needed_and_checked() -> None:
    """O3."""
    newest = [*reversed(API_VERSIONS)][:3]
    assert get("/metadata/instance") == (
        400,
        {
            "error": "Bad request. api-version is invalid or was not specified in the request. For "
            "more information refer to aka.ms/azureimds",
            "newest-versions": newest,
        },
    )
    status, told = get("/metadata/instance?api-version=2021-08-02")
    assert (status, told["newest-versions"]) == (400, newest)
    assert newest == ["2025-04-07", "2024-07-17", "2024-03-15"]  # those that Azure's page shows
    status, _ = get("/metadata/instance?api-version=2021-08-01&API-version=2021-08-01")
    assert status == 400
    assert get("/metadata/versions") == (200, {"apiVersions": list(API_VERSIONS)})


def test_an_old_version_lacks_what_is_newer() -> None:
    """O3."""
    _, told = get("/metadata/instance/compute?api-version=2017-08-01")
    assert told["vmId"] == UUID
    assert not {"userData", "osProfile", "storageProfile", "vmScaleSetName"} & set(told)
    _, told = get("/metadata/instance/compute?api-version=2021-01-01")
    assert told["userData"] == USER_DATA
    _, told = get("/metadata/instance/compute?api-version=2020-07-15")
    assert set(told["osProfile"]) == {"adminUsername", "computerName"}
    assert "resourceDisk" not in told["storageProfile"]
    image = told["storageProfile"]["imageReference"]
    assert "sharedGalleryImageId" not in image
    assert image["exactVersion"] == "1.0.0", "what an upgrade has brought is told in any version"
    assert not {"virtualMachineScaleSet", "evictionPolicy", "priority"} & set(told)


def test_what_does_not_apply_is_there_and_empty() -> None:
    """O3: as in Azure, so that no program fails here alone."""
    _, told = get("/metadata/instance/compute?api-version=2025-04-07")
    assert told["physicalZone"] == told["platformSubFaultDomain"] == ""
    assert told["extendedLocation"] == {"name": "", "type": ""}
    assert told["host"] == told["hostGroup"] == told["virtualMachineScaleSet"] == {"id": ""}
    assert told["additionalCapabilities"] == {"hibernationEnabled": "false"}
    assert told["securityProfile"]["securityType"] == ""
    assert told["storageProfile"]["imageReference"]["communityGalleryImageId"] == ""


@pytest.mark.parametrize(
    ("target", "status", "content"),
    [
        ("/metadata/instance/compute/vmId?api-version=2021-02-01&format=text", 200, UUID),
        ("/metadata/instance/?api-version=2021-02-01&format=text", 200, "compute/\nnetwork/"),
        (
            f"{ADDRESS}?api-version=2021-02-01&format=text",
            200,
            "10.0.0.4",
        ),
        ("/metadata/instance/network/interface?api-version=2021-02-01&format=text", 200, "0/"),
        ("/metadata/instance/network/interface/1?api-version=2021-02-01", 404, {"error": "Not found"}),
        ("/metadata/instance/nothing?api-version=2021-02-01", 404, {"error": "Not found"}),
        (
            "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net",
            400,
            {"error": "invalid_request", "error_description": "Identity not found"},
        ),
        ("/other", 404, {"error": "Not found"}),
        (
            "/metadata/instance/compute/vmId?api-version=2021-02-01",
            400,
            {"error": "Bad request. A leaf is only served with format=text"},
        ),
        (
            f"{INSTANCE}&format=xml",
            400,
            {"error": "Bad request. Format is invalid"},
        ),
    ],
)  # fmt: skip
def test_parts_are_served_as_text_or_json(target: str, status: int, content: Any) -> None:
    """O3."""
    assert get(target) == (status, content)


def test_other_methods_are_refused() -> None:
    assert get(INSTANCE, method="POST") == (405, {"error": "Method not allowed"})
    assert get("/metadata/versions", method="PUT") == (405, {"error": "Method not allowed"})


def test_scheduled_events_are_answered() -> None:
    """O3."""
    events = "/metadata/scheduledevents?api-version=2020-07-01"
    assert get(events) == (200, {"DocumentIncarnation": 1, "Events": []})
    assert get("/metadata/scheduledevents?api-version=2021-08-01")[0] == 400
    unknown = json.dumps({"StartRequests": [{"EventId": "x"}]}).encode()
    assert get(events, method="POST", body=unknown)[0] == 400
    for wrong in (b"", b"\xff", b"[]", b'{"StartRequests": 1}', b'{"StartRequests": [{}]}'):
        assert get(events, method="POST", body=wrong)[0] == 400


def test_an_event_is_seen_and_approved(tmp_path: Path) -> None:
    """O4: in Azure's form, which grew with the versions; only what is pending can be approved."""
    files = PlatformFiles(tmp_path / "406a9d04.az")
    when = datetime(2026, 1, 1, 12, 15, tzinfo=UTC)
    event = ScheduledEvent("A-1", "Reimage", "web_0", when)
    publish(files, event)
    publish(files, event)
    server = MetadataService(
        instance,
        ScheduledEvents(lambda: read_events(files.events), Approvals(files.approvals).add),
    )

    def ask(version: str, method: str = "GET", body: bytes = b"") -> tuple[int, Any]:
        target = f"/metadata/scheduledevents?api-version={version}"
        told = server.answer(Request(method, target, {"metadata": "true"}, body))
        return told.status, json.loads(told.body) if told.body else None

    _, told = ask("2020-07-01")
    assert told["DocumentIncarnation"] == 2
    assert told["Events"] == [
        {
            "EventId": "A-1",
            "EventStatus": "Scheduled",
            "EventType": "Reimage",
            "ResourceType": "VirtualMachine",
            "Resources": ["web_0"],
            "NotBefore": "Thu, 01 Jan 2026 12:15:00 GMT",
            "Description": "The OS disk is replaced by that of another image version.",
            "EventSource": "Platform",
            "DurationInSeconds": -1,
        }
    ]
    _, old = ask("2017-11-01")
    assert not {"Description", "EventSource", "DurationInSeconds"} & set(old["Events"][0])
    assert published(files, "A-1") == when
    assert published(files, "A-2") is None
    assert not is_approved(files, "A-1")
    for wrong in ("A-2", "A-1/../x"):
        body = json.dumps({"StartRequests": [{"EventId": wrong}]}).encode()
        assert ask("2020-07-01", "POST", body)[0] == 400
    body = json.dumps({"StartRequests": [{"EventId": "A-1"}]}).encode()
    assert ask("2020-07-01", "POST", body) == (200, None)
    assert is_approved(files, "A-1")
    publish(files, replace(event, started=True))
    _, told = ask("2020-07-01")
    assert told["DocumentIncarnation"] == 3
    assert (told["Events"][0]["EventStatus"], told["Events"][0]["NotBefore"]) == ("Started", "")
    publish(files)
    assert ask("2020-07-01")[1] == {"DocumentIncarnation": 4, "Events": []}


@pytest.mark.parametrize("content", ["", "{", "[1, 2", '{"a": 1}'])
def test_what_a_guest_left_as_approvals_is_none(tmp_path: Path, content: str) -> None:
    """R2."""
    files = PlatformFiles(tmp_path / "406a9d04.az")
    files.folder.mkdir()
    files.approvals.write_text(content)
    assert not is_approved(files, "A-1")


@given(st.text(max_size=60), st.binary(max_size=60))
def test_whatever_a_guest_asks_is_answered(target: str, body: bytes) -> None:
    """R2."""
    for prefix in ("", "/metadata/instance/", "/metadata/scheduledevents?api-version=2020-07-01&"):
        for method in ("GET", "POST"):
            try:
                asked = Request(method, prefix + target, {"metadata": "true"}, body)
                assert service().answer(asked).status in (200, 400, 404, 405)
            except ValueError:
                pass  # no URL, which the HTTP server answers


# The wire server.


def wire(saw: list[str], reports: list[HealthReport]) -> Callable[[Request], Response]:
    return WireServer(
        container=UUID, instance="web_0", service="web", address="10.0.0.4", saw=saw.append,
        report=reports.append,
    ).answer  # fmt: skip


def health(state: str, details: str = "", *, instance: str = "web_0") -> bytes:
    """A report as cloud-init and Azure's agent write it."""
    return (
        '<?xml version="1.0" encoding="utf-8"?><Health><GoalStateIncarnation>1'
        f"</GoalStateIncarnation><Container><ContainerId>{UUID}</ContainerId><RoleInstanceList>"
        f"<Role><InstanceId>{instance}</InstanceId><Health><State>{state}</State>{details}</Health>"
        "</Role></RoleInstanceList></Container></Health>"
    ).encode()


def test_the_goal_state_leads_to_its_parts() -> None:
    """O1."""
    saw: list[str] = []
    answer = wire(saw, [])
    told = answer(Request("GET", "/machine/?comp=goalstate", {"x-ms-version": "2012-11-30"}))
    assert (told.status, told.content_type) == (200, "text/xml; charset=utf-8")
    goal = ET.fromstring(told.body)
    assert goal.findtext("Incarnation") == "1"
    assert goal.findtext("Container/ContainerId") == UUID
    role = goal.find("Container/RoleInstanceList/RoleInstance")
    assert role is not None
    assert role.findtext("InstanceId") == "web_0"
    for name in ("HostingEnvironmentConfig", "SharedConfig", "ExtensionsConfig"):
        url = role.findtext(f"Configuration/{name}")
        assert url is not None
        assert url.startswith("http://168.63.129.16:80/machine/")
        part = answer(Request("GET", url.removeprefix("http://168.63.129.16:80")))
        assert part.status == 200
        ET.fromstring(part.body)
    assert saw == ["goal state"]
    versions = ET.fromstring(answer(Request("GET", "/?comp=versions")).body)
    assert "2012-11-30" in [element.text for element in versions.iter("Version")]
    assert answer(Request("GET", "/machine/a/b?comp=config&type=none")).status == 404
    assert answer(Request("POST", "/machine?comp=roleProperties")).status == 200
    assert answer(Request("GET", "/secret")).status == 404


def test_a_guest_reports_whether_it_was_provisioned() -> None:
    """O2."""
    reports: list[HealthReport] = []
    answer = wire([], reports)
    details = (
        "<Details><SubStatus>ProvisioningFailed</SubStatus><Description>result=error|reason="
        "no ovf &lt;here&gt;\x00</Description></Details>"
    ).replace("\x00", "")
    for body in (health("Ready"), health("NotReady", details)):
        assert answer(Request("POST", "/machine?comp=health", body=body)).status == 200
    assert reports == [
        HealthReport("Ready"),
        HealthReport("NotReady", "ProvisioningFailed", "result=error|reason=no ovf <here>"),
    ]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"<Health/>", health("Perhaps"), b"\xff\xfe",
        b'<!DOCTYPE a [<!ENTITY b "c">]>' + health("Ready"),
        ('<!DOCTYPE a [<!ENTITY b "c">]>' + health("Ready").decode()[38:]).encode("utf-16"),
    ],
)  # fmt: skip
def test_a_report_that_is_none_is_refused(body: bytes) -> None:
    """R2: no entities, which could grow without bounds."""
    reports: list[HealthReport] = []
    assert wire([], reports)(Request("POST", "/machine?comp=health", body=body)).status == 400
    assert not reports


def test_a_report_in_latin_1_is_read() -> None:
    """O2, R2: as cloud-init 22.4 sends one that declares UTF-8."""
    details = "<Details><Description>pas trouv\xe9</Description></Details>"
    body = health("NotReady", details).decode().encode("latin-1")
    assert read_health(body).description == "pas trouv\ufffd"


def test_azure_init_reports_by_json() -> None:
    """O2: at the address that Azure has for agents without a goal state."""
    reports: list[HealthReport] = []
    answer = wire([], reports)
    for state, details in (
        ("NotReady", {"subStatus": "Provisioning", "description": "in progress"}),
        ("NotReady", {"subStatus": "ProvisioningFailed", "description": "result=error\x9b31m"}),
        ("Ready", None),
    ):
        body = json.dumps({"state": state, "details": details} if details else {"state": state})
        asked = Request("POST", "/provisioning/health", body=body.encode())
        assert answer(asked).status == 200
    assert reports == [
        HealthReport("NotReady", "Provisioning", "in progress"),
        HealthReport("NotReady", "ProvisioningFailed", "result=error"),
        HealthReport("Ready"),
    ]
    for none in (b"", b"[]", b'{"state":4}', b'{"state":"Perhaps"}', b"\xff", health("Ready")):
        assert answer(Request("POST", "/provisioning/health", body=none)).status == 400
    assert answer(Request("GET", "/provisioning/health")).status == 404
    assert len(reports) == 3


@pytest.mark.parametrize("read", [read_health, read_json_health])
@given(body=st.binary(max_size=100))
def test_whatever_is_reported_is_read_or_refused(
    read: Callable[[bytes], HealthReport], body: bytes
) -> None:
    """R2."""
    try:
        read(body)
    except ValueError:
        return


def test_what_a_guest_says_is_shown_without_controls_and_shortened() -> None:
    """R2."""
    told = read_health(
        health(
            "NotReady", f"<Details><Description>a&#x9b;31mred{'x' * 9000}</Description></Details>"
        )
    )
    assert told.description.startswith("ared")
    assert len(told.description) <= 4096


# What was seen.


def test_sightings_outlive_the_process_and_end_with_the_disk(tmp_path: Path) -> None:
    """O2."""
    path = tmp_path / "seen.json"
    recorder = Recorder(path, 1)
    for what in ("dhcp", "lease", "metadata"):
        recorder.saw(what)
    Recorder(path, 1).report(HealthReport("NotReady", "ProvisioningFailed", "why"))
    found = read_sightings(path, 1)
    assert found.seen == {"dhcp", "lease", "metadata"}
    assert found.health == HealthReport("NotReady", "ProvisioningFailed", "why")
    assert read_sightings(path, 2).seen == frozenset()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "verdict",
    [
        HealthReport("Ready"),
        HealthReport("NotReady", "ProvisioningFailed"),
        HealthReport("NotReady"),
    ],
)
def test_the_first_report_that_decides_is_final(tmp_path: Path, verdict: HealthReport) -> None:
    """O2: cloud-init and Azure's agent are both in most images, and each of them reports.

    Of what only says that it has begun any number may come before.
    """
    path = tmp_path / "seen.json"
    recorder = Recorder(path, 1)
    for number in range(150):
        recorder.report(HealthReport("NotReady", "Provisioning", f"step {number}"))
    assert "has begun (step 99)" in read_sightings(path, 1).hint()
    recorder.report(verdict)
    for later in (
        HealthReport("NotReady", "Provisioning", "Starting"),
        HealthReport("NotReady", "ProvisioningFailed", "later"),
        HealthReport("Ready"),
    ):
        recorder.report(later)
        Recorder(path, 1).report(later)
        assert read_sightings(path, 1).health == verdict


@pytest.mark.parametrize("letter", ["\U0001f600", "\u00e9", '"', "\\", "\n"])
def test_a_report_of_any_letters_is_read_again(tmp_path: Path, letter: str) -> None:
    """O2: a report that the guest was told was taken never becomes silence."""
    path = tmp_path / "seen.json"
    report = HealthReport("NotReady", letter * 4096, letter * 4096)
    Recorder(path, 1).report(report)
    assert read_sightings(path, 1).health == report


def test_a_report_that_cannot_be_kept_is_not_taken(tmp_path: Path) -> None:
    """O2, Q1: the guest is told to try again, and what it reports then is kept."""
    folder = tmp_path / "run"
    recorder = Recorder(folder / "seen.json", 1)
    recorder.saw("dhcp")
    with pytest.raises(OSError, match="No such file"):
        recorder.report(HealthReport("Ready"))
    folder.mkdir()
    recorder.report(HealthReport("Ready"))
    assert read_sightings(folder / "seen.json", 1).health == HealthReport("Ready")
    assert read_sightings(folder / "seen.json", 1).seen == {"dhcp"}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"generation": 1, "seen": 4}', "\x00"])
def test_a_broken_file_of_sightings_saw_nothing(tmp_path: Path, content: str) -> None:
    path = tmp_path / "seen.json"
    path.write_text(content)
    assert read_sightings(path, 1).seen == frozenset()
    assert read_sightings(tmp_path / "none", 1).health is None


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        ([], "never asked for an address by DHCP"),
        (["dhcp"], "was offered an address"),
        (["dhcp", "lease"], "find Azure as its data source"),
        (["dhcp", "lease", "metadata"], "never the wire server"),
        (["dhcp", "lease", "metadata", "goal state"], "never reported"),
    ],
)
def test_silence_is_explained_by_what_was_seen(seen: list[str], words: str) -> None:
    """O2."""
    assert words in Sightings(frozenset(seen)).hint()


# The provisioning DVD.


def test_the_dvd_says_who_the_guest_is_and_carries_custom_data(tmp_path: Path) -> None:
    """O1, H1: unchanged, and the file is the owner's alone."""
    path = tmp_path / "dvd.iso"
    write_provisioning_dvd(path, ovf_env(model(), computer_name="web000000"))
    assert path.stat().st_mode & 0o777 == 0o600
    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    assert iso.has_udf()
    out = io.BytesIO()
    iso.get_file_from_iso_fp(out, udf_path=f"/{OVF_FILE}")
    iso.close()
    section = ET.fromstring(out.getvalue()).find(
        f"{WA}ProvisioningSection/{WA}LinuxProvisioningConfigurationSet"
    )
    assert section is not None
    told = {element.tag.removeprefix(WA): element.text for element in section}
    assert told["HostName"] == "web000000"
    assert told["UserName"] == "azureuser"
    assert told["DisableSshPasswordAuthentication"] == "true"
    assert base64.b64decode(told["CustomData"] or "") == b"#!/bin/sh\necho <&> \xff"


def test_custom_data_is_never_shown() -> None:
    """M5."""
    assert "CustomData" not in repr(ovf_env(model(), computer_name="web000000"))


# The HTTP server.


async def asked(path: str, data: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("data", "begin", "end"),
    [
        (b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200", b"GET /a "),
        (b"GET /a HTTP/1.0\r\n\r\n", b"HTTP/1.1 200", b"GET /a "),
        (b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200", b"\r\n\r\n"),
        (
            b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\nbody",
            b"HTTP/1.1 ", b"POST /b body",
        ),
        (b"nonsense\r\n\r\n", b"HTTP/1.1 400", b""),
        (b"GET /a HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 20_000, b"HTTP/1.1 431", b""),
        (
            b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + b"b" * 300_000,
            b"HTTP/1.1 413", b"",
        ),
        (b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400", b""),
    ],
)  # fmt: skip
def test_requests_over_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, begin: bytes, end: bytes
) -> None:
    """R2."""
    monkeypatch.chdir(tmp_path)

    def echo(request: Request) -> Response:
        _ = request.path
        return Response(200, f"{request.method} {request.target} ".encode() + request.body)

    async def exchange() -> bytes:
        await HttpServer({"socket": echo}).listen()
        return await asked("socket", data)

    answer = asyncio.run(exchange())
    assert answer.startswith(begin)
    assert answer.endswith(end)
    assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("error", [OSError(28, "No space left"), HostError("config.json")])
def test_what_the_host_cannot_do_now_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """O2, Q1: so that the guest tries again, as with Azure's own servers."""
    monkeypatch.chdir(tmp_path)

    def fail(_: Request) -> Response:
        raise error

    async def exchange() -> bytes:
        await HttpServer({"socket": fail}).listen()
        return await asked("socket", b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")

    assert asyncio.run(exchange()).startswith(b"HTTP/1.1 503")


def test_guests_that_receive_nothing_hold_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R2: a response that is not received ends, with its connection."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(http_server, "_EXCHANGE_S", 0.1)
    monkeypatch.setattr(http_server, "_CLOSE_S", 0.1)

    async def exchange() -> int:
        await HttpServer({"socket": lambda _: Response(200, bytes(4_000_000))}).listen()
        links = [await asyncio.open_unix_connection("socket", limit=10) for _ in range(5)]
        for _, writer in links:
            writer.write(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(1)
        return len(asyncio.all_tasks())

    assert asyncio.run(exchange()) == 1
