"""Azure's CustomScript extension for Linux (H2)."""

from __future__ import annotations

import shlex
from typing import Any

from pytest_vmss.clock import Clock, wait_for
from pytest_vmss.errors import GuestCommandError, WaitTimeoutError
from pytest_vmss.guest.shell import Shell
from pytest_vmss.model import Extension
from pytest_vmss.store import ExtensionRecord

__all__ = ["CustomScript"]

_MESSAGE_CHARS = 4096

# The command runs apart from the SSH session, so that neither a broken
# connection nor a killed orchestrator ends it or runs it twice. The same text
# begins it, where it was not begun, and waits a while for its end.
_RUN = """\
set -eu
folder={folder}
if [ ! -e "$folder/started" ]; then
    umask 077
    mkdir -p "$folder"
    cat > "$folder/command"
    : > "$folder/started"
    setsid sh -c '
        umask 022
        cd "$1"
        sh ./command > stdout 2> stderr < /dev/null
        echo "$?" > status.part
        mv status.part status
    ' sh "$folder" < /dev/null > /dev/null 2>&1 &
fi
cd "$folder"
tries=0
while [ ! -e status ]; do
    tries=$((tries + 1))
    [ "$tries" -gt 30 ] && exit 75
    sleep 0.1
done
cat status
tail -c 2048 stdout
echo
tail -c 2048 stderr
"""
_AGAIN = 75


class CustomScript:
    """``Microsoft.Azure.Extensions/CustomScript`` for Linux: ``commandToExecute``."""

    publisher = "Microsoft.Azure.Extensions"
    type = "CustomScript"
    version = "2.1.0"

    def check(self, extension: Extension) -> list[str]:
        """What is wrong with its settings."""
        places = [
            settings
            for settings in (extension.settings or {}, extension.protected_settings or {})
            if "commandToExecute" in settings
        ]
        problems = []
        if len(places) != 1:
            problems.append(
                "needs commandToExecute, in settings or in protectedSettings"
                if not places
                else "has commandToExecute both in settings and in protectedSettings"
            )
        elif not isinstance(places[0]["commandToExecute"], str):
            problems.append("commandToExecute must be a string")
        unsupported = sorted(
            {*(extension.settings or {}), *(extension.protected_settings or {})}
            - {"commandToExecute", "timestamp", "skipDos2Unix"}
        )
        if unsupported:
            problems.append(f"these settings cannot be run here yet: {', '.join(unsupported)}")
        return problems

    def run(
        self, shell: Shell, extension: Extension, *, run: str, limit: float, clock: Clock
    ) -> ExtensionRecord:
        """Runs ``commandToExecute`` as root; its text goes through standard input."""
        protected: dict[str, Any] = extension.protected_settings or {}
        command = str({**(extension.settings or {}), **protected}["commandToExecute"])
        folder = shlex.quote(f"/var/lib/waagent/custom-script/{extension.name}/{run}")
        start = clock.monotonic()
        try:

            def probe() -> str | None:
                result = shell.run(
                    _RUN.format(folder=folder), stdin=command.encode() + b"\n", sudo=True
                )
                if result.exit_code not in (0, _AGAIN):
                    raise GuestCommandError(
                        f"the command could not be begun: {result.stderr.strip()[-500:]}",
                        instance="",
                        exit_code=result.exit_code,
                        stderr=result.stderr,
                    )
                return result.stdout if result.exit_code == 0 else None

            answer = wait_for(
                f"the extension {extension.name}", probe, limit=limit, clock=clock, interval=0.05
            )
        except (GuestCommandError, WaitTimeoutError) as failed:
            return ExtensionRecord(
                name=extension.name,
                type=f"{self.publisher}.{self.type}",
                version=self.version,
                status="error",
                message=failed.message,
                seconds=clock.monotonic() - start,
            )
        code, _, output = answer.partition("\n")
        exit_code = int(code)
        message = output.strip()[-_MESSAGE_CHARS:]
        if protected:
            message = message.replace(command, "***")
        return ExtensionRecord(
            name=extension.name,
            type=f"{self.publisher}.{self.type}",
            version=self.version,
            status="success" if exit_code == 0 else "error",
            exit_code=exit_code,
            message=message,
            seconds=clock.monotonic() - start,
        )
