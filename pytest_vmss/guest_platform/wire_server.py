"""Azure's wire server, as one guest sees it at 168.63.129.16 (O1, O2).

cloud-init and Azure's Linux agent fetch the goal state here, and report whether provisioning
succeeded.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from pytest_vmss.guest_platform.exchange import Request, Response
from pytest_vmss.untrusted import UnreadableError, read_json, shown

__all__ = ["HealthReport", "WireServer", "read_health", "read_json_health"]

_VERSIONS = ("2015-04-05", "2012-11-30", "2012-09-15", "2012-05-15", "2011-12-31")
_XML = "text/xml; charset=utf-8"
_MESSAGE_CHARS = 4096
#: The sub-status of an agent that has begun, and says later how it ended.
_IN_PROGRESS = "Provisioning"
_INCARNATION = 1

_GOAL_STATE = """\
<?xml version="1.0" encoding="utf-8"?>
<GoalState xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:xsd="http://www.w3.org/2001/XMLSchema" xsi:noNamespaceSchemaLocation="goalstate10.xsd">
  <Version>2012-11-30</Version>
  <Incarnation>{incarnation}</Incarnation>
  <Machine>
    <ExpectedState>Started</ExpectedState>
    <StopRolesDeadlineHint>300000</StopRolesDeadlineHint>
    <LBProbePorts><Port>16001</Port></LBProbePorts>
    <ExpectHealthReport>FALSE</ExpectHealthReport>
  </Machine>
  <Container>
    <ContainerId>{container}</ContainerId>
    <RoleInstanceList>
      <RoleInstance>
        <InstanceId>{instance}</InstanceId>
        <State>Started</State>
        <Configuration>
          <HostingEnvironmentConfig>{url}&amp;type=hostingEnvironmentConfig&amp;incarnation={incarnation}</HostingEnvironmentConfig>
          <SharedConfig>{url}&amp;type=sharedConfig&amp;incarnation={incarnation}</SharedConfig>
          <ExtensionsConfig>{url}&amp;type=extensionsConfig&amp;incarnation={incarnation}</ExtensionsConfig>
          <ConfigName>{instance}.1.xml</ConfigName>
        </Configuration>
      </RoleInstance>
    </RoleInstanceList>
  </Container>
</GoalState>
"""
_SHARED_CONFIG = """\
<?xml version="1.0" encoding="utf-8"?>
<SharedConfig version="1.0.0.0" goalStateIncarnation="{incarnation}">
  <Deployment name="{container}" guid="{{{container}}}" incarnation="0" isNonCancellableTopologyChangeEnabled="false">
    <Service name="{service}" guid="{{00000000-0000-0000-0000-000000000000}}" />
    <ServiceInstance name="{container}.0" guid="{{{container}}}" />
  </Deployment>
  <Incarnation number="1" instance="{instance}" guid="{{{container}}}" />
  <Role guid="{{{container}}}" name="{service}" settleTimeSeconds="0" />
  <Instances>
    <Instance id="{instance}" address="{address}"><FaultDomains randomId="0" updateId="0" updateCount="0" /></Instance>
  </Instances>
</SharedConfig>
"""
_HOSTING = """\
<?xml version="1.0" encoding="utf-8"?>
<HostingEnvironmentConfig version="1.0.0.0" goalStateIncarnation="{incarnation}">
  <Deployment name="{container}" guid="{{{container}}}" incarnation="0" />
  <Incarnation number="1" instance="{instance}" guid="{{{container}}}" />
  <Role guid="{{{container}}}" name="{service}" hostingEnvironmentVersion="1" software="" softwareType="ApplicationPackage" entryPoint="" parameters="" settleTimeSeconds="0" />
</HostingEnvironmentConfig>
"""
_EXTENSIONS = """\
<?xml version="1.0" encoding="utf-8"?>
<Extensions version="1.0.0.0" goalStateIncarnation="{incarnation}">
  <GuestAgentExtension />
  <PluginSettings />
