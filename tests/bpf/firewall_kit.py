"""A machine with the firewall on it: packets by BPF_PROG_TEST_RUN, outcomes as values, expectations made by scapy.

The machine has a namespace of its own with these ports (zone of the same name without the number, unless a ruleset says
otherwise) and a permanent neighbour ``HOST`` (.9 and ::9) on each of them:

    lan0      10.1.0.1/24     2001:db8:1::1/64
    lan0.100  10.2.0.1/24     2001:db8:64::1/64    frames of lan0 with tag 100
    wan0      192.0.2.1/24    2001:db8:a::1/64
    dmz0      10.3.0.1/24     2001:db8:3::1/64
    off0      10.4.0.1/24     2001:db8:4::1/64    forwarding is off
    wild0     10.5.0.1/24     2001:db8:5::1/64    in no zone

and routes by ``wan0`` to 203.0.113.0/24 and 2001:db8:f::/64 beside the special ones in ``SPECIAL``.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

from ipsec_gw.model.filters import Policer
from ipsec_gw.model.firewall import Ruleset, Zone
from tests.support.netns import namespace
from xdp_steer import compile as compiler
from xdp_steer import filter_layout as fil
from xdp_steer import flow_layout as fl
from xdp_steer import libbpf, tables
from xdp_steer import screen_layout as sl
from xdp_steer.compile.ids import Ids, RuleName
from xdp_steer.compile.rows import PortInfo
from xdp_steer.firewall import Firewall
from xdp_steer.gateway import Steering
from xdp_steer.layout import AddressLeaf, Control, MapSpec
from xdp_steer.prog_run import RunResult, TcAction, XdpAction, prog_run, prog_run_egress
from xdp_steer.reasons import Reason
from xdp_steer.screen_layout import Screen
from xdp_steer.sessions import Flow, Session, SessionTable
from xdp_steer.tables import Count

SEED = 0x5EED
SESSION_ENTRIES = 64
"""Of the table: few enough to be filled in no time."""
SECOND = 1_000_000_000
PATIENCE = 60.0
"""Seconds."""
T = TypeVar("T")
CLOCK_MONOTONIC_COARSE = 6


@dataclass(frozen=True)
class Port:
    """A place where frames come in and go out. ``parent`` and ``vid`` of a VLAN."""

    name: str
    address4: str
    address6: str
    mac: str
    host_mac: str
    parent: str = ""
    vid: int = 0

    @property
    def host4(self) -> str:
        """The neighbour's address."""
        return str(ip_address(self.address4) + 8)

    @property
    def host6(self) -> str:
        return str(ip_address(self.address6) + 8)

    def own(self, version: int) -> str:
        return self.address4 if version == 4 else self.address6

    def host(self, version: int) -> str:
        return self.host4 if version == 4 else self.host6

    def frame(self, packet: Packet) -> Packet:
        """An IP packet as the neighbour sends it."""
        return self._tagged(Ether(src=self.host_mac, dst=self.mac)) / packet

    def sent(self, packet: Packet) -> Packet:
        """An IP packet as the machine sends it to the neighbour."""
        return self._tagged(Ether(src=self.mac, dst=self.host_mac)) / packet

    def _tagged(self, ether: Packet) -> Packet:
        return ether / Dot1Q(vlan=self.vid) if self.vid else ether


def _port(number: int, name: str, v4: str, v6: str, **rest: object) -> Port:
    parent = 1 if rest else number
    return Port(name, v4, v6, f"02:00:00:00:00:{parent:02x}", f"02:00:00:00:{number:02x}:09", **rest)  # type: ignore[arg-type]


LAN = _port(1, "lan0", "10.1.0.1", "2001:db8:1::1")
VLAN = _port(2, "lan0.100", "10.2.0.1", "2001:db8:64::1", parent="lan0", vid=100)
WAN = _port(3, "wan0", "192.0.2.1", "2001:db8:a::1")
DMZ = _port(4, "dmz0", "10.3.0.1", "2001:db8:3::1")
OFF = _port(5, "off0", "10.4.0.1", "2001:db8:4::1")
WILD = _port(6, "wild0", "10.5.0.1", "2001:db8:5::1")
PORTS = (LAN, VLAN, WAN, DMZ, OFF, WILD)

ZONES = {"lan": (LAN,), "vlan": (VLAN,), "wan": (WAN,), "dmz": (DMZ,), "off": (OFF,)}
SILENT = {4: "192.0.2.77", 6: "2001:db8:a::77"}
"""On wan0, and nobody knows its MAC."""
FAR = {4: "203.0.113.9", 6: "2001:db8:f::9"}
BLACKHOLE = {4: "198.51.100.1", 6: "2001:db8:b0::1"}
UNREACHABLE = {4: "198.51.100.17", 6: "2001:db8:b1::1"}
PROHIBIT = {4: "198.51.100.33", 6: "2001:db8:b2::1"}
NARROW = {4: "198.51.100.65", 6: "2001:db8:b3::1"}
"""By wan0 over a route with an MTU of 1280."""
NARROW_MTU = 1280

