"""What tunnels behind the gates ask VPP for, and classifiers that change in place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import SimpleNamespace

import pytest

from ipsec_gw.errors import EngineError
from ipsec_gw.model.algorithms import AES_GCM_128
from ipsec_gw.model.ids import Direction, SaKey, TunnelId
from ipsec_gw.model.objects import EngineSa, PortMatch, Selector, Tunnel, UdpEncap
from ipsec_gw.model.secret import Secret
from vpp_conf.descriptors.base import NO_INDEX
from vpp_conf.descriptors.classify import CARRY_ON, DENY, HEADERS, SET_IP4_FIB, VERSIONS, Pair
from vpp_conf.descriptors.sa import SadEntry
from vpp_conf.descriptors.spd import ANY_PROTOCOL, Action, Policy, parse_policies
from vpp_conf.encap import ENCAP_TABLE, FIRST_GATE_WAY, FIRST_WHOLE_WAY, EncapMap, Gate, Hop, Route
from vpp_conf.gate_loops import IN, OUT
from vpp_conf.gates import Arrival, GateParts, Holdings, holdings, may_pass
from vpp_conf.inventory import sad_entry
from vpp_conf.journal import Journal
from vpp_conf.links import Links
from vpp_conf.sieve import Mask, Sieve, Sift, Stage

LOCAL, PEER = ip_address("192.0.2.1"), ip_address("198.51.100.7")
LAN, REMOTE = ip_network("10.1.0.0/16"), ip_network("10.2.0.0/16")
PUNTS = Pair(77, 78)
LINKS = Links({"wan0": 1}, 2, {}, "02:00:00:00:00:01", PUNTS, Pair(0, 1))


def entry(direction: Direction, sad_id: int, spi: int, encap: UdpEncap | None = None) -> SadEntry:
    source, destination = (PEER, LOCAL) if direction is Direction.IN else (LOCAL, PEER)
    key = SaKey(destination, spi)
    material = Secret(bytes(16)), Secret(bytes(4))
    return sad_entry(EngineSa(key, direction, source, AES_GCM_128, *material, False, 64, encap), sad_id)


def parts(
    way: int, *selectors: Selector, spi: int = 0x1001, exceptions: tuple[Selector, ...] = (), port: int = 0
) -> GateParts:
    encap = UdpEncap(40000, port) if port else None
    key = SaKey(LOCAL, spi)
    tunnel = Tunnel(TunnelId(way, PEER), LOCAL, PEER, (key,), SaKey(PEER, spi), selectors, exceptions)
    number = FIRST_GATE_WAY + way
    return GateParts.of(
        number, tunnel, entry(Direction.OUT, 2 * way, spi), [entry(Direction.IN, 2 * way + 1, spi, encap)]
    )


def fits(sift: Sift, header: bytes) -> bool:
    """As the classifier compares."""
    padded = header.ljust(len(sift.match), b"\0")
    return all(a & m == b for a, m, b in zip(padded, sift.mask.octets, sift.match, strict=False))


def judged(asked: Holdings, header: bytes) -> int | None:
    """Where gate IN's sieve sends a packet; None for what fits nothing."""
    for sift in sorted(asked.sifted, key=lambda one: one.mask):
        if fits(sift, header):
            return sift.following
    return None


def ip4(source: str, destination: str, protocol: int, payload: bytes = b"") -> bytes:
    addresses = ip_address(source).packed + ip_address(destination).packed
    return bytes((0x45, 0)) + bytes(7) + bytes((protocol, 0, 0)) + addresses + payload


ESP, UDP, TCP = 50, 17, 6
ALL = Selector(LAN, REMOTE)


def test_esp_of_an_sa_is_found_by_its_spi_and_goes_on_to_the_spd() -> None:
    asked = holdings([parts(1, ALL)], LINKS)
    known = ip4(str(PEER), str(LOCAL), ESP, (0x1001).to_bytes(4, "big"))
    other = ip4(str(PEER), str(LOCAL), ESP, (0x1002).to_bytes(4, "big"))
    (steered,) = asked.steered
    assert (fits(steered, known), fits(steered, other), steered.following) == (True, False, PUNTS.ip4)
    assert (judged(asked, known), judged(asked, other)) == (CARRY_ON, None)


