"""CPUs: what they are, how they lie on cores and NUMA nodes, and which ones this process may use."""

from __future__ import annotations

from collections.abc import Mapping

from vpp_conf.startup.cpu_lists import cpu_list
from vpp_conf.startup.files import Files
from vpp_conf.startup.machine import Cpu
from vpp_conf.startup.probe_limits import read_cpuset

CPUS = "sys/devices/system/cpu"
NODES = "sys/devices/system/node"

ARM_PARTS = {
    ("0x41", "0xd0c"): "Arm Neoverse-N1",
    ("0x41", "0xd40"): "Arm Neoverse-V1",
    ("0x41", "0xd49"): "Arm Neoverse-N2",
    ("0x41", "0xd4f"): "Arm Neoverse-V2",
    ("0x41", "0xd08"): "Arm Cortex-A72",
    ("0xc0", "0xac3"): "Ampere-1",
}
"""(implementer, part) of ``/proc/cpuinfo``: ARM kernels print no name."""


def read_model(files: Files) -> str:
    """The processor's name, as the kernel has it."""
    info = _cpuinfo(files)
    part = (info.get("CPU implementer", ""), info.get("CPU part", ""))
    return info.get("model name") or ARM_PARTS.get(part) or (f"ARM {part[0]} {part[1]}" if part[0] else "unknown CPU")


def read_flags(files: Files) -> frozenset[str]:
    """Instruction sets, by the kernel's names (x86 ``flags``, ARM ``Features``)."""
    info = _cpuinfo(files)
    return frozenset((info.get("flags") or info.get("Features") or "").split())


def read_cpus(files: Files) -> tuple[Cpu, ...]:
    """All CPUs that are online, by number."""
    online = files.cpu_list(f"{CPUS}/online") or _listed(files)
    node_of = {number: node for node, numbers in read_nodes(files).items() for number in numbers}
    return tuple(Cpu(number, _core(files, number), node_of.get(number, 0)) for number in sorted(online))


def read_nodes(files: Files) -> Mapping[int, frozenset[int]]:
    """NUMA nodes that have CPUs, with their CPUs. Empty where the kernel knows no nodes."""
    names = [name for name in files.names(NODES, "node") if name.removeprefix("node").isdecimal()]
    found = {int(name.removeprefix("node")): files.cpu_list(f"{NODES}/{name}/cpulist") for name in names}
    return {node: numbers for node, numbers in sorted(found.items()) if numbers}


def read_memory_nodes(files: Files) -> tuple[int, ...]:
    """NUMA nodes with both CPUs and memory: those that VPP gives buffers to (``vlib/buffer.c``)."""
    with_cpus = frozenset(read_nodes(files))
    with_memory = files.cpu_list(f"{NODES}/has_memory") or with_cpus
    return tuple(sorted(with_cpus & with_memory)) or (0,)


def read_allowed(files: Files, online: frozenset[int], isolated: frozenset[int]) -> frozenset[int]:
    """CPUs that VPP may be pinned to: this process's affinity, and isolated CPUs that its cpuset holds.

    Isolated CPUs are in nobody's affinity (the scheduler's default leaves them out), but may be asked for.
    """
    affinity = online
    for line in (files.text("proc/self/status") or "").splitlines():
        if line.startswith("Cpus_allowed_list:"):
            affinity = cpu_list(line.partition(":")[2])
    return (affinity | (isolated & (read_cpuset(files) or online))) & online


def _core(files: Files, number: int) -> tuple[int, int]:
    folder = f"{CPUS}/cpu{number}/topology"
    package = files.number(f"{folder}/physical_package_id")
    core = files.number(f"{folder}/core_id")
    return (0 if package is None else package, number if core is None else core)


def _listed(files: Files) -> frozenset[int]:
    """CPUs of ``/proc/cpuinfo``, for a sysfs that is not there."""
    lines = (line.partition(":") for line in (files.text("proc/cpuinfo") or "").splitlines())
    return frozenset(
        int(value) for name, _, value in lines if name.strip() == "processor" and value.strip().isdecimal()
    )


def _cpuinfo(files: Files) -> Mapping[str, str]:
    """The first CPU's lines of ``/proc/cpuinfo``."""
    first = (files.text("proc/cpuinfo") or "").partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