_ROUTES = (
    "203.0.113.0/24 via 192.0.2.9 dev wan0",
    "2001:db8:f::/64 via 2001:db8:a::9 dev wan0",
    "blackhole 198.51.100.0/28",
    "blackhole 2001:db8:b0::/64",
    "unreachable 198.51.100.16/28",
    "unreachable 2001:db8:b1::/64",
    "prohibit 198.51.100.32/28",
    "prohibit 2001:db8:b2::/64",
    "198.51.100.64/28 via 192.0.2.9 dev wan0 mtu lock 1280",  # unlocked, bpf_fib_lookup() does not look at it
    "2001:db8:b3::/64 via 2001:db8:a::9 dev wan0 mtu lock 1280",
)

ZONE_LIST = tuple(Zone(name, tuple(port.name for port in ports)) for name, ports in ZONES.items())


def zones(**changes: dict[str, object]) -> tuple[Zone, ...]:
    """All zones, some of them changed: ``zones(lan={"tcp_reset": True})``."""
    return tuple(replace(zone, **changes.get(zone.name, {})) for zone in ZONE_LIST)


@dataclass(frozen=True)
class Result:
    """What became of a packet. ``frame`` means nothing of a dropped one."""

    action: XdpAction | TcAction
    reason: Reason
    frame: bytes

    @property
    def packet(self) -> Packet:
        return Ether(self.frame)

    @property
    def ip(self) -> Packet:
        packet = self.packet
        return packet[IP] if IP in packet else packet[IPv6]