def test_esp_in_udp_is_found_behind_its_ports() -> None:
    asked = holdings([parts(1, ALL, port=4500)], LINKS)
    spi = (0x1001).to_bytes(4, "big")
    (steered,) = asked.steered
    ports = {(40000, 4500): True, (1, 4500): True, (4500, 40000): False}
    for (sport, dport), known in ports.items():
        udp = sport.to_bytes(2, "big") + dport.to_bytes(2, "big") + bytes(4)
        assert fits(steered, ip4(str(PEER), str(LOCAL), UDP, udp + spi)) is known
    assert not fits(steered, ip4(str(PEER), str(LOCAL), ESP, spi))


def test_an_spd_sees_one_udp_port() -> None:
    ports = {0: True, 4500: True, 4501: False}
    for port, seen in ports.items():
        encap = UdpEncap(40000, port) if port else None
        assert may_pass([entry(Direction.IN, 1, 1), entry(Direction.IN, 3, 2, encap)]) is seen


def test_what_comes_out_is_held_to_the_selectors_of_all() -> None:
    wide, narrow = Selector(LAN, REMOTE), Selector(LAN, ip_network("10.3.0.0/16"), protocol=TCP)
    asked = holdings([parts(1, wide), parts(2, narrow, spi=0x2002)], LINKS)
    assert judged(asked, ip4("10.2.0.9", "10.1.0.5", UDP)) == PUNTS.ip4
    assert judged(asked, ip4("10.3.0.9", "10.1.0.5", TCP)) == PUNTS.ip4
    assert judged(asked, ip4("10.3.0.9", "10.1.0.5", UDP)) is None
    assert judged(asked, ip4("10.1.0.5", "10.2.0.9", UDP)) is None


def test_one_that_only_sends_lets_nothing_out() -> None:
    """It receives by an interface, and what other peers may send is not what its own may."""
    hosts = Selector(ip_network(LOCAL), ip_network(PEER), UDP)
    receiving = parts(2, Selector(LAN, REMOTE), spi=0x2002)
    sending = replace(parts(1, hosts, exceptions=tuple(receiving.wanted)), inbound=frozenset())
    asked = holdings([sending, receiving], LINKS)
    assert {policy.sad_id for policy in asked.outgoing} == {2, 4}
    assert {policy.sad_id for policy in asked.incoming} == {5}
    assert judged(asked, ip4(str(PEER), str(LOCAL), UDP)) is None
    assert judged(asked, ip4("10.2.0.9", "10.1.0.5", UDP)) == PUNTS.ip4
    assert holdings([sending], LINKS).steered == frozenset()


def test_an_exception_does_not_come_out_unless_another_tunnel_has_it() -> None:
    inside = Selector(LAN, ip_network("10.2.3.0/24"))
    packet = ip4("10.2.3.9", "10.1.0.5", UDP)
    alone = holdings([parts(1, ALL, exceptions=(inside,))], LINKS)
    assert judged(alone, packet) == DENY
    both = holdings([parts(1, ALL, exceptions=(inside,)), parts(2, inside, spi=0x2002)], LINKS)
    assert judged(both, packet) == PUNTS.ip4


def test_the_narrower_policy_is_tried_first() -> None:
    inside = replace(ALL, destination=ip_network("10.2.3.0/24"))
    asked = holdings([parts(1, ALL), parts(2, inside, spi=0x2002)], LINKS)
    ordered = sorted(asked.outgoing, key=lambda policy: -policy.priority)
    assert [(policy.remote, policy.sad_id) for policy in ordered] == [(inside.destination, 4), (REMOTE, 2)]
    assert ordered[0].priority > ordered[1].priority
    assert all(policy.spd == OUT and policy.outbound for policy in ordered)


