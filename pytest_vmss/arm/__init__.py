"""Evaluates ARM templates: pure functions and data, without I/O (P1)."""

from __future__ import annotations

from pytest_vmss.arm.limits import Budget, TemplateError
from pytest_vmss.arm.parameters import Given, Parameter, given_in_file
from pytest_vmss.arm.site import Site
from pytest_vmss.arm.syntax import is_parsed
from pytest_vmss.arm.template import Resource, expand
from pytest_vmss.arm.values import Unevaluated

__all__ = [
    "Budget",
    "Given",
    "Parameter",
    "Resource",
    "Site",
    "TemplateError",
    "Unevaluated",
    "expand",
    "given_in_file",
    "is_parsed",
]
