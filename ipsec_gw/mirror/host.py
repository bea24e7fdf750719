"""Reads this machine's rules: nftables, traffic control, policy routing, VRFs. Changes nothing."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ipsec_gw.mirror.kernel import CHARON_TABLE, KernelView
from ipsec_gw.mirror.nft import filter_rules
from ipsec_gw.unseen import OUR_RULES, FilterRule, Host, Queue, RoutingRule

_KERNELS_QUEUES = {"noqueue", "pfifo_fast", "mq", "fq_codel", "fq", "clsact", "ingress"}
"""What interfaces have without anybody's doing (``net.core.default_qdisc``); clsact and ingress queue nothing."""

_KERNELS_RULES = {0, 1000, 32766, 32767}
"""Local, the one of VRFs (they are told themselves), main and default (``net/core/fib_rules.c``)."""

_NFT_SECONDS = 20.0
_AF_INET, _AF_INET6 = 2, 10


async def read_host(route: AsyncIPRoute, wan: Iterable[str]) -> Host:
    """All rules that matter to ``wan``, or, without names, to the interfaces of the default routes."""
    names = frozenset(wan) or frozenset(await KernelView(route).default_interfaces())
    filters, unread = await _filters()
    return Host(
        wan=names,
        filters=filters,
        queues=tuple([queue async for queue in _queues(route, names)]),
        routing=tuple([rule for family in (_AF_INET, _AF_INET6) for rule in await _routing(route, family)]),
        vrfs=await _vrfs(route),
        unread=unread,
    )


async def _filters() -> tuple[tuple[FilterRule, ...], tuple[str, ...]]:
    """The rules of nftables, those of iptables-nft included, and what could not be read."""
    tool = shutil.which("nft")
    if tool is None:
        return (), ("nftables: the tool nft is not installed",)
    process = await asyncio.create_subprocess_exec(
        tool, "-j", "list", "ruleset", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(_NFT_SECONDS):
            output, errors = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return (), (f"nftables: nft did not answer within {_NFT_SECONDS:g} s",)
    try:
        if process.returncode:
            raise ValueError(errors.decode(errors="replace").strip().partition("\n")[0])
        return filter_rules(output.decode(errors="replace")), _legacy()
    except ValueError as error:
        return (), (f"nftables: nft says: {error}",)


def _legacy() -> tuple[str, ...]:
    """The old iptables keep their tables elsewhere, and name those in use."""
    files = (Path("/proc/net/ip_tables_names"), Path("/proc/net/ip6_tables_names"))
    try:
        used = [name for file in files if file.exists() for name in file.read_text().split()]
    except OSError:
        return ()
    return ("iptables-legacy: its rules are not looked at",) if used else ()


async def _queues(route: AsyncIPRoute, names: frozenset[str]) -> Any:
    by_index = (await KernelView(route).links()).names
    async for message in await route.get_qdiscs():
        name, kind = by_index.get(int(message.get("index"))), str(message.get("kind"))
        if name in names and kind not in _KERNELS_QUEUES:
            yield Queue(name, kind)


async def _routing(route: AsyncIPRoute, family: int) -> list[RoutingRule]:
    found: dict[int, RoutingRule] = {}
    try:
        async for rule in await route.get_rules(family=family):
            priority = int(rule.get("priority") or 0)
            if priority not in OUR_RULES and priority not in _KERNELS_RULES and rule.get("table") != CHARON_TABLE:
                found[priority] = RoutingRule(priority, 4 if family == _AF_INET else 6)
    except NetlinkError:  # a kernel without IPv6, or without policy routing
        return []
    return list(found.values())


async def _vrfs(route: AsyncIPRoute) -> dict[str, str]:
    names: dict[int, str] = {}
    masters: dict[str, int] = {}
    vrfs: set[int] = set()
    async for link in await route.get_links():
        index, name = int(link.get("index")), str(link.get("ifname"))
        names[index] = name
        if link.get("master"):
            masters[name] = int(link.get("master"))
        if link.get(("linkinfo", "kind")) == "vrf":
            vrfs.add(index)
    return {name: names[master] for name, master in masters.items() if master in vrfs}
