"""Reloads and crashes lose no packet and no session of permitted streams, and let nothing of a denied one through."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

import pytest

from tests.integration.conftest import until
from tests.integration.firewall_world import (
    CLIENT,
    PATIENCE,
    SERVER,
    WAN,
    FirewallBox,
    address,
    firewall_box,
)

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
    pytest.mark.timeout(600),
]

RELOADS = int(os.environ.get("HITLESS_RELOADS", "200"))
RESTARTS = int(os.environ.get("HITLESS_RESTARTS", "20"))
PACKETS_PER_SECOND = 1000
STREAM, DENIED, CONNECTION, ROOM = 7000, 7001, 7002, 32 << 20
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
NUMBER = struct.Struct("!Q")

CONFIGURATION = """
[gateway]
engine = "kernel"
wan = ["wan0"]
[zones.lan]
interfaces = ["lan0"]
host_inbound = ["ping"]
[zones.wan]
interfaces = ["wan0"]
[applications.denied]
protocol = "udp"
destination_port = 7001
[[policies]]
name = "stop"
from = "lan"
to = "wan"
application = "denied"
action = "deny"
[[policies]]
name = "out"
from = "lan"
to = "wan"
action = "permit"
[[nat.source]]
name = "masquerade"
from = "lan"
to = "wan"
translate = "interface"
"""
OTHER = """
[[policies]]
name = "other-{0}"
from = "wan"
to = "lan"
source = "203.0.113.{0}"
action = "permit"
"""
OTHERS = "".join(OTHER.format(number) for number in range(1, 21))
PER_PACKET = """
[filters.both]
input = "lan0"
output = "wan0"
terms = [
  { name = "elsewhere", destination = "203.0.113.0/24", action = "discard" },
  { name = "rest", mark = "af11", policer = "wide" },
]
[policers.wide]
rate = "10G"
burst = 100000000
[screens.wide]
land = true
syn_flood = 100000
syn_cookie = true
"""
ALTERNATIVES = (
    CONFIGURATION,
    CONFIGURATION.replace('interfaces = ["lan0"]', 'interfaces = ["lan0"]\nscreen = "wide"') + PER_PACKET,
    CONFIGURATION + '[zones.dmz]\ninterfaces = ["dmz0"]\n' + OTHERS,
    CONFIGURATION.replace('action = "deny"', 'action = "reject"'),
    CONFIGURATION.replace("[[nat.source]]", OTHERS + "[[nat.source]]"),
)
"""Each changes rows, numbers or zones around the two rules that the streams are judged by."""


class Streams:
    """Numbered datagrams, a denied stream beside them and an established TCP connection, all of them at once."""

    def __init__(self, box: FirewallBox, stack: ExitStack) -> None:
        self.to = address(SERVER, socket.AF_INET)
        self.sender = stack.enter_context(closing(box.udp(CLIENT)))
        self.denied = stack.enter_context(closing(box.udp(CLIENT)))
        self.receiver = stack.enter_context(closing(box.udp(SERVER, port=STREAM)))
        self.caught = stack.enter_context(closing(box.udp(SERVER, port=DENIED)))
        self.receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM)
        listener = stack.enter_context(closing(box.listen(SERVER, CONNECTION)))
        self.connection = stack.enter_context(closing(box.tcp(CLIENT)))
        self.connection.connect((self.to, CONNECTION))
        self.peer = stack.enter_context(closing(listener.accept()[0]))
        self.peer.settimeout(PATIENCE)
        self.sent = 0
        self.refused = 0
        self.arrived: list[int] = []
        self.sources: set[tuple[str, int]] = set()
        self.over = threading.Event()

    def send(self) -> None:
        """Until it is over: at its rate, or as fast as it can where it has fallen behind."""
        started = time.monotonic()
        while not self.over.is_set():
            due = int((time.monotonic() - started) * PACKETS_PER_SECOND)
            while self.sent <= due:
                self.sender.sendto(NUMBER.pack(self.sent), (self.to, STREAM))
                self.sent += 1
                self.denied.sendto(b"denied", (self.to, DENIED))
                self.refused += 1
            self.over.wait(0.5 / PACKETS_PER_SECOND)

    def receive(self) -> None:
        """Until it is over and nothing more comes."""
        self.receiver.settimeout(0.5)
        while True:
            try:
                data, source = self.receiver.recvfrom(64)
            except TimeoutError:
                if self.over.is_set():
                    return
                continue
            self.arrived.append(NUMBER.unpack(data)[0])
            self.sources.add(source)

    def talk(self, number: int) -> None:
        """A few bytes there and back over the connection."""
        self.connection.sendall(NUMBER.pack(number))
        assert NUMBER.unpack(self.peer.recv(NUMBER.size, socket.MSG_WAITALL))[0] == number
        self.peer.sendall(NUMBER.pack(~number & 0xFFFFFFFF))
        assert NUMBER.unpack(self.connection.recv(NUMBER.size, socket.MSG_WAITALL))[0] == ~number & 0xFFFFFFFF


@contextmanager
def streams(box: FirewallBox) -> Iterator[Streams]:
    """Streams that run meanwhile, and what has to be true of them afterwards."""
    with ExitStack() as stack:
        running = Streams(box, stack)
        threads = [threading.Thread(target=work) for work in (running.send, running.receive)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: len(running.arrived) > PACKETS_PER_SECOND / 10, "the stream flows")
            yield running
        finally:
            running.over.set()
            for thread in threads:
                thread.join(PATIENCE)
        running.talk(1)
        missing = sorted(set(range(running.sent)) - set(running.arrived))
        print(f"{running.sent} packets, {len(missing)} lost, {running.refused} denied")
        assert missing == [], f"{len(missing)} of {running.sent} lost"
        assert len(running.arrived) == running.sent, "none came twice"
        assert {host for host, _ in running.sources} == {WAN[0]}
        assert len(running.sources) == 1, "another session would have had another port"
        running.caught.settimeout(0)
        with pytest.raises(BlockingIOError):
            running.caught.recv(64)
        assert running.refused > PACKETS_PER_SECOND / 10


def own_sessions(box: FirewallBox) -> dict[int, int]:
    """The number of the session of each stream."""
    return {port: one["id"] for port in (STREAM, CONNECTION) for one in box.sessions(port=port)}


@pytest.fixture
def box() -> Iterator[FirewallBox]:
    with firewall_box() as made:
        yield made


def test_reloads_lose_nothing(box: FirewallBox) -> None:
    path = box.write(CONFIGURATION)
    box.run()
    with streams(box) as running:
        before = own_sessions(box)
        assert set(before) == {STREAM, CONNECTION}
        for number in range(1, RELOADS + 1):
            path.write_text(ALTERNATIVES[number % len(ALTERNATIVES)])
            assert box.ask("reload")["changes"], number
            running.talk(number)
        assert own_sessions(box) == before


def test_kills_and_restarts_lose_nothing(box: FirewallBox) -> None:
    box.write(CONFIGURATION)
    child = box.run()
    with streams(box) as running:
        before = own_sessions(box)
        for number in range(1, RESTARTS + 1):
            box.stop(child, signal.SIGKILL)
            running.talk(number)
            child = box.run()
            assert "compiled" not in box.log(child)
            running.talk(number)
        assert own_sessions(box) == before


def test_kills_during_a_reload_lose_nothing(box: FirewallBox) -> None:
    """The daemon dies somewhere in its writes; the next one puts right what was left, on another ruleset."""
    path = box.write(CONFIGURATION)
    child = box.run()
    with streams(box) as running:
        before = own_sessions(box)
        for number in range(1, RESTARTS + 1):
            path.write_text(ALTERNATIVES[number % len(ALTERNATIVES)])
            with closing(socket.socket(socket.AF_UNIX)) as channel:
                channel.connect(str(box.run_dir / "control.sock"))
                channel.sendall(b"reload\n")
                channel.settimeout(0.003 * number)
                with suppress(TimeoutError):
                    channel.recv(1)
            box.stop(child, signal.SIGKILL)
            running.talk(number)
            child = box.run()
            running.talk(number)
        assert own_sessions(box) == before
