"""The base class of a lab's records."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

__all__ = ["Record"]


class Record(BaseModel):
    """A record that the lab stores under a key."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    kind: ClassVar[str]

    @property
    def key(self) -> tuple[str | int, ...]:
        """The key, unique among the records of its kind."""
        raise NotImplementedError
