"""Devices over tunnel mode against a stand-in for VPP that keeps what it is told.

Nothing is used before it is there, nothing goes before its users, and a step that fails leaves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ipsec_gw.errors import EngineError
from ipsec_gw.model.objects import DeviceHeader, Selector
from vpp_conf.api import VppApi
from vpp_conf.descriptors.base import NO_INDEX
from vpp_conf.descriptors.classify import SET_IP4_FIB, Diversion, Pair
from vpp_conf.descriptors.gre import GreTunnel
from vpp_conf.descriptors.ipip import IpipTunnel
from vpp_conf.descriptors.route import DECAP_TABLE, DEVICE_TABLES, ROUTED_TABLE
from vpp_conf.encap_routes import EncapRoutes
from vpp_conf.gates import GateParts, Gates
from vpp_conf.journal import Journal
from vpp_conf.links import Links
from vpp_conf.overlays import OVERLAY_MASK
from vpp_conf.tunnels import TunnelBuilder, TunnelParts, Wanted

UP, VLAN = 2, 17
LINKS = Links({"wan0": 1}, UP, {DECAP_TABLE: 3, ROUTED_TABLE: 4}, "02:00:00:00:00:01", Pair(77, 78), Pair(900, 901))
ANY4, ANY6 = (Selector(ip_network(net), ip_network(net)) for net in ("0.0.0.0/0", "::/0"))
OURS, THEIRS = ip_address("203.0.113.1"), ip_address("203.0.113.2")
BY_GRE = Wanted(frozenset({ANY4, ANY6}), vlan=VLAN, header=DeviceHeader(OURS, THEIRS, gre=True, dscp=True))
BY_IPIP = Wanted(frozenset({ANY4}), vlan=VLAN, header=DeviceHeader(OURS, THEIRS, gre=False))
OUT, IN = 100, frozenset({101})
DEVICE_TABLE = DEVICE_TABLES[VLAN - 1]
KINDS = {"ipsec_itf_create": "ipsec", "ipip_add_tunnel": "ipip", "create_vlan_subif": "vlan"}
QUIET = frozenset(
    {
        *("sw_interface_tag_add_del", "sw_interface_set_table", "sw_interface_set_mtu", "sw_interface_set_flags"),
        *("sw_interface_set_unnumbered", "sw_interface_ip6nd_ra_config"),
    }
)


@dataclass
class FakeVpp(VppApi):
    """What is there, by what it is called. ``failing`` counts the calls until one is refused."""

    failing: int = 0
    interfaces: dict[int, tuple[str, Any]] = field(default_factory=dict)
    tables: set[int] = field(default_factory=set)
    routes: dict[tuple[int, str], Any] = field(default_factory=dict)
    redirects: dict[tuple[int, int], Any] = field(default_factory=dict)
    neighbours: set[tuple[int, str]] = field(default_factory=set)
    chains: dict[int, tuple[int, int]] = field(default_factory=dict)
    classifiers: dict[int, Any] = field(default_factory=dict)
    sessions: dict[tuple[int, bytes], Any] = field(default_factory=dict)
    protects: dict[int, Any] = field(default_factory=dict)
    numbers: Any = field(default_factory=lambda: count(10))

    @property
    def everything(self) -> tuple[object, ...]:
        """For comparison."""
        return (
            *(dict(self.interfaces), set(self.tables), set(self.routes), set(self.redirects), set(self.neighbours)),
            *(dict(self.chains), set(self.classifiers), set(self.sessions), set(self.protects)),
        )

    async def call(self, message: str, **fields: Any) -> Any:
        self.failing -= 1
        if self.failing == 0:
            raise EngineError("made to fail")
        if message in QUIET:
            assert {fields.get("sw_if_index"), fields.get("unnumbered_sw_if_index")} & self.interfaces.keys()
            return None
        if message in KINDS:
            return self._raise(KINDS[message], fields)
        return getattr(self, f"_{message}")(SimpleNamespace(**fields))

    async def dump(self, message: str, **fields: Any) -> list[Any]:
        if message == "classify_session_dump":
            found = [match for table, match in self.sessions if table == fields["table_id"]]
            return [SimpleNamespace(match=match) for match in found]
        assert message == "sw_interface_dump"
        return []

    def _raise(self, kind: str, fields: Any) -> SimpleNamespace:
        if kind == "ipip":
            assert fields["tunnel"]["table_id"] in self.tables
        index = next(self.numbers)
        self.interfaces[index] = kind, fields
        return SimpleNamespace(sw_if_index=index)

    def _drop(self, index: int, kind: str) -> None:
        assert self.interfaces.pop(index)[0] == kind
        used = {*self.chains, *self.protects, *(one for one, _ in self.redirects), *(one for one, _ in self.neighbours)}
        assert index not in used, "something is on it still"
        paths = (route["paths"][0]["sw_if_index"] for route in self.routes.values())
        assert index not in paths, "a route leads to it"

    def _gre_tunnel_add_del(self, asked: Any) -> SimpleNamespace | None:
        assert asked.tunnel["outer_table_id"] in self.tables
        if asked.is_add:
            return self._raise("gre", {"tunnel": asked.tunnel})
        held = [
            index for index, (kind, one) in self.interfaces.items() if kind == "gre" and one["tunnel"] == asked.tunnel
        ]
        self._drop(held[0], "gre")
        return None

    def _ipip_del_tunnel(self, asked: Any) -> None:
        self._drop(asked.sw_if_index, "ipip")

    def _ipsec_itf_delete(self, asked: Any) -> None:
        self._drop(asked.sw_if_index, "ipsec")

    def _delete_subif(self, asked: Any) -> None:
        self._drop(asked.sw_if_index, "vlan")

    def _ip_table_add_del(self, asked: Any) -> None:
        number = asked.table["table_id"]
        if asked.is_add:
            self.tables.add(number)
            return
        self.tables.remove(number)
        named = {one.metadata for one in self.sessions.values() if one.action == SET_IP4_FIB}
        assert number not in named | {table for table, _ in self.routes}, "its routes and those that name it go first"

    def _ip_route_add_del(self, asked: Any) -> None:
        route = asked.route
        assert route["table_id"] in self.tables
        place = route["table_id"], str(route["prefix"])
        if asked.is_add:
            assert route["paths"][0]["sw_if_index"] in {NO_INDEX, *self.interfaces}
            self.routes[place] = route
        else:
            del self.routes[place]

    def _add_del_ip_punt_redirect_v2(self, asked: Any) -> None:
        place = asked.punt["rx_sw_if_index"], asked.punt["af"]
        if asked.is_add:
            assert place not in self.redirects
            assert asked.punt["paths"][0]["sw_if_index"] in {UP, *self.interfaces}
            self.redirects[place] = asked.punt["paths"][0]["sw_if_index"]
        else:
            del self.redirects[place]

    def _ip_neighbor_add_del(self, asked: Any) -> None:
        place = asked.neighbor["sw_if_index"], str(asked.neighbor["ip_address"])
        (self.neighbours.add if asked.is_add else self.neighbours.remove)(place)

    def _classify_add_del_table(self, asked: Any) -> SimpleNamespace | None:
        if asked.is_add:
            index = next(self.numbers)
            self.classifiers[index] = asked
            return SimpleNamespace(new_table_index=index)
        del self.classifiers[asked.table_index]
        assert asked.table_index not in {one for pair in self.chains.values() for one in pair}
        named = [one for (table, _), one in self.sessions.items() if table == asked.table_index and one.action]
        assert not named, "VPP would not let go of the FIB table"
        self.sessions = {place: one for place, one in self.sessions.items() if place[0] != asked.table_index}
        return None

    def _classify_add_del_session(self, asked: Any) -> None:
        place = asked.table_index, asked.match
        if asked.is_add:
            assert not asked.action or asked.metadata in self.tables
            self.sessions[place] = asked
        else:
            del self.sessions[place]

    def _input_acl_set_interface(self, asked: Any) -> None:
        if asked.is_add:
            self.chains[asked.sw_if_index] = asked.ip4_table_index, asked.ip6_table_index
        else:
            self.chains.pop(asked.sw_if_index, None)

    def _ipsec_tunnel_protect_update(self, asked: Any) -> None:
        index = asked.tunnel["sw_if_index"]
        assert index in self.chains, "what it decrypts would pass unseen"
        assert {(index, 0), (index, 1)} <= self.redirects.keys()
        self.protects[index] = asked.tunnel

    def _ipsec_tunnel_protect_del(self, asked: Any) -> None:
        del self.protects[asked.sw_if_index]


@pytest.fixture
def vpp() -> FakeVpp:
    return FakeVpp()


def builder(vpp: FakeVpp) -> TunnelBuilder:
    return TunnelBuilder(vpp, LINKS, 1500, gates(vpp))


def gates(vpp: FakeVpp) -> FakeGates:
    return FakeGates(vpp, Journal(Path("unused")), LINKS, EncapRoutes(vpp))


class FakeGates(Gates):
    """Keeps who sends there, by number. Beside the calls of VPP it counts as one."""

    sending: dict[int, GateParts]

    async def change(self, way: int, parts: GateParts | None) -> None:
        """One message for all of them."""
        assert isinstance(self._api, FakeVpp)
        self._api.failing -= 1
        if self._api.failing == 0:
            raise EngineError("made to fail")
        self.sending = {key: one for key, one in getattr(self, "sending", {}).items() if key != way}
        self.sending |= {} if parts is None else {way: parts}


def shut(parts: TunnelParts) -> tuple[int, int]:
    """The numbers of its two interfaces: where packets of the device are, and where those inside."""
    assert parts.outer is not None
    return parts.outer.sw_if_index, parts.interface.sw_if_index


@pytest.mark.parametrize("wanted", [BY_GRE, BY_IPIP], ids=["gre", "ipip"])
async def test_a_tunnel_of_a_device_is_an_ipsec_interface_with_the_device_before_it(
    vpp: FakeVpp, wanted: Wanted
) -> None:
    parts = await builder(vpp).build(OUT, IN, wanted)
    outer, device = shut(parts)
    assert type(parts.interface) is (GreTunnel if wanted is BY_GRE else IpipTunnel)
    assert wanted.begins_with(parts.interface)
    assert {vpp.interfaces[one][0] for one in (outer, device)} == {"ipsec", "gre" if wanted is BY_GRE else "ipip"}
    assert list(vpp.protects) == [outer]
    assert vpp.protects[outer]["sa_out"] == OUT
    paths = {route["paths"][0]["type"]: route["paths"][0]["sw_if_index"] for route in vpp.routes.values()}
    assert paths == {1: NO_INDEX, 0: outer}, "one end is local, to the other the outer tunnel leads"
    assert {table for table, _ in vpp.routes} == vpp.tables == {DEVICE_TABLE}
    assert parts.door is not None
    door = parts.door.sw_if_index
    assert [vpp.redirects[one, 0] for one in (outer, device, door)] == [UP, door, device]
    named = [one for one in vpp.sessions.values() if one.action]
    assert {one.metadata for one in named} == {DEVICE_TABLE}
    assert len(named) == (2 if wanted is BY_GRE else 1)
    assert parts.selectors == frozenset()


@pytest.mark.parametrize("wanted", [BY_GRE, BY_IPIP], ids=["gre", "ipip"])
async def test_a_step_that_fails_leaves_nothing_and_so_does_its_end(vpp: FakeVpp, wanted: Wanted) -> None:
    nothing, made = vpp.everything, builder(vpp)
    for number in count(1):
        vpp.failing = number
        try:
            parts = await made.build(OUT, IN, wanted)
        except EngineError:
            assert vpp.everything == nothing
            continue
        break
    assert number > 40, "and calls there were"
    vpp.failing = 0
    await made.demolish(parts)
    assert vpp.everything == nothing


async def test_new_sas_are_one_message_and_the_rest_stays(vpp: FakeVpp) -> None:
    made = builder(vpp)
    parts = await made.build(OUT, IN, BY_GRE)
    before = vpp.everything
    fresh = made.parts(
        parts.interface.sw_if_index, 200, frozenset({101, 201}), BY_GRE, parts.check.chains, parts.door, parts.outer
    )
    changed = await made.change(parts, fresh)
    outer, _ = shut(changed)
    assert vpp.protects[outer]["sa_out"] == 200
    assert vpp.everything == before
    await made.demolish(changed)


async def test_what_was_left_of_one_is_swept_in_any_order(vpp: FakeVpp) -> None:
    nothing, made = vpp.everything, builder(vpp)
    parts = await made.build(OUT, IN, BY_GRE)
    assert parts.door is not None
    assert parts.outer is not None
    await made.doors.close(parts.door)
    await made.checks.empty(parts.outer.check.chains)
    assert not [one for one in vpp.sessions.values() if one.action], "no table is named any more"
    await made.demolish(replace(parts, door=None))
    assert vpp.everything == nothing


async def test_a_check_with_an_overlay_names_its_table_until_it_goes(vpp: FakeVpp) -> None:
    vpp.tables.add(4701)
    nothing, made = vpp.everything, builder(vpp)
    ends = Selector(ip_network(OURS), ip_network(THEIRS), 17)
    diversion = Diversion(OVERLAY_MASK, bytes(len(OVERLAY_MASK)), 55, 28, 4701)
    for failing in count(1):
        vpp.failing = failing
        try:
            made.encap.map = type(made.encap.map)()
            parts = await made.build(OUT, IN, Wanted(frozenset({ends}), diversions=frozenset({diversion})))
        except EngineError:
            assert vpp.everything == nothing
            continue
        break
    vpp.failing = 0
    (named,) = [one for one in vpp.sessions.values() if one.action]
    assert (named.hit_next_index, named.advance, named.metadata) == (55, 28, 4701)
    bare = await made.checks.update(parts.check, replace(parts.check, diversions=frozenset()))
    assert not [one for one in vpp.sessions.values() if one.action]
    await made.demolish(replace(parts, check=bare))
    assert vpp.everything == nothing


HOSTS = Selector(ip_network(OURS), ip_network(THEIRS), 17)
SENDER = GateParts(0xC000_0001, OUT, frozenset(), frozenset({HOSTS}))
BETWEEN_HOSTS = Wanted(frozenset({HOSTS}), gate=SENDER)


async def test_tunnel_mode_between_hosts_receives_by_an_interface_and_sends_by_the_gates(vpp: FakeVpp) -> None:
    held = gates(vpp)
    made = TunnelBuilder(vpp, LINKS, 1500, held)
    nothing = vpp.everything
    for failing in count(1):
        vpp.failing = failing
        try:
            parts = await made.build(OUT, IN, BETWEEN_HOSTS)
        except EngineError:
            assert vpp.everything == nothing
            assert not getattr(held, "sending", {})
            continue
        break
    vpp.failing = 0
    assert held.sending == {SENDER.way: SENDER}
    assert parts.way == SENDER.way
    assert not vpp.routes
    assert vpp.protects[parts.interface.sw_if_index]["sa_in"] == sorted(IN)
    fresh = replace(BETWEEN_HOSTS, gate=replace(SENDER, outbound=200))
    after = made.parts(parts.interface.sw_if_index, 200, IN, fresh)
    changed = await made.change(parts, replace(after, check=parts.check))
    assert vpp.protects[changed.interface.sw_if_index]["sa_out"] == 200
    assert held.sending[SENDER.way].outbound == 200
    await made.demolish(changed)
    assert not held.sending
    assert vpp.everything == nothing
