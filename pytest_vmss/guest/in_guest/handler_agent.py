"""Runs packaged extension handlers as the Azure guest agent does (H2).

Runs in guests, and imports nothing of this package. It lays packages out, gives handlers
their environment and settings in Azure's files, runs their commands, brings newer versions
in place of older ones, waits for what they report, and uninstalls them. The rules and the
words are those of WALinuxAgent.

What it is asked for is its first argument: ``enable SPEC PACKAGE``, ``report ARGUMENTS`` or
``uninstall ARGUMENTS``, the latter two with a JSON object. The result goes to standard
output as JSON.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from typing import Any

_POLL_S = 0.2
_OUTPUT_CHARS = 1500
_ENDED = ("success", "error", "warning")
_FAILED = 1009  # PluginEnableProcessingFailed
_RESPONSIVE_S = 600
_VERSION = re.compile(r"[0-9.]+")
_COMMANDS_S = {"install": 900, "update": 900, "enable": 300, "disable": 900, "uninstall": 300}

_NOT_INSTALLED = "NotInstalled"
_INSTALLED = "Installed"
_ENABLED = "Enabled"
_PREFIX = "AZURE_GUEST_AGENT"


class CommandError(Exception):
    """A handler's command failed; its text is the agent's.

    Args:
        message: What happened.
        code: Its exit status; -1 where it did not end.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Version:
    """One version of a handler, in its folder.

    Args:
        agent: Whose it is.
        number: The version.
    """

    def __init__(self, agent: Agent, number: str) -> None:
        self._agent = agent
        self.number = number
        self.folder = os.path.join(agent.folder, agent.name + "-" + number)
        self.config = os.path.join(self.folder, "config")
        self.status = os.path.join(self.folder, "status")
        self.heartbeat = os.path.join(self.folder, "heartbeat.log")

    @property
    def key(self) -> list[int]:
        """Sorts versions."""
        return [int(part) for part in self.number.split(".")]

    @property
    def state(self) -> str:
        """NotInstalled, Installed or Enabled."""
        return _read_text(os.path.join(self.config, "HandlerState")) or _NOT_INSTALLED

    @state.setter
    def state(self, state: str) -> None:
        _write_text(os.path.join(self.config, "HandlerState"), state)

    @property
    def manifest(self) -> dict[str, Any]:
        """``handlerManifest``."""
        (entry,) = _read(os.path.join(self.folder, "HandlerManifest.json"))
        manifest: dict[str, Any] = entry["handlerManifest"]
        return manifest

    def unpack(self, package: str) -> None:
        """Lays the package out, with HandlerEnvironment.json."""
        for folder in (self.config, self.status, self._agent.logs):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        with zipfile.ZipFile(package) as archive:
            for entry in archive.infolist():
                mode = entry.external_attr >> 16 & 0o777
                path = archive.extract(entry, self.folder)
                if not entry.is_dir():
                    os.chmod(path, mode or 0o700)
        paths = {
            "logFolder": self._agent.logs,
            "configFolder": self.config,
            "statusFolder": self.status,
            "heartbeatFile": self.heartbeat,
        }
        told = {"name": self._agent.name, "version": 1.0, "handlerEnvironment": paths}
        _write(os.path.join(self.folder, "HandlerEnvironment.json"), [told])

    def run(self, verb: str, number: int, told: dict[str, str] | None = None) -> None:
        """Runs one of the manifest's commands.

        Args:
            verb: ``install``, ``enable``, ``update``, ``disable`` or ``uninstall``.
            number: The sequence number.
            told: What the agent tells it besides, as environment variables.

        Raises:
            CommandError: It failed, or did not end in time.
        """
        command = os.path.join(self.folder, self.manifest[verb + "Command"].lstrip("/"))
        environment = dict(
            os.environ,
            ConfigSequenceNumber=str(number),
            **{
                _PREFIX + "_EXTENSION_PATH": self.folder,
                _PREFIX + "_EXTENSION_VERSION": self.number,
            },
            **(told or {}),
        )
        limit = self._agent.limit(verb)
        # In files, not pipes: what a handler leaves running keeps them open.
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            process = subprocess.Popen(
                ["/bin/sh", "-c", command],  # with arguments, as manifests have them
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                # A group of its own, in the session of whoever limits all of this.
                preexec_fn=os.setpgrp,  # noqa: PLW1509 - process_group is Python 3.11's
            )
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                code = None
            shown = f"[stdout]\n{_end_of(stdout)}\n\n[stderr]\n{_end_of(stderr)}"
        with open(os.path.join(self._agent.logs, "CommandExecution.log"), "a") as log:
            log.write(f"{verb} {self.number}: {code}\n{shown}\n")
        if code is None:
            raise CommandError(f"Timeout({limit:.0f}): {command}\n{shown}", -1)
        if code != 0:
            raise CommandError(f"Non-zero exit code: {code}, {command}\n{shown}", code)

    def report(self, number: int) -> dict[str, Any] | None:
        """The status that the extension has written; None where there is none yet."""
        try:
            status = _read(os.path.join(self.status, f"{number}.status"))[0]["status"]
        except (KeyError, IndexError, TypeError):
            return None
        return status if isinstance(status, dict) else None

    def fail(self, number: int, failed: CommandError) -> None:
        """Writes what failed into the status file in the extension's place."""
        status = {
            "operation": "Enable",
            "status": "error",
            "code": _FAILED,
            "formattedMessage": {"lang": "en-US", "message": str(failed)},
        }
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        entry = {"version": 1.0, "timestampUTC": stamp, "status": status}
        os.makedirs(self.status, mode=0o700, exist_ok=True)
        _write(os.path.join(self.status, f"{number}.status"), [entry])

    def beat(self) -> dict[str, str]:
        """The handler's own state: Ready, or by its heartbeat where its manifest promises one."""
        if self.manifest.get("reportHeartbeat") is not True:
            return {"status": "Ready", "message": "Plugin enabled"}
        try:
            age = time.time() - os.stat(self.heartbeat).st_mtime
        except OSError:
            return {"status": "NotReady", "message": "Failed to get heart beat file"}
        if age > _RESPONSIVE_S:
            return {
                "status": "Unresponsive", "message": "Extension heartbeat is not responsive",
            }  # fmt: skip
        try:
            heartbeat = _read(self.heartbeat)[0]["heartbeat"]
            ready = str(heartbeat["status"]).lower() == "ready"
            words = heartbeat.get("formattedMessage", {}).get("message") or heartbeat.get("Message")
        except (KeyError, IndexError, TypeError, AttributeError):
            return {"status": "NotReady", "message": "Malformed heartbeat file"}
        return {"status": "Ready" if ready else "NotReady", "message": str(words or "")}

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Agent:
    """The agent's part for one handler.

    Args:
        name: ``Publisher.Type``.
        factor: By how much the guest is slower than under KVM.
        limit: Seconds that a command may take at most.
        root: In place of ``/``.
    """

    def __init__(
        self, name: str, factor: float = 1.0, limit: float = float("inf"), root: str = "/"
    ) -> None:
        self.name = name
        self.folder = os.path.join(root, "var/lib/waagent")
        self.logs = os.path.join(root, "var/log/azure", name)
        self._factor = factor
        self._limit = limit
        self._runs = os.path.join(self.folder, name + ".runs")

    def limit(self, verb: str) -> float:
        """Seconds that a command may take; WALinuxAgent's, unless there is less time."""
        return min(_COMMANDS_S[verb] * self._factor, self._limit)

    def _versions(self) -> list[Version]:
        """Those that have a folder."""
        prefix = self.name + "-"
        names = os.listdir(self.folder) if os.path.isdir(self.folder) else []
        numbers = [name[len(prefix) :] for name in sorted(names) if name.startswith(prefix)]
        return [Version(self, number) for number in numbers if _VERSION.fullmatch(number)]

    def installed(self) -> Version | None:
        """The version that is installed."""
        found = [version for version in self._versions() if version.state != _NOT_INSTALLED]
        return found[0] if found else None

    @contextlib.contextmanager
    def alone(self) -> Any:
        """One at a time: extensions of one handler share its folder."""
        os.makedirs(self.folder, exist_ok=True)
        with open(os.path.join(self.folder, self.name + ".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _number(self, extension: str, run: str, version: str) -> int:
        """The sequence number of a run, the same however often it is asked for."""
        runs = _read(self._runs) or []
        known = [(entry["extension"], entry["run"]) for entry in runs]
        if (extension, run) not in known:
            known.append((extension, run))
            runs.append({"extension": extension, "run": run})
        number = known.index((extension, run))
        runs[number]["version"] = version
        _write(self._runs, runs)
        return number

    def enable(self, spec: dict[str, Any], package: str) -> bool:
        """Brings a version of the handler to where it is not, and enables it.

        Args:
            spec: ``extension``, ``run``, ``version``, ``handlerSettings`` and ``certificate``.
            package: The zip file.

        Returns:
            Whether it succeeded; :meth:`report` says how.
        """
        version = Version(self, spec["version"])
        with self.alone():
            number = self._number(spec["extension"], spec["run"], spec["version"])
            try:
                self._install(version, number, spec, package)
                version.run("enable", number)
            except CommandError as failed:
                version.fail(number, failed)
                return False
            version.state = _ENABLED
        return self._wait(version, number)

    def _install(self, version: Version, number: int, spec: dict[str, Any], package: str) -> None:
        old = self.installed()
        fresh = old is None or old.number != version.number
        if fresh:
            version.unpack(package)
        self._write_settings(version, number, spec)
        if old is None:
            version.run("install", number)
        elif fresh:
            self._update(old, version, number)
        if fresh:
            version.state = _INSTALLED

    def _write_settings(self, version: Version, number: int, spec: dict[str, Any]) -> None:
        certificate = spec.get("certificate")
        if certificate:
            stem = os.path.join(self.folder, certificate["thumbprint"])
            _write_text(stem + ".crt", certificate["public"])
            _write_text(stem + ".prv", certificate["private"])
        settings = {"runtimeSettings": [{"handlerSettings": spec["handlerSettings"]}]}
        _write(os.path.join(version.config, f"{number}.settings"), settings)

    def _update(self, old: Version, new: Version, number: int) -> None:
        """Disables the old version, updates, uninstalls the old one, as the new manifest says."""
        manifest = new.manifest
        told = {"VERSION": new.number}

        def leave(verb: str, variable: str) -> None:
            try:
                old.run(verb, number)
                code = 0
            except CommandError as failed:
                if not manifest.get("continueOnUpdateFailure"):
                    raise
                code = failed.code
            told[_PREFIX + variable] = str(code)

        if old.state == _ENABLED:
            leave("disable", "_DISABLE_CMD_EXIT_CODE")
            old.state = _INSTALLED
        self._copy_status(old, new)
        higher, lower = sorted((new, old), key=lambda version: version.key, reverse=True)
        told[_PREFIX + "_UPDATING_FROM_VERSION"] = lower.number
        higher.run("update", number, told)
        del told[_PREFIX + "_UPDATING_FROM_VERSION"]
        leave("uninstall", "_UNINSTALL_CMD_EXIT_CODE")
        old.remove()
        if str(manifest.get("updateMode", "")).lower() == "updatewithinstall":
            new.run("install", number, told)

    @staticmethod
    def _copy_status(old: Version, new: Version) -> None:
        """Handlers remember in ``mrseq`` what they have done."""
        if os.path.exists(os.path.join(old.folder, "mrseq")):
            shutil.copy(os.path.join(old.folder, "mrseq"), new.folder)
        for name in os.listdir(old.status):
            shutil.copy(os.path.join(old.status, name), new.status)

    def _wait(self, version: Version, number: int) -> bool:
        """Waits for the final status and a heartbeat; whoever runs this has a limit."""
        while True:
            told = str((version.report(number) or {}).get("status", "")).lower()
            if told == "error":
                return False
            if told in _ENDED and version.beat()["status"] == "Ready":
                return True
            time.sleep(_POLL_S)

    def report(self, extension: str) -> dict[str, Any] | None:
        """What an extension says of itself now, and its handler; None where it says nothing."""
        runs = [(n, run) for n, run in enumerate(_read(self._runs) or [])]
        numbers = [(n, run["version"]) for n, run in runs if run["extension"] == extension]
        if not numbers:
            return None
        number, last = numbers[-1]
        version = Version(self, last)
        status = version.report(number)
        if status is None:
            return None
        if version.state == _NOT_INSTALLED:
            handler = {"status": "NotReady", "message": "it could not be installed"}
        else:
            handler = version.beat()
        return {"status": status, "handler": handler}

    def uninstall(self, extension: str) -> list[str]:
        """Disables and uninstalls the handler, unless another extension uses it.

        Returns:
            What went wrong; the handler is removed all the same.
        """
        with self.alone():
            runs = _read(self._runs) or []
            for run in runs:  # the places stay: a number is never used twice
                if run["extension"] == extension:
                    run["extension"] = ""
            _write(self._runs, runs)
            if any(run["extension"] for run in runs):
                return []
            version = self.installed()
            wrong = []
            if version is not None:
                number = max(len(runs) - 1, 0)
                verbs = ["disable"] if version.state == _ENABLED else []
                for verb in [*verbs, "uninstall"]:
                    try:
                        version.run(verb, number)
                    except CommandError as failed:
                        wrong.append(str(failed))
            for left in self._versions():
                left.remove()
            return wrong


def _end_of(file: Any) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _OUTPUT_CHARS, 0))
    text: str = file.read().decode("utf-8", "replace").strip()
    return text


def _read_text(path: str) -> str | None:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return None


def _read(path: str) -> Any:
    """A file's JSON; None where there is none, or it is just being written."""
    try:
        return json.loads(_read_text(path) or "null")
    except ValueError:
        return None


def _write(path: str, value: Any) -> None:
    _write_text(path, json.dumps(value))


def _write_text(path: str, text: str) -> None:
    part = path + ".part"
    with os.fdopen(os.open(part, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    os.replace(part, path)


def main(verb: str, told: str, *package: str) -> None:
    """Does what it is asked for."""
    if verb == "enable":
        spec = _read(told)
        os.remove(told)  # it may hold secrets
        sys.exit(0 if Agent(spec["name"], spec["factor"]).enable(spec, *package) else 1)
    spec = json.loads(told)
    agent = Agent(spec["name"], spec["factor"], spec["limit"])
    result = (agent.report if verb == "report" else agent.uninstall)(spec["extension"])
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
