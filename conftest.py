"""Configuration of this project's own tests; the plugin is loaded by its entry point."""

from __future__ import annotations

pytest_plugins = ["pytester"]
