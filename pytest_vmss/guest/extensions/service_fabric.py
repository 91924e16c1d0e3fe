"""A stand-in for the Service Fabric extension (C7, I3).

It installs nothing: there is no cluster here that a node could join. What the extension means
for an upgrade is kept: its durability decides whether update domains are asked for, of the
approver that the suite gives.
"""

from __future__ import annotations

from pytest_vmss.guest.extensions.handler import Handler, Target
from pytest_vmss.model import Extension
from pytest_vmss.model.extension_result import ExtensionResult
from pytest_vmss.secrecy import quote

__all__ = ["ServiceFabricLinuxNode", "ServiceFabricNode"]

_LEVELS = ("Bronze", "Silver", "Gold")


class ServiceFabricLinuxNode(Handler):
    """``Microsoft.Azure.ServiceFabric/ServiceFabricLinuxNode``, as a stand-in."""

    publisher = "Microsoft.Azure.ServiceFabric"
    type = "ServiceFabricLinuxNode"
    version = "1.1"

    def check(self, extension: Extension) -> list[str]:
        """Validates the settings that count here, and returns the problems."""
        settings = extension.settings or {}
        level, node_type = settings.get("durabilityLevel", "Bronze"), settings.get("nodeTypeRef")
        problems = []
        if str(level).capitalize() not in _LEVELS:
            problems.append(f"durabilityLevel must be Bronze, Silver or Gold; given {quote(level)}")
        if node_type is not None and not isinstance(node_type, str):
            problems.append(f"nodeTypeRef must be a node type's name; given {quote(node_type)}")
        return problems

    def run(
        self,
        target: Target,  # noqa: ARG002
        extension: Extension,
        *,
        run: str,  # noqa: ARG002 - running it again does no harm
    ) -> ExtensionResult:
        """Does nothing in the guest."""
        return ExtensionResult.of(
            extension, message="a stand-in: no Service Fabric node was installed", exit_code=0
        )


class ServiceFabricNode(ServiceFabricLinuxNode):
    """``Microsoft.Azure.ServiceFabric/ServiceFabricNode``, as a stand-in."""

    type = "ServiceFabricNode"
