"""The base class of a lab's records."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, PlainSerializer

__all__ = ["FrozenMapping", "Record"]

_K = TypeVar("_K")
_V = TypeVar("_V")


def _frozen(mapping: Mapping[_K, _V]) -> Mapping[_K, _V]:
    return MappingProxyType(dict(mapping))


#: A mapping that nobody can change: a record is shared by all who ask for it.
FrozenMapping = Annotated[Mapping[_K, _V], AfterValidator(_frozen), PlainSerializer(dict)]


class Record(BaseModel):
    """A record that the lab stores under a key.

    Attributes:
        mutable: Whether parts of it can be changed, so that everyone needs a copy of their own.
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    kind: ClassVar[str]
    mutable: ClassVar[bool] = False

    @property
    def key(self) -> tuple[str | int, ...]:
        """The key, unique among the records of its kind."""
        raise NotImplementedError
