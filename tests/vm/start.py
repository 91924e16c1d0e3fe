"""The set from which most modules start: booted by the first of them, restored by the others (L1).

A boot is what these tests cost. What a module needs besides, it gives the restored set as
a user would: by a change of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_vmss.api.instance import Instance
from pytest_vmss.api.lab import Lab
from pytest_vmss.api.scale_set import ScaleSet
from tests.models import LOAD_BALANCER, custom_script, web_model, with_subnet

__all__ = ["SECRET", "answers_to", "extensions", "start"]

#: In the protected settings of the set's extension ``secret``.
SECRET = "correct-horse-battery-staple"


def start(
    lab: Lab, image: Path, *, gallery: str = "gallery", health_timeout: float = 15.0, **options: Any
) -> ScaleSet:
    """Creates a set of two with a private network and two extensions.

    Args:
        lab: Where.
        image: Version 1.0.0 of the image ``web``.
        gallery: Its gallery, to which the module publishes.
        health_timeout: Seconds.
        options: Of :func:`tests.models.web_model`; none that a guest can see, or it is booted.
    """
    lab.gallery(gallery).publish("web", "1.0.0", image)
    model = with_subnet(web_model(capacity=2, **options))
    profile = model["properties"]["virtualMachineProfile"]
    reference = profile["storageProfile"]["imageReference"]
    reference["id"] = reference["id"].replace("/galleries/gallery/", f"/galleries/{gallery}/")
    secret = {"commandToExecute": f"echo {SECRET} > /root/secret"}
    profile["extensionProfile"]["extensions"].append(
        custom_script("secret", protectedSettings=secret)
    )
    return lab.create(
        model, load_balancer=LOAD_BALANCER, health_timeout=health_timeout, pristine=True
    )


def extensions(listed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The part of a model with other extensions in place of those."""
    return {"virtualMachineProfile": {"extensionProfile": {"extensions": list(listed)}}}


def answers_to(one: Instance, host: str) -> bool:
    """Whether a host of the private network answers an instance's request."""
    command = f"curl -sS -m 5 -o /dev/null http://{host}/version"
    return bool(one.host.run(command).rc == 0)
