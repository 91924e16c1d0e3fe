"""Azure's scale-set model: Azure's names in JSON, snake_case in Python.

Only properties with a meaning locally are declared; all others are accepted, kept and
returned, and listed by :meth:`ScaleSetModel.not_modelled` (A6).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.alias_generators import to_camel

from pytest_vmss.model.durations import Duration
from pytest_vmss.model.names import (
    AdminName,
    KeyData,
    PlainText,
    Prefix,
    ResourceName,
    SetName,
    TagValue,
    Version,
    Zone,
)
from pytest_vmss.model.not_modelled import is_as_here
from pytest_vmss.secrecy import conceal, is_secret_name, published, with_masks_of

__all__ = [
    "AutomaticOSUpgradePolicy",
    "AutomaticRepairsPolicy",
    "AzureModel",
    "DataDisk",
    "Extension",
    "ExtensionProfile",
    "HealthProbeReference",
    "ImageReference",
    "LinuxConfiguration",
    "NetworkProfile",
    "OSDisk",
    "OSProfile",
    "PatchSettings",
    "RollingUpgradePolicy",
    "ScaleInPolicy",
    "ScaleSetModel",
    "Sku",
    "SshPublicKey",
    "StorageProfile",
    "UpgradePolicy",
    "VirtualMachineProfile",
    "WindowsConfiguration",
]


#: How ARM takes true and false as text, in any case.
_BOOLEANS = ("true", "false")


class AzureModel(BaseModel):
    """A part of Azure's wire model; unknown properties are kept as they are."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="allow",
        validate_assignment=True,
        ser_json_timedelta="iso8601",
        hide_input_in_errors=True,
    )

    #: Declared fields that nothing reads, each with the value that says what is done here anyway.
    NOT_READ: ClassVar[Mapping[str, object]] = {}

    @field_validator("*", mode="wrap")
    @classmethod
    def _keep_masks(cls, given: Any, check: ValidatorFunctionWrapHandler) -> Any:
        """Keeps values masked through validation that were masked when read (M5)."""
        value = check(given)
        if isinstance(given, bool) and not isinstance(value, bool):
            raise ValueError("must be a number; given true or false")
        if isinstance(value, bool) and isinstance(given, str) and given.lower() not in _BOOLEANS:
            raise ValueError("must be true or false")
        return with_masks_of(given, value)

    @model_serializer(mode="wrap")
    def _serialize(
        self, dump: SerializerFunctionWrapHandler, info: SerializationInfo[Any]
    ) -> dict[str, Any]:
        """Serializes to JSON without secrets, unless :meth:`full` requests them.

        What nothing reads is there only if it was given, so that no default is listed as given.
        """
        body: dict[str, Any] = dump(self)
        fields = type(self).model_fields
        for name in self.NOT_READ.keys() - self.model_fields_set:
            body.pop((fields[name].alias or name) if info.by_alias else name, None)
        if info.mode != "json" or info.context is _FULL:
            return body
        known = dict(self.model_extra or {})
        for name, field in type(self).model_fields.items():
            known[(field.alias or name) if info.by_alias else name] = getattr(self, name)
        shown: dict[str, Any] = published(body, known)
        return shown

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, conceal(value, secret=name is not None and is_secret_name(name))

    def unknown(self, path: str) -> Iterator[str]:
        """Yields JSON paths of properties that have no effect locally."""
        for name, value in (self.model_extra or {}).items():
            if value not in (None, [], {}) and not is_as_here(path, name, value):
                yield f"{path}.{name}"
        for name, field in type(self).model_fields.items():
            alias = field.alias or name
            value = getattr(self, name)
            if (
                name in self.NOT_READ
                and name in self.model_fields_set
                and value not in (None, self.NOT_READ[name])
            ):
                yield f"{path}.{alias}"
            if isinstance(value, AzureModel):
                yield from value.unknown(f"{path}.{alias}")
            elif isinstance(value, list):
                for index, item in enumerate(value):
                    if isinstance(item, AzureModel):
                        yield from item.unknown(f"{path}.{alias}[{index}]")

    def wire(self) -> dict[str, Any]:
        """Returns the JSON body without nulls, as a GET would return it; secrets are masked."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def full(self) -> dict[str, Any]:
        """Returns the JSON body without nulls, with secrets; only to run or store the model."""
        body = self.model_dump(mode="json", by_alias=True, exclude_none=True, context=_FULL)
        masks = self.model_dump(by_alias=True, exclude_none=True)
        masked: dict[str, Any] = conceal(with_masks_of(masks, body))
        return masked


#: Context that makes the serializer include secrets.
_FULL: dict[str, bool] = {"full": True}


def _check_base64(value: SecretStr) -> SecretStr:
    try:
        decoded = base64.b64decode(value.get_secret_value(), validate=True)
    except (binascii.Error, ValueError):
        decoded = None
    if decoded is None:
        raise ValueError("must be base64, without line breaks")
    if len(decoded) > 65536:
        raise ValueError(f"holds {len(decoded)} bytes; Azure takes 65536 at most")
    return value


#: Write-only base64 text, never shown.
Base64Secret = Annotated[SecretStr, AfterValidator(_check_base64)]


class Sku(AzureModel):
    """The size and number of the instances."""

    name: str
    tier: str | None = None
    capacity: Annotated[int, Field(ge=0, le=1000)] = 0


class RollingUpgradePolicy(AzureModel):
    """How batches are formed and when an upgrade stops; percentages are of all instances."""

    max_batch_instance_percent: Annotated[int, Field(ge=5, le=100)] = 20
    max_unhealthy_instance_percent: Annotated[int, Field(ge=5, le=100)] = 20
    max_unhealthy_upgraded_instance_percent: Annotated[int, Field(ge=0, le=100)] = 20
    # Azure documents no maximum; a day is far longer than any rehearsal waits.
    pause_time_between_batches: Annotated[timedelta, Duration("PT0S", "P1D")] = timedelta(0)
    enable_cross_zone_upgrade: bool = False
    prioritize_unhealthy_instances: bool = False
    rollback_failed_instances_on_policy_breach: bool = False
    max_surge: bool = False


class AutomaticOSUpgradePolicy(AzureModel):
    """Whether new image versions are rolled out automatically."""

    enable_automatic_os_upgrade: Annotated[bool, Field(alias="enableAutomaticOSUpgrade")] = False
    disable_automatic_rollback: bool = False
    use_rolling_upgrade_policy: bool = False

    NOT_READ = {"use_rolling_upgrade_policy": True}


class UpgradePolicy(AzureModel):
    """How changes to the model reach instances."""

    mode: Literal["Automatic", "Manual", "Rolling"] = "Manual"
    rolling_upgrade_policy: RollingUpgradePolicy | None = None
    automatic_os_upgrade_policy: Annotated[
        AutomaticOSUpgradePolicy | None, Field(alias="automaticOSUpgradePolicy")
    ] = None


class SshPublicKey(AzureModel):
    """An SSH key that may log in as the administrator."""

    path: str | None = None
    key_data: KeyData

    NOT_READ = {"path": None}


class SshConfiguration(AzureModel):
    """The SSH keys that may log in as the administrator."""

    public_keys: Annotated[list[SshPublicKey], Field(max_length=100)] = []


class PatchSettings(AzureModel):
    """What patches the guest."""

    patch_mode: str | None = None


class LinuxConfiguration(AzureModel):
    """Settings of Linux guests only."""

    disable_password_authentication: bool | None = None
    ssh: SshConfiguration | None = None
    patch_settings: PatchSettings | None = None

    NOT_READ = {"disable_password_authentication": True}


class WindowsConfiguration(AzureModel):
    """Settings of Windows guests only."""

    enable_automatic_updates: bool | None = None
    patch_settings: PatchSettings | None = None


class OSProfile(AzureModel):
    """Settings that the guest receives at its first boot."""

    computer_name_prefix: Prefix | None = None
    admin_username: AdminName = "azureuser"
    admin_password: SecretStr | None = Field(default=None, exclude=True)
    custom_data: Base64Secret | None = Field(default=None, exclude=True)
    linux_configuration: LinuxConfiguration | None = None
    windows_configuration: WindowsConfiguration | None = None

    NOT_READ = {"admin_password": None}

    def unknown(self, path: str) -> Iterator[str]:
        """Yields JSON paths of properties that have no effect locally.

        A key's path has none where it is the administrator's own.
        """
        usual = f"/home/{self.admin_username}/.ssh/authorized_keys"
        linux = self.linux_configuration
        keys = linux.ssh.public_keys if linux and linux.ssh else []
        as_here = {
            f"{path}.linuxConfiguration.ssh.publicKeys[{index}].path"
            for index, key in enumerate(keys)
            if key.path == usual
        }
        yield from (found for found in super().unknown(path) if found not in as_here)


class ImageReference(AzureModel):
    """The image that OS disks are made from."""

    id: str | None = None
    publisher: str | None = None
    offer: str | None = None
    sku: str | None = None
    version: str | None = None
    exact_version: str | None = None


class OSDisk(AzureModel):
    """The OS disk of each instance."""

    create_option: Literal["FromImage", "Empty", "Attach", "Copy", "Restore"] = "FromImage"
    caching: Literal["None", "ReadOnly", "ReadWrite"] | None = None
    os_type: Literal["Linux", "Windows"] | None = None
    disk_size_gb: Annotated[int, Field(ge=1, le=4095)] | None = Field(
        default=None, alias="diskSizeGB"
    )

    NOT_READ = {"create_option": "FromImage", "caching": None}


class DataDisk(AzureModel):
    """A data disk of each instance."""

    lun: Annotated[int, Field(ge=0, le=63)]
    name: str | None = None
    create_option: Literal["Empty", "FromImage", "Attach", "Copy", "Restore"]
    disk_size_gb: Annotated[int, Field(ge=1, le=65536)] | None = Field(
        default=None, alias="diskSizeGB"
    )
    delete_option: Literal["Delete", "Detach"] | None = None

    NOT_READ = {"name": None}


class StorageProfile(AzureModel):
    """The disks of each instance."""

    image_reference: ImageReference
    os_disk: OSDisk = Field(default_factory=OSDisk)
    data_disks: Annotated[list[DataDisk], Field(max_length=64)] = []


class HealthProbeReference(AzureModel):
    """A reference to a load balancer's probe, by id."""

    id: str


