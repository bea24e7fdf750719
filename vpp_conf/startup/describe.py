"""A plan as plain values, for JSON and for tables alike. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vpp_conf.startup.cpu_lists import show_cpus
from vpp_conf.startup.expectation import Check
from vpp_conf.startup.machine import CryptoDevice, Machine, Nic
from vpp_conf.startup.syntax import show
from vpp_conf.startup.values import Finding, Setting, StartupPlan


def describe_plan(plan: StartupPlan) -> dict[str, Any]:
    """Values, reasons, findings and settings of a plan."""
    return {
        "values": [{"name": one.name, "value": one.value, "reason": one.reason} for one in plan.numbers],
        "ordinaryBytes": plan.ordinary_bytes,
        "hugepageBytes": plan.hugepage_bytes,
        "findings": describe_findings(plan.findings),
        "settings": [_setting(one) for one in plan.settings],
    }


def describe_findings(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """Findings, also those of a plan that was refused."""
    return [
        {"severity": one.severity.value, "subject": one.subject, "text": one.text, "wayOut": one.way_out}
        for one in findings
    ]


def describe_checks(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """A running VPP beside its plan."""
    return [
        {"name": one.name, "planned": one.planned, "actual": one.actual, "holds": one.holds, "wayOut": one.way_out}
        for one in checks
    ]


def describe_machine(machine: Machine) -> dict[str, Any]:
    """What was found."""
    return {
        "cpu": machine.model,
        "cpus": show_cpus(frozenset(cpu.number for cpu in machine.cpus)),
        "cores": len({cpu.core for cpu in machine.cpus}),
        "allowed": show_cpus(machine.allowed),
        "isolated": show_cpus(machine.isolated),
        "tickless": show_cpus(machine.tickless),
        "numaNodes": list(machine.nodes),
        "memoryBytes": machine.memory_total,
        "availableBytes": machine.memory_available,
        "pageBytes": machine.page_bytes,
        "hugepages": [
            {"node": pool.node, "pageBytes": pool.page_bytes, "total": pool.total, "free": pool.free}
            for pool in machine.pools
        ],
        "interfaces": [_nic(nic, machine) for nic in machine.nics],
        "cryptoDevices": [_crypto(device) for device in machine.crypto],
        "iommu": machine.iommu,
        "kernel": machine.kernel.release,
        "container": machine.container,
        "limits": {"memoryBytes": machine.limits.memory_bytes, "cpus": machine.limits.cpus},
        "vpp": {
            "release": show(machine.vpp.release),
            "engines": sorted(machine.vpp.engines),
            "plugins": sorted(machine.vpp.plugins),
        },
    }


def _setting(setting: Setting) -> dict[str, Any]:
    return {
        "path": f"/{setting.path}",
        "now": setting.now,
        "wanted": setting.wanted,
        "command": setting.command,
        "reason": setting.reason,
    }


def _nic(nic: Nic, machine: Machine) -> dict[str, Any]:
    return {
        "name": nic.name,
        "driver": nic.driver,
        "node": nic.node,
        "rxQueues": nic.rx_queues,
        "txQueues": nic.tx_queues,
        "mtu": nic.mtu,
        "up": nic.link_up,
        "nativeXdp": nic.native_xdp,
        "zeroCopy": nic.zero_copy(machine.kernel),
    }


def _crypto(device: CryptoDevice) -> dict[str, Any]:
    return {
        "address": device.address,
        "id": f"{device.vendor:04x}:{device.device:04x}",
        "qat": device.qat,
        "driver": device.driver,
        "node": device.node,
        "virtualOf": device.parent,
        "virtualFunctions": device.functions,
        "virtualFunctionsPossible": device.functions_possible,
        "iommuGroup": device.iommu_group,
    }
