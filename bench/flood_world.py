"""The firewall between a LAN and a WAN, a TCP stream through it on one processor, a generator of SYNs on another.

    client -- lan0 [gateway, the real daemon] wan0 -- server, where the generator is as well

A wire has a queue for each processor, as a NIC has: a frame is taken from the wire by the processor that put it there,
so what comes from the generator's processor is judged on it, with all that follows from it, and the stream on its own.
Both hosts send whole frames of wire size (no offloads). Nothing is redirected to a veth: XDP judges the stream, and the
kernel forwards it on the same processor.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import socket
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from ipaddress import IPv4Address
from pathlib import Path

from bench.flood_report import Window
from bench.machine import BenchError
from ipsec_gw.lab.flood import BATCH, Flooded, Sender
from ipsec_gw.lab.junk import IPV4_TYPE, SOURCES, SYN
from ipsec_gw.lab.netns import mac_address, wire_checksums
from ipsec_gw.lab.packets import tcp4
from tests.integration.firewall_world import CLIENT, DMZ, GATEWAY, LAN_MTU, SERVER, WAN, FirewallBox, address
from xdp_steer.reasons import Reason

STREAM, ASKED = 7000, 80
"""TCP ports: of the stream, and of the service that is flooded."""

ALLOWED = 200
"""SYNs per second below the flood's threshold."""

FOREMOST = -20
"""The nice value of all of it: other work gets what is left. It neither slows down the generator nor, driven from its
processor to the other one, the stream.
"""

SESSION = Path("/proc/self/autogroup")
"""The nice value of the session, where the kernel shares processors out to sessions first (CONFIG_SCHED_AUTOGROUP). It
can be read, but is empty, for a process outside of every session's group (kernel/sched/autogroup.c).
"""

TEMPLATES, SEED = 16 * BATCH, 20_260
BLOCK = 1 << 16
IN_FLIGHT = 1 << 17
"""Bytes of the stream: less than the 256 frames of a wire's ring, so that nothing is lost but to the flood."""

_OF_STREAM = (Reason.FORWARDED, Reason.TO_KERNEL, Reason.EGRESS_SESSION)
_TCP_INFO = struct.Struct("=100xI24xQ")
"""``struct tcp_info`` of ``linux/tcp.h``: ``tcpi_total_retrans`` and ``tcpi_bytes_received``."""

_FIRST, _SECOND, *_ = SOURCES.network_address.packed
SINK = f"""
struct xdp_md {{ unsigned int data, data_end; }};
__attribute__((section("xdp"), used)) int sink(struct xdp_md *ctx)
{{
	unsigned char *frame = (void *)(long)ctx->data;

	if (frame + 34 > (unsigned char *)(long)ctx->data_end || frame[12] != 8 || frame[13])
		return 2;
	return frame[30] == {_FIRST} && (frame[31] & 0xfe) == {_SECOND} ? 1 : 2;
}}
"""
"""Answers to the flood's sources (a /15) end where they arrive: the wire would have taken them away."""

CONFIGURATION = f"""
[gateway]
engine = "kernel"
wan = ["wan0"]
[zones.lan]
interfaces = ["lan0"]
[zones.wan]
interfaces = ["wan0"]
screen = "flood"
[firewall]
default_policy = "permit"
[screens.flood]
syn_flood = {ALLOWED}
syn_cookie = %s
"""


