"""The maps of the pipeline: their sizes, and ctypes mirrors of the C structures in ``bpf/maps.h``.

User space creates and pins the maps from this list. BCC's program finds them by their pins, and after every
compile each structure that the compiler saw is compared with its mirror here, field by field.
"""

from __future__ import annotations

import ctypes
import socket
from dataclasses import dataclass
from enum import IntEnum, unique
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from ipsec_gw.errors import SteeringError
from ipsec_gw.model.ids import IpAddress, SaKey
from ipsec_gw.model.objects import FRAMES, UdpPeer
from xdp_steer import libbpf
from xdp_steer.reasons import MAX_REASONS

MAX_SAS = 32768
"""Steered or guarded SAs. The per-CPU counters take 32 bytes for each and every CPU."""
MAX_DOCKS = 64
MAX_EXIT_SLOTS = 65536
"""Places for the ways out, by the low bits of the interface index. A power of two."""
MAX_ADDRESSES = 4096
MAX_MOVED = 1024
"""SAs that are found to come from elsewhere, between two looks of user space."""
MAX_WAITING_FRAME = 2010
"""Bytes of a packet that waits. More than an engine takes (DESIGN.md, section 5: about 1790), and with what is kept
beside it exactly 2 KiB."""
WAITING_RING_BYTES = 8 << 20
"""About 4,000 packets: 20 ms, which a decision takes, at 200,000 packets per second."""

MAX_XFRM_INTERFACES = 4094
"""XFRM interfaces whose plaintext the engine encrypts: each has a VLAN ID on the veth pair."""

XFRMI_VERSIONS = {4: 1, 6: 2, FRAMES: 4}
"""Bits for the IP versions of an XFRM interface's tunnel, or for frames of a VXLAN device."""

XFRMI_POLICED = 0x80
"""Beside them, of an interface where XFRM's policies judge what comes in; the programs do not look at it."""

_V4_MAPPED = bytes(10) + b"\xff\xff"


class Owner(IntEnum):
    """Who takes an SA's packets (steer map) or numbers them (guard)."""

    ENGINE = 1
    KERNEL = 2


@unique
class Control(IntEnum):
    """Slots of the control map, each written by one map write."""

    ENGINE = 0
    """Not 0: steering is on."""
    HOLD_NS = 1
    """How long a newborn SPI is held back."""
    HEARTBEAT_NS = 2
    """CLOCK_MONOTONIC of the daemon's last sign of life, 0 for never."""
    BANK = 3
    """The bank of firewall rows that holds."""
    FIREWALL = 4
    """Not 0: the firewall decides."""
    FIB_GENERATION = 5
    """Routes that sessions remember from another generation are looked up anew; never 0."""
    SEED = 6
    """Of the hashes that choose NAT addresses and ports."""
    ANSWER_RATE = 7
    """RSTs and ICMP errors per second and CPU."""
    TUNNEL_ENTRY = 8
    """Index of the interface that leads what the kernel decrypted to the tunnels' port."""
    TUNNEL_PORT = 9
    """Index of the tunnels' port, by which it comes in."""
    NAT_T_PORTS = 10
    """Up to four UDP ports besides 4500 that ESP comes in on and goes out by, 16 bits each in network order."""
    ENGINE_GONE = 11
    """Not 0: plaintext for the engine found no socket at all, or came when no daemon was there. Set by its dock,
    cleared by user space alone."""

    WAITED_MARK = 12
    """The mark of packets that waited and that the guard lets through; a number that nobody else has, 0 for none."""
    TRANSLATOR = 13
    """CLOCK_MONOTONIC_COARSE since when VPP knows of NAT's flows; 0: VPP is away, XDP translates what is new. Set by
    user space alone, cleared by the dock of VPP's end as well."""
    TRANSLATOR_PORT = 14
    """Index of the kernel's end of the veth pair of NAT, 0 without pools of VPP."""
    TRANSLATOR_LIFE = 15
    """Whose table TRANSLATOR is about, for user space alone."""

    UPLINK = 16
    """Index of the kernel's end of the veth pair to the engine, 0 without one."""
    DAEMON_AWAY_NS = 17
    """CLOCK_MONOTONIC from which on the daemon counts as away, unless it shows itself before; 0 for never."""


MAX_CONTROL = 32


class AddressLeaf(ctypes.Structure):
    """``struct address``."""

    _fields_ = (("addr", ctypes.c_uint32 * 4),)

    @classmethod
    def of(cls, address: IpAddress) -> AddressLeaf:
        """The map key of an address."""
        packed = address.packed if address.version == 6 else _V4_MAPPED + address.packed
        return cls((ctypes.c_uint32 * 4).from_buffer_copy(packed))

    def address(self) -> IpAddress:
        """The address of a map key."""
        packed = bytes(self.addr)
        return IPv4Address(packed[12:]) if packed.startswith(_V4_MAPPED) else IPv6Address(packed)


