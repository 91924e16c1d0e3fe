"""What is asked of a guest over SSH after a failure: its journal, cloud-init's logs, and more."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_vmss.api.instance import Instance
from pytest_vmss.clock import Deadline
from pytest_vmss.concurrency import bounded
from pytest_vmss.errors import error_text
from pytest_vmss.guest.connection import ReconnectingRunner
from pytest_vmss.hypervisor import PowerState
from pytest_vmss.report.artifacts.folder import ArtifactFolder

__all__ = ["GUEST_S", "ask_guest"]

#: Seconds for the login and all commands together.
GUEST_S = 60.0
#: Seconds for one command.
_COMMAND_S = 30.0

#: What is run as root, by the name of the file that holds the answer. Each is bounded.
_COMMANDS: Mapping[str, str] = {
    "journal.log": "journalctl --no-pager --boot --lines=20000 --output=short-precise "
    "| tail -c 2000000",
    "cloud-init.log": "tail -c 1000000 /var/log/cloud-init.log",
    "cloud-init-output.log": "tail -c 1000000 /var/log/cloud-init-output.log",
    "cloud-init-status.json": "head -c 1000000 /run/cloud-init/status.json",
    # Each start of cloud-init costs seconds where guests are emulated.
    "cloud-init-analyze.txt": "cloud-init analyze show 2>&1 | tail -c 500000",
    "extensions.log": "find /var/log/azure -type f -name '*.log' -exec tail -v -c 100000 {} + "
    "2>/dev/null | tail -c 1000000",
    "system.txt": "{ uptime; systemctl --failed --no-pager; df -h; free -m; ss -tlnp; ip -brief "
    "address; } 2>&1 | tail -c 200000",
}


def ask_guest(instance: Instance, folder: ArtifactFolder, where: str) -> None:
    """Writes what a guest answers; what it does not answer in time is noted, and left out.

    Args:
        instance: The instance.
        folder: Where the files are written.
        where: Path in it.
    """
    try:
        if instance.power_state is not PowerState.RUNNING:
            folder.notes.append(f"{where}: the machine does not run")
            return
        bounded(
            lambda: _ask(instance, folder, where),
            what=f"collecting logs from {instance.name}",
            timeout=GUEST_S,
        )
    except Exception as error:  # noqa: BLE001 - a guest that does not answer is no error here
        folder.notes.append(f"{where}: {error_text(error)}")


def _ask(instance: Instance, folder: ArtifactFolder, where: str) -> None:
    deadline = Deadline(GUEST_S)
    instance.shell()  # if the guest does not answer, fail once
    runner = ReconnectingRunner(instance.shell)
    for name, command in _COMMANDS.items():
        left = deadline.left()
        if not left:
            return
        try:
            done = runner.run(command, sudo=True, timeout=min(_COMMAND_S, left))
        except Exception as error:  # noqa: BLE001 - the next command may be answered
            folder.notes.append(f"{where}/{name}: {error_text(error)}")
            continue
        if done.stdout.strip():
            folder.text(f"{where}/{name}", done.stdout)
