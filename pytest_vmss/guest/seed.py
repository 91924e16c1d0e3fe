"""Builds the cloud-init seed for one generation of an instance's OS disk."""

from __future__ import annotations

import base64
import json
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText

from pydantic import SecretStr

from pytest_vmss.guest.keys import KeyPair
from pytest_vmss.guest_platform.private_addresses import (
    DOMAIN,
    GATEWAY,
    SUBNET,
    private_ip_address,
    private_mac,
)
from pytest_vmss.hypervisor import Seed
from pytest_vmss.model import ScaleSetModel
from pytest_vmss.secrecy import SecretBytes, SecretText

__all__ = ["USER_DATA_FILE", "build_seed"]

#: Where a guest finds Azure's ``userData``, which Azure provides by its metadata service.
USER_DATA_FILE = "/var/lib/waagent/UserData"

# QEMU's user network: the same for each guest, and separate from the others'.
_ADDRESS = "10.0.2.15/24"
_GATEWAY = "10.0.2.2"
_NAME_SERVER = "10.0.2.3"

# cloud-init leaves name servers to systemd-resolved, resolvconf or NetworkManager, each of which
# makes resolv.conf a link or manages it; an image that has none of them has a plain file, or none.
_NAME_SERVER_HOOK = f"""\
#cloud-boothook
#!/bin/sh
file=/etc/resolv.conf
if [ -L $file ] && [ -e $file ] || grep -qs '^nameserver {GATEWAY}$' $file; then exit 0; fi
if grep -qs NetworkManager $file; then exit 0; fi
old=$(grep -v '^search' $file 2> /dev/null)
rm -f $file
printf 'search {DOMAIN}\\nnameserver {GATEWAY}\\n%s\\n' "$old" > $file
"""
# Where other names are asked for, which the first name server refuses.
_NEXT_NAME_SERVER = f"echo nameserver {_NAME_SERVER} >> $file\n"


def build_seed(
    model: ScaleSetModel,
    *,
    cloud_instance_id: str,
    computer_name: str,
    mac: str,
    host_key: KeyPair,
    lab_key: KeyPair,
    grow: bool,
    outbound: bool = False,
    private: int | None = None,
) -> Seed:
    """Builds the seed.

    Custom data is passed unchanged as user data (H1); the lab's own settings go into vendor
    data, which user data may override.

    Args:
        model: The scale set.
        cloud_instance_id: New for each generation, so that cloud-init runs again.
        computer_name: The guest's host name.
        mac: MAC address of its network card.
        host_key: The generation's SSH host key.
        lab_key: Key with which the lab logs in.
        grow: Whether the OS disk is larger than its image.
        outbound: Whether the network leads anywhere. If not, the guest gets no gateway and no name
            server, so that lookups fail at once instead of after 20 s each.
        private: The instance's number, if it is in a private network (A9).
    """
    profile = model.virtual_machine_profile.os_profile
    linux = profile.linux_configuration
    keys = [lab_key.public]
    if linux is not None and linux.ssh is not None:
        keys += [key.key_data for key in linux.ssh.public_keys]
    vendor: dict[str, object] = {
        # `user` changes the image's default user, even if custom data lists users of its own.
        "user": {
            "name": profile.admin_username,
            "gecos": profile.admin_username,
            "shell": "/bin/bash",
            "sudo": ["ALL=(ALL) NOPASSWD:ALL"],
            "lock_passwd": True,
            "ssh_authorized_keys": keys,
        },
        "ssh_keys": {"ed25519_private": host_key.private, "ed25519_public": host_key.public},
    }
    if grow:
        vendor["growpart"] = {"mode": "auto", "devices": ["/"]}
        vendor["resize_rootfs"] = True
    primary: dict[str, object] = {
        "match": {"macaddress": mac},
        "addresses": [_ADDRESS],
    }
    ethernets: dict[str, object] = {"primary": primary}
    if outbound:
        primary["gateway4"] = _GATEWAY
        primary["nameservers"] = {"addresses": [_NAME_SERVER]}
    if private is not None:
        ethernets = {"private": _private(private), **ethernets}  # its name server is asked first
    network = {"version": 2, "ethernets": ethernets}
    custom = profile.custom_data
    user_data = b"" if custom is None else SecretBytes(base64.b64decode(custom.get_secret_value()))
    # JSON is valid YAML, and is written and read much faster.
    return Seed(
        meta_data=json.dumps({"instance-id": cloud_instance_id, "local-hostname": computer_name}),
        network_config=json.dumps(network),
        vendor_data=_vendor_data(
            vendor,
            model.virtual_machine_profile.user_data,
            hooks=_name_server_hooks(private, outbound=outbound),
        ),
        user_data=user_data,
    )


def _private(number: int) -> dict[str, object]:
    """The network card in the set's private network, whose gateway answers for names."""
    return {
        "match": {"macaddress": private_mac(number)},
        "addresses": [f"{private_ip_address(number)}/{SUBNET.prefixlen}"],
        "nameservers": {"addresses": [str(GATEWAY)], "search": [DOMAIN]},
    }


def _name_server_hooks(private: int | None, *, outbound: bool) -> list[SecretText]:
    """The scripts by which a guest in a private network asks that for names."""
    if private is None:
        return []
    return [SecretText(_NAME_SERVER_HOOK + (_NEXT_NAME_SERVER if outbound else ""))]


def _vendor_data(
    config: dict[str, object], user_data: SecretStr | None, *, hooks: list[SecretText]
) -> SecretText:
    """Builds the vendor data: the lab's settings, and Azure's ``userData`` for the guest (H1).

    None of it is ever in a plain string, which a traceback would show.

    Args:
        config: The lab's settings.
        user_data: The model's.
        hooks: Scripts that run early at each boot.
    """
    cloud_config = SecretText(f"#cloud-config\n{json.dumps(config)}")
    hooks = list(hooks)
    if user_data is not None:
        hooks.append(
            SecretText(
                "#cloud-boothook\n#!/bin/sh\numask 077\n"
                f"mkdir -p {USER_DATA_FILE.rpartition('/')[0]}\n"
                f"echo {_encoded(user_data)} | base64 -d > {USER_DATA_FILE}\n"
            )
        )
    if not hooks:
        return cloud_config
    parts = MIMEMultipart()
    parts.attach(MIMEText(cloud_config, "cloud-config"))
    for hook in hooks:
        parts.attach(MIMEText(hook, "cloud-boothook"))
    return SecretText(parts.as_string())


def _encoded(user_data: SecretStr) -> SecretText:
    """Re-encodes user data in the form of base64 that the guest's ``base64`` can read."""
    content = SecretBytes(base64.b64decode(user_data.get_secret_value()))
    return SecretText(base64.b64encode(content).decode())
