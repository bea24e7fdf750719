"""Tunnels that share remote networks, or lie inside each other's: a packet's source decides too."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_network

import pytest
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from ipsec_gw.engines.port import Engine
from ipsec_gw.errors import EngineError
from ipsec_gw.model.ids import Direction, TunnelId
from ipsec_gw.model.objects import EngineSa, Selector, Tunnel
from tests.contract.values import HOP, LOCAL, PEER, inner, make_sa, oracle
from tests.contract.world import World

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

SELECTORS = {
    "branch": ("10.1.0.0/16", "10.2.0.0/16"),
    "other lan, same branch": ("10.9.0.0/16", "10.2.0.0/16"),
    "a part of the branch": ("10.6.0.0/16", "10.2.3.0/24"),
    "everywhere": ("10.5.0.0/16", "0.0.0.0/0"),
    "elsewhere": ("10.1.0.0/16", "10.3.0.0/16"),
}
PACKETS = (
    ("10.1.0.5", "10.2.0.9", "branch"),
    ("10.1.0.5", "10.2.3.9", "branch"),
    ("10.1.0.5", "10.3.0.9", "elsewhere"),
    ("10.9.0.5", "10.2.0.9", "other lan, same branch"),
    ("10.9.0.5", "10.2.3.9", "other lan, same branch"),
    ("10.6.0.5", "10.2.3.9", "a part of the branch"),
    ("10.5.0.5", "10.2.3.9", "everywhere"),
    ("10.5.0.5", "10.2.0.9", "everywhere"),
    ("10.5.0.5", "203.0.113.5", "everywhere"),
)
STRAYS = (("10.6.0.5", "10.2.0.9"), ("10.7.0.5", "10.2.3.9"))
"""To shared networks, from where no tunnel for them begins."""


class Tunnels:
    """Tunnels of one peer, each with an SA pair of its own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.outbound: dict[str, EngineSa] = {}
        self.objects: dict[str, Tunnel] = {}

    async def add(self, name: str, *selectors: tuple[str, str]) -> None:
        incoming, outgoing = make_sa(Direction.IN), make_sa(Direction.OUT)
        tunnel = Tunnel(
            TunnelId(100 + len(self.outbound), PEER),
            LOCAL,
            PEER,
            (incoming.key,),
            outgoing.key,
            tuple(Selector(ip_network(source), ip_network(destination)) for source, destination in selectors),
        )
        for obj in (incoming, outgoing, tunnel):
            await self._engine.create(obj)
        self.outbound[name], self.objects[name] = outgoing, tunnel

    async def remove(self, name: str) -> None:
        tunnel = self.objects.pop(name)
        del self.outbound[name]
        for key in (tunnel.key, *tunnel.inbound, tunnel.outbound):
            await self._engine.delete(key)


def packet(source: str, destination: str, ident: int) -> IP:
    return IP(bytes(IP(src=source, dst=destination, id=ident) / UDP(sport=1, dport=2) / Raw(b"shared" * 8)))


def check(tunnels: Tunnels, world: World) -> None:
    """Every packet takes the tunnel that is its own, of those that stand."""
    for ident, (source, destination, name) in enumerate(PACKETS, 1):
        if name in tunnels.objects:
            sent = packet(source, destination, ident)
            world.to_engine_up(sent)
            frame = world.ciphertext(tunnels.outbound[name].key.spi)
            assert inner(oracle(tunnels.outbound[name]).decrypt(IP(inner(frame)))) == bytes(sent)


async def test_each_packet_takes_the_tunnel_of_its_own_selector(engine: Engine, world: World) -> None:
    await engine.create(HOP)
    tunnels = Tunnels(engine)
    for name, selector in SELECTORS.items():
        await tunnels.add(name, selector)
        check(tunnels, world)
    held = await engine.retrieve()
    assert {key: held[key] for key in held if isinstance(key, TunnelId)} == {
        tunnel.key: tunnel for tunnel in tunnels.objects.values()
    }
    check(tunnels, world)  # reading changes nothing
    before = {key: count.packets for key, count in (await engine.counters()).items()}
    for source, destination in STRAYS:
        world.to_engine_up(packet(source, destination, 77))
    check(tunnels, world)
    after = {key: count.packets for key, count in (await engine.counters()).items()}
    assert sum(after.values()) - sum(before.values()) == len(PACKETS), "what fits no selector takes no tunnel"
    for name in ("other lan, same branch", "everywhere", "branch"):
        await tunnels.remove(name)
        check(tunnels, world)


async def test_a_tunnel_may_change_what_it_shares(engine: Engine, world: World) -> None:
    await engine.create(HOP)
    tunnels = Tunnels(engine)
    await tunnels.add("branch", SELECTORS["branch"])
    await tunnels.add("everywhere", SELECTORS["everywhere"])
    check(tunnels, world)
    old = tunnels.objects.pop("everywhere")
    (source, destination) = SELECTORS["other lan, same branch"]
    moved = Tunnel(
        old.key, LOCAL, PEER, old.inbound, old.outbound, (Selector(ip_network(source), ip_network(destination)),)
    )
    await engine.update(moved)
    tunnels.objects["other lan, same branch"] = moved
    tunnels.outbound["other lan, same branch"] = tunnels.outbound.pop("everywhere")
    check(tunnels, world)
    assert (await engine.retrieve())[moved.key] == moved


@pytest.mark.parametrize(
    "selector", [("10.1.0.0/16", "10.2.0.0/16"), ("10.1.2.0/24", "0.0.0.0/0"), ("0.0.0.0/0", "10.2.3.0/24")]
)
async def test_a_packet_never_belongs_to_two_tunnels(engine: Engine, world: World, selector: tuple[str, str]) -> None:
    """An engine refuses the second, or lets one of them have it; the first goes on either way."""
    await engine.create(HOP)
    tunnels = Tunnels(engine)
    await tunnels.add("branch", SELECTORS["branch"])
    held = dict(await engine.retrieve())
    with suppress(EngineError):
        await tunnels.add("rival", selector)
    if "rival" not in tunnels.objects:
        assert [key for key in await engine.retrieve() if isinstance(key, TunnelId) and key not in held] == []
        check(tunnels, world)
