"""Look at the machine: the input of :func:`vpp_conf.startup.plan.plan_startup`.

Everything is read below a root directory (``/``; tests give a recorded tree). Only the installed VPP is asked
elsewhere, by :mod:`vpp_conf.locate`.
"""

from __future__ import annotations

import re
from pathlib import Path

from vpp_conf.locate import VppInstallation
from vpp_conf.startup.files import Files
from vpp_conf.startup.machine import Kernel, Machine, Sysctls, VppOffer
from vpp_conf.startup.probe_cpu import read_allowed, read_cpus, read_flags, read_memory_nodes, read_model
from vpp_conf.startup.probe_devices import read_crypto, read_nics
from vpp_conf.startup.probe_limits import read_limits
from vpp_conf.startup.probe_memory import read_meminfo, read_pools

ROOT = Path("/")
DEFAULT_PAGE_BYTES = 4096
VERSION = re.compile(r"(\d+)\.(\d+)")


def probe_machine(installation: VppInstallation, root: Path = ROOT) -> Machine:
    """The machine as it is now. Never raises for what is missing: the plan says what it cannot do without."""
    offer = VppOffer(
        installation.release, installation.plugins(), installation.crypto_engines(), installation.short_version
    )
    return read_machine(Files(root), offer)


def read_machine(files: Files, offer: VppOffer) -> Machine:
    """The machine below a root directory, with this VPP."""
    meminfo = read_meminfo(files.text("proc/meminfo") or "")
    cpus = read_cpus(files)
    nodes = read_memory_nodes(files)
    isolated = files.cpu_list("sys/devices/system/cpu/isolated")
    available = meminfo.get("MemAvailable", meminfo.get("MemFree", 0)) * 1024
    return Machine(
        model=read_model(files),
        flags=read_flags(files),
        cpus=cpus,
        allowed=read_allowed(files, frozenset(cpu.number for cpu in cpus), isolated),
        isolated=isolated,
        tickless=files.cpu_list("sys/devices/system/cpu/nohz_full"),
        nodes=nodes,
        pools=read_pools(files, nodes),
        memory_total=meminfo.get("MemTotal", 0) * 1024,
        memory_available=available,
        page_bytes=_page_bytes(files),
        hugepage_bytes=meminfo.get("Hugepagesize", 0) * 1024,
        nics=read_nics(files),
        crypto=read_crypto(files),
        iommu=bool(files.names("sys/class/iommu")) or bool(files.names("sys/kernel/iommu_groups")),
        kernel=_kernel(files),
        vpp=offer,
        limits=read_limits(files),
        sysctls=Sysctls(
            max_map_count=files.number("proc/sys/vm/max_map_count"),
            bpf_jit_enable=files.number("proc/sys/net/core/bpf_jit_enable"),
            numa_balancing=files.number("proc/sys/kernel/numa_balancing"),
        ),
        container=_container(files),
        groups=frozenset(line.partition(":")[0] for line in (files.text("etc/group") or "").splitlines()),
    )


def _kernel(files: Files) -> Kernel:
    release = files.text("proc/sys/kernel/osrelease") or ""
    found = VERSION.match(release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    return Kernel(release, version, tuple((files.text("proc/cmdline") or "").split()))


def _page_bytes(files: Files) -> int:
    """The base page: 4 KiB, or 16 and 64 KiB on some ARM kernels; the first mapping of any process tells."""
    for line in (files.text("proc/self/smaps") or "").splitlines():
        if line.startswith("KernelPageSize:"):
            return int(line.split()[1]) * 1024
    return DEFAULT_PAGE_BYTES


def _container(files: Files) -> str | None:
    """By a file of systemd's, Docker's or Podman's; a disk made from an image has the latter two as well."""
    named = files.text("run/systemd/container")
    if named:
        return named
    marks = (("docker", ".dockerenv"), ("podman", "run/.containerenv"))
    on_overlay = any(
        line.split()[1:3] == ["/", "overlay"] for line in (files.text("proc/self/mounts") or "").splitlines()
    )
    return next((kind for kind, mark in marks if on_overlay and files.exists(mark)), None)
