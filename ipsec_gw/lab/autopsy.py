"""What the gateway under test looks like when a scenario breaks off, for whoever has to find out why. Never a key."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

from ipsec_gw.errors import EnvironmentMissing, IpsecGwError
from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.gateway import command
from ipsec_gw.lab.process import run
from ipsec_gw.lab.topology import Role
from vpp_conf.locate import locate_vpp
from vpp_conf.paths import VppPaths
from vpp_conf.process import PROC, ProcessId, recorded

PATIENCE = 20.0
"""Seconds for each question: who does not answer is a finding too."""

_KERNEL = (
    *("ip -d link", "ip -4 rule", "ip -6 rule", "ip route show table all", "ip neighbour", "ip -s xfrm policy"),
    *("nft list ruleset", "tc -s filter show dev wan0 egress", "cat /proc/net/xfrm_stat", "cat /proc/net/snmp"),
)
_VPP = (
    *("show clock", "show errors", "show interface", "show hardware-interfaces", "show interface rx-placement"),
    *("show runtime", "show ipsec protect", "show ip fib summary", "show af_xdp", "show buffers"),
)
_THREAD = ("stat", "status", "wchan", "syscall", "stack")


async def write_autopsy(lab: Lab) -> None:
    """Into ``autopsy.txt`` among the artifacts, if those are asked for and there is a gateway A."""
    if lab.options.artifacts is None or Role.GATEWAY_A not in lab.topology.roles:
        return
    namespace, paths = lab.topology.namespace(Role.GATEWAY_A), VppPaths(lab.session.gateway_dir)
    said = [text for question in _questions(lab, paths) for text in await _ask(question, namespace)]
    (lab.options.artifacts / "autopsy.txt").write_text("\n".join([*said, *_threads(paths)]))
    process = recorded(paths.pid_file)
    if process is not None and not await _answers(paths):
        _tell_stack(process)


def _questions(lab: Lab, paths: VppPaths) -> Iterator[list[str]]:
    for line in _KERNEL:
        yield line.split()
    for shown in ("status", "sas", "history"):
        yield [*command(), "--run-dir", str(lab.session.gateway_dir), "show", shown]
    if recorded(paths.pid_file) is not None and (command_line := _vppctl(paths)):
        for line in _VPP:
            yield [*command_line, *line.split()]


def _vppctl(paths: VppPaths) -> list[str]:
    """How to ask VPP; empty where none is installed that can be asked."""
    try:
        vppctl = locate_vpp().vppctl
    except EnvironmentMissing:
        return []
    return [str(vppctl), "-s", str(paths.cli_socket)] if vppctl is not None else []


async def _answers(paths: VppPaths) -> bool:
    if not (command_line := _vppctl(paths)):
        return True
    try:
        await run([*command_line, "show", "clock"], timeout=PATIENCE, check=False)
    except IpsecGwError:
        return False
    return True


def _tell_stack(process: ProcessId) -> None:
    """By SIGABRT a VPP that hangs writes where it does into its log, and ends."""
    with contextlib.suppress(ProcessLookupError):
        process.send(signal.SIGABRT)


async def _ask(argv: list[str], namespace: str) -> list[str]:
    try:
        answer = (await run(argv, namespace=namespace, timeout=PATIENCE, check=False)).stdout
    except IpsecGwError as error:
        answer = f"{error}\n"
    return [f"# {' '.join(argv[-4:])}", answer]


def _threads(paths: VppPaths) -> Iterator[str]:
    """What each thread of VPP does, by the kernel."""
    process = recorded(paths.pid_file)
    for task in sorted((PROC / str(process.pid) / "task").glob("*")) if process is not None else ():
        for name in _THREAD:
            yield f"# {task.name} {name}\n{_read(task / name)}"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        return f"{error}\n"
