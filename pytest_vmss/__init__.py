"""Azure's automatic OS image upgrade for VM Scale Sets, rehearsed on a laptop."""

__version__ = "0.1.0"
