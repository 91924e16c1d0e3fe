"""What every record of a lab is: something remembered under a key."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

__all__ = ["Record"]


class Record(BaseModel):
    """Something the lab remembers under a key."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    kind: ClassVar[str]

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from others of its kind."""
        raise NotImplementedError
