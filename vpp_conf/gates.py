"""Tunnels whose selectors are entries of a security policy database, and not an IPsec interface each.

VPP asks an SPD about all that an interface sends, and drops what fits no entry: on a WAN interface that would be ESP of
other tunnels, and pools of NAT. So two SPDs are on two loopbacks, the gates, which nothing else passes: what is sent by
a loopback comes in by it.

::

    plaintext     up ~> encap table -> gate OUT: SPD, encrypts -> outer table -> WAN
    ESP           WAN: sieve, by SPI ~> gate IN: SPD, decrypts -> gate IN: sieve, selectors ~> up

``~>`` is a punt redirect, which leaves the TTL alone. Nothing passes a gate that no entry and no selector is there for.
What hosts say to each other takes gate WHOLE before gate OUT, which puts fragments together: what transport mode
protects is a whole packet (RFC 4303 §3.1.1), and its ports may tell which tunnel has it. In transport mode it keeps its
header, comes in by gate OUT and goes to the outer table.
What comes out of one tunnel is held to the selectors of all tunnels here: an SPD does not say which SA a packet had. So
tunnel mode between hosts has the gates for what it sends, as ports count, and an interface for what it receives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from ipaddress import ip_network

from ipsec_gw.errors import EngineError
from ipsec_gw.model.ids import IpAddress
from ipsec_gw.model.objects import NAT_T_PORT, Selector, Tunnel
from vpp_conf.api import VppApi
from vpp_conf.descriptors.base import host
from vpp_conf.descriptors.classify import CARRY_ON, DENY, HEADERS, VERSIONS, rule_of
from vpp_conf.descriptors.loopback import LoopbackDescriptor
from vpp_conf.descriptors.sa import SadEntry
from vpp_conf.descriptors.spd import (
    ALL_PORTS,
    ANY_PROTOCOL,
    HIGHEST_PRIORITY,
    LOWEST_PRIORITY,
    Action,
    Policy,
    PolicyDescriptor,
)
from vpp_conf.encap import FIRST_GATE_WAY, FIRST_WHOLE_WAY, Gate, networks_of
from vpp_conf.encap_routes import EncapRoutes
from vpp_conf.gate_loops import IN, OUT, WHOLE, next_hop, raise_gates
from vpp_conf.journal import Journal
from vpp_conf.links import ANYWHERE, Links
from vpp_conf.sieve import Mask, Sieve, Sift, Stage

_ESP, _UDP = 50, 17
_SPI_BYTES = 4
_UDP_BYTES = 8
_LINK_LOCAL, _ON_THE_LINK = ip_network("fe80::/10"), ip_network("ff02::/16")


@dataclass(frozen=True, slots=True)
class Arrival:
    """An inbound SA, and what its packets look like outside."""

    sad_id: int
    spi: int
    source: IpAddress
    destination: IpAddress
    in_udp: bool

    @classmethod
    def of(cls, entry: SadEntry) -> Arrival:
        """That of an SA. Raises EngineError for transport mode in UDP."""
        if entry.encap is not None and entry.transport:
            raise EngineError(f"SA {entry.spi:08x} is of transport mode in UDP - leave it to the kernel")
        return cls(entry.sad_id, entry.spi, entry.source, entry.destination, entry.encap is not None)


@dataclass(frozen=True, slots=True)
class GateParts:
    """What a tunnel consists of; ``way`` stands for it among the encap routes. Without ``inbound`` it sends alone:
    what it receives comes in by an interface of its own.
    """

    way: int
    outbound: int
    inbound: frozenset[Arrival]
    wanted: frozenset[Selector]
    exceptions: frozenset[Selector] = frozenset()
    rank: int = 0

    @classmethod
    def of(cls, way: int, tunnel: Tunnel, outbound: SadEntry, inbound: Iterable[SadEntry]) -> GateParts:
        """The parts of a tunnel with these SAs. Raises EngineError."""
        arrivals = frozenset(map(Arrival.of, inbound))
        selectors, exceptions = frozenset(tunnel.selectors), frozenset(tunnel.exceptions)
        return cls(way, outbound.sad_id, arrivals, selectors, exceptions, tunnel.rank)

    @property
    def selectors(self) -> frozenset[Selector]:
        """Those of its encap routes."""
        return networks_of(self.wanted)


def may_pass(inbound: Iterable[SadEntry]) -> bool:
    """Whether an SPD sees ESP of these SAs: in UDP it looks for port 4500 alone (``ipsec_input.c``)."""
    return all(entry.encap is None or entry.encap.destination_port == NAT_T_PORT for entry in inbound)


def is_gate_way(way: int) -> bool:
    """Whether a recorded number is that of a tunnel here, and no interface."""
    return way >= FIRST_GATE_WAY


def is_whole_way(way: int) -> bool:
    """Whether it is that of a tunnel which gets whole packets: what two hosts say to each other themselves."""
    return way >= FIRST_WHOLE_WAY


@dataclass(frozen=True, slots=True)
class Holdings:
    """Everything that tunnels ask for. Pure."""

    incoming: frozenset[Policy]
    outgoing: frozenset[Policy]
    steered: frozenset[Sift]
    sifted: frozenset[Sift]


class Gates:
    """The gates of one VPP. They are made for the first tunnel that needs them, and stay."""

    def __init__(self, api: VppApi, journal: Journal, links: Links, encap: EncapRoutes) -> None:
        self._api = api
        self._journal = journal
        self._links = links
        self.encap = encap
        self._policies = PolicyDescriptor(api)
        self._parts: dict[int, GateParts] = {}
        self._held: frozenset[Policy] = frozenset()
        self._unwrapped: frozenset[Sift] = frozenset()
        self._sieves: tuple[Sieve, Sieve] | None = None

    def next_way(self, *, whole: bool) -> int:
        """A number for one more tunnel, which gets ``whole`` packets or all as they are."""
        first, end = (FIRST_WHOLE_WAY, 1 << 32) if whole else (FIRST_GATE_WAY, FIRST_WHOLE_WAY)
        return max((first - 1, *(way for way in self._parts if first <= way < end))) + 1

    async def change(self, way: int, parts: GateParts | None) -> None:
        """Make, change or remove a tunnel: what receives is there before what sends, and goes after it.

        Raises EngineError, and changes nothing then.
        """
        wall, gate = await self._opened()
        after = {key: one for key, one in self._parts.items() if key != way} | ({} if parts is None else {way: parts})
        wanted, fixed = self._holdings(after.values()), _fixed()
        routes = parts.selectors if parts is not None else frozenset()
        former = self._parts[way].selectors if way in self._parts else frozenset()
        async with AsyncExitStack() as undo:
            before, rules = self._held, (wall.rules, gate.rules)
            undo.push_async_callback(self._set, before)
            undo.push_async_callback(wall.turn, rules[0])
            undo.push_async_callback(gate.turn, rules[1])
            await self._set(before | wanted.incoming)
            await gate.turn(gate.rules | wanted.sifted)
            await wall.turn(wall.rules | wanted.steered)
            await self._set(before | wanted.incoming | wanted.outgoing)
            await self.encap.change(way, routes)
            undo.push_async_callback(self.encap.change, way, former)
            await self._set(fixed | _but_outgoing(before | wanted.incoming) | wanted.outgoing)
            await wall.turn(wanted.steered)
            await gate.turn(wanted.sifted)
            await self._set(fixed | wanted.incoming | wanted.outgoing)
            undo.pop_all()
        self._parts = after

    async def unwrap(self, sifts: frozenset[Sift]) -> None:
        """Of what comes out of the tunnels, have this taken by overlays, and nothing else. Raises EngineError."""
        _, gate = await self._opened()
        before, former = gate.rules, self._unwrapped
        async with AsyncExitStack() as undo:
            undo.push_async_callback(gate.turn, before)
            await gate.turn((before - former) | sifts)
            undo.pop_all()
        self._unwrapped = sifts

    async def adopt(self, tunnels: Mapping[int, GateParts], unwrapped: frozenset[Sift] = frozenset()) -> None:
        """Have these tunnels and no others, whatever is there, and overlays take this out of them; their routes are
        not looked at.
        """
        made = {one.instance for one in await LoopbackDescriptor(self._api).retrieve()}
        self._unwrapped = unwrapped
        if not tunnels and not {OUT, IN} <= made:
            self._parts = {}
            return
        self._sieves = None
        wall, gate = await self._opened()
        self._parts = dict(tunnels)
        wanted = self._holdings(tunnels.values())
        await self._set(_fixed() | wanted.incoming | wanted.outgoing)
        await gate.turn(wanted.sifted)
        await wall.turn(wanted.steered)

    def _holdings(self, tunnels: Iterable[GateParts]) -> Holdings:
        """With what overlays take."""
        wanted = holdings(tunnels, self._links)
        return replace(wanted, sifted=wanted.sifted | self._unwrapped)

    async def _set(self, policies: frozenset[Policy]) -> None:
        """Have these entries and no others, first those that are new."""
        for policy in policies - self._held:
            await self._policies.create(policy)
            self._held |= {policy}
        for policy in self._held - policies:
            await self._policies.delete(policy)
            self._held -= {policy}

    async def _opened(self) -> tuple[Sieve, Sieve]:
        """The sieves of WAN and gate IN; both gates are made if they are not there."""
        if self._sieves is not None:
            return self._sieves
        index = await raise_gates(self._api, self._links)
        self.encap.gate = Gate(next_hop(OUT, index[OUT]), next_hop(WHOLE, index[WHOLE]))
        self._held = frozenset(one for one in await self._policies.retrieve() if one.spd in (OUT, IN))
        await self._set(self._held | _fixed())
        gate = Sieve(self._api, self._journal, "gate", (index[IN],), _first_masks(), DENY)
        wall = Sieve(self._api, self._journal, "wan", tuple(self._links.wan.values()), _first_masks(), CARRY_ON)
        await gate.open()
        await wall.open()
        self._sieves = wall, gate
        return self._sieves


def holdings(tunnels: Iterable[GateParts], links: Links) -> Holdings:
    """What these tunnels ask for. An exception of one that is a selector of another is none: it may come out."""
    parts = list(tunnels)
    receiving = [one for one in parts if one.inbound]
    arrivals = [arrival for one in receiving for arrival in one.inbound]
    selectors = {selector for one in receiving for selector in one.wanted}
    exceptions = {selector for one in receiving for selector in one.exceptions} - selectors
    return Holdings(
        incoming=frozenset(_incoming(arrival) for arrival in arrivals),
        outgoing=frozenset(_outgoing_of(one, selector) for one in parts for selector in one.wanted),
        steered=frozenset(_outer(arrival, links.punts.of(arrival.destination.version)) for arrival in arrivals),
        sifted=frozenset(
            {
                *(_outer(arrival, CARRY_ON) for arrival in arrivals),
                *(_inner(Stage.EXCEPTION, selector, DENY) for selector in exceptions),
                *(_inner(Stage.INNER, one, links.punts.of(one.source.version)) for one in selectors),
            }
        ),
    )


def _fixed() -> frozenset[Policy]:
    """What the SPD of gate IN lets out, to come in again; and what VPP itself says at gate OUT, which goes into no
    tunnel: it tells once which groups it has joined there (MLD, RFC 3810).
    """
    own = Policy(OUT, True, HIGHEST_PRIORITY, Action.DISCARD, _LINK_LOCAL, _ON_THE_LINK)
    return frozenset({own, *(Policy(IN, True, LOWEST_PRIORITY, Action.BYPASS, net, net) for net in ANYWHERE.values())})


def _but_outgoing(policies: Set[Policy]) -> frozenset[Policy]:
    return frozenset(policy for policy in policies if policy.spd != OUT)


def _incoming(arrival: Arrival) -> Policy:
    ends = host(arrival.destination), host(arrival.source)
    return Policy(IN, False, LOWEST_PRIORITY, Action.PROTECT, *ends, sad_id=arrival.sad_id)


def _outgoing_of(one: GateParts, selector: Selector) -> Policy:
    """Of two that overlap, one lies inside the other on both sides (:meth:`vpp_conf.encap.EncapMap.conflict`), and so
    its prefixes are longer; between the same two hosts, which have the longest, ranks decide.
    """
    return Policy(
        OUT,
        True,
        LOWEST_PRIORITY + selector.source.prefixlen + selector.destination.prefixlen + one.rank,
        Action.PROTECT,
        selector.source,
        selector.destination,
        one.outbound,
        selector.protocol or ANY_PROTOCOL,
        selector.source_port.range or ALL_PORTS,
        selector.destination_port.range or ALL_PORTS,
    )


def _outer(arrival: Arrival, following: int) -> Sift:
    """ESP of one SA, bare or in UDP."""
    version = arrival.destination.version
    header = HEADERS[version]
    ports = NAT_T_PORT.to_bytes(2, "big") if arrival.in_udp else b""
    match = header.bytes_of(
        bytes(len(arrival.destination.packed)), arrival.destination.packed, _protocol(arrival.in_udp)
    )
    match[header.ports_offset + 2 : header.ports_offset + 2 + len(ports)] = ports
    place = header.ports_offset + (_UDP_BYTES if arrival.in_udp else 0)
    match[place : place + _SPI_BYTES] = arrival.spi.to_bytes(_SPI_BYTES, "big")
    return Sift(version, _outer_mask(version, in_udp=arrival.in_udp), bytes(match), following)


def _outer_mask(version: int, *, in_udp: bool) -> Mask:
    header = HEADERS[version]
    length = ANYWHERE[version].max_prefixlen // 8
    mask = header.bytes_of(bytes(length), b"\xff" * length, 0xFF)
    place = header.ports_offset + (_UDP_BYTES if in_udp else 0)
    mask[place : place + _SPI_BYTES] = b"\xff" * _SPI_BYTES
    if in_udp:
        mask[header.ports_offset + 2 : header.ports_offset + 4] = b"\xff\xff"
    return Mask(Stage.OUTER, bytes(mask))


def _first_masks() -> dict[int, Mask]:
    return {version: _outer_mask(version, in_udp=False) for version in VERSIONS}


def _protocol(in_udp: bool) -> int:
    return _UDP if in_udp else _ESP


def _inner(stage: Stage, selector: Selector, following: int) -> Sift:
    """A decrypted packet of an outbound selector."""
    rule = rule_of(selector.reversed)
    return Sift(selector.source.version, Mask(stage, rule.mask), rule.match, following)
