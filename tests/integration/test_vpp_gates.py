"""Tunnels that are policies of a real VPP: adoption, leftovers, failures half-way, and what shares VPP with them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import ip_network
from itertools import count
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.packet import Raw

from ipsec_gw.engines.vpp import VppEngine
from ipsec_gw.errors import EngineError
from ipsec_gw.model.choices import PolicyMode
from ipsec_gw.model.ids import Direction, TunnelId
from ipsec_gw.model.objects import Selector, Tunnel
from tests.contract.test_contract_shared import SELECTORS, Tunnels, check
from tests.contract.values import (
    HERE,
    HOP,
    LAN,
    LOCAL,
    PEER,
    REMOTE,
    THERE,
    inbound_packet,
    inner,
    make_sa,
    make_site,
    oracle,
    outbound_packet,
)
from tests.contract.world import World
from tests.integration import vpp_world
from tests.integration.vpp_world import api_of, refuse, running_world
from vpp_conf.descriptors.classify import VERSIONS, CheckDescriptor
from vpp_conf.descriptors.ipsec_itf import IpsecInterfaceDescriptor
from vpp_conf.descriptors.loopback import LoopbackDescriptor
from vpp_conf.descriptors.route import Route, RouteDescriptor
from vpp_conf.descriptors.spd import Policy, PolicyDescriptor
from vpp_conf.gate_loops import IN, OUT
from vpp_conf.paths import VppPaths
from vpp_conf.startup.values import Needs

pytestmark = [pytest.mark.root, pytest.mark.vpp, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture(params=[0, 1000], ids=["one-by-one", "fast-path"])
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    with running_world(tmp_path, "vppg", Needs(policies=request.param)) as built:
        yield built


async def opened(world: World, mode: PolicyMode = PolicyMode.SPD) -> VppEngine:
    return await vpp_world.opened(world, mode)


@dataclass(frozen=True)
class Held:
    """What VPP itself tells of policies, classifiers and routes of tunnels."""

    policies: tuple[Policy, ...]
    sessions: frozenset[tuple[int, int, bytes, bytes, int]]
    """By interface and IP version: mask, match and where to."""
    routes: frozenset[Route]
    interfaces: int


async def held_by(world: World) -> Held:
    api = await api_of(world)
    sessions = set()
    gates = [one.sw_if_index for one in await LoopbackDescriptor(api).retrieve() if one.instance in (IN, OUT)]
    wan = 1  # the first interface that this VPP was given
    for index in (wan, *gates):
        chains = await CheckDescriptor(api).chains_of(index)
        for version in VERSIONS:
            for table in chains.of(version):
                mask = bytes((await api.call("classify_table_info", table_id=table)).mask)
                for one in await api.dump("classify_session_dump", table_id=table):
                    sessions.add((index, version, mask, bytes(one.match), one.hit_next_index))
    found = Held(
        tuple(sorted(await PolicyDescriptor(api).retrieve(), key=str)),
        frozenset(sessions),
        frozenset(await RouteDescriptor(api).retrieve()),
        len(await IpsecInterfaceDescriptor(api).retrieve()),
    )
    await api.close()
    return found


async def stand(engine: VppEngine, *names: str) -> Tunnels:
    await engine.create(HOP)
    tunnels = Tunnels(engine)
    for name in names:
        await tunnels.add(name, SELECTORS[name])
    return tunnels


async def test_a_new_daemon_adopts_them_as_they_are_and_the_last_one_leaves_nothing(world: World) -> None:
    engine = await opened(world)
    tunnels = await stand(engine, *SELECTORS)
    before = await held_by(world)
    assert before.interfaces == 0
    held = dict(await engine.retrieve())
    assert await held_by(world) == before, "looking changes nothing"
    await engine.close()
    check(tunnels, world)  # without a daemon
    again = await opened(world)
    assert dict(await again.retrieve()) == held
    assert await held_by(world) == before
    check(tunnels, world)
    tunnels._engine = again
    for name in list(tunnels.objects):
        await tunnels.remove(name)
        check(tunnels, world)
    left = await held_by(world)
    assert [policy.spd for policy in left.policies] == [OUT, IN, IN], "the fixed ones"
    assert all(policy.outbound for policy in left.policies)
    assert left.sessions == frozenset()
    await again.close()


async def test_what_a_crash_left_is_swept_and_what_it_left_out_is_put_in(world: World) -> None:
    engine = await opened(world)
    tunnels = await stand(engine, *SELECTORS)
    before = await held_by(world)
    await engine.close()
    api = await api_of(world)
    out = next(policy for policy in before.policies if policy.spd == OUT)
    into = next(policy for policy in before.policies if policy.spd == IN and not policy.outbound)
    policies = PolicyDescriptor(api)
    await policies.create(replace(out, local=ip_network("10.77.0.0/16")))
    await policies.delete(out)
    await policies.delete(into)
    table = (await CheckDescriptor(api).chains_of(1)).ip4[0]
    session = next(iter(await api.dump("classify_session_dump", table_id=table)))
    await CheckDescriptor(api).delete_session(table, bytes(session.match))
    await CheckDescriptor(api).add_session(table, bytes(session.match)[:-1] + b"\1", 0)
    await api.close()
    again = await opened(world)
    after = await held_by(world)
    assert (set(after.policies), after.sessions) == (set(before.policies), before.sessions)
    check(tunnels, world)
    await again.close()


async def test_a_lost_journal_means_a_clean_start(world: World) -> None:
    engine = await opened(world)
    await stand(engine, *SELECTORS)
    await engine.close()
    VppPaths(world.run_dir).journal.unlink()
    engine = await opened(world)
    assert dict(await engine.retrieve()) == {}
    left = await held_by(world)
    assert (len(left.policies), left.sessions) == (3, frozenset())
    site = await make_site(engine)
    world.to_engine_wan(oracle(site.inbound).encrypt(inbound_packet(1)))
    world.plaintext(lambda ip: ip.id == 1)
    await engine.close()


async def test_a_change_that_fails_half_way_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call after the other is refused, until all of them are made."""
    engine = await opened(world)
    tunnels = await stand(engine, "branch", "everywhere", "a part of the branch")
    old = tunnels.objects["a part of the branch"]
    incoming, outgoing = make_sa(Direction.IN), make_sa(Direction.OUT)
    for sa in (incoming, outgoing):
        await engine.create(sa)
    moved = replace(
        old,
        inbound=(*old.inbound, incoming.key),
        outbound=outgoing.key,
        selectors=(Selector(*map(ip_network, SELECTORS["elsewhere"])),),
        exceptions=(Selector(LAN, ip_network("10.3.3.0/24"), protocol=6),),
    )
    before = await held_by(world)
    for number in count():
        with monkeypatch.context() as patch, suppress(EngineError):
            refused = refuse(patch, number, CHANGING)
            await engine.update(moved)
        if not refused:
            break
        after = await held_by(world)
        assert (set(after.policies), after.sessions, after.routes) == (
            set(before.policies),
            before.sessions,
            before.routes,
        )
        assert (await engine.retrieve())[old.key] == old
        check(tunnels, world)
    assert number >= 10, "and steps there were"
    assert (await engine.retrieve())[old.key] == moved
    del tunnels.objects["a part of the branch"]
    tunnels.objects["elsewhere"], tunnels.outbound["elsewhere"] = moved, outgoing
    check(tunnels, world)
    await engine.close()


