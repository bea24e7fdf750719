"""Which CPUs VPP's main thread and workers get. Pure.

One CPU per physical core, on the NUMA nodes of the interfaces; never CPU 0, where the kernel has its timers and most
interrupts, unless nothing else is there. Cores that were isolated are meant for the data path and all become workers;
otherwise the kernel, which still carries IKE and all other traffic, keeps half of the cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, zip_longest

from vpp_conf.startup.cpu_lists import show_cpus
from vpp_conf.startup.machine import Cpu, Machine, Nic
from vpp_conf.startup.values import Finding, Needs, Number, Severity

MOST_WORKERS = 62
"""VPP takes fewer than 64 threads (``FRAME_QUEUE_MAX_NELTS``)."""

FEWEST_CORES_WITH_WORKERS = 3


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """The CPUs, and what is to be said about them. With an error among the findings there is no plan."""

    main_core: int
    workers: tuple[int, ...]
    numbers: tuple[Number, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def threads(self) -> int:
        """The main thread and the workers."""
        return 1 + len(self.workers)


@dataclass(frozen=True, slots=True)
class _Cores:
    """One CPU for each physical core, in the order of preference: those of CPU 0 are last."""

    isolated: tuple[Cpu, ...]
    shared: tuple[Cpu, ...]

    @property
    def count(self) -> int:
        return len(self.isolated) + len(self.shared)


def plan_cpus(machine: Machine, needs: Needs, nics: tuple[Nic, ...]) -> CpuPlan:
    """Place the threads. Findings tell what could not be had."""
    if not machine.usable:
        return CpuPlan(0, (), findings=(_error("no CPU is online and allowed", "widen the cpuset"),))
    near = _near(machine, nics)
    cores = _cores(machine, near)
    main = _main(cores)
    free = tuple(cpu for cpu in (*cores.isolated, *cores.shared) if cpu.number != main.number)
    wanted, reason, findings = _how_many(machine, needs, cores, free, nics, near)
    workers = tuple(sorted(cpu.number for cpu in free[:wanted]))
    findings += _isolation_findings(machine, workers)
    return CpuPlan(main.number, workers, _numbers(machine, main, workers, reason), findings)


def _near(machine: Machine, nics: tuple[Nic, ...]) -> frozenset[int]:
    """The nodes of the interfaces; all nodes if no interface tells."""
    with_cpus = {cpu.node for cpu in machine.usable}
    return frozenset(nic.node for nic in nics if nic.node in with_cpus) or frozenset(with_cpus)


def _cores(machine: Machine, near: frozenset[int]) -> _Cores:
    siblings: dict[tuple[int, int], list[Cpu]] = {}
    for cpu in machine.usable:
        siblings.setdefault(cpu.core, []).append(cpu)
    isolated: list[Cpu] = []
    shared: list[Cpu] = []
    for core in siblings.values():
        alone = [cpu for cpu in core if cpu.number in machine.isolated]
        (isolated if alone else shared).append((alone or core)[0])
    own = next((cpu.core for cpu in machine.usable if cpu.number == 0), None)
    return _Cores(_ordered(isolated, near, own), _ordered(shared, near, own))


def _ordered(cpus: list[Cpu], near: frozenset[int], last: tuple[int, int] | None) -> tuple[Cpu, ...]:
    """Near nodes take turns, then the others; the core of CPU 0 comes last."""
    by_node: dict[int, list[Cpu]] = {}
    for cpu in cpus:
        if cpu.core != last:
            by_node.setdefault(cpu.node, []).append(cpu)
    rows = [[by_node[node] for node in sorted(by_node) if (node in near) is wanted] for wanted in (True, False)]
    ordered = [cpu for group in rows for cpu in chain.from_iterable(zip_longest(*group)) if cpu is not None]
    return (*ordered, *(cpu for cpu in cpus if cpu.core == last))


def _main(cores: _Cores) -> Cpu:
    """The main thread answers the API and sleeps otherwise: no isolated core is spent on it if there is another."""
    return (cores.shared or cores.isolated)[0]


def _how_many(
    machine: Machine, needs: Needs, cores: _Cores, free: tuple[Cpu, ...], nics: tuple[Nic, ...], near: frozenset[int]
) -> tuple[int, str, tuple[Finding, ...]]:
    quota = machine.limits.cpus
    room = min(len(free), MOST_WORKERS, len(free) if quota is None else max(0, int(quota) - 1))
    if needs.workers is not None:
        if needs.workers > room:
            text = f"{needs.workers} workers are asked for, {room} cores are free beside the main thread's"
            limit = f" (the control group allows {quota:g} CPUs)" if quota is not None else ""
            return 0, "", (_error(text + limit, f"ask for {room} at most, or allow more CPUs"),)
        return needs.workers, "as asked for", ()
    if cores.isolated:
        wanted = len([cpu for cpu in cores.isolated if cpu in free and cpu.node in near]) or len(cores.isolated)
        reason = "the isolated cores of the interfaces' NUMA nodes, one thread per core"
    else:
        wanted, reason = _shared_workers(cores, nics, near, free)
    if quota is None or int(quota) - 1 >= wanted:
        return min(wanted, room), reason if min(wanted, room) or not wanted else "none: no core is left for them", ()
    text = f"the control group allows {quota:g} CPUs: {room} workers instead of {wanted}"
    return room, f"{reason}; cut to {quota:g} CPUs", (Finding(Severity.WARNING, "cpu", text, "raise its cpu.max"),)


def _shared_workers(
    cores: _Cores, nics: tuple[Nic, ...], near: frozenset[int], free: tuple[Cpu, ...]
) -> tuple[int, str]:
    if cores.count < FEWEST_CORES_WITH_WORKERS:
        return 0, f"none: the kernel and everything else need the {cores.count} cores as well, one thread does all"
    queues = sum(nic.rx_queues for nic in nics) or 1
    half = min(cores.count // 2, cores.count - 2, len([cpu for cpu in free if cpu.node in near]))
    if queues < half:
        return queues, f"one for each of {queues} receive queues; more would have nothing to receive"
    return half, f"half of {cores.count} cores at most: the kernel carries IKE and all other traffic on the others"


def _isolation_findings(machine: Machine, workers: tuple[int, ...]) -> tuple[Finding, ...]:
    ticking = frozenset(workers) & machine.isolated - machine.tickless
    if not ticking:
        return ()
    text = f"the isolated CPUs {show_cpus(ticking)} still get timer interrupts"
    return (Finding(Severity.NOTE, "cpu", text, f"boot with nohz_full={show_cpus(machine.isolated)}"),)


def _numbers(machine: Machine, main: Cpu, workers: tuple[int, ...], reason: str) -> tuple[Number, ...]:
    own = "CPU 0: there is no other" if main.number == 0 else "not CPU 0, which has the kernel's timers and interrupts"
    siblings = len({cpu.core for cpu in machine.usable}) < len(machine.usable)
    idle = "; hardware siblings stay idle" if siblings and workers else ""
    return (
        Number("cpu main-core", str(main.number), own),
        Number("cpu corelist-workers", show_cpus(workers) or "-", reason + idle),
    )


def used_nodes(machine: Machine, plan: CpuPlan, nics: tuple[Nic, ...]) -> tuple[int, ...]:
    """NUMA nodes with memory that a thread or an interface is on: buffers on others would lie idle."""
    threads = {plan.main_core, *plan.workers}
    near = {cpu.node for cpu in machine.usable if cpu.number in threads} | {nic.node for nic in nics}
    return tuple(node for node in machine.nodes if node in near) or machine.nodes


def _error(text: str, way_out: str) -> Finding:
    return Finding(Severity.ERROR, "cpu", text, way_out)
