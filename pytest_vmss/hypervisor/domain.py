"""Builds a VM's domain XML, with an XML library (M6)."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from pathlib import Path

from pytest_vmss.errors import HostError
from pytest_vmss.guest_platform.config import Platform
from pytest_vmss.guest_platform.health_port import HEALTH_PORT
from pytest_vmss.guest_platform.provisioning import ASSET_TAG
from pytest_vmss.guest_platform.virtual_network.config import VirtualNetwork
from pytest_vmss.host.paths import SOCKET_PATH_BYTES
from pytest_vmss.hypervisor.firmware import Firmware
from pytest_vmss.hypervisor.protocol import Machine
from pytest_vmss.settings import Accelerator, GuestNetwork

__all__ = [
    "AGENT_CHANNEL",
    "NIC",
    "PRIVATE_NIC",
    "agent_connected_in",
    "domain_xml",
    "generation_in",
]

AGENT_CHANNEL = "org.qemu.guest_agent.0"
#: The network card's name in QEMU.
NIC = "vmss-nic0"
#: That of the card in the private network.
PRIVATE_NIC = "vmss-nic1"

_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
_VMSS = "urn:pytest-vmss:domain:1"

# QEMU's translation cache for each guest. A boot of Debian fills 200 MiB; with half of that QEMU
# throws everything away twice and translates it again (measured: 5 to 10 % of a boot). Its default,
# a quarter of the host's memory, would fill a laptop with three guests.
_TB_CACHE_MIB = 256

# libvirt assigns the low slots; the network cards, which it does not know, sit here.
_NIC_SLOT, _PRIVATE_NIC_SLOT = "0x1d", "0x1c"

#: Without this capability of QEMU's, libvirt learns what the CPU has by two queries rather than by
#: four hundred, one for each property: a third of a second of each start, more on a busy host.
#: What it learns is the same (measured with libvirt 9.0). It knows the names of past capabilities
#: for ever, for it reads them in the state that an older version wrote.
_ASKS_FOR_EACH_PROPERTY = "cpu-unavailable-features"

ET.register_namespace("qemu", _QEMU)
ET.register_namespace("vmss", _VMSS)


def _add(parent: ET.Element, tag: str, text: str | None = None, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element


def domain_xml(
    machine: Machine,
    *,
    accelerator: Accelerator,
    run_as: str | None,
    guest_network: GuestNetwork = "isolated",
    firmware: Firmware | None = None,
) -> str:
    """Returns the domain XML of a VM.

    Args:
        machine: The VM.
        accelerator: ``kvm`` or ``tcg``.
        run_as: Owner of the QEMU process as a libvirt label, ``+uid:+gid``, if it is not the
            connection's default.
        guest_network: What the guest may reach.
        firmware: The UEFI firmware, for a machine that has variables.

    Raises:
        HostError: The path of its private network is too long.
    """
    domain = ET.Element("domain", {"type": "kvm" if accelerator == "kvm" else "qemu"})
    _add(domain, "name", machine.name)
    _add(domain, "uuid", machine.uuid)
    metadata = _add(domain, "metadata")
    ET.SubElement(metadata, f"{{{_VMSS}}}instance", {"generation": str(machine.generation)})
    _add(domain, "memory", str(machine.memory_mib), unit="MiB")
    _add(domain, "vcpu", str(machine.vcpus))
    _add_os(domain, machine, firmware)
    features = _add(domain, "features")
    _add(features, "acpi")
    _add(features, "apic")
    if accelerator == "tcg":
        tcg = _add(features, "tcg")
        _add(tcg, "tb-cache", str(_TB_CACHE_MIB), unit="MiB")
        # Newer CPU models make glibc choose vector code, which TCG has to emulate.
        cpu = _add(domain, "cpu", mode="custom", match="exact", check="none")
        _add(cpu, "model", "qemu64", fallback="forbid")
    else:
        _add(domain, "cpu", mode="host-passthrough", check="none")
    _add(domain, "clock", offset="utc")
    _add(domain, "on_poweroff", "destroy")
    _add(domain, "on_reboot", "restart")
    _add(domain, "on_crash", "destroy")

    devices = _add(domain, "devices")
    _add_disk(devices, machine.os_disk, "vda", serial="os", boot=True)
    if machine.platform is None:
        _add_disk(devices, machine.seed, "vdb", serial="seed", format="raw", readonly=True)
    else:
        _add_dvd(devices, machine.seed)
    for number, disk in enumerate(machine.data_disks):
        _add_disk(devices, disk.path, _target(number + 2), serial=f"lun{disk.lun}")
    _add(devices, "controller", type="usb", model="none")
    serial = _add(devices, "serial", type="file")
    _add(serial, "source", path=str(machine.console), append="on")
    _add(serial, "target", port="0")
    _add_channel(devices, machine.agent, AGENT_CHANNEL)
    if machine.platform is not None:
        _add_channel(devices, machine.platform.files.health_port, HEALTH_PORT)
    rng = _add(devices, "rng", model="virtio")
    _add(rng, "backend", "/dev/urandom", model="random")
    _add(devices, "memballoon", model="none")
    if run_as is not None:
        label = _add(domain, "seclabel", type="static", model="dac", relabel="no")
        _add(label, "label", run_as)
    _add_capabilities(domain)
    if machine.platform is None:
        _add_network(domain, _user_network(machine, guest_network), machine)
    else:
        _add_network(domain, _platform_network(machine.platform), machine)
    if machine.network is not None and machine.platform is None:
        _add_private_network(domain, machine.network)
    return ET.tostring(domain, encoding="unicode")


def _add_os(domain: ET.Element, machine: Machine, firmware: Firmware | None) -> None:
    """Adds what boots, and what it is told of the machine."""
    os = _add(domain, "os")
    _add(os, "type", "hvm", arch="x86_64", machine="pc")
    if machine.platform is not None:
        _add_smbios(domain, os, machine.uuid)
    if machine.nvram is not None and firmware is not None:
        _add(os, "loader", str(firmware.code), readonly="yes", type="pflash")
        _add(os, "nvram", str(machine.nvram))


def _target(number: int) -> str:
    """Returns the name of the number-th disk, counted like Linux: vda … vdz, vdaa …."""
    name = ""
    number += 1
    while number:
        number, letter = divmod(number - 1, 26)
        name = chr(ord("a") + letter) + name
    return "vd" + name


def _add_disk(
    devices: ET.Element,
    path: Path,
    target: str,
    *,
    serial: str,
    format: str = "qcow2",
    boot: bool = False,
    readonly: bool = False,
) -> None:
    disk = _add(devices, "disk", type="file", device="disk")
    # writeback: the guest's flushes reach the host's disk
    _add(disk, "driver", name="qemu", type=format, cache="writeback", discard="unmap")
    _add(disk, "source", file=str(path))
    _add(disk, "target", dev=target, bus="virtio")
    if readonly:
        _add(disk, "readonly")
    _add(disk, "serial", serial)
    if boot:
        _add(disk, "boot", order="1")


def _add_channel(devices: ET.Element, path: Path, name: str) -> None:
    channel = _add(devices, "channel", type="unix")
    _add(channel, "source", mode="bind", path=str(path))
    _add(channel, "target", type="virtio", name=name)


def _add_smbios(domain: ET.Element, os: ET.Element, uuid: str) -> None:
    """Adds what tells a guest that it is in Azure, and which VM it is (O1)."""
    _add(os, "smbios", mode="sysinfo")
    sysinfo = _add(domain, "sysinfo", type="smbios")
    system = _add(sysinfo, "system")
    for name, value in (
        ("manufacturer", "Microsoft Corporation"),
        ("product", "Virtual Machine"),
        ("uuid", uuid),
    ):
        _add(system, "entry", value, name=name)
    chassis = _add(sysinfo, "chassis")
    _add(chassis, "entry", "Microsoft Corporation", name="manufacturer")
    _add(chassis, "entry", ASSET_TAG, name="asset")


def _add_dvd(devices: ET.Element, path: Path) -> None:
    """Adds the provisioning DVD, on SCSI: cloud kernels have no ATA."""
    _add(devices, "controller", type="scsi", index="0", model="virtio-scsi")
    disk = _add(devices, "disk", type="file", device="cdrom")
    _add(disk, "driver", name="qemu", type="raw")
    _add(disk, "source", file=str(path))
    _add(disk, "target", dev="sda", bus="scsi")
    _add(disk, "readonly")


def _user_network(machine: Machine, guest_network: GuestNetwork) -> str:
    """QEMU's user network, which needs no root and forwards from loopback only (M5).

    libvirt supports port forwards only since version 9.2, and only for passt. In restricted
    mode QEMU refuses connections from the guest, but still forwards to it.
    """
    forwards = "".join(
        f",hostfwd=tcp:{forward.address}:{forward.host_port}-:{forward.guest_port}"
        for forward in machine.forwards
    )
    # Nothing is forwarded over IPv6, so there is one protocol less to trust.
    access = "restrict=off" if guest_network == "outbound" else "restrict=on,ipv6=off"
    return f"user,id=vmss0,{access}{forwards}"


def _platform_network(platform: Platform) -> str:
    """A socket at which the platform's process takes the guest's frames (O1).

    QEMU listens again when the connection ends, so another process can go on.
    """
    return f"stream,id=vmss0,server=on,addr.type=unix,addr.path={_escaped(platform.files.nic)}"


def _escaped(path: Path) -> str:
    """Escapes a path for QEMU's options, in which a comma is doubled."""
    return str(path).replace(",", ",,")


