"""What VPP is started with, and why. Pure: a machine and needs in, a plan out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vpp_conf.startup.defects import known_defects
from vpp_conf.startup.machine import Machine, Nic
from vpp_conf.startup.plan_buffers import DPDK_HEADER_BYTES, SMALL_BYTES, DataPlan, needed_buffers, plan_data
from vpp_conf.startup.plan_cpu import CpuPlan, plan_cpus, used_nodes
from vpp_conf.startup.plan_crypto import CryptoPlan, plan_crypto
from vpp_conf.startup.plan_memory import Demand, MemoryPlan, plan_memory
from vpp_conf.startup.plan_nics import plan_interfaces, plan_nics, plan_rx
from vpp_conf.startup.plan_settings import plan_settings
from vpp_conf.startup.plan_sockets import plan_sockets
from vpp_conf.startup.syntax import TESTED, show
from vpp_conf.startup.values import (
    Finding,
    Needs,
    Number,
    PlanRefused,
    Severity,
    StartupPlan,
    power_of_two,
    size,
)
from vpp_conf.tuning.values import Tuning

NEEDED_PLUGINS = ("af_xdp_plugin.so",)
"""Without these the gateway cannot work with VPP at all."""

OPTIONAL_PLUGINS = ("nat_plugin.so", "gre_plugin.so", "vxlan_plugin.so")
"""For pools of NAT, which take no memory until there are some, and for GRE and VXLAN devices."""

UNKNOWN_RELEASE = (0, 0)
MOST_TUNNELS = 16384
"""IPsec interfaces that VPP can have (``vnet/ipsec/ipsec_itf.c``)."""

FEWEST_POLICY_BUCKETS = 1024
POLL_SLEEP_USEC = 100
"""Where one thread has to poll a device and shares its core: a tenth of a millisecond more latency, an idle core."""


def plan_startup(machine: Machine, needs: Needs | None = None, tuning: Tuning | None = None) -> StartupPlan:
    """Plan a VPP for this machine. ``tuning`` is what `ipsec-gw vpp tune` measured, if it did.

    Raises PlanRefused with everything that was found, each with its way out, if there is an error among it.
    """
    needs = needs or Needs()
    known = _with_known_release(machine)
    nics, nic_numbers, nic_findings = plan_nics(known, needs)
    cpus = plan_cpus(known, needs, nics)
    crypto = plan_crypto(known, needs, cpus.threads, tuning)
    local = replace(known, nodes=used_nodes(known, cpus, nics))
    room = _room(local, needs, nics, cpus, crypto)
    missing_pages = room.missing_pages
    if crypto.qat and _refuses(room.memory.findings):
        without = plan_crypto(known, replace(needs, qat=False), cpus.threads, tuning)
        crypto = replace(without, findings=(*without.findings, _no_room_for_qat(missing_pages)))
        room = _room(local, needs, nics, cpus, crypto)
        missing_pages = max(missing_pages, room.missing_pages)
    memory = room.memory
    findings = (
        *_vpp_findings(machine),
        *_scale_findings(needs),
        *nic_findings,
        *cpus.findings,
        *crypto.findings,
        *room.findings,
        *_container_findings(machine),
        *known_defects(known.vpp.release),
    )
    if _refuses(findings):
        raise PlanRefused(findings)
    optional = (plugin for plugin in OPTIONAL_PLUGINS if plugin in known.vpp.plugins)
    plugins = (*NEEDED_PLUGINS, *optional, *crypto.plugins)
    poll_sleep = POLL_SLEEP_USEC if crypto.qat and not cpus.workers else 0
    rx_mode, rx_number = plan_rx(known, cpus.workers)
    interfaces, placement_numbers = plan_interfaces(known, nics, cpus.workers)
    sockets, socket_numbers, socket_findings = plan_sockets(known, needs)
    findings += socket_findings
    if _refuses(socket_findings):
        raise PlanRefused(findings)
    buckets = power_of_two(max(FEWEST_POLICY_BUCKETS, needs.policies)) if needs.policies else 0
    return StartupPlan(
        release=known.vpp.release,
        main_core=cpus.main_core,
        workers=cpus.workers,
        idle_nodes=tuple(node for node in machine.nodes if node not in local.nodes),
        buffers=memory.buffers.asked,
        buffers_usable=memory.buffers.usable * len(local.nodes),
        buffer_page=size(memory.buffers.page_bytes),
        data_bytes=room.data.data_bytes,
        heap_bytes=memory.heap_bytes,
        heap_page=size(memory.heap_page),
        statseg_bytes=memory.statseg_bytes,
        poll_sleep_usec=poll_sleep,
        rx_mode=rx_mode,
        interfaces=interfaces,
        sockets=sockets,
        stats_group=needs.stats_group,
        plugins=plugins,
        engines=crypto.engines,
        section=crypto.section,
        handlers=crypto.handlers,
        policy_buckets=buckets,
        qat=crypto.qat,
        ordinary_bytes=memory.base_bytes,
        hugepage_bytes=memory.huge_bytes,
        numbers=(
            _poll_sleep_number(poll_sleep),
            *cpus.numbers,
            *memory.numbers,
            *_idle_numbers(machine, local),
            room.data.number,
            Number("plugins", " ".join(plugins), "everything off but what is used: less memory, no stray listeners"),
            *crypto.numbers,
            _policies_number(needs, buckets),
            *nic_numbers,
            rx_number,
            *placement_numbers,
            *socket_numbers,
        ),
        findings=findings,
        settings=plan_settings(machine, local.nodes, missing_pages),
    )


@dataclass(frozen=True, slots=True)
class _Room:
    """Buffers' size and memory. ``missing_pages`` is what the better plan would need that this one is not."""

    data: DataPlan
    memory: MemoryPlan
    missing_pages: int

    @property
    def findings(self) -> tuple[Finding, ...]:
        return (*self.data.findings, *self.memory.findings)


