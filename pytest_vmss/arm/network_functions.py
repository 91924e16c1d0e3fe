"""Functions of address ranges."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from pytest_vmss.arm.limits import TemplateError
from pytest_vmss.arm.values import integer, text

__all__ = ["NETWORK_FUNCTIONS"]

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _network(value: Any) -> _Network:
    try:
        return ipaddress.ip_network(text(value), strict=False)
    except ValueError:
        raise TemplateError("the argument is not a range such as 10.0.0.0/16") from None


def _parse(value: Any) -> dict[str, Any]:
    network = _network(value)
    view: dict[str, Any] = {
        "network": str(network.network_address),
        "netmask": str(network.netmask),
        "cidr": network.prefixlen,
    }
    if isinstance(network, ipaddress.IPv4Network):
        view["broadcast"] = str(network.broadcast_address)
    if network.num_addresses > 2:
        view["firstUsable"] = str(network[1])
        view["lastUsable"] = str(network[-2 if network.version == 4 else -1])
    return view


def _subnet(value: Any, prefix: Any, index: Any) -> str:
    network, length, at = _network(value), integer(prefix), integer(index)
    if not network.prefixlen <= length <= network.max_prefixlen:
        raise TemplateError(f"the prefix must be from {network.prefixlen} to the address's length")
    if not 0 <= at < 2 ** (length - network.prefixlen):
        raise TemplateError(f"there is no subnet {at}")
    if at < 65_536:
        return str(next(islice(network.subnets(new_prefix=length), at, None)))
    raise TemplateError("the subnet's index must be below 65536")


def _host(value: Any, index: Any) -> str:
    network, at = _network(value), integer(index)
    if not 0 <= at < network.num_addresses - 1:
        raise TemplateError(f"there is no host {at} in the range")
    return str(network[at + 1])


NETWORK_FUNCTIONS: Mapping[str, tuple[Callable[..., Any], int, int]] = {
    "cidrhost": (_host, 2, 2),
    "cidrsubnet": (_subnet, 3, 3),
    "parsecidr": (_parse, 1, 1),
}
