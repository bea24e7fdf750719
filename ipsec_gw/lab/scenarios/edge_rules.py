"""The configuration files of the scenarios `screens`, `nat64`, `nptv6` and those of pools, whose networks are of
:mod:`ipsec_gw.lab.edge`. Pure.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from ipsec_gw.lab.edge import INSIDE6, OUTSIDE6, POOL
from ipsec_gw.lab.scenarios.rules import MASQUERADE, OUT_POLICY, ZONES
from ipsec_gw.lab.talk import Address
from ipsec_gw.lab.topology import HOST, Role, Topology

PREFIX = IPv6Network("2001:db8:6464::/96")
"""What IPv4 is behind for the LAN."""

CLOSED = 7900
"""A port where nobody listens."""

NEIGHBOURS = IPv4Network((int(POOL.broadcast_address) + 1, POOL.prefixlen))
PUBLISHED = NEIGHBOURS.broadcast_address + 1
"""Behind the pool: addresses that nobody else has."""

FOUR = POOL.network_address + 1
"""The one address that all of NAT64 is from."""

IN_POLICY = """
[[policies]]
name = "in"
from = "untrust"
to = "trust"
action = "permit"
"""


def screens_rules(screens: str, *, syn_check: bool = True) -> str:
    """LAN and WAN, everything permitted both ways, the WAN behind these screens: lines of their table."""
    zone = f'screen = "outside"\nsyn_check = {str(syn_check).lower()}\n'
    return "\n".join((ZONES + zone, OUT_POLICY, IN_POLICY, f"[screens.outside]\n{screens}"))


def nptv6_rules() -> str:
    """LAN and WAN, everything permitted both ways, the LAN's prefix another one on the WAN."""
    rule = f'[[nat.nptv6]]\nname = "campus"\nzone = "untrust"\nexternal = "{OUTSIDE6}"\ninternal = "{INSIDE6}"\n'
    return "\n".join((ZONES, OUT_POLICY, IN_POLICY, rule))


def nat64_rules(topology: Topology) -> str:
    """LAN and WAN: IPv6 to :data:`PREFIX` becomes IPv4 from :data:`FOUR`, IPv4 has source NAT, IPv6 goes as it is."""
    lan = topology.network(Role.CLIENT, HOST)
    return "\n".join((ZONES, OUT_POLICY, NAT64, MASQUERADE, f'source = "{lan}"\n'))


def pool_rules(options: str) -> str:
    """LAN and WAN, source NAT by a pool with these options: lines of its table."""
    pool = f'[nat.pools.crowd]\naddresses = "{POOL}"\n{options}\n'
    rule = '[[nat.source]]\nname = "crowd"\nfrom = "trust"\nto = "untrust"\ntranslate = { pool = "crowd" }\n'
    return "\n".join((ZONES, OUT_POLICY, pool, rule))


def hairpin_rules(inside: Address) -> str:
    """Besides :func:`pool_rules`: the LAN reaches its host ``inside`` by :data:`PUBLISHED`, and by a pool of VPP's."""
    return HAIRPIN.format(pool=NEIGHBOURS, outside=PUBLISHED, inside=inside)


HAIRPIN = """
[[policies]]
name = "hairpin"
from = "trust"
to = "trust"
action = "permit"

[[nat.destination]]
name = "published"
from = "trust"
destination = "{outside}"
to = "{inside}"

[nat.pools.neighbours]
addresses = "{pool}"
engine = "vpp"

[[nat.source]]
name = "hairpin"
from = "trust"
to = "trust"
translate = {{ pool = "neighbours" }}
"""

NAT64 = f"""\
[nat.pools.four]
addresses = "{FOUR}"

[[nat.nat64]]
name = "into-ipv4"
from = "trust"
prefix = "{PREFIX}"
translate = {{ pool = "four" }}
"""
