"""What a booted guest reports about itself, and how it is asked."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_vmss.untrusted import one_line

__all__ = ["FACTS", "FACT_CHARS", "BootFacts", "parse_facts"]

#: Maximum length of one fact, in characters.
FACT_CHARS = 100
#: A script for the guest's shell that prints the facts.
FACTS = """\
read -r boot_id < /proc/sys/kernel/random/boot_id
read -r release < /proc/sys/kernel/osrelease
printf '%s\\n' "$boot_id" "$release"
. /etc/os-release
echo "$IMAGE_VERSION"
"""


@dataclass(frozen=True)
class BootFacts:
    """What a booted guest reports about itself.

    Attributes:
        boot_id: The kernel's boot id, new with every boot.
        kernel: Its release, as ``uname -r`` prints it.
        image_version: ``IMAGE_VERSION`` in its os-release; None if there is none (E2).
        host_key: The SSH host key that it showed, in OpenSSH's format.
    """

    boot_id: str
    kernel: str
    image_version: str | None
    host_key: str = ""

    def __post_init__(self) -> None:
        """Cleans and limits text from the guest."""
        for name in ("boot_id", "kernel", "image_version"):
            told = getattr(self, name)
            object.__setattr__(self, name, told and one_line(told, FACT_CHARS))


def parse_facts(text: str) -> BootFacts:
    """Parses the output of :data:`FACTS`; missing values are empty."""
    boot_id, kernel, version = [*text.split("\n", 3), "", "", ""][:3]
    return BootFacts(boot_id.strip(), kernel.strip(), version.strip() or None)
