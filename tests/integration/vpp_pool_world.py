"""A gateway with a pool of which VPP has addresses, between a client and a server, and the VPP that it needs."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from tests.integration.firewall_world import ADDRESSES, CLIENT, SERVER, WAN, FirewallBox, firewall_box

POOL = "203.0.113.16/29"
OF_VPP, OF_XDP = {f"203.0.113.{number}" for number in range(16, 23)}, "203.0.113.23"
DENIED = 7001

CONFIGURATION = f"""
[gateway]
engine = "vpp"
wan = ["wan0"]
hang_seconds = 0
[zones.lan]
interfaces = ["lan0"]
host_inbound = ["ping"]
[zones.wan]
interfaces = ["wan0"]

[applications]
denied = {{ protocol = "udp", destination_port = {DENIED} }}

[[policies]]
name = "denied"
from = "lan"
to = "wan"
application = "denied"
action = "deny"
[[policies]]
name = "out"
from = "lan"
to = "wan"
action = "permit"

[nat.pools.fast]
addresses = "{POOL}"
engine = "vpp"

[[nat.source]]
name = "hide"
from = "lan"
to = "wan"
translate = {{ pool = "fast" }}
"""


@contextmanager
def pool_box(configuration: str) -> Iterator[FirewallBox]:
    """The daemon runs, and VPP; both go afterwards."""
    with firewall_box() as box:
        box.route(SERVER, POOL, WAN[0])
        box.on(CLIENT, "sysctl", "-qw", "net.ipv4.ping_group_range=0 0")
        box.write(configuration)
        try:
            up = box.gw("vpp", "up")
            assert up.returncode == 0, up.stderr + up.stdout
            box.run()
            yield box
        finally:
            box.gw("vpp", "down")


def udp_pair(box: FirewallBox, host: str = CLIENT) -> tuple[socket.socket, socket.socket]:
    """Of a host, and of the server."""
    return box.udp(host), box.udp(SERVER, port=0)


def where(receiver: socket.socket, host: str = SERVER) -> tuple[str, int]:
    """What reaches a socket of a host."""
    return ADDRESSES[host][0], receiver.getsockname()[1]
