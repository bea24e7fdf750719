"""NAT between a LAN and a WAN: a gateway that has a pool of XDP's and one of VPP's, and beside it, on the same wires, a
machine whose kernel masquerades.

    client, the generator -- lan0 [gateway, or kernel] wan0 -- server, which counts what comes out and drops it
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from pyroute2 import NFCTSocket

from bench.machine import BenchError
from bench.nat_report import Window
from ipsec_gw.engines.vpp_nat import HEAP, HEAP_FREE
from ipsec_gw.lab.flood import BATCH, Sender
from ipsec_gw.lab.junk import IPV4_TYPE
from ipsec_gw.lab.netns import mac_address
from ipsec_gw.lab.packets import udp4
from tests.integration.conftest import until
from tests.integration.firewall_world import ADDRESSES, CLIENT, GATEWAY, SERVER, FirewallBox
from vpp_conf.locate import locate_vpp
from vpp_conf.paths import VppPaths
from vpp_conf.stats import StatsSegment
from xdp_steer import libbpf
from xdp_steer.flow_layout import SESSIONS

FLOWS, KNOWN = 100_000, 1_000
"""New flows of a window, and flows whose packets are sent over and over."""
SERVERS, PORTS, FIRST_PORT = IPv4Address("198.18.0.1"), 50_000, 10_000
"""Where flows lead to, one server for so many; the ports that clients choose, each once for a server."""
SETTLED_SECONDS = 0.2
"""Nothing has come out for so long: nothing more will."""

SINK = """
struct xdp_md { unsigned int data, data_end; };
__attribute__((section("xdp"), used)) int sink(struct xdp_md *ctx)
{
	unsigned char *frame = (void *)(long)ctx->data;

	if (frame + 34 > (unsigned char *)(long)ctx->data_end || frame[12] != 8 || frame[13])
		return 2;
	return frame[30] == 198 && frame[31] == 18 ? 1 : 2;
}
"""
"""Drops what is for the flows' servers, which the interface counts."""

CONFIGURATION = f"""
[gateway]
engine = "vpp"
wan = ["wan0"]
hang_seconds = 0
[zones.lan]
interfaces = ["lan0"]
[zones.wan]
interfaces = ["wan0"]
[firewall]
default_policy = "permit"
[sessions]
maximum = {2 * FLOWS}
[nat.pools.xdp]
addresses = "203.0.113.16/29"
[nat.pools.vpp]
addresses = "203.0.113.24/29"
engine = "%s"
[[nat.source]]
name = "xdp"
from = "lan"
to = "wan"
source = "10.1.0.0/25"
translate = {{ pool = "xdp" }}
[[nat.source]]
name = "vpp"
from = "lan"
to = "wan"
source = "10.1.0.128/25"
translate = {{ pool = "vpp" }}
"""
MASQUERADE = """
table ip bench {
	chain out {
		type nat hook postrouting priority srcnat;
		oifname "wan0" masquerade
	}
}
"""


@dataclass(frozen=True, slots=True)
class Way:
    """A way of translation. ``forget`` ends all sessions, ``session_bytes`` is what one takes."""

    name: str
    box: FirewallBox
    known: Sender
    new: Sender
    forget: Callable[[], None]
    session_bytes: Callable[[], float]

    def packets(self, seconds: float) -> Window:
        """Of flows that are known already. Raises BenchError if they could not be begun."""
        self.forget()
        for _ in range(5):  # a few may be lost on the way to VPP
            self._window(self.known, KNOWN, seconds)
        return self._window(self.known, None, seconds)

    def flows(self, seconds: float) -> Window:
        """Each packet is the first one of a flow; to the end of the time or of the flows, whatever comes first."""
        self.forget()
        return self._window(self.new, FLOWS, seconds)

    def _window(self, sender: Sender, frames: int | None, seconds: float) -> Window:
        sent, before, began = 0, self._delivered(), time.monotonic()
        while time.monotonic() - began < seconds and (frames is None or sent < frames):
            sent += sender.send(BATCH if frames is None else frames - sent)
        took = time.monotonic() - began
        sender.rewind()
        delivered = self._settled() - before
        if not 0 < delivered <= sent:
            raise BenchError(f"{self.name}: {delivered} of {sent} packets came out")
        return Window(took, sent, delivered)

    def _settled(self) -> int:
        last, since = self._delivered(), time.monotonic()
        while time.monotonic() - since < SETTLED_SECONDS:
            time.sleep(SETTLED_SECONDS / 10)
            if (now := self._delivered()) != last:
                last, since = now, time.monotonic()
        return last

    def _delivered(self) -> int:
        said = self.box.on(SERVER, "ethtool", "-S", "s0")
        counts = re.findall(r"rx_queue_\d+_xdp_drops: (\d+)", said)
        if not counts:
            raise BenchError("this kernel does not count what the queues of a veth drop")
        return sum(map(int, counts))