class SubnetReference(AzureModel):
    """A reference to a subnet of a virtual network, by id."""

    id: str


class IPConfiguration(AzureModel):
    """An IP configuration of a network interface, with ``properties`` flattened."""

    name: PlainText | None = None
    subnet: SubnetReference | None = None


class NetworkInterfaceConfiguration(AzureModel):
    """A network interface of each instance, with ``properties`` flattened."""

    name: PlainText | None = None
    primary: bool | None = None
    ip_configurations: list[IPConfiguration] | None = None


class NetworkProfile(AzureModel):
    """The network settings of instances."""

    health_probe: HealthProbeReference | None = None
    network_interface_configurations: list[NetworkInterfaceConfiguration] | None = None


class Extension(AzureModel):
    """A VM extension, with ``properties`` flattened."""

    name: ResourceName
    publisher: PlainText
    type: PlainText
    type_handler_version: Version
    settings: dict[str, Any] | None = None
    protected_settings: dict[str, Any] | None = Field(default=None, exclude=True, repr=False)
    protected_settings_from_key_vault: Any = Field(default=None, exclude=True, repr=False)
    provision_after_extensions: Annotated[list[str], Field(max_length=100)] = []
    force_update_tag: str | None = None
    suppress_failures: bool = False

    NOT_READ = {"protected_settings_from_key_vault": None}

    @property
    def handler_name(self) -> str:
        """``Publisher.Type``, Azure's name for its handler in instance views."""
        return f"{self.publisher}.{self.type}"


