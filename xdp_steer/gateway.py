"""Steering as the rest of ipsec-gw sees it: docks, the steer map, the guard, counters."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from ipsec_gw.errors import EnvironmentMissing, SteeringError
from ipsec_gw.model.ids import IpAddress, SaKey
from ipsec_gw.model.objects import MAX_NAT_T_PORTS, UdpPeer
from xdp_steer import dock as docks
from xdp_steer import guard, libbpf, pipeline, sysctl, tables, taps, xfrmi
from xdp_steer.dock import Dock, Role
from xdp_steer.events import lost_events
from xdp_steer.filter_layout import COPIES, COPIES_LOST
from xdp_steer.firewall import Firewall
from xdp_steer.flow_layout import EVENTS, EVENTS_LOST, MAX_SESSIONS, POOL_COUNTS, POOL_ENGINES, SESSIONS
from xdp_steer.layout import (
    CONTROL,
    EXIT_SLOTS,
    EXITS,
    GUARD_OWNER,
    GUARD_SEEN,
    LOCAL_ADDRESSES,
    MOVED,
    STEER,
    STEER_COUNTS,
    VERDICTS,
    WAITING,
    Control,
    Owner,
)
from xdp_steer.mirror import Mirror
from xdp_steer.pipeline import Programs
from xdp_steer.reasons import Reason
from xdp_steer.screen_layout import SESSION_COUNTS
from xdp_steer.tables import (
    AddressTable,
    Count,
    ExitTable,
    GuardCount,
    GuardTable,
    PoolTable,
    SteerCount,
    SteerTable,
)
from xdp_steer.tunnels import TunnelTable
from xdp_steer.xfrmi import XfrmiTable

__all__ = ["Count", "DockCount", "GuardCount", "Reason", "Role", "SteerCount", "Steering"]

_CLSACT_NOTE = "clsact"
"""A directory in a dock's pins: the guard brought clsact, so it goes with it."""

_CLOCK_MONOTONIC_COARSE = 6
"""``linux/time.h``; the clock of sessions. One that begins after a reading of it is never older than that."""

