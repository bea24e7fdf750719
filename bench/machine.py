"""A machine with the firewall on it, in a network namespace of its own: two zones, a rule table of any size, sessions.

    lan0   172.16.0.1/24   2001:db8:1::1/64    zone lan; 10.0.0.0/8 and 2001:db8:c::/64 are behind it
    wan0   192.0.2.1/24    2001:db8:a::1/64    zone wan, docked, an AF_XDP socket on it
    wild0                                      no zone

Nothing is sent or received by the interfaces: packets come by BPF_PROG_TEST_RUN.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scapy.packet import Packet

from bench.rearm import Rearm
from ipsec_gw.model.filters import Filter, FilterAction, FilterTerm, Policer
from ipsec_gw.model.firewall import (
    Action,
    Nat64,
    Nptv6,
    Policy,
    Pool,
    Ruleset,
    Service,
    Sessions,
    SourceNat,
    Timeouts,
    Translation,
    Zone,
)
from ipsec_gw.model.ids import SaKey
from ipsec_gw.model.screens import Screens
from tests.support.netns import namespace
from xdp_steer import libbpf, tables
from xdp_steer.compile.ids import Ids, assign
from xdp_steer.compile.rows import PortInfo, Rows
from xdp_steer.compile.ruleset import compile_ruleset
from xdp_steer.firewall import Firewall
from xdp_steer.flow_layout import FlowKeyLeaf, NameKind, SessionLeaf, State
from xdp_steer.gateway import Role, Steering
from xdp_steer.layout import Control
from xdp_steer.prog_run import RunResult, XdpAction, prog_run
from xdp_steer.reasons import Reason
from xdp_steer.screen_layout import Screen
from xdp_steer.sessions import KEY, ROW, Flow, SessionTable, partner_key
from xdp_steer.xsk import XskSocket

LAN_MAC, WAN_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
LAN_HOST_MAC, WAN_HOST_MAC = "02:00:00:00:01:09", "02:00:00:00:02:09"
SERVER4, SERVER6 = "192.0.2.80", "2001:db8:a::80"
OWN4 = "192.0.2.1"
POOL_PORT, INTERFACE_PORT, DENIED_PORT = 5000, 5001, 99
"""UDP destination ports: translated to a pool, to the interface's address, denied."""
NAT64 = Nat64("four", ip_network("2001:db8:64::/96"), pool="pool")
NPTV6 = Nptv6("net", "wan", ip_network("2001:db8:77::/64"), ip_network("2001:db8:c::/64"))
POLICER = Policer("unreached", 400_000_000_000, 1_000_000_000)
BEYOND_REACH = 1_000_000_000
"""A threshold that no measurement comes to."""
_OFF = {field.name: field.default for field in fields(Screens)}
EVERY_SCREEN = Screens(
    "every",
    **{name: True if _OFF[name] is False else BEYOND_REACH for name in (s.name.lower() for s in Screen)},
)
SAS = 1000
FIRST_SPI = 0x100
HOUR = 3600
FRESH_NS = 24 * HOUR * 1_000_000_000
"""Routes of prepared sessions are stamped that far ahead: none of them is due during the measurement."""

_LINKS = f"""
link set lo up
link add lan0 address {LAN_MAC} type veth peer name lan1
link add wan0 address {WAN_MAC} type veth peer name wan1
link add wild0 type veth peer name wild1
"""
_ADDRESSES = f"""
addr add 172.16.0.1/24 dev lan0
addr add {OWN4}/24 dev wan0
addr add 2001:db8:1::1/64 nodad dev lan0
addr add 2001:db8:a::1/64 nodad dev wan0
neigh add 172.16.0.9 lladdr {LAN_HOST_MAC} nud permanent dev lan0
neigh add {SERVER4} lladdr {WAN_HOST_MAC} nud permanent dev wan0
neigh add 2001:db8:1::9 lladdr {LAN_HOST_MAC} nud permanent dev lan0
neigh add {SERVER6} lladdr {WAN_HOST_MAC} nud permanent dev wan0
route add 10.0.0.0/8 via 172.16.0.9 dev lan0
route add 2001:db8:c::/64 via 2001:db8:1::9 dev lan0
"""


class BenchError(Exception):
    """A packet did not take the way that its case claims, so the figures would mean nothing."""


