"""The pytest hooks that a suite may implement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_vmss.api.lab import Lab
    from pytest_vmss.settings import Settings

__all__ = ["pytest_vmss_configure_lab", "pytest_vmss_settings"]


@pytest.hookspec(firstresult=True)
def pytest_vmss_settings(config: pytest.Config, settings: Settings) -> Settings | None:
    """Called before the session's lab is created; may return other settings.

    Args:
        config: pytest's configuration.
        settings: The settings that the options give.
    """


@pytest.hookspec
def pytest_vmss_configure_lab(config: pytest.Config, lab: Lab) -> None:
    """Called when the session's lab has been created, before its first scale set.

    Use it to publish images that all tests need.

    Args:
        config: pytest's configuration.
        lab: The session's lab.
    """
