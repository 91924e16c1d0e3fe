"""What guests are asked for after a failure: their journals, cloud-init's logs, and more."""

from __future__ import annotations

from pytest_vmss.api.instance import Instance
from pytest_vmss.concurrency import bounded
from pytest_vmss.errors import error_text
from pytest_vmss.guest.logs import LOGS
from pytest_vmss.hypervisor import PowerState
from pytest_vmss.report.artifacts.folder import ArtifactFolder

__all__ = ["GUEST_S", "ask_guest"]

#: Seconds for the login and all logs together, and for one of them.
GUEST_S = 60.0
_EACH_S = 30.0


def ask_guest(instance: Instance, folder: ArtifactFolder, where: str) -> None:
    """Writes what a guest tells; what it does not tell in time is noted, and left out.

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
    for log in instance.logs(LOGS, timeout=GUEST_S, each=_EACH_S):
        if log.problem:
            folder.notes.append(f"{where}/{log.name}: {log.problem}")
        elif log.text.strip():
            folder.text(f"{where}/{log.name}", log.text)
