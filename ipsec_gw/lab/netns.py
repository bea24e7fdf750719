"""Network namespaces: make a topology real, take it away, open sockets inside, switch offloads off."""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ipsec_gw.errors import EnvironmentMissing
from ipsec_gw.lab.process import run
from ipsec_gw.lab.topology import Batch, Topology, batches
from ipsec_gw.mirror.ethtool import SGSO, SSG, STSO, STXCSUM, turn_off

NETNS_DIR = Path("/run/netns")
"""Where iproute2 keeps named namespaces."""

CLONE_NEWNET = 0x40000000
"""``linux/sched.h``."""

_libc = ctypes.CDLL(None, use_errno=True)


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise EnvironmentMissing(f"cannot enter a network namespace: {os.strerror(code)} - run as root")


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """The calling thread is in ``namespace`` meanwhile; sockets opened here stay there. Never await inside."""
    with (NETNS_DIR / namespace).open() as there, Path("/proc/thread-self/ns/net").open() as here:
        _setns(there.fileno())
        try:
            yield
        finally:
            _setns(here.fileno())


def set_sysctl(namespace: str, name: str, value: str) -> None:
    """Write a ``net.`` sysctl of a namespace, given with slashes: ``net/ipv4/ip_forward``."""
    with inside(namespace):
        Path(f"/proc/sys/{name}").write_text(value)


def wire_checksums(namespace: str, interface: str) -> None:
    """Complete packets leave ``interface``: transmit checksum and segmentation offloads off."""
    with inside(namespace):
        turn_off(interface, STSO, SGSO, STXCSUM)


def send_in_one_piece(namespace: str, interface: str) -> None:
    """Packets leave ``interface`` without pages of their own (no scatter-gather).

    A capture shares such pages with the packet. A router with NAT makes a packet its own by copying the head alone, so
    that the receiver behind it decrypts into the pages before the capture is read.
    """
    with inside(namespace):
        turn_off(interface, SSG)


async def _apply(batch: Batch) -> None:
    where = ["-n", batch.namespace] if batch.namespace else []
    await run(["ip", *where, "-batch", "-"], stdin="\n".join(batch.lines) + "\n")


async def build(topology: Topology) -> None:
    """Create the namespaces, wires, addresses and routes. What fails is left to :func:`remove`."""
    await _apply(Batch(None, tuple(f"netns add {name}" for name in topology.namespaces)))
    for name in topology.namespaces:
        if topology.ipv6:
            # Link-local addresses must not wait for duplicate address detection.
            set_sysctl(name, "net/ipv6/conf/default/accept_dad", "0")
        else:
            # Without this, router solicitations and MLD would mix into the captures.
            set_sysctl(name, "net/ipv6/conf/all/disable_ipv6", "1")
            set_sysctl(name, "net/ipv6/conf/default/disable_ipv6", "1")
    wires, *rest = batches(topology)
    await _apply(wires)
    await asyncio.gather(*(_apply(batch) for batch in rest))
    for role in topology.roles:
        for port in topology.ports(role):
            if port.wire_checksums:
                wire_checksums(topology.namespace(role), port.name)
    for role in topology.forwarding:
        set_sysctl(topology.namespace(role), "net/ipv4/ip_forward", "1")
        if topology.ipv6:
            set_sysctl(topology.namespace(role), "net/ipv6/conf/all/forwarding", "1")


async def receive_on_one_processor(namespace: str, interface: str) -> None:
    """Have one processor do all that follows from packets received on ``interface`` (receive packet steering).

    Otherwise an engine's thread and our own traffic would make the peer's kernel encrypt on two processors, and its
    packets overtake each other (see :func:`ipsec_gw.lab.process.stay_on_one_processor`).
    """
    # sysfs shows the devices of the namespace that mounted it.
    mask = f"mount -t sysfs sysfs /sys && echo 1 >/sys/class/net/{interface}/queues/rx-0/rps_cpus"
    await run(["unshare", "--mount", "sh", "-c", mask], namespace=namespace)


def xfrm_errors(namespace: str) -> dict[str, int]:
    """The kernel's IPsec error counters of a namespace that are not 0 (``/proc/net/xfrm_stat``)."""
    with inside(namespace):
        lines = Path("/proc/thread-self/net/xfrm_stat").read_text().splitlines()
    pairs = (line.split() for line in lines)
    return {name: int(value) for name, value in pairs if int(value)}


def present(names: Iterable[str]) -> list[str]:
    """Which of these namespaces exist."""
    return [name for name in names if (NETNS_DIR / name).exists()]


async def remove(names: Iterable[str]) -> None:
    """Delete those of the namespaces that exist."""
    lines = tuple(f"netns del {name}" for name in present(names))
    if lines:
        await _apply(Batch(None, lines))


def processes(names: Iterable[str]) -> dict[int, str]:
    """Processes that live in these namespaces: pid -> command line."""
    inodes = {(NETNS_DIR / name).stat().st_ino for name in present(names)}
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if (entry / "ns/net").stat().st_ino in inodes:
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended while we looked, or is not ours to see
    return found


def mac_address(namespace: str, interface: str) -> bytes:
    """The Ethernet address of an interface."""
    with inside(namespace), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as packets:
        packets.bind((interface, 0))
        address: bytes = packets.getsockname()[4]
    return address
