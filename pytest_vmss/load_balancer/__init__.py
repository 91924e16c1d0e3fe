"""A real load balancer in front of a scale set: HAProxy on loopback (F2)."""

from __future__ import annotations

from pytest_vmss.load_balancer.haproxy import HAProxy
from pytest_vmss.load_balancer.protocol import Balancer, Member, Rule

__all__ = ["Balancer", "HAProxy", "Member", "Rule"]
