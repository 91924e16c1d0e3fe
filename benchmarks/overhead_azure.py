"""``python -m benchmarks.overhead_azure``: the same comparison with an image made for Azure.

The bare script gives it what Azure has: the chassis asset tag, the provisioning DVD, and the wire
server and the metadata service on QEMU's user network, whose ``guestfwd`` starts a small relay for
each connection. It waits for the guest's report, and then as it does for other images. QEMU's DHCP
knows no routes, which cloud-init logs and which changes nothing here.
"""

from __future__ import annotations

import json
import socket
import socketserver
import sys
import threading
import time
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from benchmarks.overhead import FORWARDS, LIMIT, MAC, Bare, compare, custom_data
from pytest_vmss.cli.demo import example
from pytest_vmss.guest_platform.exchange import Request, Response, json_response
from pytest_vmss.guest_platform.provisioning import ASSET_TAG, ovf_env
from pytest_vmss.guest_platform.wire_server import HealthReport, WireServer
from pytest_vmss.hypervisor.disks import write_provisioning_dvd
from pytest_vmss.model import load_document

__all__ = ["AzureBare"]

_ID = str(uuid.UUID(int=0x63))
_NETWORK = "net=168.0.0.0/7,host=168.0.0.2,dns=168.0.0.3,dhcpstart=168.0.0.15"
_SERVERS = {"wire": "168.63.129.16", "metadata": "169.254.169.254"}
#: Carries one connection of the guest, at standard input and output, to a server.
_RELAY = """\
import os, socket, sys, threading
link = socket.socket(socket.AF_UNIX)
link.connect(sys.argv[1])
def up():
    while data := os.read(0, 65536):
        link.sendall(data)
    link.shutdown(socket.SHUT_WR)
threading.Thread(target=up, daemon=True).start()
while data := link.recv(65536):
    os.write(1, data)
"""


class AzureBare(Bare):
    """One VM that looks for Azure, run by nothing but commands."""

    host_key = "accept-new"

    def prepare(self, image: Path) -> None:
        """A new overlay, a new DVD, and servers that have heard no report."""
        self.close()
        self.overlay(image)
        model = load_document(example("template.yaml"), custom_data=custom_data()).model
        dvd = self.folder / f"seed-{self.generation}.iso"
        write_provisioning_dvd(dvd, ovf_env(model, computer_name="bare000000"))
        (self.folder / "known_hosts").unlink(missing_ok=True)
        (self.folder / "relay.py").write_text(_RELAY)
        self._reported = threading.Event()
        wire = WireServer(
            container=_ID, instance="bare_0", service="bare", address="168.0.0.15",
            saw=lambda _: None, report=self._report,
        )  # fmt: skip
        answers = {"wire": wire.answer, "metadata": lambda _: json_response(self._metadata())}
        self._servers = [
            _Server(self.folder / f"{name}-{self.generation}", answer)
            for name, answer in answers.items()
        ]

    def _report(self, health: HealthReport) -> None:
        if health.state == "Ready":
            self._reported.set()

    def _metadata(self) -> dict[str, Any]:
        return {
            "compute": {
                "azEnvironment": "AzurePublicCloud",
                "location": "westeurope",
                "name": "bare_0",
                "osProfile": {
                    "adminUsername": "azureuser",
                    "computerName": "bare000000",
                    "disablePasswordAuthentication": "true",
                },
                "publicKeys": [
                    {
                        "keyData": self.key.public,
                        "path": "/home/azureuser/.ssh/authorized_keys",
                    }
                ],
                "userData": "",
                "vmId": _ID,
            },
            "network": {
                "interface": [
                    {
                        "ipv4": {
                            "ipAddress": [
                                {"privateIpAddress": "168.0.0.15", "publicIpAddress": ""}
                            ],
                            "subnet": [{"address": "168.0.0.0", "prefix": "7"}],
                        },
                        "ipv6": {"ipAddress": []},
                        "macAddress": MAC.replace(":", "").upper(),
                    }
                ]
            },
        }

    def channels(self) -> list[str | Path]:
        """What makes it Azure: SMBIOS, the DVD on SCSI, and the two addresses."""
        relay = f"{sys.executable} -S -E {self.folder}/relay.py {self.folder}"
        guest = ",".join(
            f"guestfwd=tcp:{address}:80-cmd:{relay}/{name}-{self.generation}"
            for name, address in _SERVERS.items()
        )
        return [
            "-uuid", _ID,
            "-smbios", "type=1,manufacturer=Microsoft Corporation,product=Virtual Machine",
            "-smbios", f"type=3,manufacturer=Microsoft Corporation,asset={ASSET_TAG}",
            "-device", "virtio-scsi-pci",
            "-drive",
            f"file={self.folder}/seed-{self.generation}.iso,if=none,id=s,format=raw,readonly=on",
            "-device", "scsi-cd,drive=s",
            "-netdev", f"user,id=n,{_NETWORK},restrict=on,{FORWARDS},{guest}",
        ]  # fmt: skip

    def await_guest(self, deadline: float) -> None:
        """Until the guest reports that it is ready."""
        if not self._reported.wait(max(deadline - time.monotonic(), 0.1)):
            raise TimeoutError(f"waited {LIMIT:.0f} s for the bare guest's report, in vain")

    def stop(self) -> None:
        """Presses the power button, and waits for QEMU to end."""
        assert self.qemu is not None
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(f"{self.folder}/monitor")
            for command in ("qmp_capabilities", "system_powerdown"):
                monitor.sendall(json.dumps({"execute": command}).encode() + b"\n")
            self.qemu.wait(LIMIT)

    def close(self) -> None:
        """Ends the servers."""
        for server in getattr(self, "_servers", []):
            server.close()


class _Server(socketserver.ThreadingUnixStreamServer):
    """Answers the guest's requests at a Unix socket."""

    daemon_threads = True

    def __init__(self, path: Path, answer: Callable[[Request], Response]) -> None:
        super().__init__(str(path), _Handler)
        self.answer = answer
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends it."""
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        response = self.server.answer(Request(self.command, self.path, headers, body))
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        self.wfile.write(response.body)

    do_GET = do_POST = _answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Says nothing."""


if __name__ == "__main__":
    compare("azure-web", AzureBare, "Azure")