@dataclass(frozen=True, slots=True)
class Rules:
    """``count`` policies, the last of which denies what the benchmark denies, and logs it if ``log``. ``screen``: the
    screens of lan. ``nptv6``, ``nat64``: with a rule of it. ``terms``: those of a filter of what comes in by lan0, of
    which only the last one matches what is measured; ``policed``: and sends it to a policer that it never exceeds.
    """

    count: int = 2
    log: bool = False
    screen: Screens | None = None
    nptv6: bool = False
    nat64: bool = False
    terms: int = 0
    policed: bool = False

    def ruleset(self) -> Ruleset:
        """As a configuration. The fillers ask for source, destination and service, so nothing is cut short."""
        fillers = tuple(
            Policy(
                f"filler {n}",
                Action.PERMIT,
                "lan",
                "wan",
                sources=(ip_network((int(IPv4Address("172.20.0.0")) + n, 32)),),
                destinations=(ip_network((int(IPv4Address("198.51.0.0")) + n, 32)),),
                services=(Service(6, (8000 + n, 8000 + n)),),
            )
            for n in range(self.count - 2)
        )
        permitted = (Service(6, (443, 443)), Service(17, (53, 53)), Service(17, (POOL_PORT, INTERFACE_PORT)))
        denied = (Service(17, (DENIED_PORT, DENIED_PORT)),)
        nat = {
            name: (Service(17, (port, port)),) for name, port in (("pool", POOL_PORT), ("interface", INTERFACE_PORT))
        }
        return Ruleset(
            zones=(Zone("lan", ("lan0",), screen=self.screen.name if self.screen else None), Zone("wan", ("wan0",))),
            screens=(self.screen,) if self.screen else (),
            policies=(
                *fillers,
                Policy("out", Action.PERMIT, "lan", "wan", services=permitted),
                Policy("no", Action.DENY, "lan", "wan", services=denied, log_open=self.log),
            ),
            pools=(Pool("pool", ip_address("198.18.0.0"), ip_address("198.18.0.255")),),
            source_nat=(
                SourceNat("pool", Translation.POOL, "lan", "wan", services=nat["pool"], pool="pool"),
                SourceNat("interface", Translation.INTERFACE, "lan", "wan", services=nat["interface"]),
            ),
            nptv6=(NPTV6,) if self.nptv6 else (),
            nat64=(NAT64,) if self.nat64 else (),
            filters=(Filter("edge", input=("lan0",)),) if self.terms else (),
            filter_terms=self._terms(),
            policers=(POLICER,) if self.policed else (),
            sessions=Sessions(timeouts=Timeouts(tcp_established=HOUR, udp=HOUR)),
        )

    def _terms(self) -> tuple[FilterTerm, ...]:
        """Every kind of condition is asked for."""
        fillers = [
            FilterTerm(
                f"edge/filler-{n}",
                "edge",
                FilterAction.DISCARD,
                sources=(ip_network((int(IPv4Address("172.20.0.0")) + n, 32)),),
                destinations=(ip_network((int(IPv4Address("198.51.0.0")) + n, 32)),),
                services=(Service(6, (8000 + n, 8000 + n), (1000, 2000)),),
                dscp=frozenset({n}),
                flags_set=2,
            )
            for n in range(self.terms - 1)
        ]
        last = FilterTerm("edge/last", "edge", policer=POLICER.name if self.policed else None)
        return (*fillers, last) if self.terms else ()


