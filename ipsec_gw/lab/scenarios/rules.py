"""The configuration files of the firewall scenarios, and the ports they speak of. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from ipsec_gw.lab.edge import POOL, POOL6
from ipsec_gw.lab.gateway import PLAIN
from ipsec_gw.lab.topology import HOST, LAN, WAN, Role, Topology

Address = IPv4Address | IPv6Address

OPEN, DENIED, REJECTED, POOLED, BARE = 7000, 7001, 7002, 7100, 7200
"""Ports of the WAN, called from the LAN: translated to the WAN's address, denied, rejected, translated from a pool, and
not translated.
"""

PUBLISHED, INTERNAL = 8443, 443
"""Destination NAT: the port of the WAN's address, and the port of the LAN's server that answers."""

DENIED_OUT, DENIED_IN = 7011, 7012
"""Ports that are denied into the tunnel and out of it."""


def plain_rules(topology: Topology) -> str:
    """LAN and WAN, IPv4 and IPv6, no tunnels. ``topology`` is :func:`ipsec_gw.lab.edge.edge`."""
    families = (
        ("4", topology.network(Role.CLIENT, HOST), POOL),
        ("6", topology.network6(Role.CLIENT, HOST), POOL6),
    )
    ends: tuple[tuple[Address, Address], ...] = (
        (topology.address(Role.GATEWAY_A, WAN), topology.address(Role.INNER, HOST)),
        (topology.address6(Role.GATEWAY_A, WAN), topology.address6(Role.INNER, HOST)),
    )
    services = {"denied": DENIED, "rejected": REJECTED, "pooled": POOLED, "bare": BARE, "internal": INTERNAL}
    return "\n".join(
        (
            ZONES,
            *(_application(name, port) for name, port in services.items()),
            PLAIN_POLICIES,
            *(_pooled(family, network, pool) for family, network, pool in families),
            MASQUERADE,
            HAIRPIN,
            *(
                _published(f"published-{zone}-{outside.version}", zone, outside, inside)
                for zone in ("untrust", "trust")
                for outside, inside in ends
            ),
        )
    )


def tunnel_rules(topology: Topology) -> str:
    """LAN, WAN and tunnels. ``topology`` is :func:`ipsec_gw.lab.topology.site_to_site`."""
    return "\n".join(
        (
            ZONES,
            TUNNEL_ZONE,
            _application("denied-out", DENIED_OUT),
            _application("denied-in", DENIED_IN),
            TUNNEL_POLICIES.replace("BRANCH", str(topology.network(Role.GATEWAY_B, LAN))),
            OUT_POLICY,
            MASQUERADE,
        )
    )


SHOWN, KNOWN = IPv4Network("10.101.0.0/24"), IPv4Network("10.102.0.0/24")
"""Sites with the same network: what site A is called at site B, and what site B is called at site A."""


def overlapping_rules(topology: Topology) -> str:
    """LAN, WAN and a tunnel to a site that has the same network. ``topology`` is
    :func:`ipsec_gw.lab.topology.overlapping`.
    """
    ours = topology.network(Role.GATEWAY_A, LAN)
    statics = (
        f'[[nat.static]]\nname = "{name}"\nzone = "{zone}"\nexternal = "{external}"\ninternal = "{ours}"\n'
        for name, zone, external in (("shown", "tunnel", SHOWN), ("known", "trust", KNOWN))
    )
    return "\n".join((ZONES, TUNNEL_ZONE, OVERLAPPING_POLICIES, OUT_POLICY, *statics, MASQUERADE))


def _application(name: str, port: int) -> str:
    terms = ", ".join(f'{{ protocol = "{protocol}", destination_port = {port} }}' for protocol in ("tcp", "udp"))
    return f"[applications.{name}]\nterms = [{terms}]\n"


def _pooled(family: str, network: IPv4Network | IPv6Network, pool: IPv4Network | IPv6Network) -> str:
    return f"""\
[nat.pools.pool{family}]
addresses = "{pool}"

[[nat.source]]
name = "pooled{family}"
from = "trust"
to = "untrust"
source = "{network}"
application = "pooled"
translate = {{ pool = "pool{family}" }}
"""


def _published(name: str, zone: str, outside: Address, inside: Address) -> str:
    return f"""\
[[nat.destination]]
name = "{name}"
from = "{zone}"
destination = "{outside}"
protocol = "tcp"
port = {PUBLISHED}
to = "{inside}"
to_port = {INTERNAL}
"""


ZONES = f"""\
{PLAIN}wan = ["{WAN}"]

[zones.trust]
interfaces = ["{LAN}"]
host_inbound = ["ping"]

[zones.untrust]
interfaces = ["{WAN}"]
"""

TUNNEL_ZONE = """\
[zones.tunnel]
tunnels = true
host_inbound = ["ping"]
"""

OUT_POLICY = """
[[policies]]
name = "out"
from = "trust"
to = "untrust"
action = "permit"
"""

PLAIN_POLICIES = (
    """\
[[policies]]
name = "denied"
from = "trust"
to = "untrust"
application = "denied"
action = "deny"

[[policies]]
name = "rejected"
from = "trust"
to = "untrust"
application = "rejected"
action = "reject"

[[policies]]
name = "published"
from = "untrust"
to = "trust"
application = "internal"
action = "permit"

[[policies]]
name = "hairpin"
from = "trust"
to = "trust"
application = "internal"
action = "permit"
"""
    + OUT_POLICY
    + """
[[nat.source]]
name = "bare"
from = "trust"
to = "untrust"
application = "bare"
translate = "off"
"""
)

TUNNEL_POLICIES = """\
[[policies]]
name = "denied-out"
from = "trust"
to = "tunnel"
application = "denied-out"
action = "deny"

[[policies]]
name = "denied-in"
from = "tunnel"
to = "trust"
application = "denied-in"
action = "deny"

[[policies]]
name = "to-branch"
from = "trust"
to = "tunnel"
action = "permit"

[[policies]]
name = "from-branch"
from = "tunnel"
to = "trust"
action = "permit"

[[policies]]
name = "branch-in-clear"
from = "trust"
to = "untrust"
destination = "BRANCH"
action = "deny"
"""

OVERLAPPING_POLICIES = """\
[[policies]]
name = "to-branch"
from = "trust"
to = "tunnel"
action = "permit"

[[policies]]
name = "from-branch"
from = "tunnel"
to = "trust"
action = "permit"
"""

MASQUERADE = """\
[[nat.source]]
name = "masquerade"
from = "trust"
to = "untrust"
translate = "interface"
"""

HAIRPIN = """\
[[nat.source]]
name = "hairpin"
from = "trust"
to = "trust"
translate = "interface"
"""
