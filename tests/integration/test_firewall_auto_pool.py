"""Real sockets through a pool that is XDP's or VPP's by turns: a surge moves new flows, and no flow that there is."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

from tests.integration.conftest import until
from tests.integration.firewall_world import ADDRESSES, CLIENT, PATIENCE, SERVER, FirewallBox, exchange
from tests.integration.vpp_pool_world import CONFIGURATION, OF_VPP, OF_XDP, pool_box, where
from vpp_conf.paths import VppPaths
from vpp_conf.process import recorded

pytestmark = [
    pytest.mark.root,
    pytest.mark.vpp,
    pytest.mark.usefixtures("vpp"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
]

SEED = 20261
ECHO = 7100
SURGE = 60
"""New flows in a second; the tests make many more of them, and few otherwise."""
DWELL = 5
PART = 40_000
"""Bytes of a stream that go there and back at a time."""
AUTO = f"""engine = "auto"
promote_flows = {SURGE}
demote_flows = {SURGE // 2}
dwell = {DWELL}
"""
ENGINES = {"xdp": {OF_XDP}, "vpp": OF_VPP}


@pytest.fixture(scope="module")
def arena(vpp_installed: None) -> Iterator[FirewallBox]:
    pool = CONFIGURATION.split("[nat.pools.fast]")
    with pool_box("[nat.pools.fast]".join((pool[0], pool[1].replace('engine = "vpp"\n', AUTO, 1)))) as box:
        yield box


@pytest.fixture
def box(arena: FirewallBox) -> FirewallBox:
    """VPP is there, and the pool is XDP's."""
    until(lambda: arena.ask("nat")["state"] == "VPP", "VPP translates")
    until(lambda: auto(arena)["engine"] == "xdp", "the pool is XDP's")
    return arena


def auto(box: FirewallBox) -> Any:
    """What is told of the pool."""
    (pool,) = box.ask("nat")["pools"]
    return pool["auto"]


class Flow:
    """Datagrams of one flow, or a stream; each :meth:`talk` compares what came back with what was sent."""

    def __init__(self, box: FirewallBox, kind: str, number: int) -> None:
        self._random = random.Random(SEED + number)
        self._stack = ExitStack()
        self._stream = kind == "tcp"
        if self._stream:
            self._near, listener = box.tcp(CLIENT), box.listen(SERVER, ECHO)
            with closing(listener):
                self._near.connect((ADDRESSES[SERVER][0], ECHO))
                self._far, self.source = listener.accept()
            self._far.settimeout(PATIENCE)
        else:
            self._near, self._far = box.udp(CLIENT), box.udp(SERVER)
            self.source = exchange(self._near, where(self._far), self._far, self._random.randbytes(64))
        for one in (self._near, self._far):
            self._stack.callback(one.close)

    def talk(self) -> None:
        """There and back once more, from the same address as ever."""
        data = self._random.randbytes(PART if self._stream else 800)
        if not self._stream:
            assert exchange(self._near, where(self._far), self._far, data) == self.source
            return
        for one, other in ((self._near, self._far), (self._far, self._near)):
            one.sendall(data)
            assert read(other, len(data)) == data

    def close(self) -> None:
        self._stack.close()


def read(stream: socket.socket, octets: int) -> bytes:
    parts = bytearray()
    while len(parts) < octets:
        part = stream.recv(octets - len(parts))
        assert part, "the stream has ended"
        parts += part
    return bytes(parts)


def one_flow(box: FirewallBox, receiver: socket.socket) -> str:
    """The address that a new flow comes from."""
    with closing(box.udp(CLIENT)) as sender:
        return str(exchange(sender, where(receiver), receiver, b"one of many")[0])


def surge(box: FirewallBox) -> None:
    """New flows one after the other, until they are VPP's."""
    with closing(box.udp(SERVER)) as receiver:
        begun, flows = time.monotonic(), 0

        def moved() -> bool:
            nonlocal flows
            for _ in range(20):
                flows += 1
                if one_flow(box, receiver) in OF_VPP:
                    return True
            return False

        until(moved, "new flows are VPP's")
        print(f"{flows} flows in {time.monotonic() - begun:.2f} s until the first one of VPP's")
    until(lambda: auto(box)["engine"] == "vpp", "the daemon says so")


def begin(box: FirewallBox, engine: str) -> list[Flow]:
    """Flows of the engine whose the pool is."""
    made = [Flow(box, kind, number) for number, kind in enumerate(("udp", "tcp"))]
    for flow in made:
        assert flow.source[0] in ENGINES[engine]
        flow.talk()
    return made


def talked(flows: list[Flow]) -> bool:
    """All of them have."""
    for flow in flows:
        flow.talk()
    return True


def close(flows: list[Flow]) -> None:
    for flow in flows:
        flow.close()


def test_a_surge_moves_new_flows_there_and_its_end_back_and_no_flow_is_broken(box: FirewallBox) -> None:
    with ExitStack() as stack:
        flows = begin(box, "xdp")
        stack.callback(close, flows)
        for _ in range(2):
            surge(box)
            flows.extend(begin(box, "vpp"))
            until(lambda: talked(flows) and auto(box)["engine"] == "xdp", "the pool is XDP's again")
            flows.extend(begin(box, "xdp"))
            talked(flows)


def test_what_is_shown(box: FirewallBox) -> None:
    told = auto(box)
    assert told["nextMove"] == {"engine": "vpp", "seconds": 0, "newFlowsPerSecond": SURGE, "packetsPerSecond": 300_000}
    assert f"VPP's from {SURGE} or 300,000" in " ".join(box.gw("show", "nat").stdout.split())
    surge(box)
    until(lambda: auto(box)["newFlowsPerSecond"] < SURGE // 2, "the rate falls")
    assert auto(box)["nextMove"]["seconds"] <= DWELL
    assert "pool fast is " in box.gw("show", "nat").stdout
    until(lambda: auto(box)["engine"] == "xdp", "the pool is XDP's again")


def test_other_limits_hold_after_a_reload(box: FirewallBox) -> None:
    """Though nothing changes in the data path."""
    assert box.config is not None
    written = box.config.read_text()
    try:
        box.write(written.replace(f"promote_flows = {SURGE}\n", "promote_flows = 100000\n"))
        assert f"promote flows {SURGE} -> 100000" in box.gw("plan").stdout
        assert box.gw("reload").returncode == 0
        assert auto(box)["nextMove"]["newFlowsPerSecond"] == 100_000
        assert "promote" not in box.gw("plan").stdout
    finally:
        box.write(written)
        assert box.gw("reload").returncode == 0
    assert auto(box)["nextMove"]["newFlowsPerSecond"] == SURGE


def test_a_daemon_that_comes_back_finds_the_pool_as_it_was(box: FirewallBox) -> None:
    surge(box)
    daemon = next(child for child in box.children if child.poll() is None and "run" in child.args)
    daemon.send_signal(signal.SIGKILL)
    daemon.wait(PATIENCE)
    with closing(box.udp(SERVER)) as receiver:
        assert one_flow(box, receiver) in OF_VPP
        flows = begin(box, "vpp")
        box.run()
        talked(flows)
        until(lambda: auto(box)["engine"] == "xdp", "the pool is XDP's again")
        assert one_flow(box, receiver) == OF_XDP
        talked(flows)
        close(flows)


def test_a_pool_that_is_vpps_is_xdps_without_vpp(box: FirewallBox) -> None:
    flows = begin(box, "xdp")
    surge(box)
    process = recorded(VppPaths(box.run_dir.resolve()).pid_file)
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: box.ask("nat")["state"] != "VPP", "the daemon knows")
    with closing(box.udp(SERVER)) as receiver:
        assert one_flow(box, receiver) == OF_XDP
    talked(flows)
    close(flows)
    assert box.gw("vpp", "up").returncode == 0