class Machine:
    """What a benchmark does with the machine. Made by :func:`machine`."""

    def __init__(self, steering: Steering, maps: dict[str, int], rearm: Rearm) -> None:
        self.steering = steering
        self.rearm = rearm
        self.table = SessionTable(maps["sessions"])
        self.events = libbpf.RingBuffer(maps["events"])
        self._maps = maps
        self._firewall = Firewall(maps, maps["control"])
        self._compiled: dict[Rules, tuple[Rows, Ids]] = {}
        self._applied: Rules | None = None
        self.apply(Rules())
        self.generation = tables.control(maps["control"], Control.FIB_GENERATION)

    def apply(self, rules: Rules) -> None:
        """Make rules hold. The routes of sessions stay good, unlike after an apply in earnest."""
        if rules == self._applied:
            return
        if rules not in self._compiled:
            ids = assign(Ids(), rules.ruleset())
            ports = {
                "lan0": PortInfo(ifindex("lan0"), ifindex("lan0"), address4=ip_address("172.16.0.1"), redirect=True),
                "wan0": PortInfo(ifindex("wan0"), ifindex("wan0"), address4=ip_address(OWN4), redirect=True),
            }
            rows = compile_ruleset(rules.ruleset(), ids, ports, now=datetime(2026, 1, 1))
            self._compiled[rules] = rows, ids
        self._firewall.apply(*self._compiled[rules])
        if self._applied is not None:
            self.set_generation(self.generation)
        self._applied = rules

    def set_generation(self, generation: int) -> None:
        """Routes that were looked up under another one are due."""
        tables.set_control(self._maps["control"], Control.FIB_GENERATION, generation)

    def verdicts(self) -> dict[Reason, int]:
        """Packets so far."""
        return {reason: count.packets for reason, count in self.steering.verdicts().items()}

    def opened(self) -> int:
        """New flows that the permitting rule let through so far."""
        return self._firewall.rule_counts()[NameKind.POLICY, "out"].packets

    def exchange(self, packets: list[tuple[str, Packet]]) -> list[RunResult]:
        """Packets that must all be forwarded, each with the interface that it comes in by."""
        results = [prog_run(self.steering.pipeline_fd, bytes(packet), 1, ifindex(port)) for port, packet in packets]
        for (_port, packet), result in zip(packets, results, strict=True):
            if result.retval != XdpAction.REDIRECT:
                raise BenchError(f"{packet.summary()} was not forwarded but {XdpAction(result.retval).name}")
        return results

    def key(self, source: str, destination: str, ports: tuple[int, int], protocol: int, zone: str) -> FlowKeyLeaf:
        """Of a session's entry."""
        number = self._compiled[Rules()][1].zones[zone]
        return Flow(ip_address(source), ip_address(destination), *ports, protocol, number).leaf()

    def keep_fresh(self, key: FlowKeyLeaf) -> tuple[tuple[FlowKeyLeaf, SessionLeaf], ...]:
        """Both entries of a session, written back with routes that are not due before the end."""
        entries = []
        row = self._row(key)
        for side in (key, partner_key(key, row)):
            found = self._row(side)
            if not found.out_ifindex or found.state != State.ESTABLISHED:
                raise BenchError(f"the session of {Flow.of(key)} is not established both ways")
            found.fib_ns = time.monotonic_ns() + FRESH_NS
            libbpf.map_update(self._maps["sessions"], side, found)
            entries.append((side, found))
        return tuple(entries)

    def _row(self, key: FlowKeyLeaf) -> SessionLeaf:
        row = self.table.get(key)
        if row is None:
            raise BenchError(f"there is no session of {Flow.of(key)}")
        return row

    def route_kept(self, key: FlowKeyLeaf) -> bool:
        """Whether the session's route is still the one of :meth:`keep_fresh`."""
        return bool(self._row(key).fib_ns > time.monotonic_ns() + HOUR * 1_000_000_000)

    def clone(self, pair: tuple[tuple[FlowKeyLeaf, SessionLeaf], ...], first: str, count: int) -> None:
        """The same session from ``count`` client addresses beginning with ``first``."""
        (forward, forward_row), (reverse, reverse_row) = pair
        numbers = np.arange(count, dtype=np.uint32)
        clients = (numbers + np.uint32(int(IPv4Address(first)))).astype(">u4").view(np.uint32)
        for key, row, client_side in ((forward, forward_row, "saddr"), (reverse, reverse_row, "daddr")):
            keys, rows = _copies(key, KEY, count), _copies(row, ROW, count)
            keys[client_side]["addr"][:, 3] = clients
            rows[client_side]["addr"][:, 3] = clients
            rows["id"] = numbers + 1
            rows["last_seen_ns"] = time.monotonic_ns()
            self.table.fill(keys, rows)

    def forget_since(self, begin_ns: int) -> int:
        """Remove the sessions that began after a time of CLOCK_MONOTONIC. Returns how many entries."""
        young = [batch.keys[batch.rows["created_ns"] > begin_ns].copy() for batch in self.table.batches()]
        keys = np.concatenate(young)
        if len(keys):
            packed = (FlowKeyLeaf * len(keys)).from_buffer(keys.data)
            libbpf.map_delete_batch(self._maps["sessions"], packed, len(keys))
        return len(keys)

    def drain_events(self, limit: int) -> int:
        """Read what is in the ring. Returns how many records."""
        return len(self.events.consume(limit))


def _copies(leaf: ctypes.Structure, dtype: np.dtype[np.void], count: int) -> NDArray[np.void]:
    return np.repeat(np.frombuffer(bytes(leaf), dtype), count)


def ifindex(interface: str) -> int:
    """In this namespace."""
    return socket.if_nametoindex(interface)


@contextmanager
def machine(entries: int) -> Iterator[tuple[Machine, Path]]:
    """The machine with room for ``entries`` of sessions, and the directory of its pins; leaves nothing behind."""
    pins = Path(f"/sys/fs/bpf/ipsec-gw-bench-{os.getpid()}")
    with ExitStack() as stack:
        stack.enter_context(namespace(f"ipsec-gw-bench-{os.getpid()}"))
        _build()
        steering = Steering.open(pins, sessions=entries)
        stack.callback(steering.remove)
        maps = tables.open_maps(pins / "maps", sessions=entries)
        stack.callback(tables.close_maps, maps)
        rearm = Rearm(ifindex("wan0"))
        stack.callback(rearm.close)
        steering.dock("wan0", Role.WAN)
        engine = XskSocket("wan0")
        stack.callback(engine.close)
        engine.enter(steering.xsks_map("wan0"))
        steering.set_engine(True)
        for number in range(SAS):
            steering.steer(SaKey(ip_address(OWN4), FIRST_SPI + number))
        found = Machine(steering, maps, rearm)
        stack.callback(found.events.close)
        yield found, pins


def _build() -> None:
    conf = Path("/proc/sys/net")
    _ip_batch(_LINKS)
    for interface in ("lan0", "wan0"):
        (conf / f"ipv6/conf/{interface}/disable_ipv6").write_text("0")
    ends = [f"{name}{end}" for name in ("lan", "wan", "wild") for end in (1, 0)]
    _ip_batch("\n".join(f"link set {end} addrgenmode none\nlink set {end} up" for end in ends))
    (conf / "ipv4/ip_forward").write_text("1")
    (conf / "ipv6/conf/all/forwarding").write_text("1")
    _ip_batch(_ADDRESSES)


def _ip_batch(lines: str) -> None:
    done = subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=False, capture_output=True)
    if done.returncode:
        raise BenchError(f"the network cannot be built ({done.stderr.strip()}) - are you root?")