def test_between_the_same_hosts_the_greater_rank_is_tried_first() -> None:
    hosts = Selector(ip_network(LOCAL), ip_network(PEER), UDP)
    to, come_from = (replace(hosts, **{side: PortMatch(4789, 0xFFFF)}) for side in ("destination_port", "source_port"))
    for ranks, winner in (((0, 1), 4), ((1, 0), 2)):
        both = parts(1, to), parts(2, come_from, spi=0x2002)
        asked = holdings([replace(one, rank=rank) for one, rank in zip(both, ranks, strict=True)], LINKS)
        first, second = sorted(asked.outgoing, key=lambda policy: -policy.priority)
        assert first.priority > second.priority
        assert first.sad_id == winner
    lan = Selector(ip_network("0.0.0.0/0"), ip_network("0.0.0.0/0"))
    asked = holdings([parts(1, to), parts(2, lan, spi=0x2002)], LINKS)
    assert max(asked.outgoing, key=lambda policy: policy.priority).sad_id == 2, (
        "what lies inside another one, before it"
    )


def test_a_tunnel_tells_the_gates_its_rank() -> None:
    key = SaKey(LOCAL, 1)
    tunnel = Tunnel(TunnelId(1, PEER), LOCAL, PEER, (key,), SaKey(PEER, 1), (ALL,), hosts=True, rank=3)
    assert GateParts.of(FIRST_WHOLE_WAY, tunnel, entry(Direction.OUT, 2, 1), []).rank == 3


def test_protocol_and_ports_are_ranges_in_a_policy() -> None:
    ported = replace(ALL, protocol=UDP, source_port=PortMatch(5000, 0xFFF8))
    policy: Policy
    (policy,) = holdings([parts(1, ported)], LINKS).outgoing
    assert (policy.protocol, policy.local_ports, policy.remote_ports) == (UDP, (5000, 5007), (0, 0xFFFF))
    (plain,) = holdings([parts(1, ALL)], LINKS).outgoing
    assert plain.protocol == ANY_PROTOCOL


def test_an_inbound_policy_is_for_the_outer_addresses() -> None:
    (policy,) = holdings([parts(1, ALL)], LINKS).incoming
    assert (policy.spd, policy.outbound, policy.sad_id) == (IN, False, 3)
    assert (policy.local, policy.remote) == (ip_network(LOCAL), ip_network(PEER))


SHOWN = """\
spd 4704
 ip4-outbound:
   [3] priority 8465 action protect type ip4-outbound protocol UDP sa 1073741826
     local addr range 10.1.0.0 - 10.1.255.255 port range 5000 - 5007
     remote addr range 10.2.0.0 - 10.2.255.255 port range 0 - 65535
     packets 7 bytes 588
 \n ip6-outbound:
 \n   [4] priority 33024 action protect type ip6-outbound protocol any sa 1073741828 <fast-path>
     local addr range fd01:: - fd01:ffff:ffff:ffff:ffff:ffff:ffff:ffff port range 0 - 65535
     remote addr range fd02::1 - fd02::1 port range 0 - 65535
     packets 0 bytes 0
 ip4-inbound-protect:
 \nspd 4705
 ip4-outbound:
   [0] priority 256 action bypass type ip4-outbound protocol any
     local addr range 0.0.0.0 - 255.255.255.255 port range 0 - 65535
     remote addr range 0.0.0.0 - 255.255.255.255 port range 0 - 65535
     packets 9 bytes 900
 ip4-inbound-protect:
   [1] priority 256 action protect type ip4-inbound-protect protocol any sa 1073741827
     local addr range 192.0.2.1 - 192.0.2.1 port range 0 - 65535
     remote addr range 198.51.100.7 - 198.51.100.7 port range 0 - 65535
     packets 9 bytes 900
 ip4-inbound-discard:
   [2] priority 512 action discard type ip4-inbound-discard protocol any
     local addr range 1.1.1.1 - 1.1.1.1 port range 0 - 65535
     remote addr range 1.1.1.1 - 1.1.1.1 port range 0 - 65535
     packets 9 bytes 900
"""