class World:
    """The machine. Made by :func:`firewall_world`."""

    def __init__(self, pins: Path, steering: Steering, maps: dict[str, int]) -> None:
        self.pins = pins
        self.maps = maps
        self.steering = steering
        self.table = SessionTable(maps["sessions"])
        self._firewall = Firewall(maps, maps["control"])
        self.ids = Ids()

    def apply(
        self, ruleset: Ruleset, more: Mapping[str, PortInfo] = MappingProxyType({}), **changes: dict[str, object]
    ) -> None:
        """Make a ruleset hold. ``changes`` are fields of PortInfo by zone: ``apply(rules, lan={"partial": True})``;
        ``more`` are interfaces beside those of ``PORTS``.
        """
        interfaces = dict(more)
        for zone, ports in ZONES.items():
            for port in ports:
                interfaces[port.name] = replace(port_info(port), **changes.get(zone, {}))
        self.ids = compiler.assign(Ids(), ruleset)
        rows = compiler.compile_ruleset(ruleset, self.ids, interfaces, now=datetime(2026, 1, 1))
        self._firewall.apply(rows, self.ids)

    def clear(self) -> None:
        """No sessions, no fragments, nothing that screens and filters have counted or told of, full buckets."""
        self.forget(fl.SESSIONS, fl.FRAGMENTS, sl.SCREEN_WORDS, sl.SCREEN_ITEMS, sl.SESSION_COUNTS)
        for spec in (sl.SCREEN_TOLD, sl.SCREEN_FLOODS, fil.FILTER_TOLD, fil.POLICER_STATES):
            zeros = (spec.value * spec.entries)()
            keys = (ctypes.c_uint32 * len(zeros))(*range(len(zeros)))
            libbpf.map_update_batch(self.maps[spec.name], keys, zeros, len(zeros))

    def forget(self, *specs: MapSpec) -> None:
        """Empty these maps, which are no arrays."""
        for spec in specs:
            left = list(libbpf.map_keys(self.maps[spec.name], spec.key))
            libbpf.map_delete_batch(self.maps[spec.name], (spec.key * len(left))(*left), len(left))

    def send(self, port: Port, packet: Packet) -> Result:
        """An IP packet (or a whole frame) comes in by a port."""
        frame = bytes(packet if isinstance(packet, Ether) else port.frame(packet))
        return self._counted(frame, lambda: self._receive(port, frame))

    def emit(self, port: Port, packet: Packet, came_in_by: Port | None = None) -> Result:
        """The kernel sends an IP packet (or a whole frame), its own or one that it forwards."""
        frame = bytes(packet if isinstance(packet, Ether) else port.sent(packet))
        return self._counted(frame, lambda: self._transmit(port, frame, came_in_by))

    def _receive(self, port: Port, frame: bytes) -> tuple[XdpAction, RunResult]:
        result = prog_run(self.steering.pipeline_fd, frame, ifindex=ifindex(port))
        return XdpAction(result.retval), result

    def _transmit(self, port: Port, frame: bytes, came_in_by: Port | None) -> tuple[TcAction, RunResult]:
        ingress = l3_ifindex(came_in_by) if came_in_by else 0
        result = prog_run_egress(self.steering._programs.guard, frame, ifindex(port), ingress)
        return TcAction(result.retval), result

    def _counted(self, frame: bytes, run) -> Result:
        before = self.steering.verdicts()
        action, result = run()
        after = self.steering.verdicts()
        moved = {
            reason: Count(after[reason].packets - before[reason].packets, after[reason].octets - before[reason].octets)
            for reason in Reason
            if after[reason] != before[reason]
        }
        assert list(moved.values()) == [Count(1, len(frame))], moved
        return Result(action, next(iter(moved)), result.packet)

    def sessions(self) -> list[Session]:
        """All of them, in no order: the datapath's clock does not tell those of the same 4 ms apart."""
        return list(self.table.sessions())

    def session(self) -> Session:
        """The only one."""
        found = self.sessions()
        assert len(found) == 1, found
        return found[0]

    def entries(self) -> dict[Flow, fl.SessionLeaf]:
        """Every entry of the session table."""
        found = {}
        for key in list(libbpf.map_keys(self.maps["sessions"], fl.FlowKeyLeaf)):
            row = self.table.get(key)
            assert row is not None
            found[Flow.of(key)] = row
        return found

    def change(self, flow: Flow, **fields: int) -> None:
        """Write fields of an entry."""
        row = self.table.get(flow.leaf())
        assert row is not None, flow
        for name, value in fields.items():
            setattr(row, name, value)
        libbpf.map_update(self.maps["sessions"], flow.leaf(), row)

    def age(self, seconds: float) -> None:
        """As if nothing had happened for a while, to sessions, their routes and fragments."""
        step = int(seconds * SECOND)
        for flow, row in self.entries().items():
            self.change(flow, last_seen_ns=max(row.last_seen_ns - step, 1), fib_ns=max(row.fib_ns - step, 0))
        for key in list(libbpf.map_keys(self.maps["fragments"], fl.FragmentKeyLeaf)):
            row = libbpf.map_lookup(self.maps["fragments"], key, fl.FragmentLeaf())
            row.seen_ns = max(row.seen_ns - step, 1)
            libbpf.map_update(self.maps["fragments"], key, row)

    def next_window(self, seconds: int = 60) -> None:
        """As if what screens have counted had been counted a window ago."""
        for spec, step in (
            (sl.SCREEN_FLOODS, seconds << 32),
            (sl.SCREEN_WORDS, seconds << 32),
            (sl.SCREEN_ITEMS, seconds),
        ):
            for key in list(libbpf.map_keys(self.maps[spec.name], spec.key)):
                value = libbpf.map_lookup(self.maps[spec.name], key, ctypes.c_uint64())
                if value.value:
                    libbpf.map_update(self.maps[spec.name], key, ctypes.c_uint64(value.value - step))

    def in_one_window(self, work: Callable[[], T], seconds: int = 60) -> T:
        """What comes of some work when no window begins meanwhile. Each try is from the beginning, all cleared."""
        deadline = time.monotonic() + PATIENCE
        while True:
            before = self.seconds() // seconds
            try:
                found = work()
                if self.seconds() // seconds == before:
                    return found
            except AssertionError:
                if self.seconds() // seconds == before:
                    raise
            assert time.monotonic() < deadline, "windows are shorter than the work"
            self.clear()

    def fragments(self) -> int:
        """Number of first fragments that are remembered."""
        return len(list(libbpf.map_keys(self.maps["fragments"], fl.FragmentKeyLeaf)))

    def fill_buckets(self, policer: Policer, seconds: float) -> None:
        """As if that time had passed for a policer."""
        number = ctypes.c_uint32(self.ids.rules[fl.NameKind.POLICER, policer.name])
        state = libbpf.map_lookup(self.maps[fil.POLICER_STATES.name], number, fil.PolicerStateLeaf())
        ticks = round(seconds * SECOND * fil.POLICER_TICKS)
        state.full = (state.full - ticks) % (1 << 64)
        if policer.peak_rate is not None:  # else it is no time
            state.peak = (state.peak - ticks) % (1 << 64)
        libbpf.map_update(self.maps[fil.POLICER_STATES.name], number, state)

    def zone(self, name: str) -> int:
        return self.ids.zones[name] if name != "self" else 0

    def rule_counts(self) -> dict[RuleName, Count]:
        return self._firewall.rule_counts()

    def screen_count(self, zone: str, screen: Screen) -> Count:
        """What hit a screen of a zone."""
        return self._firewall.screen_counts()[zone, screen]

    def session_counts(self) -> dict[tuple[str, int, Screen], int]:
        """Sessions that are counted for the limits of screens, by address and zone."""
        counts = self.maps[sl.SESSION_COUNTS.name]
        found = {}
        for key in list(libbpf.map_keys(counts, sl.ScreenKeyLeaf)):
            count = libbpf.map_lookup(counts, key, ctypes.c_int64()).value
            found[str(key.addr.address()), int(key.zone), Screen(key.screen)] = count
        return found

    def seconds(self) -> int:
        """Whole ones of the clock that windows are made of."""
        return now_ns() // SECOND

    def control_value(self, slot: Control) -> int:
        return tables.control(self.maps["control"], slot)

    def control(self, slot: Control, value: int) -> None:
        tables.set_control(self.maps["control"], slot, value)

    @contextmanager
    def without(self, program_map: str, slot: int) -> Iterator[None]:
        """A stage is missing."""
        (pin,) = self.pins.glob(f"programs/*/{program_map}")
        fd = libbpf.open_pin(pin)
        program = libbpf.prog_by_id(libbpf.map_lookup(fd, ctypes.c_uint32(slot), ctypes.c_uint32()).value)
        libbpf.map_delete(fd, ctypes.c_uint32(slot))
        try:
            yield
        finally:
            libbpf.map_update(fd, ctypes.c_uint32(slot), ctypes.c_uint32(program))
            os.close(program)
            os.close(fd)


