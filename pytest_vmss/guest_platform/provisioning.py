"""Azure's provisioning DVD: ``ovf-env.xml``, with what a guest is to be (O1)."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from pytest_vmss.model import ScaleSetModel
from pytest_vmss.secrecy import SecretBytes

__all__ = ["ASSET_TAG", "DVD_LABEL", "OVF_FILE", "ovf_env"]

#: The SMBIOS chassis asset tag by which guests recognise Azure.
ASSET_TAG = "7783-7084-3265-9085-8269-3286-77"
DVD_LABEL = "OVF_ENV"
OVF_FILE = "ovf-env.xml"

_OVF = "http://schemas.dmtf.org/ovf/environment/1"
_AZURE = "http://schemas.microsoft.com/windowsazure"
_INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"

for _prefix, _uri in (("wa", _AZURE), ("i", _INSTANCE)):
    ET.register_namespace(_prefix, _uri)


def ovf_env(model: ScaleSetModel, *, computer_name: str) -> SecretBytes:
    """Returns the content of ``ovf-env.xml``, which holds the custom data.

    Args:
        model: The scale set.
        computer_name: The guest's host name.
    """
    profile = model.virtual_machine_profile.os_profile
    linux = profile.linux_configuration
    # Without a password of its own an account is reached by keys alone, as the lab does.
    no_password = linux is None or linux.disable_password_authentication is not False
    root = ET.Element(f"{{{_OVF}}}Environment")
    section = ET.SubElement(root, f"{{{_AZURE}}}ProvisioningSection")
    ET.SubElement(section, f"{{{_AZURE}}}Version").text = "1.0"
    settings = ET.SubElement(
        section,
        f"{{{_AZURE}}}LinuxProvisioningConfigurationSet",
    )
    entries = {
        "ConfigurationSetType": "LinuxProvisioningConfiguration",
        "HostName": computer_name,
        "UserName": profile.admin_username,
        "DisableSshPasswordAuthentication": "true" if no_password else "false",
    }
    if profile.custom_data is not None:
        entries["CustomData"] = profile.custom_data.get_secret_value()
    for name, value in entries.items():
        ET.SubElement(settings, f"{{{_AZURE}}}{name}").text = value
    place = ET.SubElement(root, f"{{{_AZURE}}}PlatformSettingsSection")
    ET.SubElement(place, f"{{{_AZURE}}}Version").text = "1.0"
    platform_settings = ET.SubElement(place, f"{{{_AZURE}}}PlatformSettings")
    for name, value in {
        "KmsServerHostname": "kms.core.windows.net",
        "ProvisionGuestAgent": "false",
        "GuestAgentPackageName": "",
        "PreprovisionedVm": "false",
    }.items():
        ET.SubElement(platform_settings, f"{{{_AZURE}}}{name}").text = value
    return SecretBytes(ET.tostring(root, encoding="utf-8", xml_declaration=True))
