"""How much memory VPP gets, from where, and whether it is there. Pure.

Measured with VPP 26.06, one thread: 34 MB of heap at the start; 4.6 kB of heap and 204 bytes of statistics for an SA;
4.6 kB and 4.1 kB for a tunnel (interface, protection, route).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vpp_conf.startup.machine import Machine
from vpp_conf.startup.plan_buffers import FEWEST_BUFFERS, Pages, pages_for
from vpp_conf.startup.values import (
    GIGABYTE,
    KILOBYTE,
    MEGABYTE,
    Finding,
    Needs,
    Number,
    Severity,
    count,
    power_of_two,
    size,
)

HEAP_USUAL = 512 * MEGABYTE
HEAP_BASE = 96 * MEGABYTE
HEAP_THREAD = 8 * MEGABYTE
HEAP_SA = 5 * KILOBYTE
HEAP_TUNNEL = 5 * KILOBYTE
STATS_USUAL = 32 * MEGABYTE
STATS_BASE = 4 * MEGABYTE
STATS_SA_THREAD = 208
STATS_TUNNEL = 3840
STATS_TUNNEL_THREAD = 320
GROWTH = 2
"""Vectors grow by copies: for a moment both are there."""

SESSION_BYTES = 512
"""An entry of the firewall's session map and its share of the others."""

RESERVE_BYTES = 192 * MEGABYTE
"""For charon, the daemon and the kernel beside VPP."""

THREAD_BYTES = 4 * MEGABYTE
"""Stack and queues of a thread."""

DPDK_HUGE_BYTES = 256 * MEGABYTE
"""What DPDK takes from each node's hugepages for itself: sessions, descriptors and rings of QAT."""

HUGE_SHARE = 2
"""Of the free memory, at most one in so many bytes is proposed for hugepages."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """``missing_pages`` of the default size per node would put buffers and heap into hugepages, 0 if they are there.

    ``base_bytes`` is what comes from ordinary memory, ``huge_bytes`` what comes from hugepages.
    """

    buffers: Pages
    heap_bytes: int
    heap_page: int
    statseg_bytes: int
    base_bytes: int
    huge_bytes: int
    missing_pages: int
    numbers: tuple[Number, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Demand:
    """What has to be held: ``buffers`` are usable ones per node, ``extension`` is in front of each buffer's header."""

    buffers: int
    data_bytes: int
    extension: int
    threads: int
    hugepages_only: bool


