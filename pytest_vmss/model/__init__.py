"""Azure's wire model: pure functions and data, without I/O."""

from __future__ import annotations

from pytest_vmss.model.document import (
    Change,
    ScaleSetDocument,
    Source,
    load_document,
    read_change,
    read_part,
)
from pytest_vmss.model.health import (
    ApplicationHealthSettings,
    Health,
    application_health,
    is_application_health,
)
from pytest_vmss.model.load_balancer import LoadBalancer, LoadBalancingRule, Probe
from pytest_vmss.model.not_modelled import why_not_modelled
from pytest_vmss.model.ports import LAST_PORT, host_port, host_ports
from pytest_vmss.model.repair_task import Approver, RepairTask
from pytest_vmss.model.review import Review, review
from pytest_vmss.model.rules import check_model, model_warnings
from pytest_vmss.model.scale_set import (
    AutomaticOSUpgradePolicy,
    AutomaticRepairsPolicy,
    AzureModel,
    DataDisk,
    Extension,
    ImageReference,
    RollingUpgradePolicy,
    ScaleSetModel,
)
from pytest_vmss.model.sequencing import stages_of_extensions
from pytest_vmss.model.service_fabric import Cluster, is_durable
from pytest_vmss.model.sizes import SIZES, VmSize, find_size, nearest_sizes
from pytest_vmss.model.spelling import respelled
from pytest_vmss.model.status import ExtensionStatus, read_status, read_status_file
from pytest_vmss.model.templates import Parameters, Supply, seal_parameters
from pytest_vmss.model.update import check_update, keep_secrets, merge, profile_of

__all__ = [
    "LAST_PORT",
    "SIZES",
    "ApplicationHealthSettings",
    "Approver",
    "AutomaticOSUpgradePolicy",
    "AutomaticRepairsPolicy",
    "AzureModel",
    "Change",
    "Cluster",
    "DataDisk",
    "Extension",
    "ExtensionStatus",
    "Health",
    "ImageReference",
    "LoadBalancer",
    "LoadBalancingRule",
    "Parameters",
    "Probe",
    "RepairTask",
    "Review",
    "RollingUpgradePolicy",
    "ScaleSetDocument",
    "ScaleSetModel",
    "Source",
    "Supply",
    "VmSize",
    "application_health",
    "check_model",
    "check_update",
    "find_size",
    "host_port",
    "host_ports",
    "is_application_health",
    "is_durable",
    "keep_secrets",
    "load_document",
    "merge",
    "model_warnings",
    "nearest_sizes",
    "profile_of",
    "read_change",
    "read_part",
    "read_status",
    "read_status_file",
    "respelled",
    "review",
    "seal_parameters",
    "stages_of_extensions",
    "why_not_modelled",
]
