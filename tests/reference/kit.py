"""A firewall of three zones for tests of the model: lan (fwa), dmz (fwb, fwc and its VLAN 100), wan (fwd)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_network

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from ipsec_gw.model.firewall import Action, Policy, Ruleset, Service, Zone
from ipsec_gw.model.ids import IpNetwork
from tests.reference.fib import key_bytes
from tests.reference.model import Outcome, Pipeline
from tests.reference.network import INDEXES, SEED, make_fib, make_port
from tests.reference.packets import Key
from tests.reference.rules import Ids
from tests.reference.sessions import Entry

ZONES = {"lan": ("fwa",), "dmz": ("fwb", "fwc", "fwc.100"), "wan": ("fwd",)}
NUMBERS = {"lan": 1, "dmz": 2, "wan": 3}
SECOND = 1_000_000_000
START = 1000 * SECOND
CLIENT, SERVER = "10.0.0.10", "10.0.1.10"


def zones(**changes: object) -> tuple[Zone, ...]:
    """The three zones; ``changes`` hold for all of them."""
    return tuple(Zone(name, interfaces, **changes) for name, interfaces in ZONES.items())  # type: ignore[arg-type]


def net(text: str) -> IpNetwork:
    return ip_network(text)


def permit_all(**changes: object) -> Ruleset:
    return replace(Ruleset(zones=zones(), default=Action.PERMIT), **changes)  # type: ignore[arg-type]


def rule_ids(ruleset: Ruleset) -> Ids:
    """Policies have the numbers 10, 11, ...; host-inbound 20 and up; kinds of NAT 30, 40, ... 70."""
    kinds = (
        ("policy", 10, ruleset.policies),
        ("host-inbound", 20, ruleset.zones),
        ("source-nat", 30, ruleset.source_nat),
        ("destination-nat", 40, ruleset.destination_nat),
        ("static-nat", 50, ruleset.static_nat),
        ("nptv6", 60, ruleset.nptv6),
        ("nat64", 70, ruleset.nat64),
    )
    rules = {(kind, rule.name): first + n for kind, first, named in kinds for n, rule in enumerate(named)}
    return Ids(NUMBERS, rules)


@dataclass
class Firewall:
    """A pipeline with a clock."""

    ruleset: Ruleset
    partial: bool = False
    redirect: bool = True
    addresses: bool = True

    def __post_init__(self) -> None:
        ports = [
            make_port(name, zone.name, INDEXES, partial=self.partial, redirect=self.redirect)
            for zone in self.ruleset.zones
            for name in zone.interfaces
        ]
        if not self.addresses:
            ports = [replace(port, addr4=bytes(16), addr6=bytes(16)) for port in ports]
        self.pipeline = Pipeline(self.ruleset, rule_ids(self.ruleset), ports, make_fib(INDEXES), SEED)
        self.now = START

    def sees(self, interface: str, packet: Packet | bytes) -> Outcome:
        """A packet without Ethernet header gets one."""
        if isinstance(packet, IP | IPv6):
            packet = Ether(src="02:00:00:00:00:ff", dst="02:00:00:00:00:01") / packet
        return self.pipeline.packet(INDEXES[interface], bytes(packet), self.now)

    def entry(self, src: str, dst: str, ports: tuple[int, int], protocol: int, zone: str) -> Entry:
        key = Key(key_bytes(src), key_bytes(dst), *ports, protocol, NUMBERS[zone])
        return self.pipeline.sessions.entries[key]

    @property
    def sessions(self) -> int:
        """Entries in the table."""
        return len(self.pipeline.sessions.entries)

    def handshake(self) -> None:
        """CLIENT:1024 to SERVER:80, the next sequence numbers are 101 and 501."""
        for interface, segment in (
            ("fwa", c2s("S", seq=100)),
            ("fwb", s2c("SA", seq=500, ack=101)),
            ("fwa", c2s("A", seq=101, ack=501)),
        ):
            assert self.sees(interface, segment).action == "REDIRECT"

    def state(self) -> int:
        """Of the session of :meth:`handshake`."""
        forward = self.entry(CLIENT, SERVER, (1024, 80), 6, "lan")
        reverse = self.entry(SERVER, CLIENT, (80, 1024), 6, "dmz")
        assert (forward.state, forward.timeout) == (reverse.state, reverse.timeout)
        return forward.state


def c2s(flags: str, **fields: object) -> Packet:
    """From client to server."""
    return IP(src=CLIENT, dst=SERVER) / TCP(sport=1024, dport=80, flags=flags, **fields)


def s2c(flags: str, **fields: object) -> Packet:
    return IP(src=SERVER, dst=CLIENT) / TCP(sport=80, dport=1024, flags=flags, **fields)


def out(outcome: Outcome) -> Packet:
    """The frame afterwards."""
    return Ether(outcome.frame)


def checked(packet: Packet) -> Packet:
    """The same packet, its checksums computed by scapy: equal to it if its own are right. What it quotes stays."""
    fresh = packet.copy()
    layer = fresh
    while layer and "in ICMP" not in layer.name:
        for field in ("chksum", "cksum"):
            if field in layer.fields:
                delattr(layer, field)
        layer = layer.payload
    return Ether(bytes(fresh))


def policy(name: str, action: Action, pair: tuple[str, str] | None, **fields: object) -> Policy:
    from_zone, to_zone = pair or (None, None)
    return Policy(name, action, from_zone, to_zone, **fields)  # type: ignore[arg-type]


def tcp_service(first: int, last: int | None = None, **fields: object) -> tuple[Service, ...]:
    return (Service(6, (first, last or first), **fields),)  # type: ignore[arg-type]
