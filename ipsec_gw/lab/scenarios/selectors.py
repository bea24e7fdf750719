"""Selectors: a dishonest peer encrypts with one SA what belongs to another tunnel.

For every pair of tunnels, packets with the addresses (source, destination, both) and ports of the second come through
the first. Each of them is decrypted and counted, and none is delivered (RFC 4301 §5.2 step 4).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from itertools import permutations

from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.gateway import GatewayUnderTest
from ipsec_gw.lab.kernel_sas import Claim, claims, dump
from ipsec_gw.lab.matrix.case import Case, Child, Connection
from ipsec_gw.lab.matrix.ends import End
from ipsec_gw.lab.matrix.probes import Fate, Probe, Range
from ipsec_gw.lab.matrix.sites import Party, Sites
from ipsec_gw.lab.netns import receive_on_one_processor
from ipsec_gw.lab.process import all_of
from ipsec_gw.lab.scenarios.start import gateway_of, start_swan
from ipsec_gw.lab.topology import WAN, Role
from ipsec_gw.lab.traffic import TrafficError
from vpp_conf.locate import locate_vpp

DECIDED_SECONDS, COUNTED_SECONDS = 120.0, 20.0
POLL_SECONDS = 0.1
TRIES = 2
"""What does not arrive is sent a second time."""


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A child, what gateway B may send through it, and a packet of that; a ``port`` of None stands for all."""

    child: Child
    source: IPv4Network
    destination: IPv4Network
    probe: Probe
    port: int | None = None

    def fits(self, probe: Probe) -> bool:
        """Whether the packet belongs to it."""
        source, destination = probe.ends
        return source in self.source and destination in self.destination and self.port in (None, probe.source_port)


def _by_port(port: int) -> Tunnel:
    """UDP from one port of B's network."""
    child = Child(
        f"udp{port}",
        "{near}[udp]",
        f"{{far}}[udp/{port}]",
        local_b=f"{{near}}[udp/{port}]",
        remote_b="{far}[udp]",
    )
    probe = Probe(End.SERVER, End.CLIENT, source_port=port)
    return Tunnel(child, IPv4Network("10.2.0.0/24"), IPv4Network("10.1.0.0/24"), probe, port)


_FIRST = Tunnel(
    Child(), IPv4Network("10.2.0.0/24"), IPv4Network("10.1.0.0/24"), Probe(End.SERVER, End.CLIENT, source_port=7)
)
_ANYTHING = Tunnel(
    Child("any", "{near2}", "0.0.0.0/0", local_b="0.0.0.0/0", remote_b="{far2}"),
    IPv4Network("0.0.0.0/0"),
    IPv4Network("10.11.0.0/24"),
    Probe(End.SERVER_2, End.CLIENT_2, source_port=8),
)
_SAME_REMOTE = Tunnel(
    Child("net2", "{near2}", "{far}", local_b="{near}", remote_b="{far2}"),
    IPv4Network("10.2.0.0/24"),
    IPv4Network("10.11.0.0/24"),
    Probe(End.SERVER, End.CLIENT_2, source_port=9),
)
_SAME_LOCAL = Tunnel(
    Child("net3", "{near}", "{far2}", local_b="{near2}", remote_b="{far}"),
    IPv4Network("10.12.0.0/24"),
    IPv4Network("10.1.0.0/24"),
    Probe(End.SERVER_2, End.CLIENT, source_port=10),
)

_ROUTES = ("throw 10.1.0.0/24 table 220", "throw 10.11.0.0/24 table 220")
STAY = tuple(f"ip route add {route}" for route in _ROUTES)
STAY_NO_MORE = tuple(f"ip route del {route}" for route in _ROUTES)
"""Charon makes a default route for 0.0.0.0/0 (table 220), which would take what comes out of a tunnel back to the WAN:
its bypass-lan plugin keeps local networks from that by such routes."""

SETS = {
    "ports": (_by_port(5000), _by_port(6000)),
    "0.0.0.0/0": (_FIRST, _ANYTHING),
    "shared networks": (_FIRST, _SAME_REMOTE, _SAME_LOCAL),
}


async def run(lab: Lab) -> None:
    """Play it."""
    a, b = [
        await start_swan(lab, Party(role, lab.topology.namespace(role))) for role in (Role.GATEWAY_A, Role.GATEWAY_B)
    ]
    gateway = None if lab.options.baseline else gateway_of(lab, a)
    with lab.step("start two strongSwans" + (" and ipsec-gw" if gateway else "")):
        await all_of(a.load(), b.load(), *([gateway.start()] if gateway else []))
        await receive_on_one_processor(b.site.namespace, WAN)
    for pid in gateway.pids if gateway else ():
        lab.watch_process(pid)
    lab.strongswan = await a.version()
    if lab.options.engine == "vpp":
        lab.vpp = locate_vpp().version.removeprefix("vpp ").split()[0]
    sites = Sites(a, b)
    with Range(lab.topology) as probes:
        for name, tunnels in SETS.items():
            await _play(lab, name, tunnels, sites, probes, gateway)
    if gateway is not None:
        with lab.step("ipsec-gw off"):
            await gateway.off()


