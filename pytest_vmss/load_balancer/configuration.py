"""The configuration of HAProxy for a set's load-balancing rules."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from pytest_vmss.errors import BalancerError
from pytest_vmss.load_balancer.protocol import Rule
from pytest_vmss.model import Probe

__all__ = ["NOBODY", "SOCKET", "check_options", "configuration_of"]

#: The user as which HAProxy runs if root starts it.
NOBODY = 65534
#: Name of its runtime socket, in its folder.
SOCKET = "haproxy.sock"
#: HAProxy counts milliseconds in 31 bits.
_LONGEST_S = 2_000_000

_GLOBAL = """\
global
    stats socket unix@{socket} mode 600 level admin
    stats timeout 1h
    maxconn 2000
    hard-stop-after 5s
{identity}
defaults
    mode tcp
    timeout connect 5s
    timeout client 5m
    timeout server 5m
    timeout queue 10s
    timeout check {check}s
    option redispatch 1
    retries 3
"""
_RULE = """
frontend {name}
    bind {address}:{port}
    default_backend {name}
backend {name}
    balance roundrobin
{check}"""
_HTTP_CHECK = """\
    option httpchk
    http-check send meth GET uri {path} ver HTTP/1.1 hdr Host vmss hdr Connection close
    http-check expect status 200
"""


def configuration_of(rules: Sequence[Rule]) -> str:
    """Returns the text of the configuration file.

    Raises:
        BalancerError: A probe's path holds characters that are invalid in a URL's path.
    """
    intervals = [rule.probe.interval_in_seconds for rule in rules if rule.probe]
    identity = f"    uid {NOBODY}\n    gid {NOBODY}\n" if os.geteuid() == 0 else ""
    text = _GLOBAL.format(socket=SOCKET, identity=identity, check=min([5, *intervals]))
    for rule in rules:
        check = ""
        if rule.probe is not None and rule.probe.protocol != "Tcp":
            check = _HTTP_CHECK.format(path=_quoted(rule.probe.request_path or "/"))
        text += _RULE.format(name=rule.name, address=rule.address, port=rule.port, check=check)
        # Servers are added with these options at run time; other options need another process.
        text += f"    # servers:{check_options(rule.probe)}\n"
    return text


def check_options(probe: Probe | None) -> str:
    """Returns the options of a server's check: at the probe's interval, faster during changes."""
    if probe is None:
        return ""
    ssl = " check-ssl verify none" if probe.protocol == "Https" else ""
    return (
        f" check inter {min(probe.interval_in_seconds, _LONGEST_S)}s fastinter 200ms downinter 500ms "
        f"rise {probe.threshold} fall {probe.threshold}{ssl}"
    )


def _quoted(text: str) -> str:
    """Quotes a path for the configuration, so that HAProxy interprets nothing in it.

    Raises:
        BalancerError: It contains characters that are invalid in a URL's path.
    """
    if not re.fullmatch("[!-~]{0,1024}", text):
        raise BalancerError(
            "a probe's path holds spaces, control characters or letters beyond ASCII"
        )
    # HAProxy expands variables in double quotes; "uri", unlike "uri-lf", does not interpret %.
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$") + '"'
