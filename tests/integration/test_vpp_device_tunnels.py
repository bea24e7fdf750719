"""Devices over tunnel mode in a real VPP: leftovers of a daemon that died, failures half-way, parts that are gone."""

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
from ipsec_gw.model.objects import DeviceHeader, XfrmInterface
from tests.contract.test_contract_device_tunnels import (
    BY_GRE,
    BY_IPIP,
    GRE1,
    IPIP1,
    goes_both_ways,
    make_tunnel,
)
from tests.contract.test_contract_interfaces import Routed
from tests.contract.test_contract_vxlan_tunnels import Laid, lay
from tests.contract.test_contract_vxlan_tunnels import goes_both_ways as frames_go
from tests.contract.world import World
from tests.integration.vpp_world import api_of, opened, refuse, running_world
from vpp_conf.api import VppApi
from vpp_conf.descriptors.classify import Check, CheckDescriptor, RedirectDescriptor
from vpp_conf.descriptors.gre import GreTunnel, GreTunnelDescriptor
from vpp_conf.descriptors.ipip import IpipTunnel, IpipTunnelDescriptor
from vpp_conf.descriptors.ipsec_itf import IpsecInterfaceDescriptor
from vpp_conf.descriptors.protect import ProtectDescriptor
from vpp_conf.descriptors.route import DEVICE_TABLES, ENCAP_TABLE, RouteDescriptor, Table, TableDescriptor
from vpp_conf.descriptors.subif import SubInterfaceDescriptor
from vpp_conf.descriptors.vxlan import VxlanTunnelDescriptor
from vpp_conf.outer import headers_of
from vpp_conf.overlays import OVERLAY_MASK
from vpp_conf.paths import VppPaths
from vpp_conf.tunnels import TunnelParts