def test_what_vpp_shows_is_read_with_and_without_its_fast_path() -> None:
    sixteen, any6 = ip_network("fd01::/16"), ip_network("fd02::1/128")
    assert parse_policies(SHOWN) == (
        Policy(OUT, True, 33, Action.PROTECT, LAN, REMOTE, 0x40000002, UDP, (5000, 5007)),
        Policy(OUT, True, 129, Action.PROTECT, sixteen, any6, 0x40000004),
        Policy(IN, True, 1, Action.BYPASS, *[ip_network("0.0.0.0/0")] * 2),
        Policy(IN, False, 1, Action.PROTECT, ip_network(LOCAL), ip_network(PEER), 0x40000003),
        Policy(IN, False, 2, Action.DISCARD, *[ip_network("1.1.1.1/32")] * 2),
    )


GATE = Gate(
    Hop(9, ip_address("169.254.254.5"), ip_address("100::5")), Hop(8, ip_address("169.254.254.9"), ip_address("100::9"))
)


def test_tunnels_behind_the_gate_share_a_destination_without_a_table() -> None:
    other = replace(ALL, source=ip_network("10.9.0.0/16"))
    ways = {FIRST_GATE_WAY: frozenset({ALL}), FIRST_GATE_WAY + 1: frozenset({other})}
    assert EncapMap(ways, gate=GATE).routes(REMOTE) == {Route(ENCAP_TABLE, REMOTE, 9, GATE.direct.hop4)}
    with_interface = Selector(ip_network("10.8.0.0/16"), REMOTE)
    whole = Selector(ip_network("10.7.0.0/16"), REMOTE)
    apart = EncapMap({**ways, FIRST_WHOLE_WAY: frozenset({whole})}, gate=GATE).routes(REMOTE)
    assert {one.sw_if_index for one in apart if one.table != ENCAP_TABLE} == {8, 9}
    mixed = EncapMap({**ways, 5: frozenset({with_interface}), FIRST_WHOLE_WAY: frozenset({whole})}, gate=GATE)
    tables = {route.by_source for route in mixed.routes(REMOTE) if route.table == ENCAP_TABLE}
    assert len(tables) == 1
    assert {
        (str(one.prefix), one.sw_if_index, one.next_hop) for one in mixed.routes(REMOTE) if one.table in tables
    } == {
        ("10.1.0.0/16", 9, GATE.direct.hop4),
        ("10.9.0.0/16", 9, GATE.direct.hop4),
        ("10.8.0.0/16", 5, None),
        ("10.7.0.0/16", 8, GATE.whole.hop4),
    }


# Sieves


@dataclass
class _Made:
    mask: bytes
    following: int
    miss: int
    sessions: dict[bytes, int]


