"""Kernel settings that VPP wants otherwise than they are, with the command for each. Pure."""

from __future__ import annotations

from vpp_conf.startup.machine import HugePool, Machine
from vpp_conf.startup.values import Setting, size

SYSCTLS = "proc/sys"
MAPPINGS_PER_HUGEPAGE = 2
"""VPP's own ``80-vpp.conf``: ``vm.max_map_count`` is at least twice the number of hugepages."""

USUAL_MAP_COUNT = 65530
"""The kernel's default (``DEFAULT_MAX_MAP_COUNT``): everything else of a process needs mappings as well."""


def plan_settings(machine: Machine, nodes: tuple[int, ...], missing_pages: int) -> tuple[Setting, ...]:
    """What to change. ``missing_pages`` is the number of hugepages of the default size that each of the nodes lacks."""
    pages = [pool for pool in machine.pools if pool.page_bytes == machine.hugepage_bytes and pool.node in nodes]
    huge = tuple(_hugepages(pool, missing_pages) for pool in pages) if missing_pages else ()
    total = sum(pool.total for pool in machine.pools) + missing_pages * len(huge)
    return (*huge, *_sysctls(machine, total))


def _hugepages(pool: HugePool, missing: int) -> Setting:
    path = f"{pool.path}/nr_hugepages"
    wanted = pool.total + missing
    reason = (
        f"hugepages of {size(pool.page_bytes)} on node {pool.node}: {pool.free} are free, {missing} more are needed"
    )
    return Setting(path, pool.total, wanted, f"echo {wanted} > /{path}", reason)


def _sysctls(machine: Machine, hugepages: int) -> tuple[Setting, ...]:
    now = machine.sysctls
    mappings = max(USUAL_MAP_COUNT, MAPPINGS_PER_HUGEPAGE * hugepages)
    settings: list[Setting] = []
    if now.max_map_count is not None and now.max_map_count < mappings:
        settings.append(_sysctl("vm.max_map_count", now.max_map_count, mappings, "a mapping for every hugepage, twice"))
    if now.bpf_jit_enable == 0:
        settings.append(_sysctl("net.core.bpf_jit_enable", 0, 1, "XDP programs would be interpreted, packet by packet"))
    if now.numa_balancing and len(machine.nodes) > 1:
        reason = "the kernel unmaps pages to see who uses them, and VPP's threads fault on each"
        settings.append(_sysctl("kernel.numa_balancing", now.numa_balancing, 0, reason))
    return tuple(settings)


def _sysctl(name: str, now: int, wanted: int, reason: str) -> Setting:
    return Setting(f"{SYSCTLS}/{name.replace('.', '/')}", now, wanted, f"sysctl -w {name}={wanted}", reason)