class ExtensionProfile(AzureModel):
    """The VM extensions of each instance."""

    extensions: Annotated[list[Extension], Field(max_length=100)] = []
    extensions_time_budget: Annotated[timedelta, Duration("PT15M", "PT2H")] | None = None


class OSImageNotificationProfile(AzureModel):
    """Whether guests are told before their OS disk is replaced (O4)."""

    enable: bool = False
    not_before_timeout: Annotated[timedelta, Duration("PT1S", "PT15M")] = timedelta(minutes=15)


class TerminateNotificationProfile(AzureModel):
    """Whether guests are told before their instance is deleted (O4)."""

    enable: bool = False
    not_before_timeout: Annotated[timedelta, Duration("PT5M", "PT15M")] = timedelta(minutes=5)


class ScheduledEventsProfile(AzureModel):
    """The scheduled events that guests are told of."""

    os_image_notification_profile: OSImageNotificationProfile | None = None
    terminate_notification_profile: TerminateNotificationProfile | None = None


class VirtualMachineProfile(AzureModel):
    """The profile that every instance is created from."""

    os_profile: OSProfile
    storage_profile: StorageProfile
    network_profile: NetworkProfile | None = None
    extension_profile: ExtensionProfile | None = None
    user_data: Base64Secret | None = Field(default=None, exclude=True)
    scheduled_events_profile: ScheduledEventsProfile | None = None


class ScaleInPolicy(AzureModel):
    """Which instances are removed when the set scales in."""

    rules: list[Literal["Default", "OldestVM", "NewestVM"]] = []
    prioritize_unhealthy_vms: Annotated[bool, Field(alias="prioritizeUnhealthyVMs")] = False


class AutomaticRepairsPolicy(AzureModel):
    """How unhealthy instances are repaired (K1)."""

    enabled: bool = False
    grace_period: Annotated[timedelta, Duration("PT10M", "PT90M")] = timedelta(minutes=10)
    repair_action: Literal["Replace", "Reimage", "Restart"] = "Replace"