class Classifier:
    """VPP's classifier as far as a sieve uses it, by the same calls. ``failing`` counts the calls until one fails."""

    def __init__(self) -> None:
        self.tables: dict[int, _Made] = {}
        self.attached: dict[int, tuple[int, int]] = {}
        self.failing = -1
        self.advances: dict[tuple[int, bytes], int] = {}
        self.fibs: dict[tuple[int, bytes], tuple[int, int]] = {}
        self._numbers = iter(range(100, 1000))

    async def call(self, name: str, **fields: object) -> SimpleNamespace:
        self.failing -= 1
        if self.failing == 0:
            raise EngineError("made to fail")
        return getattr(self, f"_{name}")(SimpleNamespace(**fields))

    async def dump(self, name: str, table_id: int) -> list[SimpleNamespace]:
        assert name == "classify_session_dump"
        sessions = self.tables[table_id].sessions.items()
        return [
            SimpleNamespace(match=match, hit_next_index=hit, advance=self.advances.get((table_id, match), 0))
            for match, hit in sessions
        ]

    def _classify_table_by_interface(self, asked: SimpleNamespace) -> SimpleNamespace:
        ip4_table, ip6_table = self.attached.get(asked.sw_if_index, (NO_INDEX, NO_INDEX))
        return SimpleNamespace(ip4_table_id=ip4_table, ip6_table_id=ip6_table)

    def _classify_table_info(self, asked: SimpleNamespace) -> SimpleNamespace:
        return SimpleNamespace(next_table_index=self.tables[asked.table_id].following)

    def _classify_add_del_table(self, asked: SimpleNamespace) -> SimpleNamespace:
        index = asked.table_index
        if not asked.is_add:
            assert all(index not in self.chain(first) for pair in self.attached.values() for first in pair), "in use"
            del self.tables[index]
        elif index == NO_INDEX:
            index = next(self._numbers)
            self.tables[index] = _Made(asked.mask, asked.next_table_index, asked.miss_next_index, {})
        else:
            self.tables[index].following = asked.next_table_index
        return SimpleNamespace(new_table_index=index)

    def _classify_add_del_session(self, asked: SimpleNamespace) -> None:
        sessions = self.tables[asked.table_index].sessions
        if asked.is_add:
            sessions[asked.match] = asked.hit_next_index
            self.advances[asked.table_index, asked.match] = asked.advance
            self.fibs[asked.table_index, asked.match] = asked.action, asked.metadata
        elif sessions.pop(asked.match, None) is None:
            raise EngineError("no such session")

    def _input_acl_set_interface(self, asked: SimpleNamespace) -> None:
        if asked.is_add:
            assert asked.sw_if_index not in self.attached, "VPP ignores a second one"
            self.attached[asked.sw_if_index] = asked.ip4_table_index, asked.ip6_table_index
        else:
            self.attached.pop(asked.sw_if_index, None)

    def rules(self, sw_if_index: int, version: int) -> list[tuple[bytes, bytes, int]]:
        """In the order in which they are asked: mask, match, where to."""
        tables = [self.tables[index] for index in self.chain(self.attached[sw_if_index][version == 6])]
        return [(one.mask, match, hit) for one in tables for match, hit in sorted(one.sessions.items())]

    def chain(self, index: int) -> list[int]:
        found = []
        while index != NO_INDEX:
            found.append(index)
            index = self.tables[index].following
        return found


FIRSTS = {version: Mask(Stage.OUTER, bytes([0xF0] * 16 * HEADERS[version].vectors)) for version in VERSIONS}


def rule(stage: Stage, mask: int, match: int, following: int = 5) -> Sift:
    return Sift(4, Mask(stage, bytes([mask] * 32)), bytes([match] * 32), following)


def flat(rules: list[Sift]) -> list[tuple[bytes, bytes, int]]:
    return [(one.mask.octets, one.match, one.following) for one in rules]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    made = Journal(tmp_path / "journal")
    made.load(1)
    return made


def sieve(vpp: Classifier, journal: Journal) -> Sieve:
    return Sieve(vpp, journal, "test", (7, 8), FIRSTS, DENY)  # type: ignore[arg-type]


ORDERED = [
    rule(Stage.OUTER, 0xF0, 0x10),
    rule(Stage.OUTER, 0x0F, 0x01),
    rule(Stage.EXCEPTION, 0xFF, 0x11),
    rule(Stage.EXCEPTION, 0xFF, 0x12),
    replace(rule(Stage.OVERLAY, 0x3F, 0x11), advance=28, table=4706),
    rule(Stage.INNER, 0x01, 0x01),
    rule(Stage.INNER, 0xFF, 0x11),
]


@pytest.mark.parametrize("backwards", [False, True])
async def test_rules_are_asked_by_stage_in_whichever_order_they_came(journal: Journal, backwards: bool) -> None:
    vpp = Classifier()
    held = sieve(vpp, journal)
    await held.open()
    here: frozenset[Sift] = frozenset()
    for one in reversed(ORDERED) if backwards else ORDERED:
        here |= {one}
        await held.turn(here)
        assert vpp.rules(7, 4) == vpp.rules(8, 4) == flat([one for one in ORDERED if one in here])
    for one in ORDERED:
        here -= {one}
        await held.turn(here)
        assert vpp.rules(7, 4) == flat([one for one in ORDERED if one in here])
    assert len(vpp.tables) == 2, "only the first tables stay"


async def test_a_rule_may_lead_elsewhere(journal: Journal) -> None:
    vpp = Classifier()
    held = sieve(vpp, journal)
    await held.open()
    await held.turn(frozenset(ORDERED))
    elsewhere = [replace(one, following=one.following + 1) for one in ORDERED]
    await held.turn(frozenset(elsewhere))
    assert (held.rules, vpp.rules(7, 4)) == (frozenset(elsewhere), flat(elsewhere))