CHANGING: dict[type, tuple[str, ...]] = {
    PolicyDescriptor: ("create", "delete"),
    RouteDescriptor: ("create", "delete"),
    CheckDescriptor: ("add_session", "delete_session", "add_table", "follow"),
}
"""What changes something in VPP."""


async def test_what_fits_no_policy_leaves_neither_encrypted_nor_clear(world: World) -> None:
    engine = await opened(world)
    udp = Selector(LAN, REMOTE, protocol=17)
    incoming, outgoing = make_sa(Direction.IN), make_sa(Direction.OUT)
    tunnel = Tunnel(TunnelId(7, PEER), LOCAL, PEER, (incoming.key,), outgoing.key, (udp,))
    for obj in (HOP, incoming, outgoing, tunnel):
        await engine.create(obj)
    world.to_engine_up(IP(bytes(IP(src=HERE, dst=THERE, id=1, proto=6) / Raw(bytes(40)))))
    world.to_engine_up(IP(bytes(IP(src="10.9.0.1", dst=THERE, id=2) / UDP(sport=1, dport=2) / Raw(b"other"))))
    world.to_engine_up(outbound_packet(3))
    frame = world.wan.receive(lambda frame: IP in frame)
    assert (frame[IP].proto, oracle(outgoing).decrypt(IP(inner(frame)))[IP].id) == (50, 3)
    await engine.close()


