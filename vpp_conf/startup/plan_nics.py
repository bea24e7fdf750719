"""Which interfaces the plan is made for, and what AF_XDP can do with them. Pure."""

from __future__ import annotations

from vpp_conf.startup.cpu_lists import show_cpus
from vpp_conf.startup.machine import Kernel, Machine, Nic
from vpp_conf.startup.values import Finding, InterfacePlan, Needs, Number, RxMode, Severity, count


def plan_nics(machine: Machine, needs: Needs) -> tuple[tuple[Nic, ...], tuple[Number, ...], tuple[Finding, ...]]:
    """The interfaces that are named; without names the NICs, where there are none the others: those with a link.

    Where no link is up, all are taken.
    """
    if needs.interfaces:
        by_name = {nic.name: nic for nic in machine.nics}
        nics = tuple(by_name[name] for name in needs.interfaces if name in by_name)
        missing = tuple(_missing(name, machine) for name in needs.interfaces if name not in by_name)
        return nics, _numbers(nics, machine.kernel), (*missing, *_findings(nics))
    candidates = tuple(nic for nic in machine.nics if nic.driver is not None) or machine.nics
    nics = tuple(nic for nic in candidates if nic.link_up) or candidates
    return nics, _numbers(nics, machine.kernel), _findings(nics)


def plan_interfaces(
    machine: Machine, nics: tuple[Nic, ...], workers: tuple[int, ...]
) -> tuple[tuple[InterfacePlan, ...], tuple[Number, ...]]:
    """Each queue goes to a worker on its interface's NUMA node, in turn, where there is one: VPP by itself counts
    through all workers, wherever they are.
    """
    node_of = {cpu.number: cpu.node for cpu in machine.cpus}
    turns: dict[tuple[int, ...], int] = {}
    plans: list[InterfacePlan] = []
    numbers: list[Number] = []
    for nic in nics:
        near = tuple(index for index, cpu in enumerate(workers) if node_of.get(cpu) == nic.node)
        able = near or tuple(range(len(workers)))
        turn = turns.get(able, 0)
        placement = tuple(able[(turn + queue) % len(able)] for queue in range(nic.rx_queues)) if able else ()
        turns[able] = turn + nic.rx_queues
        plans.append(InterfacePlan(nic.name, nic.rx_queues, nic.zero_copy(machine.kernel), placement))
        if placement:
            where = f"on its NUMA node {nic.node}" if near else "all of them: none is known to be on its NUMA node"
            value = f"workers {show_cpus(frozenset(placement))}"
            numbers.append(Number(f"rx placement {nic.name}", value, f"its queues in turn to the workers {where}"))
    return tuple(plans), tuple(numbers)


def plan_rx(machine: Machine, workers: tuple[int, ...]) -> tuple[RxMode, Number]:
    """Isolated cores poll: nobody else wants them, and no packet waits for a wake-up. On others that would take the
    time of everybody else (measured: a thread that polls costs its whole core, with or without packets).
    """
    if workers and machine.isolated.issuperset(workers):
        reason = "all workers are on isolated cores: they take packets without a wake-up, and always seem busy"
        return RxMode.POLLING, Number("af_xdp rx-mode", RxMode.POLLING, reason)
    whose = "not all workers are on isolated cores" if workers else "the only thread shares its core"
    return RxMode.INTERRUPT, Number("af_xdp rx-mode", RxMode.INTERRUPT, f"{whose}: the kernel wakes it for packets")


def _missing(name: str, machine: Machine) -> Finding:
    names = ", ".join(nic.name for nic in machine.nics) or "none"
    return Finding(Severity.ERROR, "interface", f"there is no interface {name}", f"there are: {names}")


def _numbers(nics: tuple[Nic, ...], kernel: Kernel) -> tuple[Number, ...]:
    return tuple(Number(f"af_xdp {nic.name}", count(nic.rx_queues, "queue"), _mode(nic, kernel)) for nic in nics)


def _mode(nic: Nic, kernel: Kernel) -> str:
    place = f" on NUMA node {nic.node}" if nic.node is not None else ""
    if nic.driver is None:
        return "virtual, copies"
    mode = f"native XDP, {'zero-copy' if nic.zero_copy(kernel) else 'copies'}" if nic.native_xdp else "generic XDP"
    return f"{nic.driver}{place}: {mode}"


def _findings(nics: tuple[Nic, ...]) -> tuple[Finding, ...]:
    text = "has no XDP hook in its driver: the kernel makes an skb of every packet first"
    return tuple(
        Finding(Severity.WARNING, "interface", f"{nic.name} ({nic.driver}) {text}", "use another NIC")
        for nic in nics
        if nic.driver is not None and not nic.native_xdp
    )