async def test_another_daemon_adopts_it_as_it_is(journal: Journal) -> None:
    vpp = Classifier()
    first = sieve(vpp, journal)
    await first.open()
    await first.turn(frozenset(ORDERED))
    tables = dict(vpp.tables)
    second = sieve(vpp, journal)
    await second.open()
    assert second.rules == frozenset(ORDERED)
    assert vpp.tables == tables, "nothing is made anew"
    await second.turn(frozenset(ORDERED[:2]))
    third = sieve(vpp, journal)
    await third.open()
    assert third.rules == frozenset(ORDERED[:2])
    assert vpp.rules(7, 4) == flat(ORDERED[:2])


async def test_a_rule_may_take_headers_off_and_name_a_table(journal: Journal) -> None:
    vpp = Classifier()
    held = sieve(vpp, journal)
    await held.open()
    await held.turn(frozenset(ORDERED))
    stripping = {place for place, advance in vpp.advances.items() if advance}
    assert {vpp.advances[place] for place in stripping} == {28}
    assert {vpp.fibs[place] for place in stripping} == {(SET_IP4_FIB, 4706)}
    assert {vpp.fibs[place] for place in vpp.fibs.keys() - stripping} == {(0, 0)}


async def test_what_the_journal_does_not_know_is_begun_anew(journal: Journal, tmp_path: Path) -> None:
    vpp = Classifier()
    first = sieve(vpp, journal)
    await first.open()
    await first.turn(frozenset(ORDERED))
    lost = Journal(tmp_path / "lost")
    lost.load(1)
    second = sieve(vpp, lost)
    await second.open()
    assert (second.rules, vpp.rules(7, 4), len(vpp.tables)) == (frozenset(), [], 2)


@pytest.mark.parametrize("step", range(1, 12))
async def test_a_turn_that_fails_can_be_turned_back(journal: Journal, step: int) -> None:
    vpp = Classifier()
    held = sieve(vpp, journal)
    await held.open()
    before, after = frozenset(ORDERED[::2]), frozenset(ORDERED[1::2])
    await held.turn(before)
    vpp.failing = step + 1
    with pytest.raises(EngineError, match="made to fail"):
        await held.turn(after)
    vpp.failing = -1
    await held.turn(before)
    assert vpp.rules(7, 4) == flat(ORDERED[::2])
    assert held.rules == before


def test_an_arrival_tells_what_its_sa_does() -> None:
    assert Arrival.of(entry(Direction.IN, 3, 0x1001)) == Arrival(3, 0x1001, PEER, LOCAL, in_udp=False)


def test_tunnels_between_the_same_hosts_share_their_way() -> None:
    hosts = Selector(ip_network(LOCAL), ip_network(PEER), UDP, destination_port=PortMatch(4789, 0xFFFF))
    other = replace(hosts, destination_port=PortMatch(), source_port=PortMatch(4789, 0xFFFF))
    first, second = FIRST_WHOLE_WAY, FIRST_WHOLE_WAY + 1
    encap = EncapMap({first: frozenset({hosts})}, gate=GATE)
    there = {Route(ENCAP_TABLE, hosts.destination, 8, GATE.whole.hop4)}
    assert encap.conflict(None, [other]) == (other, first)
    assert encap.conflict(None, [other], whole=True) is None
    change = encap.put(second, frozenset({other}))
    assert encap.routes(hosts.destination) == there
    encap.undo(change)
    assert encap.selectors(second) == frozenset()
    encap.put(second, frozenset({other}))
    for way in (first, second):
        assert encap.routes(hosts.destination) == there
        encap.put(way, frozenset())
    assert encap.routes(hosts.destination) == frozenset()
    direct = EncapMap({FIRST_GATE_WAY: frozenset({hosts})}, gate=GATE)
    assert direct.conflict(None, [other], whole=True) is not None, "what has pieces of packets does not see the ports"
