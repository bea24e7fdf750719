"""Which interfaces the plan is made for, and what AF_XDP can do with them. Pure."""

from __future__ import annotations

from vpp_conf.startup.machine import Kernel, Machine, Nic
from vpp_conf.startup.values import Finding, Needs, Number, RxMode, Severity, count


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
