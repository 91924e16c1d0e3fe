"""Azure's wire model: pure, without input or output."""

from __future__ import annotations

from pytest_vmss.model.document import ScaleSetDocument, Source, load_document
from pytest_vmss.model.load_balancer import LoadBalancer, Probe
from pytest_vmss.model.rules import check_model
from pytest_vmss.model.scale_set import (
    AutomaticOSUpgradePolicy,
    AzureModel,
    DataDisk,
    Extension,
    ImageReference,
    RollingUpgradePolicy,
    ScaleSetModel,
)
from pytest_vmss.model.sizes import SIZES, VmSize, find_size

__all__ = [
    "SIZES",
    "AutomaticOSUpgradePolicy",
    "AzureModel",
    "DataDisk",
    "Extension",
    "ImageReference",
    "LoadBalancer",
    "Probe",
    "RollingUpgradePolicy",
    "ScaleSetDocument",
    "ScaleSetModel",
    "Source",
    "VmSize",
    "check_model",
    "find_size",
    "load_document",
]
