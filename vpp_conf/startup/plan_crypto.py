"""Crypto engines, their handlers, and QAT. Pure.

Priorities in VPP: native 100, ipsecmb 80, openssl 50. So native does AES-GCM wherever it can, though ipsecmb is the
faster one with wide vectors (measured: 45 against 25 Gb/s on the whole ESP path). What was measured on this machine
itself (`ipsec-gw vpp tune`) goes before that rule, as long as CPU, VPP and engines are what they were.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpp_conf.startup.machine import CryptoDevice, Machine
from vpp_conf.startup.syntax import ENGINES, GCM, EngineStyle, engine_plugin, engine_style
from vpp_conf.startup.values import Finding, Handler, Needs, Number, QatPlan, Severity
from vpp_conf.tuning.choice import async_ratio, misfit, reason
from vpp_conf.tuning.values import Choice, Tuning, subject_of

WIDE_VECTORS = frozenset({"avx512f", "vaes"})
DPDK_PLUGIN = "dpdk_plugin.so"
VFIO = "vfio-pci"
FREE_DRIVERS = (None, VFIO)
QUEUE_PAIRS = 2
"""Symmetric queue pairs that DPDK offers for each virtual function of QAT."""


@dataclass(frozen=True, slots=True)
class CryptoPlan:
    """Engines to enable, how, and who gets which algorithm."""

    engines: tuple[str, ...]
    section: bool
    plugins: tuple[str, ...]
    handlers: tuple[Handler, ...]
    qat: QatPlan | None
    numbers: tuple[Number, ...]
    findings: tuple[Finding, ...]


def plan_crypto(machine: Machine, needs: Needs, threads: int, tuning: Tuning | None = None) -> CryptoPlan:
    """Choose by what is installed and what the CPU can. Raises nothing: no engine is an error among the findings."""
    engines = tuple(engine for engine in ENGINES if engine in machine.vpp.engines)
    style = engine_style(machine.vpp.release)
    qat, qat_reason, findings = _qat(machine, needs, threads)
    changed = misfit(tuning.subject, subject_of(machine)) if tuning else None
    if tuning and changed:
        findings += (_outdated(tuning, changed),)
        tuning = None
    handlers, handler_reason = _handlers(machine, engines, tuning)
    if not engines:
        way_out = "install vpp-plugin-core and vpp-crypto-engines of the official fd.io packages"
        findings += (Finding(Severity.ERROR, "crypto", "VPP has no crypto engine", way_out),)
    plugins = tuple(engine_plugin(engine) for engine in engines) if style is EngineStyle.PLUGINS else ()
    numbers = (
        Number("crypto-engines", " ".join(engines) or "-", _style_reason(style)),
        Number("crypto handlers", "; ".join(_show(one) for one in handlers) or "-", handler_reason),
        Number("ipsec async mode", "off", _async_reason(tuning)),
        Number("dpdk dev", " ".join(qat.devices) if qat else "-", qat_reason),
    )
    plugins += (DPDK_PLUGIN,) if qat else ()
    return CryptoPlan(engines, style is EngineStyle.SECTION, plugins, handlers, qat, numbers, findings)


def _show(handler: Handler) -> str:
    return f"{handler.engine}: {' '.join(handler.algorithms)}"


def _style_reason(style: EngineStyle) -> str:
    how = {
        EngineStyle.PLUGINS: "as plugins in this release",
        EngineStyle.FOLDER: "this release loads all in its folder",
        EngineStyle.SECTION: "by their section",
    }
    return f"all that are installed, {how[style]}; synchronous: no handover between threads"


def _async_reason(tuning: Tuning | None) -> str:
    """It hands packets of one SA to other workers. The order of packets is kept, and each costs more."""
    why = "packets stay with the worker that received them: SAs are spread over workers by their receive queues"
    ratios = [
        (choice.algorithm, found)
        for choice in (tuning.choices if tuning else ())
        if (found := async_ratio(tuning.measurements if tuning else (), choice.algorithm, choice.engine)) is not None
    ]
    figures = ", ".join(f"{found:.2f} of the clocks for {algorithm}" for algorithm, found in ratios)
    return f"{why}; measured: async takes {figures}" if ratios else why


def _outdated(tuning: Tuning, changed: str) -> Finding:
    text = f"what was measured on {tuning.measured_at:%Y-%m-%d} is left out: {changed}"
    return Finding(Severity.WARNING, "crypto handlers", text, "run `ipsec-gw vpp tune` again")


def _handlers(machine: Machine, engines: tuple[str, ...], tuning: Tuning | None) -> tuple[tuple[Handler, ...], str]:
    """What was measured, and the rule for what was not."""
    choices = tuning.choices if tuning else ()
    measured = frozenset(choice.algorithm for choice in choices)
    others = tuple(algorithm for algorithm in GCM if algorithm not in measured)
    handlers, rule = _by_rule(machine, engines, others)
    if tuning is None:
        return handlers, rule
    figures = "; ".join(reason(tuning, choice) for choice in choices)
    when = f"measured on this machine on {tuning.measured_at:%Y-%m-%d}: {figures}"
    return (*_by_engine(choices), *handlers), f"{when}; the others: {rule}" if others else when


def _by_engine(choices: tuple[Choice, ...]) -> tuple[Handler, ...]:
    return tuple(
        Handler(engine, tuple(choice.algorithm for choice in choices if choice.engine == engine))
        for engine in dict.fromkeys(choice.engine for choice in choices)
    )


def _by_rule(
    machine: Machine, engines: tuple[str, ...], algorithms: tuple[str, ...]
) -> tuple[tuple[Handler, ...], str]:
    """Only what VPP's own order gets wrong. Native has no ChaCha20: there ipsecmb leads already."""
    if not {"native", "ipsecmb"} <= set(engines):
        return (), f"left out: VPP's own order is right, {engines[0] if engines else 'nothing'} leads"
    if machine.flags >= WIDE_VECTORS and algorithms:
        return (Handler("ipsecmb", algorithms),), "with AVX-512 and VAES it is faster than native for whole ESP packets"
    return (), "left out: native leads for AES-GCM, as it should without AVX-512 and VAES"