async def _play(
    lab: Lab, name: str, tunnels: Sequence[Tunnel], sites: Sites, probes: Range, gateway: GatewayUnderTest | None
) -> None:
    """Bring them up, see that each carries its own, and then mix them up."""
    children = tuple(tunnel.child for tunnel in tunnels)
    connection = Connection(children=children)
    names = tuple(child.name for child in children)
    case = Case(name, name, (connection,), (), initiate=names, forged=False, a=STAY, undo_a=STAY_NO_MORE)
    with lab.step(f"{name}: bring up {', '.join(case.initiate)}"):
        await sites.establish(case, probes)
        states = await _decided(sites, gateway) if gateway else {}
    own = [tunnel.probe for tunnel in tunnels]
    fates = (await probes.outcome(own)).fates
    right = all(fate is Fate.TUNNEL for fate in fates)
    lab.check(f"{name}: each tunnel carries its own", right, Fate.TUNNEL, ", ".join(fates))
    inbound = {tunnel.child.name: await sites.a.inbound(tunnel.child.name) for tunnel in tunnels}
    by_spi = {claim.spi: claim for claim in claims(sites.b.site.namespace)}
    for through, other in permutations(tunnels, 2):
        sa = by_spi[inbound[through.child.name]]
        with lab.step(f"{name}: what belongs to {other.child.name} comes through {through.child.name}"):
            crossing = Crossing(f"{name}: {other.child.name} through {through.child.name}", through, other, sa)
            await crossing.judge(lab, sites, probes, gateway, states.get(sa.spi, "kernel"))
    await sites.abandon(case)


async def _decided(sites: Sites, gateway: GatewayUnderTest) -> dict[int, str]:
    """Who has the SAs, by SPI, once that is decided. Raises TrafficError."""
    end = time.monotonic() + DECIDED_SECONDS
    while True:
        sas = await gateway.sas_now()
        known = {(sa.destination, sa.spi) for sa in sas} == {(str(dst), spi) for dst, spi in sites.carried()}
        states = {sa.spi: sa.state for sa in sas}
        some = gateway.engine in states.values()
        if known and some and "pending" not in states.values() and await gateway.in_sync():
            return states
        if time.monotonic() > end:
            raise TrafficError(f"not decided after {DECIDED_SECONDS:.0f} s: {sas}")
        await asyncio.sleep(POLL_SECONDS)


@dataclass(frozen=True, slots=True)
class Crossing:
    """Packets of the ``other`` tunnel that gateway B sends ``through`` this one, with its outbound SA."""

    name: str
    through: Tunnel
    other: Tunnel
    sa: Claim

    @property
    def forged(self) -> tuple[Probe, ...]:
        """The other's source, its destination, and both, with its port; without what belongs here as well."""
        here, there = self.through.probe, self.other.probe
        mixed = [
            replace(there, source=source, destination=destination)
            for source in dict.fromkeys((there.source, here.source))
            for destination in dict.fromkeys((there.destination, here.destination))
        ]
        return tuple(probe for probe in mixed if not self.through.fits(probe))

    async def judge(
        self, lab: Lab, sites: Sites, probes: Range, gateway: GatewayUnderTest | None, carrier: str
    ) -> None:
        """Send them all. What the engine (or the kernel) has decrypted its SA counts."""
        forged = self.forged
        before = await self._counted(sites, gateway)
        await sites.misuse([_selector(probe) for probe in forged], self.sa)
        fates = (await probes.outcome(forged)).fates
        await sites.be_honest()
        wanted = len(forged) * TRIES
        counted = await self._counts(sites, gateway, before, wanted)
        told = ", ".join(f"{probe}: {fate}" for probe, fate in zip(forged, fates, strict=True))
        dropped = bool(fates) and all(fate is Fate.DROPPED for fate in fates)
        lab.check(f"{self.name}: nothing is delivered", dropped, f"{len(forged)} dropped by {carrier}", told)
        name = f"{self.name}: the SA that carried it counts it"
        lab.check(name, counted == wanted, f"{wanted} packets in {carrier}", counted)

    async def _counts(self, sites: Sites, gateway: GatewayUnderTest | None, before: int, wanted: int) -> int:
        end = time.monotonic() + COUNTED_SECONDS
        while True:
            counted = await self._counted(sites, gateway) - before
            if counted >= wanted or time.monotonic() > end:
                return counted
            await asyncio.sleep(POLL_SECONDS)

    async def _counted(self, sites: Sites, gateway: GatewayUnderTest | None) -> int:
        if gateway is not None:
            return sum(sa.packets for sa in await gateway.sas_now() if sa.spi == self.sa.spi)
        return sum(sa.packets for sa in dump(sites.a.site.namespace) if sa.spi == self.sa.spi)


def _selector(probe: Probe) -> str:
    """As ``ip xfrm policy`` has it: this packet alone."""
    source, destination = probe.ends
    return f"src {source}/32 dst {destination}/32 proto udp sport {probe.source_port} dport {probe.port}"
