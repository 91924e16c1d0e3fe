"""Azure's instance metadata service, as one guest sees it at 169.254.169.254 (O3)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pytest_vmss.guest_platform.exchange import Request, Response, json_response
from pytest_vmss.guest_platform.scheduled_events import ScheduledEvents

__all__ = ["API_VERSIONS", "EVENT_VERSIONS", "MetadataService"]

#: Versions of the service, oldest first.
API_VERSIONS = (
    "2017-03-01", "2017-04-02", "2017-08-01", "2017-10-01", "2017-12-01", "2018-02-01",
    "2018-04-02", "2018-10-01", "2019-02-01", "2019-03-11", "2019-04-30", "2019-06-01",
    "2019-06-04", "2019-08-01", "2019-08-15", "2019-11-01", "2020-06-01", "2020-07-15",
    "2020-09-01", "2020-10-01", "2020-12-01", "2021-01-01", "2021-02-01", "2021-03-01",
    "2021-05-01", "2021-08-01", "2021-10-01", "2021-11-01", "2021-11-15", "2021-12-13",
    "2023-07-01", "2023-11-15", "2024-03-15", "2024-07-17", "2025-04-07",
)  # fmt: skip
#: Versions of the scheduled events, oldest first.
EVENT_VERSIONS = (
    "2017-08-01",
    "2017-11-01",
    "2019-01-01",
    "2019-04-01",
    "2019-08-01",
    "2020-07-01",
)

#: The first version that has each of these properties of ``compute``, and of what is in them.
_SINCE = {
    "additionalCapabilities": "2021-11-01",
    "evictionPolicy": "2020-12-01",
    "extendedLocation": "2021-03-01",
    "host": "2021-11-15",
    "hostGroup": "2021-11-15",
    "isHostCompatibilityLayerVm": "2020-06-01",
    "osProfile.disablePasswordAuthentication": "2020-10-01",
    "physicalZone": "2023-11-15",
    "platformSubFaultDomain": "2021-10-01",
    "securityProfile.encryptionAtHost": "2021-11-01",
    "securityProfile.securityType": "2021-12-13",
    "storageProfile.imageReference.communityGalleryImageId": "2023-07-01",
    "storageProfile.imageReference.sharedGalleryImageId": "2023-07-01",
    "storageProfile.resourceDisk": "2021-02-01",
    "virtualMachineScaleSet": "2021-03-01",
    "vmScaleSetName": "2017-12-01",
    "zone": "2017-12-01",
    "subscriptionId": "2017-08-01",
    "tags": "2017-08-01",
    "resourceGroupName": "2017-08-01",
    "placementGroupId": "2017-08-01",
    "plan": "2018-04-02",
    "publicKeys": "2018-04-02",
    "provider": "2018-10-01",
    "azEnvironment": "2018-10-01",
    "resourceId": "2019-03-11",
    "storageProfile": "2019-06-01",
    "tagsList": "2019-06-04",
    "customData": "2019-02-01",
    "osProfile": "2020-07-15",
    "priority": "2020-12-01",
    "licenseType": "2020-09-01",
    "securityProfile": "2020-06-01",
    "userData": "2021-01-01",
}
_NEWEST = 3
_NO_VERSION = (
    "Bad request. api-version is invalid or was not specified in the request. For more information "
    "refer to aka.ms/azureimds"
)
#: What Azure says where the VM has no managed identity; SDKs then look for other credentials.
_NO_IDENTITY = {"error": "invalid_request", "error_description": "Identity not found"}
_INDEX = re.compile(r"0|[1-9][0-9]{0,3}")


class MetadataService:
    """Answers requests.

    Args:
        instance: Returns the instance's own document, with ``compute`` and ``network``.
        events: The instance's scheduled events.
    """

    def __init__(self, instance: Callable[[], dict[str, Any]], events: ScheduledEvents) -> None:
        self._instance = instance
        self._events = events

    def answer(self, request: Request) -> Response:
        """Returns the response to a request."""
        if request.headers.get("metadata", "").lower() != "true":
            return _error(400, "Bad request. Required metadata header not specified")
        if "x-forwarded-for" in request.headers:
            return _error(400, "Bad request. The request contains the header X-Forwarded-For")
        if request.repeats_itself:
            return _error(400, "Bad request. A query parameter is given more than once")
        match request.path:
            case ["metadata", "versions"]:
                return self._only(request, lambda: json_response({"apiVersions": API_VERSIONS}))
            case ["metadata", "instance", *place]:
                return self._versioned(
                    request,
                    API_VERSIONS,
                    ("GET",),
                    lambda version: self._found(version, request, place),
                )
            case ["metadata", "scheduledevents"]:
                return self._versioned(
                    request, EVENT_VERSIONS, ("GET", "POST"),
                    lambda version: self._events.answer(request, version),
                )  # fmt: skip
            case ["metadata", "identity", "oauth2", "token"]:
                return self._only(request, lambda: json_response(_NO_IDENTITY, 400))
            case _:
                return _error(404, "Not found")

    def _only(self, request: Request, answer: Callable[[], Response]) -> Response:
        return answer() if request.method == "GET" else _error(405, "Method not allowed")

    def _versioned(
        self,
        request: Request,
        versions: tuple[str, ...],
        methods: tuple[str, ...],
        answer: Callable[[str], Response],
    ) -> Response:
        if request.method not in methods:
            return _error(405, "Method not allowed")
        version = request.query.get("api-version", "")
        return answer(version) if version in versions else _no_version(versions)

    def _found(self, version: str, request: Request, place: list[str]) -> Response:
        """A part of the instance's document, as JSON or text."""
        document = dict(self._instance())
        document["compute"] = _as_of(version, document["compute"])
        found: Any = document
        for part in place:
            found = _part(found, part)
            if found is None:
                return _error(404, "Not found")
        shape = request.query.get("format")
        if shape not in (None, "json", "text"):
            return _error(400, "Bad request. Format is invalid")
        is_leaf = not isinstance(found, (dict, list))
        if shape == "text":
            return Response(200, _text(found).encode())
        if is_leaf:  # JSON, the default, does not work for leaves
            return _error(400, "Bad request. A leaf is only served with format=text")
        return json_response(found)


def _as_of(version: str, properties: dict[str, Any], inside: str = "") -> dict[str, Any]:
    """What a version of the service has of some properties.

    Args:
        version: The version.
        properties: The properties.
        inside: The path that leads to them in ``compute``, with a dot at its end.
    """
    return {
        name: _as_of(version, value, f"{inside}{name}.") if isinstance(value, dict) else value
        for name, value in properties.items()
        if _SINCE.get(inside + name, "") <= version
    }


def _part(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return next((v for key, v in value.items() if key.lower() == name.lower()), None)
    if isinstance(value, list) and _INDEX.fullmatch(name) and int(name) < len(value):
        return value[int(name)]
    return None


def _text(value: Any) -> str:
    """A leaf's value, or the names of what is inside, each on a line."""
    if isinstance(value, dict):
        return "\n".join(f"{n}/" if isinstance(v, (dict, list)) else n for n, v in value.items())
    if isinstance(value, list):
        return "\n".join(f"{number}/" for number in range(len(value)))
    return str(value)


def _error(status: int, message: str) -> Response:
    return json_response({"error": message}, status)


def _no_version(versions: tuple[str, ...]) -> Response:
    newest = [*reversed(versions)][:_NEWEST]
    return json_response({"error": _NO_VERSION, "newest-versions": newest}, 400)