class ScaleSetModel(AzureModel):
    """The body of a ``Microsoft.Compute/virtualMachineScaleSets`` resource.

    ``properties`` are flattened, as ``az vmss show`` prints them.
    """

    name: SetName
    api_version: str | None = None
    location: str = "local"
    tags: Annotated[dict[str, TagValue], Field(max_length=50)] = {}
    # Templates write an empty text where there are none.
    zones: Annotated[
        list[Zone],
        BeforeValidator(lambda value: [] if value == "" else value),
        Field(max_length=100),
    ] = []
    sku: Sku
    upgrade_policy: UpgradePolicy = Field(default_factory=UpgradePolicy)
    virtual_machine_profile: VirtualMachineProfile
    orchestration_mode: Literal["Uniform"] = "Uniform"
    single_placement_group: bool | None = None
    scale_in_policy: ScaleInPolicy | None = None
    automatic_repairs_policy: AutomaticRepairsPolicy | None = None

    @model_validator(mode="before")
    @classmethod
    def _mask(cls, body: Any) -> Any:
        """Masks secrets, also those read from the database (M5)."""
        return conceal(body)

    def not_modelled(self) -> list[str]:
        """Returns the JSON paths of properties that are kept but have no effect here."""
        return sorted(self.unknown("$"))

    @property
    def computer_name_prefix(self) -> str:
        """The prefix of computer names; without one, what ``az vmss create`` makes of the name."""
        given = self.virtual_machine_profile.os_profile.computer_name_prefix
        if given is not None:
            return given
        letters = "".join(part for part in self.name if part.isalnum() and part.isascii())
        return letters[:9].lower() or "vmss"

    @property
    def automatic_os_upgrade(self) -> AutomaticOSUpgradePolicy:
        """The automatic OS upgrade policy, with Azure's defaults."""
        return self.upgrade_policy.automatic_os_upgrade_policy or AutomaticOSUpgradePolicy()

    @property
    def rolling_policy(self) -> RollingUpgradePolicy:
        """The rolling upgrade policy, with Azure's defaults."""
        return self.upgrade_policy.rolling_upgrade_policy or RollingUpgradePolicy()

    @property
    def extensions(self) -> list[Extension]:
        """The extensions, in the model's order."""
        profile = self.virtual_machine_profile.extension_profile
        return profile.extensions if profile else []

    @property
    def extensions_time_budget(self) -> timedelta:
        """The time for all extensions of an instance together; Azure's default is 90 minutes."""
        profile = self.virtual_machine_profile.extension_profile
        budget = profile.extensions_time_budget if profile else None
        return timedelta(minutes=90) if budget is None else budget

    @property
    def data_disks(self) -> list[DataDisk]:
        """The data disks, in the model's order."""
        return self.virtual_machine_profile.storage_profile.data_disks

    @property
    def has_subnet(self) -> bool:
        """Whether the instances are in a private network (A9)."""
        network = self.virtual_machine_profile.network_profile
        cards = (network and network.network_interface_configurations) or []
        return any(ip.subnet for card in cards for ip in card.ip_configurations or [])

    @property
    def os_image_notice(self) -> float | None:
        """Seconds that a guest has to approve the replacement of its OS disk; None for no event."""
        events = self.virtual_machine_profile.scheduled_events_profile
        told = None if events is None else events.os_image_notification_profile
        return told.not_before_timeout.total_seconds() if told and told.enable else None

    @property
    def terminate_notice(self) -> float | None:
        """Seconds that a guest has to approve the deletion of its instance; None for no event."""
        events = self.virtual_machine_profile.scheduled_events_profile
        told = None if events is None else events.terminate_notification_profile
        return told.not_before_timeout.total_seconds() if told and told.enable else None

    @property
    def image_reference(self) -> ImageReference:
        """The image that OS disks are made from."""
        return self.virtual_machine_profile.storage_profile.image_reference

    def full(self) -> dict[str, Any]:
        """Returns the body with secrets; only for the lab's own database, whose mode is 0600."""
        body = super().full()
        profile = self.virtual_machine_profile.os_profile
        os_profile = body["virtualMachineProfile"]["osProfile"]
        if profile.custom_data is not None:
            os_profile["customData"] = profile.custom_data.get_secret_value()
        user_data = self.virtual_machine_profile.user_data
        if user_data is not None:
            body["virtualMachineProfile"]["userData"] = user_data.get_secret_value()
        if profile.admin_password is not None:
            os_profile["adminPassword"] = profile.admin_password.get_secret_value()
        for index, extension in enumerate(self.extensions):
            entry = body["virtualMachineProfile"]["extensionProfile"]["extensions"][index]
            if extension.protected_settings is not None:
                entry["protectedSettings"] = extension.protected_settings
            if extension.protected_settings_from_key_vault is not None:
                entry["protectedSettingsFromKeyVault"] = extension.protected_settings_from_key_vault
        masked: dict[str, Any] = conceal(body)
        return masked
