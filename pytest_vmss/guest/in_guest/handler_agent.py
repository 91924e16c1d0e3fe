"""Runs a packaged extension handler as the Azure guest agent does (H2).

Runs in guests, and imports nothing of this package. It lays the package out, gives the
handler its environment and settings in Azure's files, runs its commands, and waits for
the status that it reports. The result goes to standard output as JSON.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
import zipfile
from typing import Any

_POLL_S = 0.2
_MESSAGE_CHARS = 1500
_ENDED = ("success", "error", "warning")


class Handler:
    """A handler in its folder.

    Args:
        spec: What is to be run: name, version, sequence's run, settings, certificate.
        root: In place of ``/``.
    """

    def __init__(self, spec: dict[str, Any], root: str = "/") -> None:
        self._spec = spec
        full = "{name}-{version}".format(**spec)
        self.agent = os.path.join(root, "var/lib/waagent")
        self.folder = os.path.join(self.agent, full)
        self.logs = os.path.join(root, "var/log/azure", spec["name"])
        self.config = os.path.join(self.folder, "config")
        self.status = os.path.join(self.folder, "status")
        self.heartbeat = os.path.join(self.folder, "heartbeat.log")

    def unpack(self, package: str) -> bool:
        """Lays the package out; whether it was not there before."""
        if os.path.exists(os.path.join(self.folder, "HandlerManifest.json")):
            return False
        for folder in (self.config, self.status, self.logs):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        with zipfile.ZipFile(package) as archive:
            for entry in archive.infolist():
                mode = entry.external_attr >> 16 & 0o777
                path = archive.extract(entry, self.folder)
                if not entry.is_dir():
                    os.chmod(path, mode or 0o700)
        return True

    def environment(self) -> None:
        """Writes HandlerEnvironment.json."""
        paths = {
            "logFolder": self.logs,
            "configFolder": self.config,
            "statusFolder": self.status,
            "heartbeatFile": self.heartbeat,
        }
        entry = {"name": self._spec["name"], "version": 1.0, "handlerEnvironment": paths}
        _write(os.path.join(self.folder, "HandlerEnvironment.json"), [entry])

    def sequence(self) -> int:
        """Number of this run, the same however often it is asked; the settings are written."""
        path = os.path.join(self.config, "runs.json")
        runs = _read(path) or []
        if self._spec["run"] not in runs:
            _write(path, [*runs, self._spec["run"]])
            runs = _read(path)
        number: int = runs.index(self._spec["run"])
        certificate = self._spec.get("certificate")
        if certificate:
            stem = os.path.join(self.agent, certificate["thumbprint"])
            _write_text(f"{stem}.crt", certificate["public"])
            _write_text(f"{stem}.prv", certificate["private"])
        settings = {"runtimeSettings": [{"handlerSettings": self._spec["handlerSettings"]}]}
        _write(os.path.join(self.config, f"{number}.settings"), settings)
        return number

    def run(self, name: str, number: int) -> int:
        """Runs one of the manifest's commands; its exit status."""
        (entry,) = _read(os.path.join(self.folder, "HandlerManifest.json"))
        command = entry["handlerManifest"].get(name)
        if not command:
            return 0
        environment = dict(
            os.environ,
            ConfigSequenceNumber=str(number),
            AZURE_GUEST_AGENT_EXTENSION_PATH=self.folder,
            AZURE_GUEST_AGENT_EXTENSION_VERSION=self._spec["version"],
        )
        with open(os.path.join(self.logs, "CommandExecution.log"), "ab") as log:
            words = shlex.split(command)
            inside = os.path.join(self.folder, words[0])
            done = subprocess.run(
                [inside if os.path.exists(inside) else words[0], *words[1:]],
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        return done.returncode

    def wait_status(self, number: int) -> dict[str, Any]:
        """Waits for the handler's final status; whoever runs this has a limit."""
        path = os.path.join(self.status, f"{number}.status")
        while True:
            found = _read(path)
            if found and found[0]["status"]["status"] in _ENDED:
                status: dict[str, Any] = found[0]["status"]
                return status
            time.sleep(_POLL_S)


def _read(path: str) -> Any:
    """A file's JSON; None where there is none, or it is just being written."""
    try:
        with open(path) as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def _write(path: str, value: Any) -> None:
    _write_text(path, json.dumps(value))


def _write_text(path: str, text: str) -> None:
    part = path + ".part"
    with os.fdopen(os.open(part, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    os.replace(part, path)


def serve(spec: dict[str, Any], package: str, root: str = "/") -> dict[str, Any]:
    """Installs and enables a handler.

    Returns:
        ``ok``, ``message`` and ``substatuses``.
    """
    handler = Handler(spec, root)
    new = handler.unpack(package)
    handler.environment()
    number = handler.sequence()
    for name in (["installCommand"] if new else []) + ["enableCommand"]:
        code = handler.run(name, number)
        if code != 0:
            return {"ok": False, "message": f"{name} ended with exit status {code}"}
    status = handler.wait_status(number)
    message = (status.get("formattedMessage") or {}).get("message", "")
    return {
        "ok": status["status"] != "error",
        "message": message[:_MESSAGE_CHARS],
        "substatuses": (status.get("substatus") or [])[:4],
    }


def main(spec_path: str, package: str) -> None:
    """Runs what a file says, and removes it, for it may hold secrets."""
    spec = _read(spec_path)
    os.remove(spec_path)
    result = serve(spec, package)
    sys.stdout.write(json.dumps(result))
    sys.exit(0 if result["ok"] else 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