</Extensions>
"""
_CONFIGURATIONS = {
    "sharedConfig": _SHARED_CONFIG,
    "hostingEnvironmentConfig": _HOSTING,
    "extensionsConfig": _EXTENSIONS,
}


@dataclass(frozen=True)
class HealthReport:
    """What a guest reported about its provisioning.

    Attributes:
        state: ``Ready`` or ``NotReady``.
        sub_status: Such as ``ProvisioningFailed``; may be empty.
        description: Why it is not ready; may be empty.
    """

    state: str
    sub_status: str = ""
    description: str = ""

    @property
    def is_verdict(self) -> bool:
        """Whether it says how provisioning ended, rather than that it has begun."""
        return self.state == "Ready" or self.sub_status != _IN_PROGRESS


class WireServer:
    """Answers requests.

    Args:
        container: Azure's id of the VM's container: the VM's id.
        instance: Name of the role instance.
        service: Name of the role: the scale set.
        address: The guest's private address.
        saw: Called with ``goal state`` when the guest asks for it.
        report: Called with what it reports.
    """

    def __init__(
        self,
        *,
        container: str,
        instance: str,
        service: str,
        address: str,
        saw: Callable[[str], None],
        report: Callable[[HealthReport], None],
    ) -> None:
        self._values = {
            "container": escape(container),
            "instance": escape(instance, {'"': "&quot;"}),
            "service": escape(service, {'"': "&quot;"}),
            "address": address,
            "incarnation": _INCARNATION,
            "url": f"http://168.63.129.16:80/machine/{container}/{escape(instance)}?comp=config",
        }
        self._saw = saw
        self._report = report

    def answer(self, request: Request) -> Response:
        """Returns the response to a request."""
        wanted = request.query.get("comp", "").lower()
        match request.method, request.path, wanted:
            case "GET", [], "versions":
                return self._versions()
            case "GET", ["machine"], "goalstate":
                self._saw("goal state")
                return self._xml(_GOAL_STATE)
            case "GET", ["machine", _, _], "config":
                text = _CONFIGURATIONS.get(request.query.get("type", ""))
                return Response(404) if text is None else self._xml(text)
            case "POST", ["machine"], "health":
                return self._health(read_health, request.body)
            case "POST", ["provisioning", "health"], _:
                return self._health(read_json_health, request.body)
            case "POST", ["machine"], "roleproperties" | "telemetrydata":
                return Response(200)
            case _:
                return Response(404)

    def _xml(self, text: str) -> Response:
        return Response(200, text.format(**self._values).encode(), _XML)

    @staticmethod
    def _versions() -> Response:
        listed = "".join(f"<Version>{version}</Version>" for version in _VERSIONS)
        body = (
            '<?xml version="1.0" encoding="utf-8"?><Versions><Preferred>'
            f"<Version>{_VERSIONS[0]}</Version></Preferred><Supported>{listed}</Supported></Versions>"
        )
        return Response(200, body.encode(), _XML)

    def _health(self, read: Callable[[bytes], HealthReport], body: bytes) -> Response:
        try:
            report = read(body)
        except ValueError:
            return Response(400)
        self._report(report)
        return Response(200)


def read_health(body: bytes) -> HealthReport:
    """Reads a report of cloud-init and of Azure's Linux agent, which is XML.

    Raises:
        ValueError: It is none.
    """
    # Old cloud-inits declare UTF-8 and send Latin-1: their words count all the same.
    text = body.decode("utf-8-sig", errors="replace")
    if "<!" in text:  # no entities, which could grow without bounds
        raise ValueError("the report has a document type or a comment")
    try:
        root = ET.fromstring(text)  # noqa: S314 - bounded, and without entities
    except ET.ParseError as error:
        raise ValueError(f"the report is no XML: {error}") from error
    health = root.find("Container/RoleInstanceList/Role/Health")
    if health is None:
        raise ValueError("the report has no health")
    places = ("State", "Details/SubStatus", "Details/Description")
    return _report(*(health.findtext(place) or "" for place in places))


def read_json_health(body: bytes) -> HealthReport:
    """Reads a report of azure-init, which is JSON.

    Raises:
        ValueError: It is none.
    """
    try:
        document = read_json(body.decode())
    except UnreadableError as error:
        raise ValueError(f"the report is no JSON: {error}") from error
    told = document if isinstance(document, dict) else {}
    details = told.get("details")
    why: dict[str, Any] = details if isinstance(details, dict) else {}
    parts = (told.get("state"), why.get("subStatus"), why.get("description"))
    return _report(*(part if isinstance(part, str) else "" for part in parts))


def _report(state: str, sub_status: str, description: str) -> HealthReport:
    """Makes a report of what a guest wrote.

    Raises:
        ValueError: Its state is none.
    """
    if state.strip() not in ("Ready", "NotReady"):
        raise ValueError("the report has no state Ready or NotReady")
    why = (shown(words.strip(), _MESSAGE_CHARS) for words in (sub_status, description))
    return HealthReport(state.strip(), *why)
