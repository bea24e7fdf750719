"""Memory: how much, and how much of it in hugepages."""

from __future__ import annotations

from collections.abc import Mapping

from vpp_conf.startup.files import Files
from vpp_conf.startup.machine import HugePool

NODES = "sys/devices/system/node"
POOLS = "sys/kernel/mm/hugepages"


def read_meminfo(text: str) -> Mapping[str, int]:
    """``/proc/meminfo`` by name: kB or counts, as the kernel prints them."""
    fields = (line.split() for line in text.splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in fields if len(words) >= 2 and words[1].isdecimal()}


def read_pools(files: Files, nodes: tuple[int, ...]) -> tuple[HugePool, ...]:
    """Hugepages of every size per node; a kernel without nodes has one node 0."""
    folders = [(node, f"{NODES}/node{node}/hugepages") for node in nodes]
    folders = [place for place in folders if files.names(place[1])] or [(0, POOLS)]
    return tuple(
        HugePool(
            node=node,
            page_bytes=int(name.removeprefix("hugepages-").removesuffix("kB")) * 1024,
            total=files.number(f"{folder}/{name}/nr_hugepages") or 0,
            free=files.number(f"{folder}/{name}/free_hugepages") or 0,
            path=f"{folder}/{name}",
        )
        for node, folder in folders
        for name in files.names(folder, "hugepages-")
    )
