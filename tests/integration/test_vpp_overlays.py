"""Overlays in a real VPP: leftovers of a daemon that died, failures half-way, and what somebody else has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from ipsec_gw.engines.vpp import VppEngine
from ipsec_gw.errors import EngineError
from tests.contract.test_contract_transport import stand
from tests.contract.test_contract_vxlan import (
    ALL_UDP,
    VNI,
    VXLAN1,
    VXLAN2,
    Laid,
    carried,
    comes,
    gives,
    inside,
    lay,
    outside,
    over,
    packet_with,
)
from tests.contract.values import inner
from tests.contract.world import World
from tests.integration.vpp_world import api_of, opened, refuse, running_world
from vpp_conf.api import VppApi
from vpp_conf.descriptors.classify import CheckDescriptor
from vpp_conf.descriptors.subif import SubInterface, SubInterfaceDescriptor
from vpp_conf.descriptors.vxlan import VxlanTunnelDescriptor
from vpp_conf.descriptors.xconnect import CrossConnectDescriptor
from vpp_conf.gate_loops import WHOLE
from vpp_conf.links import Links
from vpp_conf.overlays import Found, OverlayBuilder, OverlayParts
from vpp_conf.paths import VppPaths

pytestmark = [pytest.mark.root, pytest.mark.vpp, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with running_world(tmp_path, "vppo") as built:
        yield built


async def held_by(api: VppApi) -> Found:
    return await OverlayBuilder(api, links()).find(recorded=True)


def links(up: int = 0) -> Links:
    """As far as a builder of overlays looks at them."""
    return Links({}, up, {}, "", None, None)  # type: ignore[arg-type]


def check(world: World, laid: Laid) -> None:
    carried(world, laid.hosts, outside())
    gives(world, laid.hosts, packet_with(inside()))
    comes(world, inside())


async def part_of(engine: VppEngine, laid: Laid) -> OverlayParts:
    return engine._inventory.overlays[laid.overlay.key].parts


@pytest.mark.parametrize("gone", ["tunnel", "connection", "way back", "rewrite", "subinterface"])
async def test_one_that_lacks_a_part_is_none_and_is_made_anew(world: World, gone: str) -> None:
    engine, api = await opened(world), await api_of(world)
    laid = await lay(engine)
    parts = await part_of(engine, laid)
    connections = CrossConnectDescriptor(api)
    match gone:
        case "connection":
            await connections.delete(parts.connection)
        case "way back":
            await connections.delete(parts.connection.reversed)
        case "rewrite":
            rewrite = {"vtr_op": 0, "push_dot1q": 1, "tag1": 0, "tag2": 0}
            await api.call("l2_interface_vlan_tag_rewrite", sw_if_index=parts.vlan.sw_if_index, **rewrite)
        case "tunnel":
            await VxlanTunnelDescriptor(api).delete(parts.tunnel)
        case "subinterface":
            await SubInterfaceDescriptor(api).delete(parts.vlan)
    assert dict(await engine.retrieve()) == laid.hosts.objects
    found = await held_by(api)
    assert (found.vlans, found.tunnels, found.connections) == ((), (), frozenset())
    gives(world, laid.hosts, packet_with(inside()))
    assert inner(world.plaintext(lambda ip: True)) == bytes(packet_with(inside())), "the kernel has it meanwhile"
    await engine.create(laid.overlay)
    check(world, laid)
    await api.close()
    await engine.close()


async def test_a_lost_journal_means_a_clean_start_and_others_keep_theirs(world: World) -> None:
    engine, api = await opened(world), await api_of(world)
    await lay(engine)
    theirs = (await api.cli("create vxlan tunnel src 192.0.2.1 dst 198.51.100.99 vni 7")).strip()
    await engine.close()
    VppPaths(world.run_dir).journal.unlink()
    engine = await opened(world)
    assert dict(await engine.retrieve()) == {}
    found = await held_by(api)
    assert (found.vlans, found.tunnels, found.connections) == ((), (), frozenset())
    assert theirs in await api.cli("show interface")
    check(world, await lay(engine))
    await api.close()
    await engine.close()


async def test_begun_by_a_daemon_that_died_it_is_completed_by_the_next(world: World) -> None:
    """A tunnel and a subinterface that carry no tag yet stand in nobody's way."""
    engine, api = await opened(world), await api_of(world)
    hosts = await stand(engine, ALL_UDP)
    overlay = over(hosts)
    builder = OverlayBuilder(api, links(engine._links.up if engine._links is not None else 0))
    wanted = await builder.parts(overlay, 0, 0, WHOLE)
    await builder.tunnels.create(wanted.tunnel)
    await api.call("create_vlan_subif", sw_if_index=wanted.vlan.parent, vlan_id=wanted.vlan.vid)
    assert dict(await engine.retrieve()) == hosts.objects
    assert (await held_by(api)).tunnels == ()
    await engine.create(overlay)
    check(world, Laid(hosts, overlay))
    await api.close()
    await engine.close()


async def test_a_change_that_fails_half_way_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call after the other is refused, until all of them are made."""
    engine, api = await opened(world), await api_of(world)
    laid = await lay(engine)
    second = over(laid.hosts, interface=VXLAN2, vni=VNI + 1)
    before = await held_by(api)
    for number in count():
        with monkeypatch.context() as patch, suppress(EngineError):
            refused = refuse(patch, number, CHANGING)
            await engine.create(second)
        if not refused:
            break
        assert await held_by(api) == before
        assert dict(await engine.retrieve()) == laid.objects
        check(world, laid)
    assert number >= 5, "and steps there were"
    assert carried(world, laid.hosts, outside(), VXLAN2)
    await engine.delete(laid.overlay.key)
    await engine.delete(second.key)
    assert dict(await engine.retrieve()) == laid.hosts.objects
    found = await held_by(api)
    assert (found.vlans, found.tunnels, found.connections) == ((), (), frozenset())
    await api.close()
    await engine.close()


CHANGING: dict[type, tuple[str, ...]] = {
    SubInterfaceDescriptor: ("create",),
    VxlanTunnelDescriptor: ("create",),
    CrossConnectDescriptor: ("create",),
    CheckDescriptor: ("add_session", "add_table", "follow"),
}
"""What changes something in VPP."""


async def test_it_outlives_its_daemon_with_its_vlan_where_it_is(world: World) -> None:
    engine, api = await opened(world), await api_of(world)
    laid = await lay(engine)
    before = await held_by(api)
    await engine.close()
    check(world, laid)
    engine = await opened(world)
    assert dict(await engine.retrieve()) == laid.objects
    after = await held_by(api)
    assert after == before
    assert [replace(one, sw_if_index=0) for one in after.vlans] == [SubInterface(after.vlans[0].parent, VXLAN1.vlan)]
    check(world, laid)
    await api.close()
    await engine.close()
