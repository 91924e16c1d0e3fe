"""What a suite may hook into."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_vmss.api.lab import Lab
    from pytest_vmss.settings import Settings

__all__ = ["pytest_vmss_configure_lab", "pytest_vmss_settings"]


@pytest.hookspec(firstresult=True)
def pytest_vmss_settings(config: pytest.Config, settings: Settings) -> Settings | None:
    """Called before the session's lab is made; a suite may return other settings.

    Args:
        config: pytest's configuration.
        settings: As the options say.
    """


@pytest.hookspec
def pytest_vmss_configure_lab(config: pytest.Config, lab: Lab) -> None:
    """Called once the session's lab is there, before its first scale set.

    The place to publish images that all tests use.

    Args:
        config: pytest's configuration.
        lab: The session's lab.
    """
