"""A gateway between real hosts, each in a network namespace of its own, driven by the daemon and real sockets.

    client, inner (10.1.0.0/24) -- lan0 [gateway] wan0 -- (192.0.2.0/24) server -- (198.51.100.0/24, MTU 1300) far
                                         [gateway] dmz0 -- (10.2.0.0/24) dmz

Hosts have IPv6 addresses 2001:db8:N::H beside them. Sockets are made in a namespace and used from the test's thread.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ipsec_gw.observe import control
from tests.integration.conftest import Box, until
from tests.support.netns import enter_namespace
from xdp_steer.reasons import Reason

CLIENT, INNER, SERVER, DMZ, FAR = "client", "inner", "server", "dmz", "far"
GATEWAY = "gateway"
LAN_MTU, FAR_MTU = 1500, 1300

ADDRESSES = {
    CLIENT: ("10.1.0.9", "2001:db8:1::9"),
    INNER: ("10.1.0.8", "2001:db8:1::8"),
    SERVER: ("192.0.2.9", "2001:db8:2::9"),
    DMZ: ("10.2.0.9", "2001:db8:3::9"),
    FAR: ("198.51.100.9", "2001:db8:4::9"),
}
LAN, WAN, INSIDE = ("10.1.0.1", "2001:db8:1::1"), ("192.0.2.1", "2001:db8:2::1"), ("10.2.0.1", "2001:db8:3::1")
"""The gateway's own addresses."""
PATIENCE = 20.0
"""Seconds after which a socket gives up waiting for what has to come."""

PASS_ALL = '__attribute__((section("xdp"), used)) int pass_all(void *ctx) { return 2; }\n'
"""A veth takes XDP frames (answers, redirected packets) only with a program of its own."""

_LINKS = (("lan0", CLIENT, "c0"), ("wan0", SERVER, "s0"), ("dmz0", DMZ, "d0"))


def address(host: str, family: int) -> str:
    """A host's address of a family."""
    return ADDRESSES[host][family == socket.AF_INET6]


