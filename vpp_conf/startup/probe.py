"""Look at the machine: the input of :func:`vpp_conf.startup.plan.plan_startup`."""

from __future__ import annotations

import os
from pathlib import Path

from vpp_conf.locate import VppInstallation
from vpp_conf.startup.plan import Probe

MEMINFO = Path("/proc/meminfo")


def probe_machine(installation: VppInstallation) -> Probe:
    """CPUs that this process may use, hugepages of the default size, and what the installed VPP offers."""
    memory = _meminfo(MEMINFO.read_text())
    return Probe(
        cpus=len(os.sched_getaffinity(0)),
        hugepage_bytes=memory.get("Hugepagesize", 0) * 1024,
        hugepages_total=memory.get("HugePages_Total", 0),
        hugepages_free=memory.get("HugePages_Free", 0),
        release=installation.release,
        plugins=installation.plugins(),
        crypto_engines=installation.crypto_engines(),
    )


def _meminfo(text: str) -> dict[str, int]:
    """``/proc/meminfo`` by name: kB or counts, as the kernel prints them."""
    fields = (line.split() for line in text.splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in fields if len(words) >= 2}
