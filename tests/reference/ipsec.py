"""The kernel's IPsec policies (XFRM), and what goes into tunnels: what a packet becomes has to fit one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ipsec_gw.model.objects import PortMatch
from ipsec_gw.model.snapshot import PolicyDirection, XfrmPolicy
from tests.reference.packets import ICMP, ICMP6, Packet
from tests.reference.rules import Prefix

Policies = tuple[XfrmPolicy, ...]


@dataclass(frozen=True, slots=True)
class Fields:
    """What policies are matched by. Of ICMP the type is the source port and the code the destination port."""

    src: bytes
    dst: bytes
    protocol: int
    sport: int
    dport: int


def fields_of(packet: Packet, src: bytes, dst: bytes, protocol: int, ports: tuple[int, int]) -> Fields:
    """Of a packet that becomes this; a later fragment of ICMP has no type."""
    if protocol in (ICMP, ICMP6):
        code = 0 if packet.later_fragment else packet.code16
        ports = (code >> 8, code & 0xFF)
    return Fields(src, dst, protocol, *ports)


def matching(policies: Iterable[XfrmPolicy], direction: PolicyDirection, asked: Fields) -> XfrmPolicy | None:
    """The first of the best priority."""
    found = [policy for policy in policies if policy.direction is direction and _matches(policy, asked)]
    return min(found, key=lambda policy: policy.priority, default=None)


def protecting(policies: Iterable[XfrmPolicy], direction: PolicyDirection, asked: Fields) -> XfrmPolicy | None:
    """The policy that wants the packet encrypted, if it is one that does."""
    policy = matching(policies, direction, asked)
    return policy if policy is not None and policy.allow and policy.templates else None


def _matches(policy: XfrmPolicy, asked: Fields) -> bool:
    return (
        Prefix.of(policy.source).holds(asked.src)
        and Prefix.of(policy.destination).holds(asked.dst)
        and policy.upper in (0, asked.protocol)
        and _is_in(asked.sport, policy.source_port)
        and _is_in(asked.dport, policy.destination_port)
    )


def _is_in(port: int, match: PortMatch) -> bool:
    return (port ^ match.port) & match.mask == 0