DEFAULT_HOLD_MS = 2000
"""Longer than a busy daemon needs to decide on a newborn SPI, and no longer than a silent one counts as alive."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DockCount:
    """Packets that a dock was to hand over: to a live socket, or to the kernel for want of one."""

    to_engine: int
    fell_to_kernel: int


class Steering:
    """The XDP and TC side of a gateway, in the current network namespace. Use :meth:`open`.

    Every method raises SteeringError when the kernel refuses; what is in the kernel (pins, docks, guards, entries)
    outlives the object and is adopted by the next one. One process at a time.
    """

    def __init__(self, pins: Path, maps: dict[str, int], programs: Programs) -> None:
        self._pins = pins
        self._maps = maps
        self._programs = programs
        self._control = maps[CONTROL.name]
        self._steer = SteerTable(maps[STEER.name], maps[STEER_COUNTS.name])
        self._guard = GuardTable(maps[GUARD_OWNER.name], maps[GUARD_SEEN.name])
        self._addresses = AddressTable(maps[LOCAL_ADDRESSES.name])
        self._exits = ExitTable(maps[EXIT_SLOTS.name], maps[EXITS.name])
        self.xfrm_interfaces = XfrmiTable(pins, maps, programs.xfrmi.xfrmi_out)
        self._docks: dict[str, Dock] = {}

    @classmethod
    def open(
        cls, pins: Path, hold_ms: int = DEFAULT_HOLD_MS, *, firewall: bool = True, sessions: int = MAX_SESSIONS
    ) -> Steering:
        """Create or adopt everything below ``pins`` (a directory on a bpffs, made when missing).

        ``hold_ms`` is how long the guard holds back an outbound SPI that nobody decided on. Docks and guards found
        there are brought up to this version's programs. Without ``firewall`` they steer and guard alone, which
        compiles in a fraction of the time; ``sessions`` is the size of a new session table, two entries for each.
        Raises EnvironmentMissing and SteeringError.
        """
        maps = tables.open_maps(pins / "maps", firewall=firewall, sessions=sessions)
        try:
            programs = pipeline.load(pins, maps)
        except BaseException:
            tables.close_maps(maps)
            raise
        steering = cls(pins, maps, programs)
        try:
            tables.set_control(steering._control, Control.HOLD_NS, hold_ms * 1_000_000)
            if not firewall:
                tables.set_control(steering._control, Control.FIREWALL, 0)
                tables.forget_firewall(pins / "maps")
            steering._adopt()
        except BaseException:
            steering.close()
            raise
        return steering

    @staticmethod
    def had_firewall(pins: Path) -> bool:
        """Whether the maps of the firewall are pinned there."""
        return (pins / "maps" / SESSIONS.name).exists()

    def _adopt(self) -> None:
        for interface in sorted(docks.pinned_interfaces(self._pins)):
            directory = docks.directory_of(self._pins, interface)
            role = docks.role_of(directory)
            try:
                ifindex = docks.ifindex_of(interface)
            except EnvironmentMissing:
                docks.remove_dock(directory)
                log.info("dock of a lost interface removed", interface=interface)
                continue
            if role is None or docks.held_ifindex(directory) != ifindex:
                docks.remove_dock(directory)
                continue
            self.dock(interface, role)
        self._exits.keep_only(frozenset(dock.ifindex for dock in self._docks.values()))
        self.xfrm_interfaces.renew()
        for interface in taps.tapped(self._pins):
            try:
                self.tap(interface)
            except EnvironmentMissing:
                self.untap(interface)

    def tap(self, interface: str) -> None:
        """Put the firewall on an interface without Ethernet, or this version's programs in place of an earlier one's;
        without the firewall, take them off. Raises EnvironmentMissing and SteeringError.
        """
        if self._programs.clear is None:
            taps.detach(self._pins, interface)
        else:
            taps.attach(self._pins, interface, self._programs.clear)

    def is_tapped(self, interface: str) -> bool:
        """Whether the firewall is on the interface of that name. Raises EnvironmentMissing if there is none."""
        return taps.is_attached(self._pins, interface)

    def untap(self, interface: str) -> None:
        """Take the firewall off such an interface. Not there is no error."""
        taps.detach(self._pins, interface)

    def tapped(self) -> frozenset[str]:
        """Interfaces without Ethernet that the firewall is on, or was on before they vanished."""
        return taps.tapped(self._pins)

    def dock(self, interface: str, role: Role) -> None:
        """Put the dock on an interface, or adopt it, with the programs of its TC hooks. Again is no error.

        Raises EnvironmentMissing for an unknown interface and SteeringError for a foreign XDP program or TC filter in
        the way; the interface is then as it was.
        """
        held = self._docks.get(interface)
        if held is not None and held.ifindex != _ifindex_or_zero(interface):
            self.undock(interface)  # the interface was deleted and made anew meanwhile
        directory = docks.directory_of(self._pins, interface)
        fresh = docks.held_ifindex(directory) != docks.ifindex_of(interface)
        dock = docks.open_dock(self._pins, interface, role, self._programs.pipeline)
        try:
            self._connect(dock, role)
        except BaseException:
            dock.close()
            if fresh:
                docks.remove_dock(directory)
            raise
        previous = self._docks.pop(interface, None)
        if previous is not None:
            previous.close()
        self._docks[interface] = dock

    def _connect(self, dock: Dock, role: Role) -> None:
        if role in (Role.TO_ENGINE, Role.TO_TRANSLATOR):
            self._disconnect(dock)
            return
        if guard.attach(dock.interface, dock.ifindex, self._programs.guard):
            (dock.directory / _CLSACT_NOTE).mkdir(exist_ok=True)
        if role is Role.WAN and self._programs.clear is not None:
            guard.attach(dock.interface, dock.ifindex, self._programs.clear.decrypted, guard.Hook.INGRESS)
        else:
            guard.take_off(dock.ifindex, guard.Hook.INGRESS)
        self._exits.connect(dock.ifindex, dock.exit)

    def _disconnect(self, dock: Dock) -> None:
        self._exits.disconnect(dock.ifindex)
        _remove_guard(dock.interface, dock.directory)

    def join_uplink(self, kernel_end: str, engine_end: str) -> None:
        """Put the programs of XFRM interfaces on both ends of the veth pair, or this version's in place of an earlier
        one's. They go with the pair. Raises EnvironmentMissing and SteeringError.
        """
        xfrmi = self._programs.xfrmi
        for name, program in ((kernel_end, xfrmi.xfrmi_in), (engine_end, xfrmi.xfrmi_back)):
            guard.attach(name, docks.ifindex_of(name), program, guard.Hook.XFRMI_INGRESS)
        tables.set_control(self._control, Control.UPLINK, docks.ifindex_of(kernel_end))

    def relax(self, interface: str) -> None:
        """Let the kernel take translated packets from a docked interface, until the dock goes."""
        try:
            sysctl.change(interface, self._dock(interface).directory)
        except OSError as error:
            raise SteeringError(f"settings of {interface} refused ({error.strerror}) - see net.ipv4.conf") from error

    def undock(self, interface: str) -> None:
        """Take dock and guard off an interface; the kernel has its packets again. Not docked is no error."""
        dock = self._docks.pop(interface, None)
        if dock is None:
            return
        self._disconnect(dock)
        docks.remove_dock(dock.directory)
        dock.close()

    @property
    def firewall(self) -> Firewall:
        """The writer of the firewall's maps. Raises SteeringError when this was opened without the firewall."""
        self._need_firewall()
        return Firewall(self._maps, self._control)

    @property
    def tunnels(self) -> TunnelTable:
        """The writer of the maps of IPsec policies. Raises SteeringError when this was opened without the firewall."""
        self._need_firewall()
        return TunnelTable(self._maps)

    @property
    def pools(self) -> PoolTable:
        """Who has the new flows of pools. Raises SteeringError when this was opened without the firewall."""
        self._need_firewall()
        return PoolTable(self._maps[POOL_ENGINES.name], self._maps[POOL_COUNTS.name])

    def _need_firewall(self) -> None:
        if SESSIONS.name not in self._maps:
            raise SteeringError("the programs were loaded without the firewall - open them with it")

    def set_tunnel_port(self, entry: int, port: int) -> None:
        """Indices of the veth pair that leads what the kernel decrypted into the pipeline, 0 for none."""
        tables.set_control(self._control, Control.TUNNEL_ENTRY, entry)
        tables.set_control(self._control, Control.TUNNEL_PORT, port)

    def set_translator_port(self, port: int) -> None:
        """Index of the kernel's end of the veth pair of NAT, 0 for none."""
        tables.set_control(self._control, Control.TRANSLATOR_PORT, port)

    def translates(self) -> bool:
        """Whether VPP gets the new flows of its pools. VPP's death ends that without anybody's doing."""
        return bool(tables.control(self._control, Control.TRANSLATOR))

    def begin_translation(self, life: int, *, anew: bool) -> None:
        """VPP has the pools in place and gets their new flows. ``life`` (not 0) tells one VPP from the next; with
        ``anew``, or in another life, what it knew of flows before is gone: their sessions are over.
        """
        if anew or not self.translates() or tables.control(self._control, Control.TRANSLATOR_LIFE) != life:
            now = time.clock_gettime_ns(_CLOCK_MONOTONIC_COARSE)
            tables.set_control(self._control, Control.TRANSLATOR_LIFE, life)
            tables.set_control(self._control, Control.TRANSLATOR, now)

    def end_translation(self) -> None:
        """XDP translates what is new in VPP's place, with addresses of its own; what VPP translated is dropped."""
        tables.set_control(self._control, Control.TRANSLATOR, 0)

    def seed_firewall(self, seed: int, answers_per_second: int) -> None:
        """The seed of NAT's choices, kept if there is one, and how many packets may be answered (0: all of them)."""
        if not tables.control(self._control, Control.SEED):
            tables.set_control(self._control, Control.SEED, seed)
        tables.set_control(self._control, Control.ANSWER_RATE, answers_per_second)

    def routes_changed(self) -> None:
        """Routes that sessions remember are looked up anew."""
        tables.set_control(self._control, Control.FIB_GENERATION, tables.next_generation(self._control))

    @staticmethod
    def is_generic(ifindex: int) -> bool:
        """Whether XDP runs in generic mode on an interface; not docked is not generic."""
        return libbpf.xdp_mode(ifindex) is libbpf.XdpMode.GENERIC

    @property
    def session_counts_map(self) -> int:
        """The map of sessions per source and destination."""
        return self._maps[SESSION_COUNTS.name]

    @property
    def sessions_map(self) -> int:
        """Descriptor of the session table, owned by this object."""
        return self._maps[SESSIONS.name]

    @property
    def events_map(self) -> int:
        """Descriptor of the ring buffer, owned by this object."""
        return self._maps[EVENTS.name]

    def mirror(self) -> Mirror:
        """What sends the copies of filters that mirror; the caller closes it."""
        return Mirror(self._maps[COPIES.name], self._maps[COPIES_LOST.name])

    def lost_events(self) -> int:
        """Events that the full ring had no room for, since the maps were made."""
        return lost_events(self._maps[EVENTS_LOST.name])

    @property
    def pipeline_fd(self) -> int:
        """The pipeline program, for test runs."""
        return self._programs.pipeline

    def docked(self, role: Role | None = None) -> frozenset[str]:
        """Interfaces with a dock, or with one in that role."""
        found = self._docks.items()
        return frozenset(name for name, dock in found if role is None or docks.role_of(dock.directory) is role)

    def xsks_map(self, interface: str) -> int:
        """Descriptor of the interface's XSKMAP, owned by this object."""
        return self._dock(interface).xsks_map

    def _dock(self, interface: str) -> Dock:
        try:
            return self._docks[interface]
        except KeyError:
            raise SteeringError(f"interface {interface} has no dock - dock it first") from None

    def set_engine(self, on: bool) -> None:
        """The engine flag, by one map write. Off: every steered SA falls to the kernel with the next packet."""
        tables.set_control(self._control, Control.ENGINE, int(on))

    def engine_gone(self) -> bool:
        """Whether plaintext for the engine found no socket at all, or no daemon: from then on the kernel has it, and
        sends with claimed SAs.
        """
        return bool(tables.control(self._control, Control.ENGINE_GONE))

    def set_engine_gone(self, gone: bool) -> None:
        """Say so, or take it back: not before every SA that was claimed then is released."""
        tables.set_control(self._control, Control.ENGINE_GONE, int(gone))

    def steer(self, key: SaKey, peer: UdpPeer | None = None) -> None:
        """Hand an inbound SA's ESP to the engine, in UDP from that peer, or bare; if it is, only the peer changes."""
        self._steer.add(key, peer)

    def unsteer(self, key: SaKey) -> None:
        """Leave an inbound SA to the kernel and drop its counters. Not steered is no error."""
        self._steer.remove(key)

    def steered(self) -> frozenset[SaKey]:
        """Inbound SAs that are steered."""
        return self._steer.keys()

    def peers(self) -> Mapping[SaKey, UdpPeer | None]:
        """The same, and where each one's ESP in UDP comes from; None for bare ESP."""
        return self._steer.peers()

    def take_moved(self) -> frozenset[SaKey]:
        """Steered SAs of which ESP in UDP came from elsewhere than from their peers, since the last call."""
        return tables.take_moved(self._maps[MOVED.name])

    def give_to_kernel(self, key: SaKey, seconds: float) -> None:
        """For so long, what comes from elsewhere than the peer of a steered SA is the kernel's."""
        self._steer.give_to_kernel(key, time.clock_gettime_ns(time.CLOCK_MONOTONIC) + int(seconds * 1e9))

    def nat_t_ports(self) -> frozenset[int]:
        """What :meth:`set_nat_t_ports` wrote last, in whatever life."""
        packed = tables.control(self._control, Control.NAT_T_PORTS).to_bytes(8, sys.byteorder)
        return frozenset(struct.unpack(">4H", packed)) - {0}

    def set_nat_t_ports(self, ports: frozenset[int]) -> None:
        """Up to four local UDP ports besides 4500 that ESP is received on and sent from."""
        packed = struct.pack(">4H", *sorted(ports), *[0] * (MAX_NAT_T_PORTS - len(ports)))
        tables.set_control(self._control, Control.NAT_T_PORTS, int.from_bytes(packed, sys.byteorder))

    def steer_counters(self) -> Mapping[SaKey, SteerCount]:
        """Per steered SA, since it was steered."""
        return self._steer.counters()

    def verdicts(self) -> Mapping[Reason, Count]:
        """Per reason, since the maps were made."""
        return tables.verdicts(self._maps[VERDICTS.name])

    def dock_counts(self, interface: str) -> DockCount:
        """What a dock handed over. Raises SteeringError for an interface without a dock."""
        return DockCount(*docks.counts(self._dock(interface)))

    def handed(self) -> int:
        """Packets that docks handed to live sockets, all together."""
        return sum(docks.counts(dock)[0] for dock in self._docks.values())

    def claim(self, key: SaKey) -> None:
        """The engine owns the outbound SA's numbers: ESP that the kernel sends for it is dropped and counted.

        Not while the engine is gone (:meth:`engine_gone`).
        """
        self._guard.set_owner(key, Owner.ENGINE)

    def release(self, key: SaKey) -> None:
        """The kernel owns the outbound SA's numbers: its ESP passes and is counted."""
        self._guard.set_owner(key, Owner.KERNEL)

    def forget(self, key: SaKey) -> None:
        """Remove what is known of an outbound SA, decision and counters: seen again, it is newborn."""
        self._guard.forget(key)

    def claimed(self) -> frozenset[SaKey]:
        """Outbound SAs that the engine owns."""
        return self._guard.owned_by(Owner.ENGINE)

    def is_released(self, key: SaKey) -> bool:
        """Whether an outbound SA is the kernel's by decision, and not for want of an engine."""
        return self._guard.owner(key) is Owner.KERNEL

    def is_claimed(self, key: SaKey) -> bool:
        """Whether an outbound SA is the engine's by decision."""
        return self._guard.owner(key) is Owner.ENGINE

    def set_waited_mark(self, mark: int) -> None:
        """The guard lets through, and counts, packets with this mark: those that waited for the kernel to get their SA.
        32 bits, a number that nobody else has.
        """
        tables.set_control(self._control, Control.WAITED_MARK, mark)

    @property
    def waiting_map(self) -> int:
        """Descriptor of the ring buffer of packets that the guard held back, owned by this object."""
        return self._maps[WAITING.name]

    def guard_counters(self) -> Mapping[SaKey, GuardCount]:
        """Per outbound SA that the guard ever saw the kernel send, decided or not, until it is forgotten."""
        return self._guard.counters()

    def guarded(self) -> frozenset[SaKey]:
        """Outbound SAs of which anything is kept: a decision, or counters."""
        return self._guard.known()

    def set_local(self, addresses: frozenset[IpAddress]) -> None:
        """Which source addresses are ours: ESP from others is forwarded, and not looked at by the guard."""
        self._addresses.replace(addresses)

    def heartbeat(self, away_seconds: float = 0.0) -> None:
        """Sign of life: newborn SPIs are held back only within 2 s of the last one. Without another one within
        ``away_seconds`` the kernel takes over what goes out, as from an engine that is gone; 0: never.
        """
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        tables.set_control(self._control, Control.HEARTBEAT_NS, now)
        away = now + round(away_seconds * 1_000_000_000) if away_seconds else 0
        tables.set_control(self._control, Control.DAEMON_AWAY_NS, away)

    def close(self) -> None:
        """Close all descriptors. Docks, guards, programs and entries stay in the kernel."""
        for dock in self._docks.values():
            dock.close()
        self._docks.clear()
        self._programs.close()
        tables.close_maps(self._maps)
        self._maps.clear()

    def remove(self) -> None:
        """Take everything out of the kernel, pins and their directory included, and close.

        An engine must have stopped sending before: without the guard the kernel numbers every SA again.
        """
        self.set_engine(False)
        self.close()
        self.remove_leftovers(self._pins)

    @staticmethod
    def remove_leftovers(pins: Path) -> None:
        """Do the same without opening anything, also after a crash and for interfaces that are gone."""
        xfrmi.remove_leftovers(pins)
        for interface in taps.tapped(pins):
            taps.detach(pins, interface)
        for interface in docks.pinned_interfaces(pins):
            directory = docks.directory_of(pins, interface)
            _remove_guard(interface, directory)
            docks.remove_dock(directory)
        try:
            docks.remove_tree(pins)
        except OSError as error:
            raise SteeringError(f"cannot remove {pins} ({error.strerror}) - look into it with `ls -R`") from error


def _remove_guard(interface: str, directory: Path) -> None:
    sysctl.restore(interface, directory)
    ifindex = docks.held_ifindex(directory)  # by index: the interface may have another name by now
    if ifindex:
        guard.detach(interface, ifindex, ours=(directory / _CLSACT_NOTE).is_dir())
    with contextlib.suppress(FileNotFoundError):
        (directory / _CLSACT_NOTE).rmdir()


def _ifindex_or_zero(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        return 0