async def test_esp_of_no_tunnel_and_what_was_never_encrypted_does_not_come_in(world: World) -> None:
    """All that this WAN receives goes to VPP here: XDP would not steer any of it."""
    engine = await opened(world)
    site = await make_site(engine)
    unknown = make_sa(Direction.IN)
    await engine.create(unknown)  # VPP has the SA, no tunnel has
    world.to_engine_wan(oracle(unknown).encrypt(inbound_packet(1)))
    world.to_engine_wan(inbound_packet(2))
    forged = bytearray(bytes(oracle(site.inbound).encrypt(inbound_packet(3))))
    forged[-1] ^= 1
    world.to_engine_wan(IP(bytes(forged)))
    world.to_engine_wan(oracle(site.inbound).encrypt(inbound_packet(4)))
    assert world.plaintext(lambda ip: True)[IP].id == 4
    await engine.close()


async def test_tunnels_with_an_interface_stand_beside_them(world: World) -> None:
    """Those that an earlier daemon made with another policy_mode stay what they are, and are taken over."""
    engine = await opened(world, PolicyMode.AUTO)
    tunnels = await stand(engine, "branch", "everywhere")
    await engine.close()
    engine = tunnels._engine = await opened(world)
    for name in ("other lan, same branch", "a part of the branch", "elsewhere"):
        await tunnels.add(name, SELECTORS[name])
        check(tunnels, world)
    assert (await held_by(world)).interfaces == 2
    held = dict(await engine.retrieve())
    await engine.close()
    engine = tunnels._engine = await opened(world, PolicyMode.AUTO)
    assert dict(await engine.retrieve()) == held
    check(tunnels, world)
    for name in list(tunnels.objects):
        await tunnels.remove(name)
        check(tunnels, world)
    assert (await held_by(world)).interfaces == 0
    await engine.close()


async def test_what_vpp_itself_says_at_the_gate_goes_into_no_tunnel(world: World) -> None:
    engine, api = await opened(world), await api_of(world)
    incoming, outgoing = make_sa(Direction.IN), make_sa(Direction.OUT)
    everything = Selector(ip_network("::/0"), ip_network("::/0"))
    tunnel = Tunnel(TunnelId(8, PEER), LOCAL, PEER, (incoming.key,), outgoing.key, (everything,))
    for obj in (HOP, incoming, outgoing, tunnel):
        await engine.create(obj)
    deadline = time.monotonic() + 10
    while "IPSec policy discard" not in await api.cli("show errors"):
        assert time.monotonic() < deadline
    sent = IPv6(bytes(IPv6(src="fd01::1", dst="fd02::2") / ICMPv6EchoRequest(seq=9)))
    world.to_engine_up(sent)
    frame = world.wan.receive(lambda frame: IP in frame and frame[IP].proto == 50)
    assert bytes(oracle(outgoing).decrypt(IP(inner(frame)))) == bytes(sent)
    await api.close()
    await engine.close()