def _add_capabilities(domain: ET.Element) -> None:
    """Has libvirt start the machine as with a QEMU that lacks a capability."""
    capabilities = ET.SubElement(domain, f"{{{_QEMU}}}capabilities")
    ET.SubElement(capabilities, f"{{{_QEMU}}}del", {"capability": _ASKS_FOR_EACH_PROPERTY})


def _add_network(domain: ET.Element, network: str, machine: Machine) -> None:
    command = ET.SubElement(domain, f"{{{_QEMU}}}commandline")
    for value in (
        "-netdev", network,
        "-device",
        f"virtio-net-pci,id={NIC},netdev=vmss0,mac={machine.mac},addr={_NIC_SLOT},romfile=",
        # Without a graphics card the firmware's messages go to the serial console.
        "-machine", "graphics=off",
    ):  # fmt: skip
        ET.SubElement(command, f"{{{_QEMU}}}arg", {"value": value})


def _add_private_network(domain: ET.Element, network: VirtualNetwork) -> None:
    """A second card, with a cable to the set's own switch (A9).

    Of datagrams: neither end minds if the other is gone for a while.
    """
    command = domain.find(f"{{{_QEMU}}}commandline")
    if command is None:  # pragma: no cover - the first card is always there
        raise ValueError("the domain has no network card yet")
    for path in (network.guest_end, network.switch_end):
        # QEMU gives no clear error of a longer one for datagrams.
        if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
            raise HostError(
                f"{path} is too long a path for a socket of the private network; use a state "
                "directory with a shorter path (VMSS_STATE_DIR)"
            )
    ends = (
        f"local.type=unix,local.path={_escaped(network.guest_end)}",
        f"remote.type=unix,remote.path={_escaped(network.switch_end)}",
    )
    card = f"id={PRIVATE_NIC},netdev=vmss1,mac={network.mac},addr={_PRIVATE_NIC_SLOT},romfile="
    for value in (
        "-netdev", f"dgram,id=vmss1,{','.join(ends)}", "-device", f"virtio-net-pci,{card}",
    ):  # fmt: skip
        ET.SubElement(command, f"{{{_QEMU}}}arg", {"value": value})


def generation_in(xml: str) -> int | None:
    """Reads the generation from a domain's XML; None if the domain is not ours."""
    element = ET.fromstring(xml).find(  # noqa: S314 - libvirt wrote it
        f"metadata/{{{_VMSS}}}instance"
    )
    return None if element is None else int(element.get("generation", "-1"))


def agent_connected_in(xml: str) -> bool:
    """Reads from a running domain's XML whether its guest agent has opened the channel."""
    targets = ET.fromstring(xml).iterfind("devices/channel/target")  # noqa: S314 - libvirt wrote it
    return any(
        target.get("name") == AGENT_CHANNEL and target.get("state") == "connected"
        for target in targets
    )