class FirewallBox(Box):
    """The gateway and its neighbours. :meth:`raise_` builds the network, :meth:`lower` takes all of it away."""

    queues = 1
    """Of each end of every wire, both ways."""

    neighbour_tries = int(PATIENCE)
    """Seconds that a packet waits for its neighbour. The kernel's own 3 are few for a machine that may stand still."""

    def raise_(self) -> None:
        for host in (GATEWAY, *ADDRESSES):
            subprocess.run(["ip", "netns", "add", self.namespace(host)], check=True)
            self.on(host, "sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
            self.on(host, "ip", "link", "set", "lo", "up")
        program = self.compile("pass", PASS_ALL)
        for near, host, end in _LINKS:
            self.wire(GATEWAY, near, host, end)
            self.on(host, "ip", "link", "set", end, "xdpdrv", "obj", str(program), "sec", "xdp")
        self.wire(SERVER, "f1", FAR, "f0", mtu=FAR_MTU)
        self.on(CLIENT, "ip", "link", "add", "link", "c0", "name", "m0", "type", "macvlan", "mode", "bridge")
        self.on(CLIENT, "ip", "link", "set", "m0", "netns", self.namespace(INNER))
        self.on(INNER, "ip", "link", "set", "m0", "up")
        for host in (GATEWAY, SERVER):
            self.on(host, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        for host, device in ((CLIENT, "c0"), (INNER, "m0"), (SERVER, "s0"), (DMZ, "d0"), (FAR, "f0")):
            self.addresses(host, device, *ADDRESSES[host])
        for device, ours in (("lan0", LAN), ("wan0", WAN), ("dmz0", INSIDE)):
            self.addresses(GATEWAY, device, *ours)
        self.addresses(SERVER, "f1", "198.51.100.1", "2001:db8:4::1")
        for host, (via, via6) in ((CLIENT, LAN), (INNER, LAN), (DMZ, INSIDE), (FAR, ("198.51.100.1", "2001:db8:4::1"))):
            self.route(host, "default", via)
            self.route(host, "default", via6)
        self.route(GATEWAY, "default", ADDRESSES[SERVER][0])
        self.route(GATEWAY, "default", ADDRESSES[SERVER][1])
        self.route(SERVER, "2001:db8::/32", WAN[1])

    def compile(self, name: str, text: str) -> Path:
        """An XDP program in the section ``xdp``, as a file."""
        source = self.tmp / f"{name}.c"
        source.write_text(text)
        program = source.with_suffix(".o")
        subprocess.run(["clang", "-O2", "-target", "bpf", "-c", source, "-o", program], check=True)
        return program

    def namespace(self, host: str) -> str:
        """The name of a host's namespace."""
        return self.name if host == GATEWAY else f"{self.name}-{host}"

    def wire(self, one: str, device: str, other: str, end: str, mtu: int = LAN_MTU) -> None:
        """A veth pair between two hosts, up."""
        shape = ("mtu", str(mtu), "numtxqueues", str(self.queues), "numrxqueues", str(self.queues))
        words = ("type", "veth", "peer", "name", end, *shape, "netns", self.namespace(other))
        self.on(one, "ip", "link", "add", device, *shape, *words)
        self.on(one, "ip", "link", "set", device, "up")
        self.on(other, "ip", "link", "set", end, "up")

    def addresses(self, host: str, device: str, *texts: str) -> None:
        """Addresses on a device; IPv6 at once, without duplicate address detection."""
        tries = [f"net.{family}.neigh.{device}.mcast_solicit={self.neighbour_tries}" for family in ("ipv4", "ipv6")]
        self.on(host, "sysctl", "-qw", *tries)
        for text in texts:
            words = (f"{text}/64", "nodad") if ":" in text else (f"{text}/24",)
            self.on(host, "ip", "addr", "add", words[0], "dev", device, *words[1:])

    def route(self, host: str, prefix: str, via: str) -> None:
        """A route of a host."""
        self.on(host, "ip", "-6" if ":" in via else "-4", "route", "replace", prefix, "via", via)

    def on(self, host: str, *words: str, check: bool = True) -> str:
        """Run a command on a host."""
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.namespace(host)}", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert not check or done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    @contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """The calling thread is on that host meanwhile."""
        home, there = (os.open(path, os.O_RDONLY) for path in ("/proc/thread-self/ns/net", self._path(host)))
        try:
            enter_namespace(there)
            yield
        finally:
            enter_namespace(home)
            os.close(home)
            os.close(there)

    def _path(self, host: str) -> str:
        return f"/run/netns/{self.namespace(host)}"

    def endpoint(self, host: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket on a host, with a deadline."""
        with self.inside(host):
            made = socket.socket(family, kind, protocol)
        made.settimeout(PATIENCE)
        return made

    def udp(self, host: str, family: int = socket.AF_INET, port: int = 0) -> socket.socket:
        """A UDP socket on a host, bound to a port of any address."""
        made = self.endpoint(host, family, socket.SOCK_DGRAM)
        made.bind(("", port))
        return made

    def listen(self, host: str, port: int, family: int = socket.AF_INET) -> socket.socket:
        """A TCP socket that listens on a host."""
        made = self.endpoint(host, family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("", port))
        made.listen(256)
        return made

    def tcp(self, host: str, family: int = socket.AF_INET) -> socket.socket:
        """A TCP socket on a host, not connected."""
        return self.endpoint(host, family, socket.SOCK_STREAM)

    def write(self, text: str, name: str = "ipsec-gw.toml") -> Path:
        """The configuration file that commands get from now on."""
        self.config = self.tmp / name
        self.config.write_text(text)
        return self.config

    def ask(self, question: str) -> Any:
        """The daemon's answer, without a process for it."""
        return control.ask(self.run_dir, question)

    def rule(self, name: str) -> int:
        """How many first packets a rule has seen."""
        found = [rule["packets"] for rule in self.ask("firewall")["rules"] if rule["name"] == name]
        assert len(found) == 1, f"{name}: {found}"
        return int(found[0])

    def verdict(self, reason: Reason) -> int:
        """How many packets left the pipeline for that reason."""
        verdicts = self.ask("status")["verdicts"]
        return int(verdicts.get(reason.label, 0) or verdicts.get(str(int(reason)), 0))

    def sessions(self, **wanted: Any) -> list[Any]:
        """The sessions that the daemon shows."""
        found: list[Any] = self.ask(f"sessions {json.dumps(wanted)}")["sessions"]
        return found

    def run(self, *words: str) -> subprocess.Popen[str]:
        """A scripted charon, if there is none yet, and the daemon."""
        if not self.vici.exists():
            self.charon()
        return self.daemon(*words)

    def lower(self) -> None:
        super().lower()
        for host in ADDRESSES:
            subprocess.run(["ip", "netns", "del", self.namespace(host)], check=False)


@contextmanager
def firewall_box(kind: type[FirewallBox] = FirewallBox) -> Iterator[FirewallBox]:
    """A network, and nothing of it afterwards."""
    tmp = Path(tempfile.mkdtemp(prefix="igwf-"))
    box = kind(tmp)
    try:
        box.raise_()
        yield box
    finally:
        for child in box.children:
            print("".join(line for line in box.log(child).splitlines(True) if '"event": "flow"' not in line))
        box.lower()
        shutil.rmtree(tmp)


def exchange(one: socket.socket, to: tuple[Any, ...], other: socket.socket, data: bytes = b"there") -> Any:
    """A datagram there and back. Returns the address that the other side saw."""
    one.sendto(data, to)
    seen, peer = other.recvfrom(1 << 16)
    assert seen == data
    other.sendto(data[::-1], peer)
    back, source = one.recvfrom(1 << 16)
    assert back == data[::-1]
    assert source[:2] == to[:2]
    return peer[:2]


def nothing(receiver: socket.socket) -> bool:
    """True if no datagram and no connection has come in."""
    receiver.setblocking(False)
    try:
        receiver.recv(1 << 16) if receiver.type == socket.SOCK_DGRAM else receiver.accept()
    except BlockingIOError:
        return True
    finally:
        receiver.settimeout(PATIENCE)
    return False


def transfer(client: socket.socket, to: tuple[Any, ...], listener: socket.socket, data: bytes) -> Any:
    """A TCP connection that carries the data there and back. Returns the address that the listener saw."""
    seen: list[Any] = []

    def serve() -> None:
        with suppress(OSError), listener.accept()[0] as peer:
            peer.settimeout(PATIENCE)
            seen.append(peer.getpeername()[:2])
            echo(peer)

    server = threading.Thread(target=serve)
    server.start()
    try:
        client.connect(to)
        assert send_and_read(client, data) == data
    finally:
        client.close()
        server.join(PATIENCE)
    return seen[0]


def echo(peer: socket.socket) -> None:
    """Send back what comes, until the other side has ended."""
    while data := peer.recv(1 << 16):
        peer.sendall(data)


def send_and_read(client: socket.socket, data: bytes) -> bytes:
    """Send from another thread what is read here, to the end."""
    sender = threading.Thread(target=lambda: (client.sendall(data), client.shutdown(socket.SHUT_WR)))
    sender.start()
    parts = []
    while part := client.recv(1 << 16):
        parts.append(part)
    sender.join(PATIENCE)
    return b"".join(parts)


def counted(box: FirewallBox, rule: str, act: Callable[[], Any], packets: int = 1) -> None:
    """Act, and wait until the rule has seen that many first packets more."""
    before = box.rule(rule)
    act()
    until(lambda: box.rule(rule) >= before + packets, f"{rule} has counted")


def ping(box: FirewallBox, host: str, to: str, data: bytes) -> socket.socket:
    """A host's socket that has sent an echo request with that data."""
    six = ":" in to
    family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
    made = box.endpoint(host, family, socket.SOCK_DGRAM, protocol)
    made.sendto(struct.pack("!BBHHH", 128 if six else 8, 0, 0, 0, 1) + data, (to, 0))
    return made
