"""What a running VPP holds of the machine, so that its successor is planned for the machine without it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

from vpp_conf.startup.files import Files
from vpp_conf.startup.machine import Machine
from vpp_conf.startup.probe_memory import read_meminfo

PAGE_KB = re.compile(r"kernelpagesize_kB=(\d+)")
NODE_PAGES = re.compile(r"\bN(\d+)=(\d+)")


def without_process(machine: Machine, files: Files, pid: int) -> Machine:
    """The machine as it will be when the process has ended; unchanged if it has ended already.

    Memory is its anonymous and shared pages (proc_pid_status(5)), hugepages are those that it has touched, by node and
    size (numa_maps, proc_pid_numa_maps(5)). Those of QAT's virtual functions are among them.
    """
    status = read_meminfo(files.text(f"proc/{pid}/status") or "")
    held = 1024 * (status.get("RssAnon", 0) + status.get("RssShmem", 0))
    pages = _hugepages(files.text(f"proc/{pid}/numa_maps") or "", machine.page_bytes)
    pools = tuple(
        replace(pool, free=min(pool.total, pool.free + pages[pool.node, pool.page_bytes])) for pool in machine.pools
    )
    return replace(machine, memory_available=machine.memory_available + held, pools=pools)


def _hugepages(numa_maps: str, page_bytes: int) -> Counter[tuple[int, int]]:
    """Pages by (node, bytes of a page). Ordinary pages are left out."""
    pages: Counter[tuple[int, int]] = Counter()
    for line in numa_maps.splitlines():
        size = PAGE_KB.search(line)
        if size is None or int(size[1]) * 1024 == page_bytes:
            continue
        for node, count in NODE_PAGES.findall(line):
            pages[int(node), int(size[1]) * 1024] += int(count)
    return pages