def _frames(box: FirewallBox, first: str, count: int) -> list[bytes]:
    """The first packets of so many flows, from a hundred clients."""
    head = mac_address(box.name, "lan0") + mac_address(box.namespace(CLIENT), "c0") + IPV4_TYPE
    clients = [IPv4Address(first) + number for number in range(100)]
    return [
        head
        + udp4(clients[number % 100], FIRST_PORT + number % PORTS, SERVERS + number // PORTS, 53, b"benchmark of NAT")
        for number in range(count)
    ]


def _raise(folder: Path, stack: ExitStack) -> FirewallBox:
    box = FirewallBox(folder)
    stack.callback(box.lower)
    box.raise_()
    box.on(SERVER, "ip", "-force", "link", "set", "s0", "xdpdrv", "obj", str(box.compile("sink", SINK)), "sec", "xdp")
    server = mac_address(box.namespace(SERVER), "s0").hex(":")
    box.on(GATEWAY, *f"ip neigh replace {ADDRESSES[SERVER][0]} lladdr {server} dev wan0 nud permanent".split())
    return box


def _way(
    name: str, box: FirewallBox, first: str, stack: ExitStack, forget: Callable[[], None], size: Callable[[], float]
) -> Way:
    senders = [Sender(box.namespace(CLIENT), "c0", _frames(box, first, count)) for count in (KNOWN, FLOWS)]
    for sender in senders:
        stack.callback(sender.close)
    return Way(name, box, *senders, forget, size)


def _kernel(folder: Path, stack: ExitStack) -> Way:
    box = _raise(folder, stack)
    rules = folder / "masquerade.nft"
    rules.write_text(MASQUERADE)
    box.on(GATEWAY, "nft", "-f", str(rules))

    def forget() -> None:
        with box.inside(GATEWAY), NFCTSocket() as conntrack:
            conntrack.flush()

    def size() -> float:
        """By what the kernel's slabs grow."""
        forget()
        before = _unreclaimable()
        way.flows(60)
        count = int(box.on(GATEWAY, "sysctl", "-n", "net.netfilter.nf_conntrack_count"))
        return (_unreclaimable() - before) / count

    way = _way("nftables", box, "10.1.0.10", stack, forget, size)
    return way


def _unreclaimable() -> int:
    found = re.search(r"^SUnreclaim:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    if found is None:
        raise BenchError("the kernel does not tell its slabs")
    return int(found[1]) << 10


def _gateway(folder: Path, stack: ExitStack) -> Iterator[Way]:
    """With VPP's memory measured before its pool is made, and after."""
    box = _raise(folder, stack)
    paths, control = VppPaths(box.run_dir.resolve()), locate_vpp().vppctl
    if control is None:
        raise BenchError("vppctl is not installed")

    def ask(*words: str) -> str:
        command = [str(control), "-s", str(paths.cli_socket), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        _must(done)
        return done.stdout

    box.write(CONFIGURATION % "xdp")
    stack.callback(box.gw, "vpp", "down")
    _must(box.gw("vpp", "up"))
    box.run()
    before = _free(paths)
    box.write(CONFIGURATION % "vpp")
    _must(box.gw("reload"))
    until(lambda: box.ask("nat")["state"] == "VPP", "VPP translates")
    until(lambda: _free(paths) < before, "VPP's table is made")
    taken = before - _free(paths)
    threads = len(re.findall(r"^\d+ ", ask("show", "threads"), re.MULTILINE))
    room = threads * int(box.ask("nat")["most"])

    def forget() -> None:
        _must(box.gw("clear", "sessions", "--all"))
        ask("clear", "nat44", "ed", "sessions")

    def of_xdp() -> float:
        """Two entries of the map."""
        fd = libbpf.open_pin(box.pins / "maps" / SESSIONS.name)
        try:
            locked = re.search(r"^memlock:\s+(\d+)$", Path(f"/proc/self/fdinfo/{fd}").read_text(), re.MULTILINE)
            entries = libbpf.map_info(fd).max_entries
        finally:
            os.close(fd)
        if locked is None:
            raise BenchError("this kernel does not tell what a map takes")
        return 2 * int(locked[1]) / entries

    yield _way("XDP", box, "10.1.0.10", stack, forget, of_xdp)
    yield _way("VPP", box, "10.1.0.130", stack, forget, lambda: of_xdp() + taken / room)


def _free(paths: VppPaths) -> int:
    segment = StatsSegment(paths.stats_socket)
    try:
        return segment.simple(HEAP)[HEAP_FREE]
    finally:
        segment.close()


def _must(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        raise BenchError(done.stderr + done.stdout)


@contextmanager
def world() -> Iterator[tuple[Way, ...]]:
    """Build it; leaves nothing behind. Everything but VPP is on the first processor."""
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="igwf-"))) for _ in range(2)]
        ways = (_kernel(folders[0], stack), *_gateway(folders[1], stack))
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        yield ways
