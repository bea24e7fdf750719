"""The firewall's machine with a pool of VPP: the port of NAT, and packets as VPP gets and gives them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

from firewall_kit import LAN, WAN, Port, Result, World, firewall_world, zones
from scapy.layers.inet import IP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

from ipsec_gw.model.firewall import TRANSLATOR_PORT, Action, Policy, Pool, PoolEngine, Ruleset, SourceNat, Translation
from tests.support.netns import ip
from xdp_steer.compile.rows import PortInfo
from xdp_steer.flow_layout import TRANSLATOR_MAC, TRANSLATOR_OUTSIDE, TRANSLATOR_PORT_MAC
from xdp_steer.layout import Control

POOL = Pool("fast", IPv4Address("203.0.113.128"), IPv4Address("203.0.113.135"), engine=PoolEngine.VPP)
"""VPP's are .128 to .134, and .135 is XDP's."""
OURS, RESERVED = "203.0.113.130", "203.0.113.135"
TAG = 1
RULE = SourceNat("out", Translation.POOL, from_zone="lan", to_zone="wan", pool=POOL.name)
OPEN = (Policy("all", Action.PERMIT, log_open=True, log_close=True),)
LIFE = 7


class Translator:
    """A world with a pool of VPP; the tests are VPP."""

    def __init__(self, world: World) -> None:
        self.world = world
        index = socket.if_nametoindex(TRANSLATOR_PORT)
        self.port = Port(TRANSLATOR_PORT, "", "", TRANSLATOR_PORT_MAC.hex(":"), TRANSLATOR_MAC.hex(":"))
        self.more = {TRANSLATOR_PORT: PortInfo(index, index)}
        world.steering.set_translator_port(index)

    def apply(self, **more: object) -> None:
        """The pool's rules hold, and VPP is there as from now on."""
        fields: dict[str, object] = {"zones": zones(), "policies": OPEN, "pools": (POOL,), "source_nat": (RULE,)}
        self.world.apply(Ruleset(**{**fields, **more}), self.more)  # type: ignore[arg-type]
        self.world.steering.begin_translation(LIFE, anew=True)

    def lan(self, packet: Packet) -> Result:
        return self.world.send(LAN, packet)

    def wan(self, packet: Packet) -> Result:
        return self.world.send(WAN, packet)

    def vpp(self, tag: int, packet: Packet) -> Result:
        """VPP sends a packet by a tag, one hop having been counted."""
        return self.world.send(
            self.port, Ether(src=self.port.host_mac, dst=self.port.mac) / Dot1Q(vlan=tag) / hop(packet)
        )

    def out(self, packet: Packet) -> Result:
        """VPP has translated the packet."""
        return self.vpp(TRANSLATOR_OUTSIDE, packet)

    def since(self) -> int:
        """What the datapath takes for the time when VPP began."""
        return self.world.control_value(Control.TRANSLATOR)


def hop(packet: Packet) -> Packet:
    """As it is after a hop, with new checksums."""
    made = packet.copy()
    made[IP].ttl -= 1
    del made[IP].chksum
    return IP(bytes(made[IP]))


def given(packet: Packet, tag: int) -> Packet:
    """A frame as VPP gets it."""
    return Ether(src=TRANSLATOR_PORT_MAC.hex(":"), dst=TRANSLATOR_MAC.hex(":")) / Dot1Q(vlan=tag) / packet


@contextmanager
def translator_world(pins: Path) -> Iterator[Translator]:
    """``pins`` as for :func:`firewall_world`."""
    with firewall_world(pins) as made:
        ip(f"link add {TRANSLATOR_PORT} address {TRANSLATOR_PORT_MAC.hex(':')} type veth peer name ipsecgw-vn")
        for name in (TRANSLATOR_PORT, "ipsecgw-vn"):
            ip(f"link set {name} up")
        yield Translator(made)
        made.steering.end_translation()
        made.steering.set_translator_port(0)
