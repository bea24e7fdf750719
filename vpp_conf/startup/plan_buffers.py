"""Packet buffers: how large, how many, in which pages. Pure.

Sources: ``vlib/buffer.c`` (allocation), ``plugins/af_xdp/device.c`` (UMEM frames and headroom), the kernel's
``net/xdp/xdp_umem.c`` (a frame is no larger than a page).
"""

from __future__ import annotations

from dataclasses import dataclass

from vpp_conf.startup.machine import Machine, Nic
from vpp_conf.startup.values import Finding, Needs, Number, Severity, size

HEADER_BYTES = 256
"""``vlib_buffer_t``, in front of the data."""

KERNEL_HEADROOM_BYTES = 256
"""``XDP_PACKET_HEADROOM``: the kernel keeps it free in every frame."""

DPDK_HEADER_BYTES = 128
"""``struct rte_mbuf``, in front of the header where the dpdk plugin is loaded."""

CACHE_LINE = 64
LINK_HEADER_BYTES = 18
"""Ethernet with one VLAN tag."""

SMALL_BYTES = 2048
"""VPP's default. On pages of 4 KiB anything larger wastes most of the memory: a buffer may not cross a page."""

LARGE_BYTES = 3840
"""The most that AF_XDP takes on pages of 4 KiB: a frame is no larger than a page. Such buffers need hugepages there."""

RING_FRAMES = 512
"""AF_XDP rings of VPP's default size (``2 * VLIB_FRAME_SIZE``), receive and transmit."""

THREAD_BUFFERS = 2048
"""A thread's cache (512) and what its vectors hold under way, generously."""

USUAL_BUFFERS = 8192
FEWEST_BUFFERS = 2048
DEFAULT_MTU = 1500


@dataclass(frozen=True, slots=True)
class DataPlan:
    """``data_bytes`` holds the largest frame; findings name interfaces whose MTU is too large."""

    data_bytes: int
    number: Number
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Pages:
    """Pages for the buffers of one node: ``asked`` is the number for VPP, ``usable`` what it makes of them."""

    page_bytes: int
    asked: int
    usable: int
    count: int

    @property
    def total_bytes(self) -> int:
        """Memory of one node."""
        return self.count * self.page_bytes


def largest_mtu(data_bytes: int) -> int:
    """The largest MTU that AF_XDP delivers into buffers of this size; longer frames are dropped by the kernel."""
    return data_bytes - KERNEL_HEADROOM_BYTES - LINK_HEADER_BYTES


def plan_data(machine: Machine, needs: Needs, nics: tuple[Nic, ...], most: int = LARGE_BYTES) -> DataPlan:
    """The buffer's size from the MTU of the interfaces; ``most`` is the largest that can be had."""
    mtu = needs.mtu or max((nic.mtu for nic in nics), default=0) or DEFAULT_MTU
    sizes = tuple(data for data in (SMALL_BYTES, LARGE_BYTES) if data <= most)
    fitting = next((data for data in sizes if largest_mtu(data) >= mtu), None)
    data = fitting or sizes[-1]
    limit = f"up to MTU {largest_mtu(data)}"
    if fitting:
        reason = f"holds frames of MTU {mtu} and the kernel's {KERNEL_HEADROOM_BYTES} bytes; {limit}"
        return DataPlan(data, Number("buffers default data-size", str(data), reason), ())
    large = tuple((nic.name, nic.mtu) for nic in nics if nic.mtu > largest_mtu(data))
    if needs.mtu:
        large = (("", needs.mtu),)
    where = "AF_XDP takes" if data == LARGE_BYTES else f"pages of {size(machine.page_bytes)} can hold without waste"
    findings = tuple(_too_large(name, found, data, needs) for name, found in large)
    return DataPlan(data, Number("buffers default data-size", str(data), f"the most that {where}: {limit}"), findings)


def _too_large(name: str, mtu: int, data: int, needs: Needs) -> Finding:
    chosen = not name or name in needs.interfaces
    limit = largest_mtu(data)
    whose = "AF_XDP's limit" if data == LARGE_BYTES else "AF_XDP's limit without hugepages"
    text = f"MTU {mtu}{f' of {name}' if name else ''} is above {whose} of {limit}"
    way_out = f"ip link set dev {name} mtu {limit}" if name else f"{limit} or less"
    if data != LARGE_BYTES:
        way_out += f"; with hugepages (ipsec-gw vpp prepare) {largest_mtu(LARGE_BYTES)}"
    return Finding(Severity.ERROR if chosen else Severity.WARNING, "mtu", text, way_out)


def allocation(data_bytes: int, extension: int = 0) -> int:
    """What one buffer takes: whole cache lines, an odd number of them."""
    whole = -(-(extension + HEADER_BYTES + data_bytes) // CACHE_LINE)
    return (whole | 1) * CACHE_LINE


def needed_buffers(nics: tuple[Nic, ...], threads: int) -> int:
    """Full rings of every queue (the kernel's veth among them) and what the threads hold."""
    queues = 1 + sum(nic.rx_queues + min(nic.tx_queues, threads) for nic in nics)
    return max(USUAL_BUFFERS, queues * RING_FRAMES + threads * THREAD_BUFFERS)


def pages_for(usable: int, page_bytes: int, data_bytes: int, extension: int = 0) -> Pages | None:
    """Pages that yield so many buffers, None if one does not fit into a page.

    VPP reserves as if every page were packed, then drops each buffer that crosses a page.
    """
    each = allocation(data_bytes, extension)
    if each > page_bytes:
        return None
    packed = page_bytes // each
    count = -(-usable // packed)
    while _kept(count * page_bytes, page_bytes, each) < usable:
        count += max(1, count // 64)
    return Pages(page_bytes, count * packed, _kept(count * page_bytes, page_bytes, each), count)


def _kept(total_bytes: int, page_bytes: int, each: int) -> int:
    """Buffers that cross no page: their offsets run through all cache lines of a page alike (an odd step)."""
    lines = page_bytes // CACHE_LINE
    lines_of_doubt = 64  # the first ones are skipped for alignment, and the last run through a page is not whole
    slots = max(0, total_bytes // each - lines_of_doubt)
    return slots * (lines - each // CACHE_LINE) // lines
