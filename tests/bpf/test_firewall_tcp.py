"""TCP in sessions: states step by step, RST, reuse of a tuple, expiry, timeouts of applications, the MSS clamp."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

import pytest
from firewall_kit import LAN, VLAN, WAN, Port, Result, World, now_ns, zones
from firewall_packets import assert_sound, changed, described, echo, flow_of, ip_layer, other, partial, routed, udp
from scapy.layers.inet import IP, TCP, in4_chksum
from scapy.layers.inet6 import in6_chksum
from scapy.packet import Packet, Raw

from ipsec_gw.model.firewall import (
    Action,
    Policy,
    Ruleset,
    Service,
    Sessions,
    SourceNat,
    Timeouts,
    Translation,
)
from xdp_steer.flow_layout import SessionFlag, SessionLeaf, State
from xdp_steer.prog_run import XdpAction
from xdp_steer.reasons import Reason
from xdp_steer.sessions import Flow, partner_key

pytestmark = pytest.mark.root

TIMES = Timeouts(
    tcp_established=12, tcp_opening=3, tcp_closing=4, tcp_time_wait=5, tcp_closed=2, udp=6, icmp=7, other=8
)
"""Short, so that a machine that has just started can be older than they are."""
OPEN = Ruleset(zones=zones(), policies=(Policy("all", Action.PERMIT),), sessions=Sessions(timeouts=TIMES))
TIMEOUT_OF = {
    State.OPENING: TIMES.tcp_opening,
    State.ANSWERED: TIMES.tcp_opening,
    State.ESTABLISHED: TIMES.tcp_established,
    State.CLOSING: TIMES.tcp_closing,
    State.TIME_WAIT: TIMES.tcp_time_wait,
    State.CLOSED: TIMES.tcp_closed,
}
OPENING, ANSWERED, ESTABLISHED = State.OPENING, State.ANSWERED, State.ESTABLISHED
CLOSING, TIME_WAIT, CLOSED = State.CLOSING, State.TIME_WAIT, State.CLOSED
VERSIONS = (4, 6)


@pytest.fixture
def world(arena: World) -> World:
    arena.clear()
    arena.apply(OPEN)
    return arena


@dataclass
class Peers:
    """A client behind ``port`` and a server on the WAN."""

    world: World
    port: Port = LAN
    version: int = 4
    dport: int = 80

    def segment(self, sender: str, flags: str, seq: int = 1, ack: int = 0, **fields: object) -> Packet:
        here, there = self.port.host(self.version), WAN.host(self.version)
        ports = (40000, self.dport)
        if sender == "server":
            here, there, ports = there, here, (self.dport, 40000)
        layer = ip_layer(self.version, src=here, dst=there)
        return layer / TCP(sport=ports[0], dport=ports[1], flags=flags, seq=seq, ack=ack, **fields)

    def send(self, sender: str, flags: str, seq: int = 1, ack: int = 0, **fields: object) -> Result:
        return self.world.send(self.ingress(sender), self.segment(sender, flags, seq, ack, **fields))

    def ingress(self, sender: str) -> Port:
        return self.port if sender == "client" else WAN

    def entries(self) -> tuple[SessionLeaf, SessionLeaf]:
        """Client's and server's direction."""
        key = self.flow("client").leaf()
        ahead = self.world.table.get(key)
        assert ahead is not None
        back = self.world.table.get(partner_key(key, ahead))
        assert back is not None
        return ahead, back

    def flow(self, sender: str) -> Flow:
        zone = {"lan0": "lan", "lan0.100": "vlan", "wan0": "wan"}[self.ingress(sender).name]
        return flow_of(self.segment(sender, "A"), self.world.zone(zone))

    def state(self) -> State:
        ahead, back = self.entries()
        assert (ahead.state, ahead.timeout) == (back.state, back.timeout)
        return State(ahead.state)

    def reach(self, state: State) -> None:
        """By the usual way."""
        for sender, flags, seq, ack, _ in WAYS[state]:
            assert self.send(sender, flags, seq, ack).reason is Reason.FORWARDED
        assert self.state() is state


C, S = "client", "server"
Step = tuple[str, str, int, int, State]
HANDSHAKE: tuple[Step, ...] = (
    (C, "S", 100, 0, OPENING),
    (S, "SA", 500, 101, ANSWERED),
    (C, "A", 101, 501, ESTABLISHED),
)
CLOSE: tuple[Step, ...] = (
    *HANDSHAKE,
    (C, "FA", 101, 501, CLOSING),
    (S, "FA", 501, 102, TIME_WAIT),
)
WAYS: dict[State, tuple[Step, ...]] = {
    OPENING: HANDSHAKE[:1],
    ANSWERED: HANDSHAKE[:2],
    ESTABLISHED: HANDSHAKE,
    CLOSING: CLOSE[:4],
    TIME_WAIT: CLOSE,
    CLOSED: (*HANDSHAKE, (S, "R", 501, 0, CLOSED)),
}

SCRIPTS: dict[str, tuple[Step, ...]] = {
    "to time wait": (*CLOSE, (C, "A", 102, 502, TIME_WAIT), (S, "A", 502, 102, TIME_WAIT)),
    "server closes first": (*HANDSHAKE, (S, "FA", 501, 101, CLOSING), (C, "FA", 101, 502, TIME_WAIT)),
    "half closed": (*CLOSE[:4], (S, "A", 501, 102, CLOSING), (S, "PA", 501, 102, CLOSING), (C, "A", 102, 601, CLOSING)),
    "fin sent again": (*CLOSE[:4], (C, "FA", 101, 501, CLOSING), (S, "FA", 501, 102, TIME_WAIT)),
    "fin in time wait": (*CLOSE, (S, "FA", 501, 102, TIME_WAIT), (C, "FA", 101, 501, TIME_WAIT)),
    "syn sent again": (*HANDSHAKE[:1], (C, "S", 100, 0, OPENING), *HANDSHAKE[1:]),
    "syn ack sent again": (*HANDSHAKE[:2], (S, "SA", 500, 101, ANSWERED), HANDSHAKE[2]),
    "syn ack after all": (*HANDSHAKE, (S, "SA", 500, 101, ESTABLISHED), (C, "S", 100, 0, ESTABLISHED)),
    "ack of the server before its syn": (*HANDSHAKE[:1], (S, "A", 500, 7, OPENING), *HANDSHAKE[1:]),
    "syn ack of the client": (*HANDSHAKE[:1], (C, "SA", 100, 7, OPENING), *HANDSHAKE[1:]),
    "ack of the client before the answer": (*HANDSHAKE[:1], (C, "A", 101, 7, OPENING), *HANDSHAKE[1:]),
    "data of the server before the ack": (*HANDSHAKE[:2], (S, "PA", 501, 101, ANSWERED), HANDSHAKE[2]),
    "simultaneous open": (*HANDSHAKE[:1], (S, "S", 500, 0, OPENING), *HANDSHAKE[1:]),
    "fin before the answer": (*HANDSHAKE[:1], (C, "FA", 101, 0, OPENING), *HANDSHAKE[1:]),
    "fin of the server before the ack": (*HANDSHAKE[:2], (S, "FA", 501, 101, CLOSING), (C, "FA", 101, 502, TIME_WAIT)),
    "ack with fin": (*HANDSHAKE[:2], (C, "FA", 101, 501, CLOSING), (S, "FA", 501, 102, TIME_WAIT)),
    "flags that mean nothing here": (*HANDSHAKE, (C, "PAU", 101, 501, ESTABLISHED), (S, "AEC", 501, 101, ESTABLISHED)),
    "rst while opening, of the server": (*HANDSHAKE[:1], (S, "RA", 0, 101, CLOSED)),
    "rst while opening, of the client": (*HANDSHAKE[:1], (C, "R", 101, 0, CLOSED)),
    "rst while answered": (*HANDSHAKE[:2], (C, "R", 9, 0, CLOSED)),
    "rst at the number that the client expects": (*HANDSHAKE, (S, "R", 501, 0, CLOSED)),
    "rst at the number that the server expects": (*HANDSHAKE, (C, "RA", 101, 501, CLOSED)),
    "rst one below": (*HANDSHAKE, (S, "R", 500, 0, ESTABLISHED)),
    "rst one above": (*HANDSHAKE, (S, "R", 502, 0, ESTABLISHED)),
    "rst of the client elsewhere": (*HANDSHAKE, (C, "RA", 99, 501, ESTABLISHED)),
    "rst follows the last ack": (
        *HANDSHAKE,
        (C, "A", 101, 900, ESTABLISHED),
        (S, "R", 501, 0, ESTABLISHED),
        (S, "R", 900, 0, CLOSED),
    ),
    "rst while closing": (*CLOSE[:4], (S, "R", 500, 0, CLOSING), (S, "R", 501, 0, CLOSED)),
    "rst in time wait": (*CLOSE, (S, "R", 9, 0, TIME_WAIT), (C, "R", 102, 0, CLOSED)),
    "rst after a rst": (*WAYS[CLOSED], (C, "R", 101, 0, CLOSED), (S, "RA", 7, 7, CLOSED)),
    "numbers around 2^32": (
        (C, "S", 0xFFFFFFFF, 0, OPENING),
        (S, "SA", 0x80000000, 0, ANSWERED),
        (C, "A", 0, 0x80000001, ESTABLISHED),
        (C, "R", 0xFFFFFFFF, 0, ESTABLISHED),
        (C, "R", 0, 0, CLOSED),
    ),
}


@pytest.mark.parametrize("port", [LAN, VLAN], ids=lambda port: port.name)
@pytest.mark.parametrize("v", VERSIONS)
@pytest.mark.parametrize("name", SCRIPTS)
def test_states_step_by_step(world: World, port: Port, v: int, name: str) -> None:
    peers = Peers(world, port, v)
    last_ack: dict[str, int | None] = {C: None, S: None}
    for sender, flags, seq, ack, state in SCRIPTS[name]:
        segment = peers.segment(sender, flags, seq, ack)
        result = world.send(peers.ingress(sender), segment)
        assert (result.action, result.reason) == (XdpAction.REDIRECT, Reason.FORWARDED)
        assert described(result.frame) == described(routed(segment, WAN if sender == C else port))
        assert peers.state() is state
        ahead, back = peers.entries()
        assert ahead.timeout == TIMEOUT_OF[state]
        if "A" in flags:
            last_ack[sender] = ack
        for entry, who in ((ahead, C), (back, S)):
            assert bool(entry.flags & SessionFlag.ACKED) == (last_ack[who] is not None)
            assert entry.ack == (last_ack[who] or 0)
    assert len(world.sessions()) == 1


@pytest.mark.parametrize("v", VERSIONS)
def test_counters_of_each_direction(world: World, v: int) -> None:
    peers = Peers(world, version=v)
    octets = {C: 0, S: 0}
    packets = {C: 0, S: 0}
    for sender, flags, seq, ack, _ in CLOSE:
        segment = peers.segment(sender, flags, seq, ack, options=[("NOP", None)] * 4)
        world.send(peers.ingress(sender), segment)
        octets[sender] += len(segment)
        packets[sender] += 1
    session = world.session()
    assert (session.forward.packets, session.forward.octets) == (packets[C], octets[C])
    assert (session.reverse.packets, session.reverse.octets) == (packets[S], octets[S])


@pytest.mark.parametrize("sender", [C, S])
@pytest.mark.parametrize("v", VERSIONS)
def test_closed_drops_and_refreshes_nothing(world: World, sender: str, v: int) -> None:
    peers = Peers(world, version=v)
    peers.reach(CLOSED)
    world.age(1)
    before = [bytes(entry) for entry in peers.entries()]
    for flags in ("A", "PA", "FA", "SA"):
        result = peers.send(sender, flags, 101, 501)
        assert (result.action, result.reason) == (XdpAction.DROP, Reason.SESSION_CLOSED)
    seen = [entry.last_seen_ns for entry in peers.entries()]
    assert [bytes(entry) for entry in peers.entries()] == before
    assert peers.send(sender, "R", 101).reason is Reason.FORWARDED
    assert [entry.last_seen_ns for entry in peers.entries()] == seen


@pytest.mark.parametrize("state", [TIME_WAIT, CLOSED])
@pytest.mark.parametrize("sender", [C, S])
@pytest.mark.parametrize("v", VERSIONS)
def test_a_syn_takes_over_the_tuple_of_an_ended_session(world: World, state: State, sender: str, v: int) -> None:
    peers = Peers(world, version=v)
    peers.reach(state)
    old = world.session()
    assert peers.send(sender, "S", 7000).reason is Reason.FORWARDED
    fresh = world.session()
    assert fresh.id != old.id
    assert fresh.state is OPENING
    assert fresh.flow == peers.flow(sender)
    assert (fresh.forward.packets, fresh.reverse.packets) == (1, 0)


@pytest.mark.parametrize("state", [OPENING, ANSWERED, ESTABLISHED, CLOSING])
def test_a_syn_in_a_live_session_is_a_packet_of_it(world: World, state: State) -> None:
    peers = Peers(world)
    peers.reach(state)
    old = world.session()
    assert peers.send(C, "S", 7000).reason is Reason.FORWARDED
    assert (world.session().id, world.session().state) == (old.id, state)


@pytest.mark.parametrize("state", [TIME_WAIT, CLOSED])
def test_a_tuple_that_is_taken_over_meets_the_policy_of_now(world: World, state: State) -> None:
    peers = Peers(world)
    peers.reach(state)
    world.apply(replace(OPEN, policies=()))
    assert peers.send(C, "S").reason is Reason.DEFAULT_DENY
    assert world.entries() == {}


@pytest.mark.parametrize("v", VERSIONS)
@pytest.mark.parametrize("state", list(State))
def test_every_state_has_its_timeout(world: World, state: State, v: int) -> None:
    peers = Peers(world, version=v)
    peers.reach(state)
    world.age(TIMEOUT_OF[state] - 1)
    wanted = Reason.SESSION_CLOSED if state is CLOSED else Reason.FORWARDED
    assert peers.send(C, "A", 101, 501).reason is wanted
    world.clear()
    peers.reach(state)
    world.age(TIMEOUT_OF[state] + 1)
    assert peers.send(C, "A", 101, 501).reason is Reason.TCP_NOT_SYN
    assert world.entries() == {}


@pytest.mark.parametrize("sender", [C, S])
def test_the_later_direction_counts(world: World, sender: str) -> None:
    peers = Peers(world)
    peers.reach(ESTABLISHED)
    world.age(TIMES.tcp_established + 1)
    world.change(peers.flow(sender), last_seen_ns=now_ns())
    for other_sender in (S, C):
        assert peers.send(other_sender, "A", 101, 501).reason is Reason.FORWARDED


def test_a_packet_refreshes_its_own_direction(world: World) -> None:
    peers = Peers(world)
    peers.reach(ESTABLISHED)
    world.age(5)
    before = now_ns()
    peers.send(S, "A", 501, 101)
    ahead, back = peers.entries()
    assert ahead.last_seen_ns < before - 4_000_000_000
    assert before <= back.last_seen_ns <= now_ns()


@pytest.mark.parametrize("v", VERSIONS)
def test_a_syn_after_expiry_starts_anew(world: World, v: int) -> None:
    peers = Peers(world, version=v)
    peers.reach(ESTABLISHED)
    old = world.session().id
    world.age(TIMES.tcp_established + 1)
    assert peers.send(S, "S").reason is Reason.FORWARDED
    assert world.session().id != old
    assert world.session().flow == peers.flow(S)


def plain(kind: str, v: int) -> Packet:
    made = {"udp": udp, "icmp": echo, "other": other}[kind]
    return made(LAN.host(v), WAN.host(v))


@pytest.mark.parametrize("v", VERSIONS)
@pytest.mark.parametrize(("kind", "seconds"), [("udp", TIMES.udp), ("icmp", TIMES.icmp), ("other", TIMES.other)])
def test_other_protocols_expire_too(world: World, kind: str, seconds: int, v: int) -> None:
    packet = plain(kind, v)
    world.send(LAN, packet)
    first = world.session()
    assert (first.state, first.timeout) == (ESTABLISHED, seconds)
    world.age(seconds - 1)
    world.send(LAN, packet)
    assert (world.session().id, world.session().forward.packets) == (first.id, 2)
    world.age(seconds + 1)
    world.send(LAN, packet)
    assert world.session().id != first.id
    assert world.session().forward.packets == 1


APPLICATIONS = (
    Service(6, (80, 80), timeout=9),
    Service(17, (5000, 5000), timeout=10),
    Service(1, timeout=11),
    Service(58, timeout=11),
    Service(47, timeout=13),
)


@pytest.mark.parametrize("v", VERSIONS)
@pytest.mark.parametrize(("kind", "seconds"), [("udp", 10), ("icmp", 11), ("other", 13)])
def test_an_application_has_its_own_timeout(world: World, kind: str, seconds: int, v: int) -> None:
    world.apply(replace(OPEN, policies=(Policy("apps", Action.PERMIT, services=APPLICATIONS),)))
    world.send(LAN, plain(kind, v))
    assert {entry.timeout for entry in world.entries().values()} == {seconds}


@pytest.mark.parametrize("v", VERSIONS)
def test_an_application_replaces_the_timeout_of_established_tcp_only(world: World, v: int) -> None:
    world.apply(replace(OPEN, policies=(Policy("apps", Action.PERMIT, services=APPLICATIONS),)))
    peers = Peers(world, version=v)
    for sender, flags, seq, ack, state in CLOSE:
        peers.send(sender, flags, seq, ack)
        assert peers.state() is state
        assert peers.entries()[0].timeout == (9 if state is ESTABLISHED else TIMEOUT_OF[state])


LAX = replace(OPEN, zones=zones(lan={"syn_check": False}))


@pytest.mark.parametrize(
    ("flags", "state"), [("A", ESTABLISHED), ("FA", ESTABLISHED), ("SA", OPENING), ("", ESTABLISHED), ("S", OPENING)]
)
@pytest.mark.parametrize("v", VERSIONS)
def test_without_the_check_any_segment_starts_a_session(world: World, flags: str, state: State, v: int) -> None:
    world.apply(LAX)
    peers = Peers(world, version=v)
    assert peers.send(C, flags, 50, 60).reason is Reason.FORWARDED
    assert peers.state() is state
    ahead, back = peers.entries()
    assert bool(ahead.flags & SessionFlag.ACKED) == ("A" in flags)
    assert ahead.ack == (60 if "A" in flags else 0)
    assert (back.ack, back.flags & SessionFlag.ACKED) == (0, 0)


def test_a_picked_up_session_obeys_the_rst_rule(world: World) -> None:
    world.apply(LAX)
    peers = Peers(world)
    peers.send(C, "A", 50, 60)
    peers.send(S, "R", 59)
    assert peers.state() is ESTABLISHED
    peers.send(C, "R", 50)
    assert peers.state() is ESTABLISHED, "the server has acknowledged nothing yet"
    peers.send(S, "R", 60)
    assert peers.state() is CLOSED


OPTIONS: dict[str, list[tuple[str, object]]] = {
    "alone": [("MSS", 1460)],
    "after one nop": [("NOP", None), ("MSS", 1460)],
    "after two nops": [("NOP", None), ("NOP", None), ("MSS", 1460)],
    "after sack permitted": [("SAckOK", b""), ("MSS", 1460)],
    "after a window scale": [("WScale", 7), ("MSS", 1460)],
    "after timestamps": [("Timestamp", (1, 0)), ("MSS", 1460)],
    "after a nop and timestamps": [("NOP", None), ("Timestamp", (1, 0)), ("MSS", 1460), ("NOP", None)],
    "first of many": [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 0)), ("NOP", None), ("WScale", 7)],
    "last of many": [("SAckOK", b""), ("Timestamp", (1, 0)), ("NOP", None), ("WScale", 7), ("MSS", 1460)],
    "after an unknown one": [(253, b"abcde"), ("MSS", 1460)],
    "after fifteen nops": [("NOP", None)] * 15 + [("MSS", 1460)],
}


def capped(options: list[tuple[str, object]], cap: int) -> list[tuple[str, object]]:
    return [(name, cap) if name == "MSS" else (name, value) for name, value in options]


@pytest.mark.parametrize("v", VERSIONS)
@pytest.mark.parametrize("name", OPTIONS)
def test_the_mss_is_lowered_in_both_directions(world: World, name: str, v: int) -> None:
    world.apply(replace(OPEN, zones=zones(lan={"tcp_mss": 1300})))
    peers = Peers(world, version=v)
    options = OPTIONS[name]
    for sender, flags, seq, ack, port in ((C, "S", 100, 0, WAN), (S, "SA", 500, 101, LAN), (C, "S", 100, 0, WAN)):
        segment = peers.segment(sender, flags, seq, ack, options=options)
        result = world.send(peers.ingress(sender), segment)
        segment[TCP].options = capped(options, 1300)
        assert described(result.frame) == described(routed(segment, port))
        assert_sound(result.frame)


@pytest.mark.parametrize("v", VERSIONS)
def test_the_lower_cap_of_both_zones_counts(world: World, v: int) -> None:
    for caps, wanted in (((1300, 1200), 1200), ((1200, 1300), 1200), ((None, 1250), 1250), ((1250, None), 1250)):
        world.clear()
        world.apply(replace(OPEN, zones=zones(lan={"tcp_mss": caps[0]}, wan={"tcp_mss": caps[1]})))
        peers = Peers(world, version=v)
        for sender, flags in ((C, "S"), (S, "SA")):
            result = peers.send(sender, flags, options=[("MSS", 1460)])
            assert result.ip[TCP].options == [("MSS", wanted)]


@pytest.mark.parametrize("v", VERSIONS)
def test_a_lower_mss_and_other_segments_stay(world: World, v: int) -> None:
    world.apply(replace(OPEN, zones=zones(lan={"tcp_mss": 1300})))
    peers = Peers(world, version=v)
    for sender, flags, mss in ((C, "S", 1300), (S, "SA", 536), (C, "A", 1460)):
        segment = peers.segment(sender, flags, options=[("MSS", mss)])
        result = world.send(peers.ingress(sender), segment)
        assert described(result.frame) == described(routed(segment, WAN if sender == C else LAN))


def raw_options(segment: Packet, options: bytes) -> Packet:
    """A segment with these bytes as options, padded to whole words. Scapy would put them right."""
    padded = options + bytes(-len(options) % 4)
    header = bytearray(bytes(segment[TCP]) + padded)
    header[12] = (5 + len(padded) // 4) << 4
    header[16:18] = bytes(2)
    layer = segment.copy()
    layer.remove_payload()
    checksum = in4_chksum if isinstance(layer, IP) else in6_chksum
    header[16:18] = checksum(6, layer, bytes(header)).to_bytes(2)
    layer.setfieldval("proto" if isinstance(layer, IP) else "nh", 6)
    return layer / Raw(bytes(header))


BROKEN = {
    "end of the list first": b"\x00\x02\x04\x05\xb4",
    "length 0": b"\x03\x00\x02\x04\x05\xb4",
    "length 1": b"\x03\x01\x02\x04\x05\xb4",
    "mss of 3 bytes": b"\x02\x03\x05\xb4",
    "mss beyond the header": b"\x01\x02\x04\x05",
    "option beyond the header": b"\xfd\x30\x02\x04\x05\xb4",
}


@pytest.mark.parametrize("v", VERSIONS)
@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_option_list_is_left_alone(world: World, name: str, v: int) -> None:
    world.apply(replace(OPEN, zones=zones(lan={"tcp_mss": 1000})))
    segment = raw_options(Peers(world, version=v).segment(C, "S"), BROKEN[name])
    result = world.send(LAN, segment)
    assert result.reason is Reason.FORWARDED
    assert described(result.frame) == described(routed(segment, WAN))


@pytest.mark.parametrize("v", VERSIONS)
@pytest.mark.parametrize("name", ["alone", "after one nop"])
def test_the_clamp_and_translation_together(world: World, name: str, v: int) -> None:
    hide = SourceNat("hide", Translation.INTERFACE, to_zone="wan")
    rules = replace(OPEN, zones=zones(lan={"tcp_mss": 1300}), source_nat=(hide,))
    world.apply(rules)
    segment = Peers(world, version=v).segment(C, "S", options=OPTIONS[name])
    result = world.send(LAN, segment)
    segment[TCP].options = capped(OPTIONS[name], 1300)
    assert described(result.frame) == described(routed(segment, WAN, src=WAN.own(v)))


@pytest.mark.parametrize("v", VERSIONS)
@pytest.mark.parametrize("name", ["alone", "after one nop"])
@pytest.mark.parametrize("hidden", [False, True])
def test_the_clamp_leaves_a_partial_checksum_alone(world: World, name: str, v: int, hidden: bool) -> None:
    hide = (SourceNat("hide", Translation.INTERFACE, to_zone="wan"),) if hidden else ()
    world.apply(replace(OPEN, zones=zones(lan={"tcp_mss": 1300}), source_nat=hide), lan={"partial": True})
    segment = Peers(world, version=v).segment(C, "S", options=OPTIONS[name])
    result = world.send(LAN, partial(segment))
    assert result.reason is Reason.TO_KERNEL
    segment[TCP].options = capped(OPTIONS[name], 1300)
    wanted = partial(changed(segment, src=WAN.own(v)) if hidden else segment)
    assert described(result.frame) == described(LAN.frame(wanted))


def test_the_timeouts_of_this_module_differ() -> None:
    assert len(set(astuple(TIMES))) == len(astuple(TIMES))