def _room(machine: Machine, needs: Needs, nics: tuple[Nic, ...], cpus: CpuPlan, crypto: CryptoPlan) -> _Room:
    """Large buffers where the MTU wants them and there are pages that hold them well, else small ones."""
    data = plan_data(machine, needs, nics)
    memory = plan_memory(machine, needs, _demand(data, nics, cpus, crypto))
    if data.data_bytes == SMALL_BYTES or not _refuses(memory.findings):
        return _Room(data, memory, memory.missing_pages)
    small = plan_data(machine, needs, nics, most=SMALL_BYTES)
    narrow = plan_memory(machine, needs, _demand(small, nics, cpus, crypto))
    return _Room(small, narrow, max(memory.missing_pages, narrow.missing_pages))


def _demand(data: DataPlan, nics: tuple[Nic, ...], cpus: CpuPlan, crypto: CryptoPlan) -> Demand:
    return Demand(
        buffers=needed_buffers(nics, cpus.threads),
        data_bytes=data.data_bytes,
        extension=DPDK_HEADER_BYTES if crypto.qat else 0,
        threads=cpus.threads,
        hugepages_only=crypto.qat is not None,
    )


def _idle_numbers(machine: Machine, local: Machine) -> tuple[Number, ...]:
    reason = "none: no thread and no interface is on this node"
    return tuple(Number(f"buffers numa {node}", "0", reason) for node in machine.nodes if node not in local.nodes)


def _with_known_release(machine: Machine) -> Machine:
    """A VPP whose version cannot be read is taken for the newest that is known."""
    if machine.vpp.release != UNKNOWN_RELEASE:
        return machine
    return replace(machine, vpp=replace(machine.vpp, release=TESTED[-1]))


def _refuses(findings: tuple[Finding, ...]) -> bool:
    return any(finding.severity is Severity.ERROR for finding in findings)


def _no_room_for_qat(missing_pages: int) -> Finding:
    text = "QAT is there but left out: it needs all buffers in hugepages, and too few are free"
    way_out = "ipsec-gw vpp prepare, then start VPP again" if missing_pages else "more memory would be needed for them"
    return Finding(Severity.WARNING, "qat", text, way_out)


def _vpp_findings(machine: Machine) -> tuple[Finding, ...]:
    findings: list[Finding] = []
    missing = [plugin for plugin in NEEDED_PLUGINS if plugin not in machine.vpp.plugins]
    if missing:
        way_out = "install vpp-plugin-core of the official fd.io packages"
        findings.append(Finding(Severity.ERROR, "plugins", f"VPP lacks {', '.join(missing)}", way_out))
    release = machine.vpp.release
    if release == UNKNOWN_RELEASE:
        text = f"VPP's version cannot be read; {show(TESTED[-1])} is assumed"
        findings.append(Finding(Severity.WARNING, "vpp", text, "install the official fd.io packages"))
    elif release < TESTED[0]:
        text = f"VPP {show(release)} is older than any that is known here"
        findings.append(Finding(Severity.WARNING, "vpp", text, f"install {show(TESTED[0])} or later"))
    elif release > TESTED[-1]:
        text = f"VPP {show(release)} is newer than any that is known here; written as for {show(TESTED[-1])}"
        findings.append(Finding(Severity.NOTE, "vpp", text))
    if not machine.kernel.af_xdp:
        text = f"Linux {machine.kernel.release or 'of unknown version'} has no AF_XDP as VPP uses it"
        findings.append(Finding(Severity.ERROR, "kernel", text, "boot Linux 5.4 or later; the gateway needs 6.1"))
    return tuple(findings)


def _scale_findings(needs: Needs) -> tuple[Finding, ...]:
    if needs.tunnels <= MOST_TUNNELS:
        return ()
    text = f"VPP has {MOST_TUNNELS} IPsec interfaces, {needs.tunnels} tunnels are asked for"
    return (Finding(Severity.WARNING, "tunnels", text, "the others stay in the kernel; spread them over two gateways"),)


def _container_findings(machine: Machine) -> tuple[Finding, ...]:
    if machine.container is None:
        return ()
    text = f"this is a container ({machine.container}): hugepages and kernel settings belong to its host"
    return (Finding(Severity.NOTE, "container", text, "run what `ipsec-gw vpp plan` lists as settings there"),)


def _poll_sleep_number(poll_sleep: int) -> Number:
    if poll_sleep:
        reason = "the only thread polls QAT on a core that others need: it sleeps in between"
        return Number("unix poll-sleep-usec", str(poll_sleep), reason)
    reason = "left out: no shared core polls, a thread without work sleeps in epoll"
    return Number("unix poll-sleep-usec", "-", reason)


def _policies_number(needs: Needs, buckets: int) -> Number:
    if not buckets:
        return Number("ipsec spd-fast-path", "-", "left out: tunnels are interfaces with routes, not policies")
    reason = f"fast path for {needs.policies} policies; no flow caches: each change walks all of a cache"
    return Number("ipsec spd-fast-path-num-buckets", str(buckets), reason)
