"""Why a VPP may have ended while it started, where it does not tell by itself."""

from __future__ import annotations

from vpp_conf.startup.expectation import Expectation
from vpp_conf.startup.files import Files
from vpp_conf.startup.probe import ROOT
from vpp_conf.startup.probe_cpu import read_memory_nodes
from vpp_conf.startup.probe_memory import read_pools
from vpp_conf.startup.values import MEGABYTE, size

MACHINE = Files(ROOT)


def missing_hugepages(planned: Expectation, files: Files = MACHINE) -> str:
    """A sentence if the hugepages that were planned are not free by now, else nothing: without them VPP ends silently.

    To be asked when VPP has ended: its own are free again then.
    """
    pages = {planned.heap_page, planned.buffer_page}
    free = sum(
        pool.free * pool.page_bytes
        for pool in read_pools(files, read_memory_nodes(files))
        if size(pool.page_bytes) in pages
    )
    if free >= planned.hugepage_bytes:
        return ""
    return (
        f"; it was to have {planned.hugepage_bytes // MEGABYTE} MB of hugepages, and {free // MEGABYTE} MB are free: "
        "ipsec-gw vpp prepare, then start it again"
    )