def cpu_mask(cpu: int) -> str:
    """As sysfs wants it: words of 32 bits, the highest one first."""
    return ",".join([f"{1 << cpu % 32:x}", *["00000000"] * (cpu // 32)])


class World:
    """What a benchmark does with it. Made by :func:`world`."""

    def __init__(self, box: FirewallBox, cpu: int, sender: socket.socket, receiver: socket.socket) -> None:
        """``cpu`` is the stream's."""
        self._box, self._cpu, self._sender, self._receiver = box, cpu, sender, receiver
        frames = _syns(mac_address(box.name, "wan0"), mac_address(box.namespace(SERVER), "s0"))
        self._flood = Sender(box.namespace(SERVER), "s0", frames)
        self._nowhere = Sender(box.namespace(SERVER), "n0", frames)

    def cookies(self, wanted: bool) -> None:
        """Answer SYNs beyond the threshold, or drop them."""
        self._box.write(CONFIGURATION % str(wanted).lower())
        done = self._box.gw("reload")
        if done.returncode:
            raise BenchError(done.stderr)

    def alone(self, seconds: float) -> Window:
        """The stream, and nothing else."""
        return self._window(seconds, None)

    def beside(self, seconds: float) -> Window:
        """The generator sends to a wire that leads nowhere."""
        return self._window(seconds, self._nowhere)

    def flooded(self, seconds: float) -> Window:
        """The generator sends to the firewall as fast as it can. Raises BenchError if it was judged with the stream."""
        before = self._judged_beside_stream()
        window = self._window(seconds, self._flood)
        if (strays := self._judged_beside_stream() - before) > window.sent / 100:
            raise BenchError(f"{strays} packets of the flood were judged on the stream's processor")
        return window

    def _window(self, seconds: float, sender: Sender | None) -> Window:
        before, (again, received), began = self._verdicts(), self._counts(), time.monotonic()
        flooded = _send(sender, seconds)
        took, (again_after, received_after) = time.monotonic() - began, self._counts()
        counted = self._verdicts() - before
        judged = max(counted.pop(reason.label, 0) for reason in _OF_STREAM)
        if not 0 < received_after - received <= judged * LAN_MTU:
            raise BenchError("the stream stood still, or did not take the way through the firewall")
        return Window(took, received_after - received, again_after - again, flooded.sent, counted)

    def _judged_beside_stream(self) -> int:
        """Frames of the WAN that XDP dropped or answered on the stream's processor, since the beginning."""
        said = self._box.on(GATEWAY, "ethtool", "-S", "wan0")
        found = re.findall(rf"rx_queue_{self._cpu}_xdp_(?:drops|tx): (\d+)", said)
        if len(found) != 2:
            raise BenchError("this kernel does not count what the queues of a veth do")
        return sum(map(int, found))

    def _verdicts(self) -> Counter[str]:
        return Counter(self._box.ask("status")["verdicts"])

    def _counts(self) -> tuple[int, int]:
        """Segments sent again, bytes delivered."""
        again, _ = _info(self._sender)
        _, received = _info(self._receiver)
        return again, received

    def close(self) -> None:
        """Give the generator's sockets back."""
        self._flood.close()
        self._nowhere.close()


def _info(connection: socket.socket) -> tuple[int, int]:
    again, received = _TCP_INFO.unpack(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))
    return int(again), int(received)


def _send(sender: Sender | None, seconds: float) -> Flooded:
    """At full rate, or nothing, for so long."""
    sent, began = 0, time.monotonic()
    if sender is None:
        time.sleep(seconds)
    else:
        while time.monotonic() - began < seconds:
            sent += sender.send(BATCH)
    return Flooded(sent, time.monotonic() - began)


def _syns(to_mac: bytes, from_mac: bytes) -> list[bytes]:
    """From addresses that are nobody's, each its own, to one service on the client."""
    chance = random.Random(SEED)
    head, called = to_mac + from_mac + IPV4_TYPE, IPv4Address(address(CLIENT, socket.AF_INET))
    sources = (SOURCES[number] for number in chance.sample(range(1, SOURCES.num_addresses - 1), TEMPLATES))
    return [head + tcp4(source, chance.randrange(1024, 1 << 16), called, ASKED, SYN) for source in sources]


def _pour(connection: socket.socket, cpu: int) -> None:
    os.sched_setaffinity(0, {cpu})
    block = bytes(BLOCK)
    while True:
        connection.sendall(block)


def _drain(connection: socket.socket, cpu: int) -> None:
    os.sched_setaffinity(0, {cpu})
    buffer = bytearray(4 * BLOCK)
    while connection.recv_into(buffer):
        pass


@contextmanager
def _stream(box: FirewallBox, cpu: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """An established connection from LAN to WAN, never idle, both of its ends on a processor."""
    with closing(box.listen(SERVER, STREAM)) as listener, closing(box.tcp(CLIENT)) as sender:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, IN_FLIGHT)
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")  # always there, and without a pace
        sender.connect((address(SERVER, socket.AF_INET), STREAM))
        with closing(listener.accept()[0]) as receiver:
            sender.setblocking(True)
            receiver.setblocking(True)
            fork = multiprocessing.get_context("fork")
            ends = [
                fork.Process(target=work, args=(end, cpu), daemon=True)
                for work, end in ((_drain, receiver), (_pour, sender))
            ]
            for end in ends:
                end.start()
            try:
                yield sender, receiver
            finally:
                for end in ends:
                    end.terminate()
                    end.join()


def _arrange(box: FirewallBox, cpus: tuple[int, int]) -> None:
    """Whole frames from both hosts, by the queue of the processor; a wire that leads nowhere; an end for answers."""
    box.wire(SERVER, "n0", DMZ, "n1")
    box.on(SERVER, "ip", "-force", "link", "set", "s0", "xdpdrv", "obj", str(box.compile("sink", SINK)), "sec", "xdp")
    box.route(SERVER, "10.0.0.0/8", WAN[0])
    for host, device in ((CLIENT, "c0"), (SERVER, "s0")):
        wire_checksums(box.namespace(host), device)
        # sysfs shows the devices of the namespace that mounted it.
        lines = [f"echo {cpu_mask(cpu)} >/sys/class/net/{device}/queues/tx-{cpu}/xps_cpus" for cpu in cpus]
        box.on(host, "unshare", "--mount", "sh", "-c", " && ".join(["mount -t sysfs sysfs /sys", *lines]))


@contextmanager
def _foremost() -> Iterator[None]:
    """Before all other processes, with all that is started; and as a session."""
    os.setpriority(os.PRIO_PROCESS, 0, FOREMOST)
    told = SESSION.read_text().split() if SESSION.exists() else []
    if not told:
        yield
        return
    before = told[-1]
    SESSION.write_text(str(FOREMOST))
    try:
        yield
    finally:
        SESSION.write_text(before)


@contextmanager
def world() -> Iterator[World]:
    """Build it, with everything but the stream on the generator's processor; leaves nothing behind.

    Raises BenchError with less than two processors.
    """
    cpus = tuple(sorted(os.sched_getaffinity(0))[:2])
    if len(cpus) < 2:
        raise BenchError("a flood and a stream need a processor each")
    generator, other = cpus
    os.sched_setaffinity(0, {generator})
    with _foremost(), tempfile.TemporaryDirectory(prefix="igwf-") as folder, ExitStack() as stack:
        box = FirewallBox(Path(folder))
        box.queues = other + 1
        stack.callback(box.lower)
        box.raise_()
        _arrange(box, (generator, other))
        box.write(CONFIGURATION % "true")
        box.run()
        made = World(box, other, *stack.enter_context(_stream(box, other)))
        stack.callback(made.close)
        yield made