def _qat(machine: Machine, needs: Needs, threads: int) -> tuple[QatPlan | None, str, tuple[Finding, ...]]:
    """QAT if everything for it is there. Virtual functions are made by hand: they say that QAT is wanted."""
    devices = [device for device in machine.crypto if device.qat]
    if not devices:
        return None, "left out: no QAT, and no NIC is taken from the kernel", ()
    if not needs.qat:
        return None, "left out: not wanted", ()
    virtual = [device for device in devices if device.parent]
    workers = max(1, threads - 1)
    count = -(-workers // QUEUE_PAIRS)
    problem = _qat_problem(machine, devices, virtual, count, workers)
    if problem:
        return None, f"left out: {problem.text}", (problem,)
    near = _spread([device for device in virtual if _is_free(device)], {cpu.node for cpu in machine.usable})
    taken = tuple(sorted(device.address for device in near[:count]))
    plan = QatPlan(taken, count * QUEUE_PAIRS)
    reason = f"{plan.queue_pairs} queue pairs for {workers} threads: with fewer the engine does not register"
    return plan, reason, ()


def _is_free(device: CryptoDevice) -> bool:
    """VPP would take a function from the kernel's driver as well, and with it the kernel's own use of it."""
    return device.driver in FREE_DRIVERS


def _qat_problem(
    machine: Machine, devices: list[CryptoDevice], virtual: list[CryptoDevice], count: int, workers: int
) -> Finding | None:
    if not virtual:
        first = devices[0]
        text = f"QAT {first.qat} at {first.address} has no virtual functions"
        number = min(count, first.functions_possible) or count
        way_out = f"to use it: echo {number} > /sys/bus/pci/devices/{first.address}/sriov_numvfs"
        return Finding(Severity.NOTE, "qat", text, way_out)
    if not machine.iommu or any(device.iommu_group is None for device in virtual):
        vendor = "amd_iommu=on" if "amd" in machine.model.lower() else "intel_iommu=on"
        text = "QAT needs an IOMMU, and none is active"
        return Finding(Severity.WARNING, "qat", text, f"enable it in the firmware and boot with {vendor} iommu=pt")
    if DPDK_PLUGIN not in machine.vpp.plugins:
        return Finding(Severity.WARNING, "qat", "VPP's dpdk plugin is not installed", "install vpp-plugin-dpdk")
    if len(virtual) < count:
        text = f"{workers} threads need {count} virtual functions of QAT, {len(virtual)} are there"
        path = f"/sys/bus/pci/devices/{virtual[0].parent}/sriov_numvfs"
        return Finding(Severity.WARNING, "qat", text, f"echo {count} > {path}, or fewer workers")
    taken = [device for device in virtual if not _is_free(device)]
    if len(virtual) - len(taken) < count:
        text = f"{len(taken)} virtual functions of QAT belong to the kernel's driver {taken[0].driver}"
        return Finding(Severity.WARNING, "qat", text, f"driverctl set-override {taken[0].address} {VFIO}, and so on")
    return None


def _spread(virtual: list[CryptoDevice], nodes: set[int]) -> list[CryptoDevice]:
    """Functions of different devices take turns, those near to CPUs first."""
    turns: dict[str | None, int] = {}
    ranked: list[tuple[bool, int, str, CryptoDevice]] = []
    for device in sorted(virtual, key=lambda one: one.address):
        turn = turns.get(device.parent, 0)
        turns[device.parent] = turn + 1
        ranked.append((device.node not in nodes, turn, device.address, device))
    return [device for *_, device in sorted(ranked, key=lambda row: row[:3])]
