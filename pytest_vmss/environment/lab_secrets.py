"""Masks what is secret in a lab's files and pages, whichever of its sets it belongs to (M5)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from pytest_vmss.environment.environment import Environment
from pytest_vmss.environment.masking import masker, value_masker
from pytest_vmss.model import ScaleSetModel
from pytest_vmss.store import ModelRecord

__all__ = ["masker_of", "value_masker_of"]


def masker_of(environment: Environment) -> Callable[[str], str]:
    """Masks what any revision of any of a lab's models declares to be secret.

    These are those of sets that exist, and of deleted ones whose models this process has read.
    """
    return masker(_models(environment))


def value_masker_of(environment: Environment) -> Callable[[str], str]:
    """Masks the same where it occurs, and nothing else: in texts that are a suite's own."""
    return value_masker(_models(environment))


def _models(environment: Environment) -> list[ScaleSetModel]:
    revisions = environment.revisions
    models = [revision.model for revision in revisions.known()]
    for record in environment.store.select(ModelRecord):
        with contextlib.suppress(Exception):  # of a broken record no more is known
            models.append(revisions.get(record.set_id, record.revision).model)
    return models
