"""What is measured: packets, how they are sent again and again, and what must become of every one of them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from bench import rearm
from bench.machine import (
    DENIED_PORT,
    EVERY_SCREEN,
    FIRST_SPI,
    INTERFACE_PORT,
    LAN_HOST_MAC,
    LAN_MAC,
    OWN4,
    POOL_PORT,
    SAS,
    SERVER4,
    SERVER6,
    WAN_HOST_MAC,
    WAN_MAC,
    Machine,
    Rules,
    ifindex,
)
from bench.rearm import Entry
from ipsec_gw.model.screens import Screens
from xdp_steer.flow_layout import FlowKeyLeaf
from xdp_steer.prog_run import XdpAction
from xdp_steer.reasons import Reason

MANY = 1_000_000
"""Sessions in the table, from CLIENTS on."""
CLIENTS, STALE, NEWCOMERS, TRANSLATED = "10.0.0.0", "10.64.0.0", "10.128.0.0", "10.192.0.0"
"""First client addresses: of the prepared sessions, of those with a route that is due, of new ones, of new ones with
NAT."""
STALE_COUNT = 100_000
TWO_RULES = Rules()
SCREENED = Rules(screen=EVERY_SCREEN)
COOKIES = Screens("cookies", syn_flood=1, syn_cookie=True, window=60)
FILTERED = {"filter with 32 terms": Rules(terms=32), "filter, policer": Rules(terms=32, policed=True)}
PORT_STEP = 40503
_CLIENT4, _CLIENT6 = "10.127.0.1", "2001:db8:c::1"
_PAYLOAD = Raw(bytes(64))


class Program(Enum):
    """What is run."""

    TRIVIAL = auto()
    BASE = auto()
    BASE_MANY = auto()
    PIPELINE = auto()
    DOCK = auto()


class Ring(Enum):
    """The ring of events while denials are logged."""

    UNUSED = auto()
    READ = auto()
    FULL = auto()


@dataclass(frozen=True)
class Case:
    """A packet and its fate. ``clients`` are first address, number of addresses (0: no end) and step of source ports.

    ``target`` is how many times the baseline it may cost. ``opens``: every packet begins a session. ``session`` is one
    whose route must not be looked up; ``due``: all routes are looked up. ``source`` is what the sender must become.
    ``cut``: the packet becomes a shorter one that goes back, and the first ones of a measurement do not.
    """

    name: str
    packet: Packet
    action: XdpAction
    reason: Reason | None = None
    target: float | None = None
    program: Program = Program.PIPELINE
    port: str = "lan0"
    entry: Entry = Entry.DIRECT
    clients: tuple[str, int, int] = (CLIENTS, 1, 0)
    rules: Rules = TWO_RULES
    ring: Ring = Ring.UNUSED
    opens: bool = False
    due: bool = False
    session: FlowKeyLeaf | None = None
    source: str | None = None
    cut: bool = False


def _lan(ip: Packet) -> Packet:
    return Ether(src=LAN_HOST_MAC, dst=LAN_MAC) / ip / _PAYLOAD


def _wan(ip: Packet) -> Packet:
    return Ether(src=WAN_HOST_MAC, dst=WAN_MAC) / ip / _PAYLOAD


def _v4(source: str = _CLIENT4, destination: str = SERVER4) -> Packet:
    return IP(src=source, dst=destination)


def _v6(source: str = _CLIENT6, destination: str = SERVER6) -> Packet:
    return IPv6(src=source, dst=destination)


BASELINE = "R: parse, one lookup, redirect"
PASSES = "XDP_PASS"
REARM = {Entry.SAME: "re-arm, same packet", Entry.EACH: "re-arm, next source"}


def base_packet() -> Packet:
    """Of a flow that the baseline knows."""
    return _lan(
        _v4(destination=str(rearm.BASE_SERVER)) / UDP(sport=1024 + rearm.BASE_FLOWS // 2, dport=rearm.BASE_PORT)
    )


def around() -> Iterator[Case]:
    """The baseline, and what the benchmark itself costs."""
    udp = base_packet()
    yield Case(BASELINE, udp, XdpAction.REDIRECT, program=Program.BASE)
    yield Case(PASSES, udp, XdpAction.PASS, program=Program.TRIVIAL)
    for entry, name in REARM.items():
        yield Case(name, udp, XdpAction.PASS, program=Program.TRIVIAL, entry=entry, clients=(CLIENTS, MANY, PORT_STEP))


def steered() -> Iterator[Case]:
    """ESP to the engine's socket, with and without the dock before it; and ESP for the kernel."""
    esp = _wan(_v4(SERVER4, OWN4) / ESP(spi=FIRST_SPI + SAS // 2, seq=1, data=bytes(16)))
    unknown = _wan(_v4(SERVER4, OWN4) / ESP(spi=FIRST_SPI - 1, seq=1, data=bytes(16)))
    yield Case("ESP steered to the socket", esp, XdpAction.REDIRECT, Reason.STEERED, 2, port="wan0")
    yield Case(
        "ESP steered, from the dock on", esp, XdpAction.REDIRECT, Reason.STEERED, program=Program.DOCK, port="wan0"
    )
    yield Case("ESP of the kernel", unknown, XdpAction.PASS, Reason.HOST_IKE, port="wan0")


def refused() -> Iterator[Case]:
    """Dropped early, by policy, with and without a record."""
    no = _lan(_v4() / UDP(sport=1024, dport=DENIED_PORT))
    short = _lan(IP(src=_CLIENT4, dst=SERVER4, len=1400) / UDP(sport=1024, dport=DENIED_PORT))
    yield Case("drop, no zone", no, XdpAction.DROP, Reason.NO_ZONE, port="wild0")
    yield Case("drop, malformed", short, XdpAction.DROP, Reason.MALFORMED)
    for count, target in ((2, 9), (100, 14), (1000, None)):
        name = f"policy deny, {count} rules"
        yield Case(name, no, XdpAction.DROP, Reason.POLICY_DENY, target, rules=Rules(count))
    for ring in (Ring.READ, Ring.FULL):
        name = f"policy deny, logged, ring {ring.name.lower()}"
        yield Case(name, no, XdpAction.DROP, Reason.POLICY_DENY, rules=Rules(log=True), ring=ring)


def screened() -> Iterator[Case]:
    """Dropped by a screen; the log of it is limited."""
    land = _lan(_v4(_CLIENT4, _CLIENT4) / UDP(sport=1024, dport=53))
    odd = _lan(_v4() / TCP(sport=1024, dport=443, flags="SF"))
    yield Case("screen drop, LAND", land, XdpAction.DROP, Reason.SCREEN_LAND, 5, rules=SCREENED)
    yield Case("screen drop, SYN+FIN", odd, XdpAction.DROP, Reason.SCREEN_SYN_FIN, 5, rules=SCREENED)
    for version, ip in ((4, _v4()), (6, _v6())):
        syn = _lan(ip / TCP(sport=1024, dport=443, flags="S"))
        yield Case(
            f"SYN cookie answer, IPv{version}", syn, XdpAction.TX, Reason.SCREEN_SYN_COOKIE,
            entry=Entry.SAME, rules=Rules(screen=COOKIES), cut=True,
        )  # fmt: skip


def new() -> Iterator[Case]:
    """Every packet begins a session."""
    syn = _lan(_v4() / TCP(sport=1024, dport=443, flags="S"))
    udp = _lan(_v4() / UDP(sport=1024, dport=POOL_PORT))
    for name, rules in (("2 rules", Rules()), ("1000 rules", Rules(1000)), ("screens", SCREENED)):
        yield Case(
            f"new session, {name}", syn, XdpAction.REDIRECT, Reason.FORWARDED, None if rules.screen else 50,
            entry=Entry.EACH, clients=(NEWCOMERS, 0, 0), rules=rules, opens=True,
        )  # fmt: skip
    yield Case(
        "new session, NAT from a pool", udp, XdpAction.REDIRECT, Reason.FORWARDED, 50,
        entry=Entry.EACH, clients=(TRANSLATED, 0, PORT_STEP), opens=True,
    )  # fmt: skip


def established(machine: Machine) -> Iterator[Case]:
    """Packets of sessions that the pipeline itself made."""
    for version, ip, client, server in ((4, _v4(), _CLIENT4, SERVER4), (6, _v6(), _CLIENT6, SERVER6)):
        tcp = _lan(ip / TCP(sport=1024, dport=443, flags="A", seq=1, ack=1))
        _handshake(machine, ip)
        key = machine.key(client, server, (1024, 443), 6, "lan")
        machine.keep_fresh(key)
        yield _established(f"established TCP, IPv{version}", tcp, key)
        yield _established(f"established TCP, IPv{version}, screens", tcp, key, rules=SCREENED)
        for name, rules in FILTERED.items():
            yield _established(f"established TCP, IPv{version}, {name}", tcp, key, rules=rules, target=None)
        udp = _lan(ip / UDP(sport=1024, dport=53))
        machine.exchange([("lan0", udp), ("wan0", _reply(udp))])
        key = machine.key(client, server, (1024, 53), 17, "lan")
        machine.keep_fresh(key)
        yield _established(f"established UDP, IPv{version}", udp, key)
        # Every packet of it is counted, so there is no target.
        yield _established(f"established UDP, IPv{version}, screens", udp, key, rules=SCREENED, target=None)
    yield from _translated(machine)


def _handshake(machine: Machine, ip: Packet) -> None:
    syn = _lan(ip / TCP(sport=1024, dport=443, flags="S"))
    answer = _reply(syn)
    answer[TCP].flags = "SA"
    machine.exchange([("lan0", syn), ("wan0", answer), ("lan0", _lan(ip / TCP(sport=1024, dport=443, flags="A")))])


def _reply(packet: Packet) -> Packet:
    """The same the other way, as the server sends it."""
    ip, l4 = packet.getlayer(1).copy(), packet.getlayer(2)
    ip.remove_payload()
    ip.src, ip.dst = ip.dst, ip.src
    back = l4.copy()
    back.remove_payload()
    back.sport, back.dport = l4.dport, l4.sport
    return _wan(ip / back)


def _established(name: str, packet: Packet, key: FlowKeyLeaf, **rest: object) -> Case:
    fields: dict[str, object] = {"target": 5, "entry": Entry.SAME, "session": key} | rest
    return Case(name, packet, XdpAction.REDIRECT, Reason.FORWARDED, **fields)  # type: ignore[arg-type]


def _translated(machine: Machine) -> Iterator[Case]:
    """Both ways of a session behind the interface's address."""
    udp = _lan(_v4() / UDP(sport=2048, dport=INTERFACE_PORT))
    (sent,) = machine.exchange([("lan0", udp)])
    out = Ether(sent.packet)
    back = _wan(_v4(SERVER4, out[IP].src) / UDP(sport=INTERFACE_PORT, dport=out[UDP].sport))
    machine.exchange([("wan0", back)])
    key = machine.key(_CLIENT4, SERVER4, (2048, INTERFACE_PORT), 17, "lan")
    (_, (reverse, _row)) = machine.keep_fresh(key)
    yield from _nptv6(machine)
    yield from _nat64(machine)
    yield _established("established UDP, NAT", udp, key, source=OWN4)
    yield _established("established UDP, NAT, reply", back, reverse, port="wan0", source=SERVER4)


def _nptv6(machine: Machine) -> Iterator[Case]:
    """Another source port than that of the session without translation."""
    machine.apply(Rules(nptv6=True))
    udp = _lan(_v6() / UDP(sport=3072, dport=53))
    (sent,) = machine.exchange([("lan0", udp)])
    source = str(Ether(sent.packet)[IPv6].src)
    machine.exchange([("wan0", _wan(_v6(SERVER6, source) / UDP(sport=53, dport=3072)))])
    key = machine.key(_CLIENT6, SERVER6, (3072, 53), 17, "lan")
    machine.keep_fresh(key)
    yield _established("established UDP, NPTv6", udp, key, source=source)
    machine.apply(Rules())


def _nat64(machine: Machine) -> Iterator[Case]:
    """Both ways of a TCP connection from IPv6 to IPv4. That the frame becomes as long as it was is in the figures."""
    machine.apply(Rules(nat64=True))
    there = "2001:db8:64::c000:250"
    out = _lan(_v6(destination=there) / TCP(sport=1024, dport=443, flags="A", seq=1, ack=1))
    syn = _lan(_v6(destination=there) / TCP(sport=1024, dport=443, flags="S"))
    (sent,) = machine.exchange([("lan0", syn)])
    source, sport = (Ether(sent.packet)[IP].src, Ether(sent.packet)[TCP].sport)
    back = _wan(_v4(SERVER4, source) / TCP(sport=443, dport=sport, flags="A", seq=1, ack=1))
    answer = _wan(_v4(SERVER4, source) / TCP(sport=443, dport=sport, flags="SA"))
    machine.exchange([("wan0", answer), ("lan0", out)])
    key = machine.key(_CLIENT6, there, (1024, 443), 6, "lan")
    (_, (reverse, _row)) = machine.keep_fresh(key)
    machine.apply(Rules())
    yield _established("established TCP, NAT64, to IPv4", out, key, source=source, target=None)
    yield _established("established TCP, NAT64, to IPv6", back, reverse, port="wan0", source=there, target=None)


def crowded(machine: Machine) -> Iterator[Case]:
    """One packet of every session in turn, so that the more there are the less of them is in a cache; the baseline
    likewise; and new sessions in a table that is full of others.
    """
    machine.rearm.fill_many(address_number(CLIENTS), MANY, ifindex("wan0"))
    yield Case(
        f"R, {MANY:,} flows in turn", base_packet(), XdpAction.REDIRECT, program=Program.BASE_MANY,
        entry=Entry.EACH, clients=(CLIENTS, MANY, 0),
    )  # fmt: skip
    packet = _lan(_v4() / TCP(sport=1024, dport=443, flags="A", seq=1, ack=1))
    pair = machine.keep_fresh(machine.key(_CLIENT4, SERVER4, (1024, 443), 6, "lan"))
    machine.clone(pair, CLIENTS, MANY)
    key = machine.key(CLIENTS, SERVER4, (1024, 443), 6, "lan")
    for count, target in ((10, 5), (1000, None), (100_000, None), (MANY, 15)):
        yield _established(
            f"established TCP, {count:,} in turn", packet, key,
            entry=Entry.EACH, clients=(CLIENTS, count, 0), target=target,
        )  # fmt: skip
    machine.clone(pair, STALE, STALE_COUNT)
    yield _established(
        f"established TCP, {STALE_COUNT:,} in turn, routes due", packet, key,
        entry=Entry.EACH, clients=(STALE, STALE_COUNT, 0), target=None, due=True, session=None,
    )  # fmt: skip
    for case in new():
        yield replace(case, name=f"{case.name}, {MANY:,} others", target=None)


def frame_of(case: Case) -> bytes:
    """The packet on the wire, with as many bytes as are restored at least."""
    frame = bytes(case.packet)
    if len(frame) < rearm.HEAD:
        raise ValueError(f"{case.name}: {len(frame)} bytes, and {rearm.HEAD} are restored - give it a payload")
    return frame


def address_number(address: str) -> int:
    """An IPv4 address in host order."""
    return int.from_bytes(socket.inet_aton(address), "big")