pytestmark = [pytest.mark.root, pytest.mark.vpp, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

DEVICES = [pytest.param(GRE1, BY_GRE, id="gre"), pytest.param(IPIP1, BY_IPIP, id="ipip")]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with running_world(tmp_path, "vppd") as built:
        yield built


async def of_devices(api: VppApi) -> tuple[object, ...]:
    """All that VPP has for devices: interfaces, tables, protections, classifier tables."""
    return (
        await GreTunnelDescriptor(api).retrieve(),
        await IpipTunnelDescriptor(api).retrieve(),
        {one.sw_if_index for one in await IpsecInterfaceDescriptor(api).retrieve()},
        await TableDescriptor(api, DEVICE_TABLES).retrieve(),
        frozenset(await ProtectDescriptor(api).retrieve()),
        len((await api.call("classify_table_ids")).ids),
    )


def parts_of(engine: VppEngine, made: Routed) -> TunnelParts:
    parts = engine._inventory.tunnels[made.tunnel.key].parts
    assert isinstance(parts, TunnelParts)
    return parts


@pytest.mark.parametrize(("interface", "header"), DEVICES)
async def test_leftovers_are_swept_however_far_they_got(
    world: World, interface: XfrmInterface, header: DeviceHeader
) -> None:
    engine, api = await opened(world), await api_of(world)
    before = await of_devices(api)
    headers = headers_of(header, interface.vlan)
    await TableDescriptor(api, DEVICE_TABLES).create(Table(headers.table, 4))
    if header.gre:
        await GreTunnelDescriptor(api).create(GreTunnel(0, 1500, 1, headers))
    else:
        await IpipTunnelDescriptor(api).create(IpipTunnel(0, 1500, 1, headers))
    assert await of_devices(api) != before
    assert await engine.retrieve() == {}
    assert await of_devices(api) == before
    made = await make_tunnel(engine, interface, header)
    await goes_both_ways(world, made, 1)
    await engine.close()
    VppPaths(world.run_dir).journal.unlink()
    engine = await opened(world)
    assert dict(await engine.retrieve()) == {}
    assert (await of_devices(api))[:5] == before[:5]
    await goes_both_ways(world, await make_tunnel(engine, interface, header), 2)
    await api.close()
    await engine.close()


async def strip(api: VppApi, check: Check) -> None:
    """Take away what an interface has to lose before it goes itself."""
    await CheckDescriptor(api).delete(check)
    redirects = RedirectDescriptor(api)
    for one in await redirects.retrieve():
        if one.rx_sw_if_index == check.sw_if_index:
            await redirects.delete(one)


@pytest.mark.parametrize("gone", ["device", "outer", "redirect", "check", "protection", "door"])
async def test_one_that_lacks_a_part_is_none_and_is_made_anew(world: World, gone: str) -> None:
    engine, api = await opened(world), await api_of(world)
    before = await of_devices(api)
    made = await make_tunnel(engine)
    parts = parts_of(engine, made)
    assert parts.outer is not None
    assert parts.door is not None
    await engine.close()
    match gone:
        case "device":
            assert isinstance(parts.interface, GreTunnel)
            await strip(api, parts.check)
            await GreTunnelDescriptor(api).delete(parts.interface)
        case "outer":
            await ProtectDescriptor(api).delete(parts.protect)
            await strip(api, parts.outer.check)
            await IpsecInterfaceDescriptor(api).delete(parts.outer.interface)
        case "redirect":
            await RedirectDescriptor(api).delete(parts.outer.redirects[0])
        case "check":
            await CheckDescriptor(api).delete(parts.outer.check)
        case "protection":
            await ProtectDescriptor(api).delete(parts.protect)
        case "door":
            await strip(api, parts.door.check)
            await SubInterfaceDescriptor(api).delete(parts.door.vlan)
    engine = await opened(world)
    found = dict(await engine.retrieve())
    assert made.tunnel.key not in found
    assert (await of_devices(api))[:5] == before[:5]
    await engine.create(made.tunnel)
    await goes_both_ways(world, made, 1)
    await api.close()
    await engine.close()


CHANGING: dict[type, tuple[str, ...]] = {
    TableDescriptor: ("create",),
    RouteDescriptor: ("create",),
    IpsecInterfaceDescriptor: ("create",),
    GreTunnelDescriptor: ("create",),
    RedirectDescriptor: ("create",),
    SubInterfaceDescriptor: ("create",),
    ProtectDescriptor: ("create",),
    CheckDescriptor: ("add_session", "add_table", "attach"),
}
"""What changes something in VPP."""


async def test_one_that_fails_half_way_leaves_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call after the other is refused, until all of them are made."""
    engine, api = await opened(world), await api_of(world)
    made = await make_tunnel(engine)
    await engine.delete(made.tunnel.key)
    before = await of_devices(api)
    for number in count():
        with monkeypatch.context() as patch, suppress(EngineError):
            refused = refuse(patch, number, CHANGING)
            await engine.create(made.tunnel)
        if not refused:
            break
        assert await of_devices(api) == before
        assert made.tunnel.key not in await engine.retrieve()
    assert number >= 12, "and steps there were"
    await goes_both_ways(world, made, 1)
    await engine.delete(made.tunnel.key)
    assert await of_devices(api) == before
    await api.close()
    await engine.close()


async def test_it_outlives_its_daemon(world: World) -> None:
    engine, api = await opened(world), await api_of(world)
    tunnels = [await make_tunnel(engine), await make_tunnel(engine, IPIP1, BY_IPIP, reqid=36)]
    before = await of_devices(api)
    await engine.close()
    for number, made in enumerate(tunnels, 1):
        await goes_both_ways(world, made, number)
    engine = await opened(world)
    assert dict(await engine.retrieve()) == {obj.key: obj for made in tunnels for obj in made.objects}
    assert await of_devices(api) == before
    for number, made in enumerate(tunnels, 10):
        await goes_both_ways(world, made, number)
    await api.close()
    await engine.close()


async def diverted(engine: VppEngine, api: VppApi, laid: Laid) -> int:
    """Rules of overlays that the check of a tunnel's interface really has."""
    parts = engine._inventory.tunnels[laid.tunnel.key].parts
    assert isinstance(parts, TunnelParts)
    checks = CheckDescriptor(api)
    chains = await checks.chains_of(parts.interface.sw_if_index)
    return len(await checks.diversions_of(chains, OVERLAY_MASK))


@pytest.mark.parametrize("half", ["made", "removed"])
async def test_an_overlay_that_a_daemon_left_half_way_is_put_right(world: World, half: str) -> None:
    """The check of its tunnel leads to it, and nothing tells of it; or it is told of, and nothing leads to it."""
    engine, api = await opened(world), await api_of(world)
    laid = await lay(engine)
    parts = engine._inventory.tunnels[laid.tunnel.key].parts
    assert isinstance(parts, TunnelParts)
    if half == "made":
        engine._journal.remove("overlay", str(laid.overlay.key))
    else:
        bare = replace(parts.check, diversions=frozenset())
        await CheckDescriptor(api).update(parts.check, bare)
    await engine.close()
    engine = await opened(world)
    told = laid.overlay.key in await engine.retrieve()
    assert told is (half == "removed")
    assert await diverted(engine, api, laid) == int(told)
    assert bool(await VxlanTunnelDescriptor(api).retrieve()) is told
    if not told:
        await engine.create(laid.overlay)
    frames_go(world, laid)
    await api.close()
    await engine.close()


OVERLAYING: dict[type, tuple[str, ...]] = {
    SubInterfaceDescriptor: ("create",),
    VxlanTunnelDescriptor: ("create",),
    CheckDescriptor: ("add_session", "add_table", "attach"),
}


async def test_an_overlay_that_fails_half_way_leaves_its_tunnel_as_it_was(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, api = await opened(world), await api_of(world)
    laid = await lay(engine)
    await engine.delete(laid.overlay.key)
    before = len((await api.call("classify_table_ids")).ids)
    for number in count():
        with monkeypatch.context() as patch, suppress(EngineError):
            refused = refuse(patch, number, OVERLAYING)
            await engine.create(laid.overlay)
        if not refused:
            break
        assert await diverted(engine, api, laid) == 0
        assert await VxlanTunnelDescriptor(api).retrieve() == ()
        assert laid.overlay.key not in await engine.retrieve()
        assert len((await api.call("classify_table_ids")).ids) == before
    assert number >= 5, "and steps there were"
    frames_go(world, laid)
    (tunnel,) = await VxlanTunnelDescriptor(api).retrieve()
    assert tunnel.table == ENCAP_TABLE
    await engine.delete(laid.overlay.key)
    assert len((await api.call("classify_table_ids")).ids) == before
    await api.close()
    await engine.close()