@contextmanager
def firewall_world(pins: Path) -> Iterator[World]:
    """``pins`` are those of the test run: all worlds share programs below them."""
    own = pins / "firewall"
    with namespace(f"fw{os.getpid()}"):
        _build()
        tables.close_maps(tables.open_maps(own / "maps", sessions=SESSION_ENTRIES))
        steering = Steering.open(own, hold_ms=0)
        maps = tables.open_maps(own / "maps")
        tables.set_control(maps["control"], Control.SEED, SEED)
        tables.set_control(maps["control"], Control.ANSWER_RATE, 0)
        for port in PORTS:
            for address in (port.address4, port.address6):
                leaf = AddressLeaf.of(ip_address(address))
                libbpf.map_update(maps["local_addresses"], leaf, ctypes.c_uint32(1))
        yield World(own, steering, maps)
        tables.close_maps(maps)
        steering.close()


def _build() -> None:
    conf = Path("/proc/sys/net")
    for scope in ("default", "all"):
        (conf / f"ipv6/conf/{scope}/disable_ipv6").write_text("0")
    _batch("link set lo up", *(line for port in PORTS for line in _interface(port)))
    (conf / "ipv4/ip_forward").write_text("1")
    (conf / "ipv6/conf/all/forwarding").write_text("1")
    for family in ("ipv4", "ipv6"):
        (conf / family / "conf/off0/forwarding").write_text("0")
    _batch(*(f"route add {route}" for route in _ROUTES))


def _interface(port: Port) -> Iterator[str]:
    """A VLAN device is a veth too: only routes lead there, and not every kernel has 8021q."""
    far = "p-" + port.name
    yield f"link add {port.name} address {port.mac} type veth peer name {far}"
    for name in (port.name, far):
        yield f"link set {name} addrgenmode none"
        yield f"link set {name} up"
    yield f"addr add {port.address4}/24 brd + dev {port.name}"
    yield f"addr add {port.address6}/64 nodad dev {port.name}"
    for address in (port.host4, port.host6):
        yield f"neigh add {address} lladdr {port.host_mac} nud permanent dev {port.name}"


@contextmanager
def interface(port: Port, number: int) -> Iterator[None]:
    """One more port beside ``PORTS``, its interface with that number."""
    first, *rest = _interface(port)
    _batch(first.replace(port.name, f"{port.name} index {number}", 1), *rest)
    try:
        yield
    finally:
        _batch(f"link del {port.name}")


def _batch(*lines: str) -> None:
    done = subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=False, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"the test network cannot be built ({done.stderr.strip()}) - is the kernel without IPv6?")


def ifindex(port: Port) -> int:
    """Of the interface that frames of the port come in by."""
    return socket.if_nametoindex(port.parent or port.name)


def l3_ifindex(port: Port) -> int:
    return socket.if_nametoindex(port.name)


def port_info(port: Port) -> PortInfo:
    return PortInfo(
        ifindex=ifindex(port),
        l3_ifindex=l3_ifindex(port),
        vid=port.vid,
        address4=ip_address(port.address4),
        address6=ip_address(port.address6),
        redirect=True,
        vlan=bool(port.parent),
    )


def now_ns() -> int:
    """The clock of ``last_seen_ns``."""
    return time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE)
