"""Properties that mean nothing here, and why (A6)."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["is_as_here", "why_not_modelled"]

_SPOT = "instances are never evicted: each is an ordinary one"
_NO_METADATA = "the image does not look for Azure, so its guests have no metadata service"
_DEFERRED = "upgrades wait for no instance's approval (approveRollingUpgrade)"
#: Why a property has no effect, by its name in lower case.
_WHY: Mapping[str, str] = {
    "adminpassword": "nobody logs in by password; SSH keys do",
    "billingprofile": _SPOT,
    "caching": "the host decides how disks are cached, so that data disks lose nothing",
    "disablepasswordauthentication": "nobody logs in by password; SSH keys do",
    "evictionpolicy": _SPOT,
    "lifecyclehooksprofile": "no hook is called, and upgrades wait for none",
    "osimagenotificationprofile": _NO_METADATA,
    "osrollingupgradedeferral": _DEFERRED,
    "priority": _SPOT,
    "prioritymixpolicy": _SPOT,
    "protectedsettingsfromkeyvault": "there is no key vault; give protectedSettings",
    "spotrestorepolicy": _SPOT,
    "standbyvirtualmachinepools": "every instance is made when the set scales out",
    "terminatenotificationprofile": _NO_METADATA,
    "userollingupgradepolicy": "rollingUpgradePolicy counts in every automatic upgrade",
}
#: Values that say what is done here anyway, by the property's name in lower case.
_AS_HERE: Mapping[str, object] = {
    "osrollingupgradedeferral": False,
    "overprovision": False,
    "priority": "regular",
}


#: What surrounds a resource, and what Azure alone writes; in lower case.
_ENVELOPE = frozenset(
    {
        "comments", "dependson", "etag", "id", "provisioningstate", "resourcegroup", "systemdata",
        "timecreated", "type", "uniqueid",
    }
)  # fmt: skip


def is_as_here(path: str, name: str, value: object) -> bool:
    """Whether a property that is not modelled says what is done here anyway.

    Args:
        path: JSON path of the object that has it.
        name: Its name.
        value: Its value.
    """
    if path == "$" and name.lower() in _ENVELOPE:
        return True
    lower = value.lower() if isinstance(value, str) else value
    return name.lower() in _AS_HERE and lower == _AS_HERE[name.lower()]


def why_not_modelled(path: str) -> str:
    """Why the property at a JSON path has no effect here; empty where no more is to be said."""
    last = path.rpartition(".")[2].partition("[")[0].rpartition("/")[2]
    return _WHY.get(last.lower(), "")
