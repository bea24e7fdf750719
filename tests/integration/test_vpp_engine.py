"""The VPP engine over restarts: of the daemon, of VPP, and with things it did not make."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP
from scapy.layers.l2 import Ether

from ipsec_gw.engines.vpp import VppEngine
from ipsec_gw.errors import EngineError, EngineUnavailable, EnvironmentMissing
from ipsec_gw.model.ids import Direction
from ipsec_gw.model.objects import EngineObject
from tests.contract import families
from tests.contract.values import (
    HOP,
    LOCAL,
    PEER,
    TUNNEL_ID,
    Site,
    inbound_packet,
    inner,
    make_sa,
    make_site,
    oracle,
    outbound_packet,
)
from tests.contract.world import UP_ENGINE, WAN, World
from vpp_conf import lifecycle
from vpp_conf.api import VppApi
from vpp_conf.descriptors.af_xdp import AfXdp, AfXdpDescriptor
from vpp_conf.descriptors.base import NO_INDEX
from vpp_conf.descriptors.classify import (
    Chains,
    Check,
    CheckDescriptor,
    Redirect,
    RedirectDescriptor,
    punt_next_indices,
)
from vpp_conf.descriptors.gre import GreTunnel, GreTunnelDescriptor
from vpp_conf.descriptors.headers import Headers
from vpp_conf.descriptors.interface import OWNER_TAG, UP_FLAG, bind, tag
from vpp_conf.descriptors.ipsec_itf import IpsecInterface, IpsecInterfaceDescriptor
from vpp_conf.descriptors.loopback import Loopback, LoopbackDescriptor
from vpp_conf.descriptors.route import (
    DECAP_TABLE,
    ENCAP_TABLE,
    OUTER_TABLE,
    LocalAddress,
    LocalAddressDescriptor,
    RouteDescriptor,
)
from vpp_conf.descriptors.sa import SadEntry, SaDescriptor
from vpp_conf.inventory import FIRST_SAD_ID, sad_entry
from vpp_conf.locate import locate_vpp
from vpp_conf.paths import VppPaths
from vpp_conf.process import identify
from vpp_conf.startup.values import Needs

pytestmark = [pytest.mark.root, pytest.mark.vpp, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

STANDING_TABLES = 5
"""The TTL keepers of the veth end, the tables that let nothing pass, and what drops packets with IP options."""


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    """A fresh VPP for every test: they break it in different ways. A parameter is the number of workers."""
    try:
        locate_vpp()
    except EnvironmentMissing as missing:
        pytest.skip(str(missing))
    workers: int | None = getattr(request, "param", None)
    if workers and len(os.sched_getaffinity(0)) <= workers:
        pytest.skip(f"needs {workers + 1} CPUs")
    with World(tmp_path, "vppe") as built:
        lifecycle.up(tmp_path, needs=Needs(workers=workers))
        try:
            yield built
        finally:
            lifecycle.down(tmp_path)


async def opened(world: World) -> VppEngine:
    engine = VppEngine(world.context)
    await engine.open()
    return engine


async def api_of(world: World) -> VppApi:
    api = VppApi(VppPaths(world.run_dir).api_socket, locate_vpp().api_dir)
    await api.connect()
    return api


def objects(site: Site) -> dict[object, EngineObject]:
    return {obj.key: obj for obj in (HOP, site.inbound, site.outbound, site.tunnel)}


@pytest.mark.parametrize("world", [0, 1], indirect=True, ids=["one-thread", "worker"])
async def test_a_new_daemon_adopts_what_is_there(world: World) -> None:
    first = await opened(world)
    site = await make_site(first)
    leaving, entering = oracle(site.outbound), oracle(site.inbound)
    world.to_engine_up(outbound_packet(1))
    world.ciphertext(site.outbound.key.spi)
    await first.close()
    world.to_engine_up(outbound_packet(2))  # VPP works on without a daemon
    assert ESP(bytes(world.ciphertext(site.outbound.key.spi)[IP].payload)).seq == 2
    second = await opened(world)
    assert second.epoch == first.epoch
    assert dict(await second.retrieve()) == objects(site)
    world.to_engine_up(outbound_packet(3))
    frame = world.ciphertext(site.outbound.key.spi)
    assert ESP(bytes(frame[IP].payload)).seq == 3
    assert leaving.decrypt(IP(inner(frame)))[IP].id == 3
    world.to_engine_wan(entering.encrypt(inbound_packet(4)))
    world.plaintext(lambda ip: ip.id == 4)
    for key in (TUNNEL_ID, site.inbound.key, site.outbound.key, PEER):
        await second.delete(key)
    assert dict(await second.retrieve()) == {}
    await second.close()


async def test_a_vpp_that_a_version_without_ipv6_has_filled_is_completed(world: World) -> None:
    """Its interfaces stay, they cannot be made twice in the life of a VPP."""
    api = await api_of(world)
    sockets = [await AfXdpDescriptor(api).create(AfXdp(name)) for name in (WAN, UP_ENGINE)]
    loop = await LoopbackDescriptor(api).create(Loopback(DECAP_TABLE))
    kept = {
        sockets[0].sw_if_index: (OUTER_TABLE, None),
        sockets[1].sw_if_index: (ENCAP_TABLE, "169.254.254.2"),
        loop.sw_if_index: (DECAP_TABLE, "169.254.254.3"),
    }
    for index, (table, address) in kept.items():
        await api.call("ip_table_add_del", is_add=True, table={"table_id": table, "is_ip6": False, "name": "old"})
        await bind(api, index, table, 4)
        await api.call("sw_interface_set_mtu", sw_if_index=index, mtu=[1500, 0, 0, 0])
        await api.call("sw_interface_set_flags", sw_if_index=index, flags=UP_FLAG)
        if address:
            await LocalAddressDescriptor(api).create(LocalAddress(index, ip_address(address)))
        await tag(api, index, OWNER_TAG)
    up, checks = sockets[1].sw_if_index, CheckDescriptor(api)
    await RedirectDescriptor(api).create(Redirect(up, 4, table=ENCAP_TABLE))
    punts = await punt_next_indices(api)
    table = await checks.add_table(bytes(32), NO_INDEX, punts.ip4)
    await checks.attach(Check(up, frozenset(), punts, None, Chains((table,))), is_add=True)
    engine = await opened(world)
    site = await families.make_site(engine, 6, 4, 6)
    for inside in families.INSIDES.values():
        sent = families.packet(inside.here, inside.there, 7)
        world.to_engine_up(sent)
        outer = world.ciphertext(site.outbound.key.spi).payload
        assert families.bytes_of(site.leaving.decrypt(IPv6(families.bytes_of(outer)))) == bytes(sent)
        world.to_engine_wan(site.entering.encrypt(families.packet(inside.there, inside.here, 8)))
        world.up.receive(lambda frame: families.ident_of(frame) == 8)
    assert {s.sw_if_index for s in await AfXdpDescriptor(api).retrieve()} == {s.sw_if_index for s in sockets}
    await engine.close()
    await api.close()


async def test_a_new_daemon_adopts_ipv6_too(world: World) -> None:
    first = await opened(world)
    site = await families.make_site(first, 6, 4, 6)
    await first.close()
    second = await opened(world)
    assert dict(await second.retrieve()) == site.objects()
    sent = families.packet(families.INSIDES[6].here, families.INSIDES[6].there, 7)
    world.to_engine_up(sent)
    world.ciphertext(site.outbound.key.spi)
    for key in (site.tunnel.key, site.inbound.key, site.outbound.key, site.outside.peer):
        await second.delete(key)
    assert dict(await second.retrieve()) == {}
    api = await api_of(world)
    wan = [s.sw_if_index for s in await AfXdpDescriptor(api).retrieve() if s.host_interface == WAN]
    assert await LocalAddressDescriptor(api).retrieve_on(wan) == ()
    assert len((await api.call("classify_table_ids")).ids) == STANDING_TABLES
    await second.close()
    await api.close()


async def test_sa_numbers_are_not_used_again_after_a_restart_of_the_daemon(world: World) -> None:
    numbers: list[int] = []
    for _ in range(3):
        engine = await opened(world)
        sa = make_sa(Direction.IN)
        await engine.create(sa)
        api = await api_of(world)
        numbers += [entry.sad_id for entry in await SaDescriptor(api).retrieve()]
        await engine.delete(sa.key)
        await engine.close()
        await api.close()
    assert len(numbers) == len(set(numbers)) == 3


async def test_foreign_objects_are_neither_shown_nor_touched(world: World) -> None:
    api = await api_of(world)
    entry: SadEntry = sad_entry(make_sa(Direction.OUT), 5)
    await SaDescriptor(api).create(entry)
    reply = await api.call("ipsec_itf_create", itf={"user_instance": 0xFFFFFFFF, "mode": 0})
    engine = await opened(world)
    assert dict(await engine.retrieve()) == {}
    assert [found.sad_id for found in await SaDescriptor(api).retrieve()] == [5]
    interfaces = await api.dump("ipsec_itf_dump", sw_if_index=NO_INDEX)
    assert reply.sw_if_index in {detail.itf.sw_if_index for detail in interfaces}
    await engine.close()
    await api.close()


async def test_half_made_leftovers_are_swept(world: World) -> None:
    engine = await opened(world)
    site = await make_site(engine)
    await engine.close()
    api = await api_of(world)
    await SaDescriptor(api).create(sad_entry(make_sa(Direction.OUT), FIRST_SAD_ID + 9999))
    await IpsecInterfaceDescriptor(api).create(IpsecInterface(0, 1500, 1))
    engine = await opened(world)
    assert dict(await engine.retrieve()) == objects(site)
    assert {found.spi for found in await SaDescriptor(api).retrieve()} == {site.inbound.key.spi, site.outbound.key.spi}
    assert len(await IpsecInterfaceDescriptor(api).retrieve()) == 1
    await engine.close()
    await api.close()


async def test_leftovers_of_gre_are_swept_however_far_they_got(world: World) -> None:
    """One that has no tag yet would stand in the way for good: VPP has no second one with the same ends."""
    engine = await opened(world)
    api = await api_of(world)
    gres = GreTunnelDescriptor(api)
    untagged = GreTunnel(0, 1500, 1, Headers(77, LOCAL, PEER, dscp=True))
    await gres.create(untagged)
    for detail in await gres.retrieve():
        await api.call("sw_interface_tag_add_del", is_add=False, sw_if_index=detail.sw_if_index, tag="")
    foreign = await api.cli("create gre tunnel src 192.0.2.1 dst 198.51.100.99")
    assert await engine.retrieve() == {}
    assert await gres.retrieve() == ()
    assert foreign.strip() in await api.cli("show gre tunnel") + await api.cli("show interface")
    await engine.close()
    await api.close()


async def test_a_lost_journal_means_a_clean_start(world: World) -> None:
    engine = await opened(world)
    await make_site(engine)
    await engine.close()
    VppPaths(world.run_dir).journal.unlink()
    engine = await opened(world)
    assert dict(await engine.retrieve()) == {}
    await make_site(engine)
    await engine.close()


async def test_a_route_that_vanished_from_vpp_is_put_back(world: World) -> None:
    engine = await opened(world)
    site = await make_site(engine)
    api = await api_of(world)
    for route in await RouteDescriptor(api).retrieve():
        if route.prefix == site.tunnel.selectors[0].destination:
            await RouteDescriptor(api).delete(route)
    assert dict(await engine.retrieve()) == objects(site)
    world.to_engine_up(outbound_packet(1))
    world.ciphertext(site.outbound.key.spi)
    await engine.close()
    await api.close()


async def test_a_tunnel_that_fails_half_way_leaves_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await opened(world)
    site = await make_site(engine)
    await engine.delete(TUNNEL_ID)

    async def refuse(*_: object) -> None:
        raise EngineError("no more routes")

    with monkeypatch.context() as patch:
        patch.setattr(RouteDescriptor, "create", refuse)
        with pytest.raises(EngineError, match="no more routes"):
            await engine.create(site.tunnel)
    api = await api_of(world)
    assert await IpsecInterfaceDescriptor(api).retrieve() == ()
    assert len((await api.call("classify_table_ids")).ids) == STANDING_TABLES
    await engine.create(site.tunnel)
    world.to_engine_up(outbound_packet(1))
    world.ciphertext(site.outbound.key.spi)
    await engine.close()
    await api.close()


@pytest.mark.parametrize("noticed", [True, False], ids=["noticed", "unnoticed"])
async def test_a_killed_vpp_is_given_up_and_a_new_one_taken(world: World, noticed: bool) -> None:
    engine = await opened(world)
    site = await make_site(engine)
    epoch = engine.epoch
    world.to_engine_wan(oracle(site.inbound).encrypt(inbound_packet(7)))
    world.plaintext(lambda ip: ip.id == 7)
    world.to_engine_up(outbound_packet(8))
    world.ciphertext(site.outbound.key.spi)
    pid = lifecycle.status(world.run_dir).pid
    assert pid is not None
    process = identify(pid)
    assert process is not None
    os.kill(pid, signal.SIGKILL)
    assert process.stop(5.0, 5.0)
    last = engine.last_counters()
    assert (last[site.inbound.key].packets, last[site.outbound.key].packets) == (1, 1), "read from a dead VPP's memory"
    if noticed:
        for _ in range(2):
            with pytest.raises(EngineUnavailable):
                await engine.retrieve()
    lifecycle.up(world.run_dir)
    await engine.open()
    assert engine.epoch != epoch
    assert dict(await engine.retrieve()) == {}
    site = await make_site(engine)
    world.to_engine_wan(oracle(site.inbound).encrypt(inbound_packet(1)))
    world.plaintext(lambda ip: ip.id == 1)
    await engine.close()


async def test_a_hung_vpp_does_not_hang_the_caller(world: World) -> None:
    api = VppApi(VppPaths(world.run_dir).api_socket, locate_vpp().api_dir, timeout=0.5)
    await api.connect()
    pid = lifecycle.status(world.run_dir).pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(EngineUnavailable, match="show_version"):
            await asyncio.wait_for(api.call("show_version"), 10)
        assert not api.connected
    finally:
        os.kill(pid, signal.SIGCONT)
    await api.connect()
    await api.call("show_version")
    await api.close()


async def test_no_key_is_written_anywhere(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    engine = await opened(world)
    site = await make_site(engine)
    await engine.retrieve()
    await engine.close()
    for path in VppPaths(world.run_dir).folder.iterdir():
        if path.is_file():
            text = path.read_bytes()
            for secret in (site.inbound.secret, site.outbound.secret):
                assert secret.reveal() not in text
                assert secret.reveal().hex().encode() not in text
    for secret in (site.inbound.secret, site.outbound.secret):
        assert repr(secret.reveal())[2:-1] not in caplog.text


async def test_a_message_with_a_key_that_cannot_be_packed_does_not_show_it(world: World) -> None:
    api = await api_of(world)
    key = "not bytes, but very secret"
    with pytest.raises(EngineError) as caught:
        await api.call("ipsec_sad_entry_add_v2", entry={"crypto_key": {"length": 16, "data": key}})
    assert key not in "".join(traceback.format_exception(caught.value))
    await api.close()


async def test_rekeys_under_load_lose_nothing(world: World) -> None:
    """Fifty rekeys while packets go both ways as fast as one thread sends them."""
    engine = await opened(world)
    site = await make_site(engine)
    peer = oracle(site.inbound)
    packets = 400
    header = Ether(src=world.wan.mac, dst=world.context.wan[0].mac)
    ready = [bytes(header / peer.encrypt(inbound_packet(number))) for number in range(packets)]
    stop = threading.Event()
    sent = 0

    def send() -> None:
        nonlocal sent
        while sent < packets and not stop.is_set():
            world.wan.send_raw(ready[sent])
            world.to_engine_up(outbound_packet(sent))
            sent += 1
            stop.wait(0.002)

    sender = threading.Thread(target=send)
    sender.start()
    tunnel, outgoing = site.tunnel, [site.outbound]
    while sender.is_alive():
        fresh_in, fresh_out = make_sa(Direction.IN), make_sa(Direction.OUT)
        await engine.create(fresh_in)
        await engine.create(fresh_out)
        tunnel = replace(tunnel, inbound=(fresh_in.key, site.inbound.key), outbound=fresh_out.key)
        former = await engine.retrieve()
        await engine.update(tunnel)
        for key in former[TUNNEL_ID].inbound:  # type: ignore[union-attr]
            if key != site.inbound.key:
                await engine.delete(key)
        outgoing.append(fresh_out)
    stop.set()
    sender.join()
    assert len(outgoing) > 10
    decrypted = [world.plaintext(lambda ip: True)[IP].id for _ in range(packets)]
    assert decrypted == list(range(packets))
    by_spi = {sa.key.spi: oracle(sa) for sa in outgoing}
    seen = []
    for _ in range(packets):
        frame = world.wan.receive(lambda frame: IP in frame and frame[IP].proto == 50)
        spi = int.from_bytes(bytes(frame[IP].payload)[:4], "big")
        seen.append(by_spi[spi].decrypt(IP(inner(frame)))[IP].id)
    assert seen == list(range(packets))
    await engine.close()
