"""Azure's health states, and the settings of the Application Health extension (F3)."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from pytest_vmss.model.names import RequestPath
from pytest_vmss.model.scale_set import AzureModel, Extension, ScaleSetModel
from pytest_vmss.model.spelling import spell

__all__ = [
    "ApplicationHealthSettings",
    "Health",
    "application_health",
    "is_application_health",
    "is_rich",
]

_PUBLISHER = "microsoft.managedservices"
_TYPES = ("applicationhealthlinux", "applicationhealthwindows")
_PORTS = {"http": 80, "https": 443}


class Health(StrEnum):
    """An instance's health; in upgrades Unknown counts as unhealthy (F5)."""

    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"
    UNKNOWN = "Unknown"
    INITIALIZING = "Initializing"


class ApplicationHealthSettings(AzureModel):
    """The ``settings`` of the Application Health extension, with Azure's defaults and ranges.

    Attributes:
        grace_period: In seconds; None if ``typeHandlerVersion`` is 1.0, which has none.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")

    protocol: Literal["http", "https", "tcp"]
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    request_path: RequestPath | None = None
    interval_in_seconds: Annotated[int, Field(ge=5, le=60)] = 5
    number_of_probes: Annotated[int, Field(ge=1, le=24)] = 1
    grace_period: Annotated[int, Field(ge=1, le=14400)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.protocol == "tcp":
            if self.port is None:
                raise ValueError("the protocol tcp needs a port")
            if self.request_path is not None:
                raise ValueError("the protocol tcp takes no requestPath")
        elif not (self.request_path or "").strip():
            raise ValueError(f"the protocol {self.protocol} needs a requestPath")
        return self

    @property
    def grace_seconds(self) -> float:
        """For how long an application may be Initializing, and the extension may tell it late."""
        if self.grace_period is None:
            return 0.0
        return float(self.grace_period + 2 * self.interval_in_seconds)

    @classmethod
    def of(cls, extension: Extension) -> Self:
        """Reads an extension's settings, and fills in defaults that depend on other settings.

        Raises:
            ValueError: Azure would reject them.
        """
        found = cls.model_validate(spell(cls, extension.settings or {}, in_template=True).body)
        if found.grace_period is not None and not is_rich(extension):
            raise ValueError("gracePeriod needs typeHandlerVersion 2.0")
        grace = found.grace_period or found.interval_in_seconds * found.number_of_probes
        path = found.request_path
        return found.model_copy(
            update={
                "port": found.port or _PORTS[found.protocol],
                "request_path": path if path is None or path.startswith("/") else f"/{path}",
                "grace_period": grace if is_rich(extension) else None,
            }
        )


def is_application_health(extension: Extension) -> bool:
    """Whether an extension is the Application Health extension."""
    return extension.publisher.lower() == _PUBLISHER and extension.type.lower() in _TYPES


def is_rich(extension: Extension) -> bool:
    """Whether an Application Health extension reports rich health states: version 2.0 or later."""
    return int(extension.type_handler_version.partition(".")[0]) >= 2


def application_health(model: ScaleSetModel) -> ApplicationHealthSettings | None:
    """Returns the settings of a model's Application Health extension, or None if it has none."""
    for extension in model.extensions:
        if is_application_health(extension):
            return ApplicationHealthSettings.of(extension)
    return None