class SaKeyLeaf(ctypes.Structure):
    """``struct sa_key``: everything in network order, IPv4 as v4-mapped."""

    _fields_ = (("addr", ctypes.c_uint32 * 4), ("spi", ctypes.c_uint32))

    @classmethod
    def of(cls, key: SaKey) -> SaKeyLeaf:
        """The map key of an SA."""
        return cls(AddressLeaf.of(key.destination).addr, socket.htonl(key.spi))

    def key(self) -> SaKey:
        """The SA of a map key."""
        return SaKey(AddressLeaf(self.addr).address(), socket.ntohl(self.spi))


class SteerEntryLeaf(ctypes.Structure):
    """``struct steer_entry``."""

    _fields_ = (
        ("owner", ctypes.c_uint32),
        ("generation", ctypes.c_uint32),
        ("counter", ctypes.c_uint32),
        ("port", ctypes.c_uint16),
        ("reserved", ctypes.c_uint16),
        ("peer", AddressLeaf),
        ("trial_ns", ctypes.c_uint64),
    )

    def set_peer(self, peer: UdpPeer | None) -> None:
        """Where its ESP in UDP comes from; None for bare ESP."""
        self.port = socket.htons(peer.port) if peer else 0
        self.peer = AddressLeaf.of(peer.address) if peer else AddressLeaf()
        self.trial_ns = 0

    def udp_peer(self) -> UdpPeer | None:
        """The same back."""
        return UdpPeer(self.peer.address(), socket.ntohs(self.port)) if self.port else None


class SteerCountLeaf(ctypes.Structure):
    """``struct steer_count``."""

    _fields_ = (
        ("engine_packets", ctypes.c_uint64),
        ("engine_octets", ctypes.c_uint64),
        ("kernel_packets", ctypes.c_uint64),
        ("kernel_octets", ctypes.c_uint64),
    )


class VerdictCountLeaf(ctypes.Structure):
    """``struct verdict_count``."""

    _fields_ = (("packets", ctypes.c_uint64), ("octets", ctypes.c_uint64))


class GuardRecordLeaf(ctypes.Structure):
    """``struct guard_record``."""

    _fields_ = (("first_seen_ns", ctypes.c_uint64), ("passed", ctypes.c_uint64), ("dropped", ctypes.c_uint64))


class WaitingLeaf(ctypes.Structure):
    """``struct waiting_packet``."""

    _fields_ = (
        ("seen_ns", ctypes.c_uint64),
        ("key", SaKeyLeaf),
        ("ifindex", ctypes.c_uint32),
        ("length", ctypes.c_uint16),
        ("l3", ctypes.c_uint16),
        ("esp", ctypes.c_uint16),
        ("frame", ctypes.c_uint8 * MAX_WAITING_FRAME),
    )


class InterfaceLeadLeaf(ctypes.Structure):
    """``struct interface_lead``."""

    _fields_ = (
        ("uplink", ctypes.c_uint32),
        ("vlan", ctypes.c_uint16),
        ("mtu", ctypes.c_uint16),
        ("versions", ctypes.c_uint32),
        ("engine_mac", ctypes.c_uint8 * 6),
        ("kernel_mac", ctypes.c_uint8 * 6),
    )


class InterfaceEntryLeaf(ctypes.Structure):
    """``struct interface_entry``."""

    _fields_ = (("ifindex", ctypes.c_uint32), ("versions", ctypes.c_uint32))


class NothingLeaf(ctypes.Structure):
    """Keys and values of a ring buffer."""

    _fields_ = ()


class ExitSlotLeaf(ctypes.Structure):
    """``struct exit_slot``; ``ifindex`` is 0 for none."""

    _fields_ = (("ifindex", ctypes.c_uint32), ("slot", ctypes.c_uint32))


