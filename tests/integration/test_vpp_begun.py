"""A daemon that is killed while it makes its interfaces in VPP: the next one completes them, wherever that was."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from tests.contract.world import World
from tests.integration.vpp_world import docked_world
from vpp_conf import lifecycle
from vpp_conf.api import VppApi
from vpp_conf.descriptors.af_xdp import Reception
from vpp_conf.descriptors.nat import NatTimeouts
from vpp_conf.links import HostLink, Links, take_links
from vpp_conf.locate import locate_vpp
from vpp_conf.nat import NatPlan, NatPool, hold_nat
from vpp_conf.paths import VppPaths
from xdp_steer.dock import Role
from xdp_steer.flow_layout import TRANSLATOR_MAC, TRANSLATOR_MTU, TRANSLATOR_OUTSIDE, TRANSLATOR_PORT_MAC

pytestmark = [
    pytest.mark.root,
    pytest.mark.vpp,
    pytest.mark.usefixtures("vpp"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

KERNEL, ENGINE = "ipsecgw-kn", "ipsecgw-vn"
POOLS = tuple(NatPool(n, IPv4Address(f"203.0.113.{n}"), IPv4Address(f"203.0.113.{n}")) for n in (1, 2))
PLAN = NatPlan(
    ENGINE,
    TRANSLATOR_PORT_MAC.hex(":"),
    TRANSLATOR_OUTSIDE,
    TRANSLATOR_MTU,
    1 << 16,
    NatTimeouts(60, 1800, 120, 30),
    POOLS,
)
BOUND = 400
"""More requests than any of this takes."""


class Killed(Exception):
    """The daemon is gone."""


class Mortal(VppApi):
    """A connection of a daemon that is killed after ``left`` requests. What was asked for has been done by then."""

    def __init__(self, path: Path, left: int) -> None:
        super().__init__(path, locate_vpp().api_dir)
        self.left = left

    async def _request(self, message: str, fields: dict[str, Any]) -> Any:
        if self.left == 0:
            raise Killed
        self.left -= 1
        return await super()._request(message, fields)


@dataclass(frozen=True)
class Begun:
    """A world in which VPP runs, and the pair for its NAT."""

    world: World

    async def connect(self, left: int) -> Mortal:
        api = Mortal(VppPaths(self.world.run_dir.resolve()).api_socket, left + BOUND)
        await api.connect()
        api.left = left
        return api

    async def take(self, api: VppApi) -> Links:
        context = self.world.context
        wan = [HostLink(link.name, link.mtu) for link in context.wan]
        up = HostLink(context.up_engine.name, context.up_engine.mtu)
        return await take_links(api, wan, up, context.up_kernel.mac.lower(), context.taking, Reception())


@contextmanager
def running(run_dir: Path, name: str) -> Iterator[Begun]:
    run_dir.mkdir()
    with docked_world(run_dir, name) as built:
        lifecycle.up(run_dir)
        words = ("address", TRANSLATOR_PORT_MAC.hex(":"), "type", "veth", "peer", "name", ENGINE)
        _ip("link", "add", KERNEL, *words, "address", TRANSLATOR_MAC.hex(":"))
        for interface in (KERNEL, ENGINE):
            _ip("link", "set", interface, "arp", "off", "up")
        built.steering.dock(ENGINE, Role.TO_TRANSLATOR)
        yield Begun(built)


async def state(api: VppApi) -> list[str]:
    """Interfaces with all that they have, by name, in words that do not depend on when they were made."""
    shown = []
    for interface in await api.dump("sw_interface_dump"):
        index = interface.sw_if_index
        tables = [
            (await api.call("sw_interface_get_table", sw_if_index=index, is_ipv6=six)).vrf_id for six in (False, True)
        ]
        addresses = [
            str(row.prefix)
            for six in (False, True)
            for row in await api.dump("ip_address_dump", sw_if_index=index, is_ipv6=six)
        ]
        modes = [str(row.mode) for row in await api.dump("sw_interface_rx_placement_dump", sw_if_index=index)]
        name = interface.interface_name
        shown.append(f"{name} {interface.tag!r} {interface.flags} {interface.mtu[0]} {tables} {addresses} {modes}")
    return sorted(shown)


def makers(begun: Begun) -> tuple[Callable[[VppApi], Awaitable[object]], ...]:
    """What makes interfaces in VPP."""
    return begun.take, lambda api: hold_nat(api, PLAN, Reception())


async def in_one_go(begun: Begun) -> list[str]:
    api = await begun.connect(BOUND)
    for make in makers(begun):
        await make(api)
    shown = await state(api)
    await api.close()
    return shown


async def make_by_many(begun: Begun, make: Callable[[VppApi], Awaitable[object]]) -> int:
    """One daemon after the other is killed, each a request later than the one before; how many until one was not."""
    for left in range(BOUND):
        api = await begun.connect(left)
        try:
            await make(api)
        except Killed:
            continue
        else:
            return left
        finally:
            await api.close()
    raise AssertionError("nobody came to the end")


async def test_interfaces_that_were_begun_are_completed(tmp_path: Path) -> None:
    with running(tmp_path / "whole", "vppw") as begun:
        whole = await in_one_go(begun)
    with running(tmp_path / "begun", "vppb") as begun:
        killed = [await make_by_many(begun, make) for make in makers(begun)]
        api = await begun.connect(BOUND)
        assert await state(api) == whole
        await api.close()
    assert min(killed) > 10, killed


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