def plan_memory(machine: Machine, needs: Needs, demand: Demand) -> MemoryPlan:
    """Sizes and pages of buffers, heap and statistics. An error among the findings: it does not fit."""
    budget = _budget(machine, needs, demand.threads)
    heap_least = HEAP_BASE + demand.threads * HEAP_THREAD + GROWTH * _objects(needs, HEAP_SA, HEAP_TUNNEL)
    heap_least = -(-heap_least // MEGABYTE) * MEGABYTE
    statseg = max(STATS_USUAL, power_of_two(_statistics(needs, demand.threads)))
    buffers = _huge_buffers(machine, demand) or _ordinary_buffers(machine, demand, budget - heap_least - statseg)
    if buffers is None:
        return _refused(machine, needs, demand, heap_least + statseg)
    ordinary = 0 if buffers.page_bytes != machine.page_bytes else buffers.total_bytes * len(machine.nodes)
    sizes = (power_of_two(max(HEAP_USUAL, heap_least)), heap_least)
    for heap in sizes:
        page = _heap_page(machine, demand, buffers, heap)
        if (0 if page else heap) + statseg + ordinary <= budget:
            return _settle(machine, needs, demand, buffers, heap, page or machine.page_bytes, statseg)
    return _refused(machine, needs, demand, heap_least + statseg)


def _settle(
    machine: Machine, needs: Needs, demand: Demand, buffers: Pages, heap: int, heap_page: int, statseg: int
) -> MemoryPlan:
    in_huge = buffers.page_bytes != machine.page_bytes
    all_buffers = buffers.total_bytes * len(machine.nodes)
    heap_huge = heap_page != machine.page_bytes
    missing = 0 if in_huge and heap_huge else _missing(machine, needs, demand, buffers if in_huge else None, heap)
    return MemoryPlan(
        buffers=buffers,
        heap_bytes=heap,
        heap_page=heap_page,
        statseg_bytes=statseg,
        base_bytes=statseg + (0 if in_huge else all_buffers) + (0 if heap_huge else heap),
        huge_bytes=(all_buffers if in_huge else 0) + (-(-heap // heap_page) * heap_page if heap_huge else 0),
        missing_pages=missing,
        numbers=_numbers(needs, demand, buffers, heap, heap_page, statseg),
        findings=_page_findings(machine, in_huge, heap_huge, missing),
    )


def _budget(machine: Machine, needs: Needs, threads: int) -> int:
    """What may be taken from ordinary memory: what is available and allowed, without what others need."""
    available = min(machine.memory_available, machine.limits.memory_bytes or machine.memory_available)
    return available - RESERVE_BYTES - needs.sessions * SESSION_BYTES - threads * THREAD_BYTES


def _objects(needs: Needs, sa: int, tunnel: int) -> int:
    return needs.sas * sa + needs.tunnels * tunnel


def _statistics(needs: Needs, threads: int) -> int:
    per_sa, per_tunnel = STATS_SA_THREAD * threads, STATS_TUNNEL + STATS_TUNNEL_THREAD * threads
    return STATS_BASE + GROWTH * _objects(needs, per_sa, per_tunnel)


def _free_pages(machine: Machine, page_bytes: int) -> int:
    """Hugepages of a size that every node has free, within the control group's limit."""
    free = {pool.node: pool.free for pool in machine.pools if pool.page_bytes == page_bytes}
    least = min((free.get(node, 0) for node in machine.nodes), default=0)
    limit = machine.limits.hugepage_bytes(page_bytes)
    return least if limit is None else min(least, limit // page_bytes // len(machine.nodes))


def _huge_buffers(machine: Machine, demand: Demand) -> Pages | None:
    for page_bytes in sorted({pool.page_bytes for pool in machine.pools}):
        pages = pages_for(demand.buffers, page_bytes, demand.data_bytes, demand.extension)
        if pages is not None and pages.count + _dpdk_pages(demand, page_bytes) <= _free_pages(machine, page_bytes):
            return pages
    return None


def _dpdk_pages(demand: Demand, page_bytes: int) -> int:
    return -(-DPDK_HUGE_BYTES // page_bytes) if demand.hugepages_only else 0


def _ordinary_buffers(machine: Machine, demand: Demand, budget: int) -> Pages | None:
    """As many as are wanted, or by halves as many as fit."""
    wanted = demand.buffers
    while not demand.hugepages_only and wanted >= FEWEST_BUFFERS:
        pages = pages_for(wanted, machine.page_bytes, demand.data_bytes, demand.extension)
        if pages is not None and pages.total_bytes * len(machine.nodes) <= budget:
            return pages
        wanted //= 2
    return None


def _heap_page(machine: Machine, demand: Demand, buffers: Pages, heap: int) -> int:
    """Size of hugepages that hold the whole heap on one node beside the buffers, 0 if there are none."""
    for page_bytes in sorted({pool.page_bytes for pool in machine.pools}):
        taken = buffers.count + _dpdk_pages(demand, page_bytes) if page_bytes == buffers.page_bytes else 0
        if _free_pages(machine, page_bytes) - taken >= -(-heap // page_bytes):
            return page_bytes
    return 0


def _missing(machine: Machine, needs: Needs, demand: Demand, buffers: Pages | None, heap: int) -> int:
    """Pages of the default size to add on each node, 0 if so many would leave too little or are not allowed.

    ``buffers`` are those that are in hugepages already.
    """
    page_bytes = machine.hugepage_bytes
    wanted = -(-heap // page_bytes) if page_bytes else 0
    if buffers is None:
        pages = pages_for(demand.buffers, page_bytes, demand.data_bytes, demand.extension) if page_bytes else None
        if pages is None:
            return 0
        wanted += pages.count + _dpdk_pages(demand, page_bytes)
    elif buffers.page_bytes == page_bytes:
        wanted += buffers.count + _dpdk_pages(demand, page_bytes)
    missing = max(0, wanted - _free_pages(machine, page_bytes))
    taken = missing * page_bytes * len(machine.nodes)
    if taken > machine.memory_available // HUGE_SHARE or not _allowed(machine, page_bytes, wanted):
        return 0
    after = replace(machine, memory_available=machine.memory_available - taken)
    statseg = max(STATS_USUAL, power_of_two(_statistics(needs, demand.threads)))
    return missing if _budget(after, needs, demand.threads) >= statseg else 0


def _allowed(machine: Machine, page_bytes: int, pages: int) -> bool:
    """The control groups allow so many hugepages on each node."""
    limit = machine.limits.hugepage_bytes(page_bytes)
    return limit is None or pages * page_bytes * len(machine.nodes) <= limit


def _page_findings(machine: Machine, in_huge: bool, heap_huge: bool, missing: int) -> tuple[Finding, ...]:
    if in_huge and heap_huge:
        return ()
    what = "the heap is" if in_huge else "buffers and heap are"
    free = _free_pages(machine, machine.hugepage_bytes) if machine.hugepage_bytes else 0
    have = f"{free} hugepages of {size(machine.hugepage_bytes)} are free on every node"
    text = f"{what} in pages of {size(machine.page_bytes)}, which costs TLB misses: {have}"
    if not missing:
        limited = machine.limits.hugepage_bytes(machine.hugepage_bytes) is not None
        way_out = "raise the control group's hugetlb limit" if limited else "more memory would be needed for hugepages"
        return (Finding(Severity.NOTE, "hugepages", text, way_out),)
    return (Finding(Severity.WARNING, "hugepages", text, "ipsec-gw vpp prepare, then start VPP again"),)


def _refused(machine: Machine, needs: Needs, demand: Demand, others: int) -> MemoryPlan:
    budget = _budget(machine, needs, demand.threads)
    if demand.hugepages_only:
        text, way_out = "QAT needs buffers in hugepages, and too few are free", "ipsec-gw vpp prepare"
    else:
        need = others + FEWEST_BUFFERS * machine.page_bytes * len(machine.nodes)
        text = f"VPP needs {need // MEGABYTE} MB and {max(0, budget) // MEGABYTE} MB can be had beside the rest"
        way_out = "free memory, raise the control group's limit, or plan for fewer SAs, tunnels and sessions"
        if machine.limits.memory_bytes is None:
            way_out = "free memory, or plan for fewer SAs, tunnels and sessions"
    nothing = Pages(machine.page_bytes, 0, 0, 0)
    missing = _missing(machine, needs, demand, None, HEAP_USUAL)
    return MemoryPlan(nothing, 0, 0, 0, 0, 0, missing, (), (Finding(Severity.ERROR, "memory", text, way_out),))


def _numbers(
    needs: Needs, demand: Demand, buffers: Pages, heap: int, heap_page: int, statseg: int
) -> tuple[Number, ...]:
    fewer = "" if buffers.usable >= demand.buffers else f", less than the {demand.buffers} wanted: memory is short"
    yielded = f"{buffers.usable} usable ones per NUMA node: full rings of all queues, and what threads hold{fewer}"
    objects = (count(needs.sas, "SA"), count(needs.tunnels, "tunnel"), count(demand.threads, "thread"))
    per_sa = f"{objects[0]}, {objects[1]} and {objects[2]}"
    used = "address space, used as it fills" if heap_page < MEGABYTE else "taken at once"
    pages = f"{count(buffers.count, 'page')}, {buffers.total_bytes / MEGABYTE:.0f} MB per NUMA node"
    return (
        Number("memory main-heap-size", size(heap), f"{used}; for {per_sa}"),
        Number("memory main-heap-page-size", size(heap_page), _page_reason(heap_page)),
        Number("statseg size", size(statseg), f"twice what {per_sa} need: vectors grow by copies; a full one ends VPP"),
        Number("buffers buffers-per-numa", str(buffers.asked), yielded),
        Number("buffers page-size", size(buffers.page_bytes), f"{pages}: {_page_reason(buffers.page_bytes)}"),
    )


def _page_reason(page_bytes: int) -> str:
    if page_bytes < MEGABYTE:
        return "ordinary pages"
    return "hugepages save TLB misses" if page_bytes < GIGABYTE else "the hugepages that are there"