class DockCountLeaf(ctypes.Structure):
    """``struct dock_count`` of ``dock.bpf.c``."""

    _fields_ = (("to_engine", ctypes.c_uint64), ("fell_to_kernel", ctypes.c_uint64))


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A map: its name is also its pin and the name that the C source gives it.

    ``entries`` of a ring buffer are bytes. ``resizable``: a pinned map with another number of entries is kept.
    """

    name: str
    kind: int
    key: type[ctypes.c_uint32] | type[ctypes.Structure]
    value: type[ctypes.c_uint32] | type[ctypes.c_uint64] | type[ctypes.Structure]
    entries: int
    flags: int = 0
    resizable: bool = False


CONTROL = MapSpec("control", libbpf.MAP_ARRAY, ctypes.c_uint32, ctypes.c_uint64, MAX_CONTROL)
VERDICTS = MapSpec("verdicts", libbpf.MAP_PERCPU_ARRAY, ctypes.c_uint32, VerdictCountLeaf, MAX_REASONS)
STEER = MapSpec("steer", libbpf.MAP_HASH, SaKeyLeaf, SteerEntryLeaf, MAX_SAS)
MOVED = MapSpec("moved", libbpf.MAP_HASH, SaKeyLeaf, ctypes.c_uint32, MAX_MOVED)
STEER_COUNTS = MapSpec("steer_counts", libbpf.MAP_PERCPU_ARRAY, ctypes.c_uint32, SteerCountLeaf, MAX_SAS)
GUARD_OWNER = MapSpec("guard_owner", libbpf.MAP_HASH, SaKeyLeaf, ctypes.c_uint32, MAX_SAS)
GUARD_SEEN = MapSpec("guard_seen", libbpf.MAP_HASH, SaKeyLeaf, GuardRecordLeaf, MAX_SAS)
LOCAL_ADDRESSES = MapSpec("local_addresses", libbpf.MAP_HASH, AddressLeaf, ctypes.c_uint32, MAX_ADDRESSES)
EXIT_SLOTS = MapSpec("exit_slots", libbpf.MAP_ARRAY, ctypes.c_uint32, ExitSlotLeaf, MAX_EXIT_SLOTS)
EXITS = MapSpec("exits", libbpf.MAP_PROG_ARRAY, ctypes.c_uint32, ctypes.c_uint32, MAX_DOCKS)
INTERFACE_LEADS = MapSpec("interface_leads", libbpf.MAP_HASH, ctypes.c_uint32, InterfaceLeadLeaf, MAX_XFRM_INTERFACES)
INTERFACE_TAGS = MapSpec("interface_tags", libbpf.MAP_HASH, ctypes.c_uint32, InterfaceEntryLeaf, MAX_XFRM_INTERFACES)
WAITING = MapSpec("waiting", libbpf.MAP_RINGBUF, NothingLeaf, NothingLeaf, WAITING_RING_BYTES)

MAPS = (
    CONTROL,
    VERDICTS,
    STEER,
    MOVED,
    STEER_COUNTS,
    GUARD_OWNER,
    GUARD_SEEN,
    LOCAL_ADDRESSES,
    EXIT_SLOTS,
    EXITS,
    INTERFACE_LEADS,
    INTERFACE_TAGS,
    WAITING,
)


def c_defines() -> str:
    """The numbers that C shares with this module, as preprocessor lines."""
    lines = [f"#define OWNER_{owner.name} {owner.value}" for owner in Owner]
    lines += [f"#define CONTROL_{slot.name} {slot.value}" for slot in Control]
    lines += [f"#define MAX_CONTROL {MAX_CONTROL}", f"#define MAX_SAS {MAX_SAS}", f"#define MAX_DOCKS {MAX_DOCKS}"]
    lines += [f"#define MAX_MOVED {MAX_MOVED}", f"#define MAX_XFRM_INTERFACES {MAX_XFRM_INTERFACES}"]
    lines += [
        f"#define XFRMI_{f'IPV{version}' if version else 'FRAMES'} {bit}" for version, bit in XFRMI_VERSIONS.items()
    ]
    lines += [f"#define MAX_WAITING_FRAME {MAX_WAITING_FRAME}", f"#define WAITING_RING_BYTES {WAITING_RING_BYTES}"]
    lines += [f"#define MAX_ADDRESSES {MAX_ADDRESSES}", f"#define MAX_EXIT_SLOTS {MAX_EXIT_SLOTS}"]
    return "\n".join([*lines, ""])


def check_map(spec: MapSpec, info: libbpf.MapInfo) -> None:
    """Compare what the kernel says about a map with its spec. Raises SteeringError naming the map."""
    entries = info.max_entries if spec.resizable else spec.entries
    found = (info.type, info.key_size, info.value_size, info.max_entries, info.map_flags)
    wanted = (spec.kind, ctypes.sizeof(spec.key), ctypes.sizeof(spec.value), entries, spec.flags)
    if found != wanted:
        raise SteeringError(
            f"pinned map {spec.name} has another layout (type {found[0]}, key and value bytes {found[1:3]}, entries "
            f"{found[3]}, flags {found[4]:#x}, not {wanted[0]}, {wanted[1:3]}, {wanted[3]}, {wanted[4]:#x}) - "
            "another version made it, run `ipsec-gw off` first"
        )


def check_type(name: str, compiled: type[Any], mirror: type[Any]) -> None:
    """Compare a type as BCC's compiler laid it out with its mirror. Raises SteeringError naming the field."""
    if layout_of(compiled) != layout_of(mirror):
        raise SteeringError(
            f"layout of {name} differs between C {layout_of(compiled)} and Python {layout_of(mirror)} - "
            "bpf/maps.h and layout.py do not belong together, reinstall"
        )


def layout_of(ctype: type[Any]) -> tuple[tuple[str, int, int], ...]:
    """(name, offset, bytes) of every field; a plain number is one field without a name."""
    if not issubclass(ctype, ctypes.Structure):
        return (("", 0, ctypes.sizeof(ctype)),)
    fields = [(field[0], getattr(ctype, field[0])) for field in ctype._fields_]
    return (*((name, field.offset, field.size) for name, field in fields), ("", 0, ctypes.sizeof(ctype)))
