"""Azure's Application Health extension for Linux, 1.0 and 2.0 (F3)."""

from __future__ import annotations

import json
import shlex
from importlib.resources import files

from pydantic import ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

from pytest_vmss.errors import GuestCommandError
from pytest_vmss.guest.extensions.handler import Handler, Target
from pytest_vmss.guest.extensions.report import described
from pytest_vmss.model import ApplicationHealthSettings, Extension
from pytest_vmss.model.azure_names import nearest
from pytest_vmss.model.extension_result import ExtensionResult
from pytest_vmss.secrecy import mask
from pytest_vmss.untrusted import one_line

__all__ = ["STATUS_FILE", "ApplicationHealthLinux", "program_settings"]

#: Where the extension reports the application's health. In memory, so lost at each boot (F5).
STATUS_FILE = "/run/waagent/ApplicationHealthLinux/0.status"

_NAME = "Microsoft.ManagedServices.ApplicationHealthLinux"
_FOLDER = f"/var/lib/waagent/{_NAME}"
_UNIT = f"""\
[Unit]
Description=Application Health extension
[Service]
ExecStart=/usr/bin/python3 {_FOLDER}/application_health.py {_FOLDER}/settings.json {STATUS_FILE}
Restart=always
RestartSec=5
[Install]
WantedBy=multi-user.target
"""
_SERVICE = "vmss-application-health.service"

# The old settings' status file is removed, so that any report is from the new ones.
_INSTALL = f"""\
set -eu
umask 022
mkdir -p {_FOLDER}
cat > {_FOLDER}/application_health.part
[ "$(wc -c < {_FOLDER}/application_health.part)" -eq {{size}} ]
mv {_FOLDER}/application_health.part {_FOLDER}/application_health.py
printf %s {{settings}} > {_FOLDER}/settings.json
printf %s {{unit}} > /etc/systemd/system/{_SERVICE}
systemctl daemon-reload
systemctl enable {_SERVICE}
systemctl stop {_SERVICE}
rm -f {STATUS_FILE}
systemctl start {_SERVICE}
"""
_REMOVE = f"""\
systemctl disable --now {_SERVICE} > /dev/null 2>&1
rm -rf {_FOLDER} /etc/systemd/system/{_SERVICE} {STATUS_FILE}
systemctl daemon-reload
"""


class ApplicationHealthLinux(Handler):
    """``Microsoft.ManagedServices/ApplicationHealthLinux``.

    It installs a service in the guest, also started at each boot, that probes the application
    from inside and writes Azure's status file. The lab reads that over the guest agent, so it
    knows the application's health even if the instance cannot be reached.
    """

    publisher = "Microsoft.ManagedServices"
    type = "ApplicationHealthLinux"
    version = "2.0.10"
    reports = True

    def check(self, extension: Extension) -> list[str]:
        """Validates its settings by Azure's names and ranges, and returns the problems."""
        try:
            ApplicationHealthSettings.of(extension)
        except ValidationError as wrong:
            return [_problem(error) for error in wrong.errors(include_url=False)]
        except ValueError as wrong:
            return [str(wrong)]
        return []

    def run(
        self,
        target: Target,
        extension: Extension,
        *,
        run: str,  # noqa: ARG002 - running it again does no harm
    ) -> ExtensionResult:
        """Installs and starts the service with the extension's current settings."""
        start = target.clock.monotonic()
        source = files("pytest_vmss.guest.in_guest") / "application_health.py"
        program = source.read_bytes()
        command = _INSTALL.format(
            settings=shlex.quote(json.dumps(program_settings(extension))),
            unit=shlex.quote(_UNIT),
            size=len(program),
        )
        code: int | None = None
        try:
            done = target.insist(command, stdin=program)
            code, message = done.exit_code, done.stderr.strip()
        except GuestCommandError as error:
            message = error.message
        return ExtensionResult.of(
            extension,
            version=self.version,
            status="success" if code == 0 else "error",
            exit_code=code,
            message="Extension enabled" if code == 0 else message,
            seconds=target.clock.monotonic() - start,
        )

    def remove(self, target: Target, extension: Extension) -> str:  # noqa: ARG002
        """Stops the service and removes its files."""
        return target.insist(_REMOVE).stderr.strip()

    def report(
        self, target: Target, extension: Extension, last: ExtensionResult
    ) -> ExtensionResult:
        """Reads its status file: the application's health, and custom metrics."""
        found = target.shell.run(f"cat {STATUS_FILE}", sudo=True)
        return described(last, found.stdout, extension)


def program_settings(extension: Extension) -> dict[str, object]:
    """Returns the settings of the service in the guest."""
    return ApplicationHealthSettings.of(extension).full()


def _problem(error: ErrorDetails) -> str:
    """Says what is wrong with a setting, and which one a misspelt name was probably meant to be."""
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return f"{name} is required, and missing"
    if error["type"] == "extra_forbidden":
        names = [to_camel(field) for field in ApplicationHealthSettings.model_fields]
        meant = nearest(name, names)
        hint = f"did you mean {meant}?" if meant else f"there are: {', '.join(names)}"
        return f"{one_line(mask(name))} is no setting of this extension; {hint}"
    return f"{name} {error['msg'].removeprefix('Value error, ')}".lstrip()
