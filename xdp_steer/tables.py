"""The pinned maps: created or adopted once, then read and written as typed values."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ipsec_gw.errors import EnvironmentMissing, SteeringError
from ipsec_gw.model.ids import IpAddress, SaKey
from ipsec_gw.model.objects import UdpPeer
from xdp_steer import filter_layout, flow_layout, layout, libbpf
from xdp_steer.layout import Control, Owner
from xdp_steer.reasons import Reason


@dataclass(frozen=True, slots=True)
class Count:
    """Packets and octets (Ethernet frames)."""

    packets: int
    octets: int


@dataclass(frozen=True, slots=True)
class SteerCount:
    """An inbound SA's packets and octets (Ethernet frames): handed to the dock for the engine, left to the kernel."""

    engine_packets: int
    engine_octets: int
    kernel_packets: int
    kernel_octets: int


@dataclass(frozen=True, slots=True)
class GuardCount:
    """ESP packets of an outbound SA that the kernel sent: let go, and dropped by the guard."""

    passed: int
    dropped: int


def open_maps(directory: Path, *, firewall: bool = True, sessions: int = flow_layout.MAX_SESSIONS) -> dict[str, int]:
    """Descriptors of all maps by name, adopted from ``directory`` or created and pinned there.

    ``firewall`` is False for those of steering and guard alone.
    ``sessions`` is the size of a new session table in entries, two for each session; a pinned one keeps its size.
    Raises EnvironmentMissing when it is not on a bpffs and SteeringError when a pinned map has another layout.
    """
    fds: dict[str, int] = {}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for spec in layout.MAPS + (filter_layout.FIREWALL_MAPS if firewall else ()):
            sized = replace(spec, entries=sessions) if spec is flow_layout.SESSIONS else spec
            fds[spec.name] = _open_map(directory / spec.name, sized)
    except OSError as error:
        close_maps(fds)
        raise EnvironmentMissing(
            f"cannot keep BPF maps in {directory} ({error.strerror}) - needs root and `mount -t bpf bpf /sys/fs/bpf`"
        ) from error
    except SteeringError:
        close_maps(fds)
        raise
    return fds


def forget_firewall(directory: Path) -> None:
    """Unpin the firewall's maps, sessions included: the programs that use them are gone, and so are they then."""
    for spec in filter_layout.FIREWALL_MAPS:
        (directory / spec.name).unlink(missing_ok=True)


def close_maps(fds: Mapping[str, int]) -> None:
    """Close descriptors of :func:`open_maps`."""
    for fd in fds.values():
        os.close(fd)


def _open_map(path: Path, spec: layout.MapSpec) -> int:
    try:
        fd = libbpf.open_pin(path)
    except FileNotFoundError:
        key_size, value_size = ctypes.sizeof(spec.key), ctypes.sizeof(spec.value)
        fd = libbpf.map_create(spec.kind, spec.name, key_size, value_size, spec.entries, flags=spec.flags)
        libbpf.pin(fd, path)
        return fd
    try:
        layout.check_map(spec, libbpf.map_info(fd))
    except SteeringError:
        os.close(fd)
        raise
    return fd


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Turn an OSError of a map into a SteeringError that names the object."""
    try:
        yield
    except OSError as error:
        raise SteeringError(f"{what} refused by the kernel ({error.strerror}) - is the table full?") from error


class SteerTable:
    """Which inbound SAs go to the engine, and their counters. This process is the only writer."""

    def __init__(self, steer: int, counts: int) -> None:
        self._steer = steer
        self._counts = counts
        entries = self._entries()
        self._slots = {entry.counter for entry in entries.values()}
        self._generation = max((entry.generation for entry in entries.values()), default=0)

    def _entries(self) -> dict[SaKey, layout.SteerEntryLeaf]:
        found: dict[SaKey, layout.SteerEntryLeaf] = {}
        with refused("reading of the steered SAs"):
            for leaf in libbpf.map_keys(self._steer, layout.SaKeyLeaf):
                found[leaf.key()] = libbpf.map_lookup(self._steer, leaf, layout.SteerEntryLeaf())
        return found

    def add(self, key: SaKey, peer: UdpPeer | None = None) -> None:
        """Steer an SA, its counters from zero. If it is steered already, only its peer changes."""
        leaf = layout.SaKeyLeaf.of(key)
        with refused(f"steering of {key}"), suppress(FileNotFoundError):
            present = libbpf.map_lookup(self._steer, leaf, layout.SteerEntryLeaf())
            if present.owner == Owner.ENGINE:
                if present.udp_peer() != peer:
                    present.set_peer(peer)
                    libbpf.map_update(self._steer, leaf, present)
                return
            self.remove(key)
        with refused(f"steering of {key}"):
            slot = self._free_slot(key)
            zeros = (layout.SteerCountLeaf * libbpf.possible_cpus())()
            libbpf.map_update(self._counts, ctypes.c_uint32(slot), zeros)
            self._generation += 1
            entry = layout.SteerEntryLeaf(Owner.ENGINE, self._generation, slot)
            entry.set_peer(peer)
            libbpf.map_update(self._steer, leaf, entry)
        self._slots.add(slot)

    def give_to_kernel(self, key: SaKey, until_ns: int) -> None:
        """Until then (CLOCK_MONOTONIC) ESP in UDP from elsewhere is the kernel's. Not steered is no error."""
        leaf = layout.SaKeyLeaf.of(key)
        with refused(f"trial of {key}"), suppress(FileNotFoundError):
            entry = libbpf.map_lookup(self._steer, leaf, layout.SteerEntryLeaf())
            entry.trial_ns = until_ns
            libbpf.map_update(self._steer, leaf, entry)

    def peers(self) -> dict[SaKey, UdpPeer | None]:
        """The steered SAs, and where each one's ESP in UDP comes from; None for bare ESP."""
        entries = self._entries().items()
        return {key: entry.udp_peer() for key, entry in entries if entry.owner == Owner.ENGINE}

    def _free_slot(self, key: SaKey) -> int:
        # Round robin from the generation: a slot rests for long before it is used again.
        for step in range(layout.MAX_SAS):
            slot = (self._generation + step) % layout.MAX_SAS
            if slot not in self._slots:
                return slot
        raise SteeringError(f"no room to steer {key} - {layout.MAX_SAS} SAs are steered already")

    def remove(self, key: SaKey) -> None:
        """Leave an SA to the kernel. Not steered is no error."""
        leaf = layout.SaKeyLeaf.of(key)
        with refused(f"end of the steering of {key}"):
            try:
                entry = libbpf.map_lookup(self._steer, leaf, layout.SteerEntryLeaf())
                libbpf.map_delete(self._steer, leaf)
            except FileNotFoundError:
                return
        self._slots.discard(entry.counter)

    def keys(self) -> frozenset[SaKey]:
        """SAs that go to the engine (while the engine flag is on)."""
        return frozenset(key for key, entry in self._entries().items() if entry.owner == Owner.ENGINE)

    def counters(self) -> dict[SaKey, SteerCount]:
        """Counters of every entry, over all CPUs."""
        return {key: self._count(entry.counter) for key, entry in self._entries().items()}

    def _count(self, slot: int) -> SteerCount:
        values = (layout.SteerCountLeaf * libbpf.possible_cpus())()
        libbpf.map_lookup(self._counts, ctypes.c_uint32(slot), values)
        return SteerCount(
            sum(value.engine_packets for value in values),
            sum(value.engine_octets for value in values),
            sum(value.kernel_packets for value in values),
            sum(value.kernel_octets for value in values),
        )


def take_moved(fd: int) -> frozenset[SaKey]:
    """SAs of which ESP in UDP came from elsewhere since the last call."""
    with refused("reading of the SAs that have moved"):
        leaves = list(libbpf.map_keys(fd, layout.SaKeyLeaf))
    for leaf in leaves:
        with refused("reading of the SAs that have moved"), suppress(FileNotFoundError):
            libbpf.map_delete(fd, leaf)
    return frozenset(leaf.key() for leaf in leaves)


class GuardTable:
    """Who owns the numbers of outbound SAs (written here), and what the guard saw (written by the guard)."""

    def __init__(self, owner: int, seen: int) -> None:
        self._owner = owner
        self._seen = seen

    def set_owner(self, key: SaKey, owner: Owner) -> None:
        """Decide on an SA, by one map write."""
        with refused(f"guard of {key}"):
            libbpf.map_update(self._owner, layout.SaKeyLeaf.of(key), ctypes.c_uint32(owner))

    def forget(self, key: SaKey) -> None:
        """Remove the decision and the record. Unknown is no error."""
        for fd in (self._owner, self._seen):
            with refused(f"end of the guard of {key}"), suppress(FileNotFoundError):
                libbpf.map_delete(fd, layout.SaKeyLeaf.of(key))

    def known(self) -> frozenset[SaKey]:
        """SAs with a decision or a record."""
        with refused("reading of the guarded SAs"):
            keys = {leaf.key() for fd in (self._owner, self._seen) for leaf in libbpf.map_keys(fd, layout.SaKeyLeaf)}
        return frozenset(keys)

    def owner(self, key: SaKey) -> Owner | None:
        """The decision on an SA, None if nobody has decided."""
        with refused(f"reading of the guard of {key}"):
            try:
                return Owner(libbpf.map_lookup(self._owner, layout.SaKeyLeaf.of(key), ctypes.c_uint32()).value)
            except FileNotFoundError:
                return None

    def owned_by(self, owner: Owner) -> frozenset[SaKey]:
        """SAs decided that way."""
        found = set()
        with refused("reading of the guarded SAs"):
            for leaf in libbpf.map_keys(self._owner, layout.SaKeyLeaf):
                if libbpf.map_lookup(self._owner, leaf, ctypes.c_uint32()).value == owner:
                    found.add(leaf.key())
        return frozenset(found)

    def counters(self) -> dict[SaKey, GuardCount]:
        """What the guard saw per SA."""
        found: dict[SaKey, GuardCount] = {}
        with refused("reading of the guard's counters"):
            for leaf in libbpf.map_keys(self._seen, layout.SaKeyLeaf):
                record = libbpf.map_lookup(self._seen, leaf, layout.GuardRecordLeaf())
                found[leaf.key()] = GuardCount(record.passed, record.dropped)
        return found


class AddressTable:
    """The addresses of this machine: what the kernel sends from others is none of the guard's business."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def replace(self, wanted: frozenset[IpAddress]) -> None:
        """Write the new ones, then remove the old ones."""
        with refused("reading of the local addresses"):
            present = {leaf.address() for leaf in libbpf.map_keys(self._fd, layout.AddressLeaf)}
        for address in wanted - present:
            with refused(f"local address {address}"):
                libbpf.map_update(self._fd, layout.AddressLeaf.of(address), ctypes.c_uint32(1))
        for address in present - wanted:
            with refused(f"end of local address {address}"), suppress(FileNotFoundError):
                libbpf.map_delete(self._fd, layout.AddressLeaf.of(address))


def set_control(fd: int, slot: Control, value: int) -> None:
    """Write one number of the control map."""
    with refused(f"control {slot.name.lower()}"):
        libbpf.map_update(fd, ctypes.c_uint32(slot), ctypes.c_uint64(value))


def control(fd: int, slot: Control) -> int:
    """Read one number of the control map."""
    with refused(f"reading of control {slot.name.lower()}"):
        return libbpf.map_lookup(fd, ctypes.c_uint32(slot), ctypes.c_uint64()).value


@dataclass(frozen=True, slots=True)
class PoolCount:
    """What a pool with a tag was asked for, over all CPUs: new flows, packets of its flows in both directions, and
    flows that XDP's addresses had no port for.
    """

    flows: int
    packets: int
    refused: int = 0


class PoolTable:
    """Whose the new flows of pools are that are VPP's at times (written here), and what pools are asked for. By tag."""

    def __init__(self, engines: int, counts: int) -> None:
        self._engines = engines
        self._counts = counts

    def is_vpps(self, tag: int) -> bool:
        """Whether new flows of that pool are VPP's, while VPP translates at all."""
        with refused(f"reading of the engine of pool {tag}"):
            return bool(libbpf.map_lookup(self._engines, ctypes.c_uint32(tag), ctypes.c_uint32()).value)

    def give(self, tag: int, *, to_vpp: bool) -> None:
        """New flows of that pool are VPP's, or XDP's, from the next packet on; by one map write."""
        with refused(f"engine of pool {tag}"):
            libbpf.map_update(self._engines, ctypes.c_uint32(tag), ctypes.c_uint32(to_vpp))

    def count(self, tag: int) -> PoolCount:
        """Since the maps were made."""
        values = (flow_layout.PoolCountLeaf * libbpf.possible_cpus())()
        with refused(f"reading of the counters of pool {tag}"):
            libbpf.map_lookup(self._counts, ctypes.c_uint32(tag), values)
        names = ("flows", "packets", "refused")
        return PoolCount(*(sum(getattr(value, name) for value in values) for name in names))


def next_generation(fd: int) -> int:
    """The generation of routes after the one in the control map: 32 bits, never 0."""
    return (control(fd, Control.FIB_GENERATION) + 1) & 0xFFFFFFFF or 1


def verdicts(fd: int) -> dict[Reason, Count]:
    """Counters of every reason, over all CPUs."""
    found = {}
    for reason in Reason:
        values = (layout.VerdictCountLeaf * libbpf.possible_cpus())()
        libbpf.map_lookup(fd, ctypes.c_uint32(reason), values)
        found[reason] = Count(sum(value.packets for value in values), sum(value.octets for value in values))
    return found


class ExitTable:
    """The way from the pipeline to each dock's ``to_vpp``: a slot per interface index. Nobody else writes them."""

    def __init__(self, slots: int, exits: int) -> None:
        self._slots = slots
        self._exits = exits

    @cached_property
    def _taken(self) -> dict[int, int]:
        """Slots by interface index. The map has tens of thousands of places: it is read once."""
        spec = layout.EXIT_SLOTS
        with refused(f"reading of {spec.name}"):
            _, values = libbpf.map_content(self._slots, 4, ctypes.sizeof(layout.ExitSlotLeaf), spec.entries)
        leaves = np.frombuffer(values, dtype=np.dtype(layout.ExitSlotLeaf))
        return {int(leaf["ifindex"]): int(leaf["slot"]) for leaf in leaves[leaves["ifindex"] != 0]}

    def connect(self, ifindex: int, program: int) -> None:
        """Lead an interface's steered packets to its dock: program first, then the slot becomes known."""
        slot = self._taken.get(ifindex)
        if slot is None:
            slot = _free_slot(ifindex, self._taken)
        with refused(f"way out for interface index {ifindex}"):
            libbpf.map_update(self._exits, ctypes.c_uint32(slot), ctypes.c_uint32(program))
            self._place(ifindex, layout.ExitSlotLeaf(ifindex, slot))
        self._taken[ifindex] = slot

    def disconnect(self, ifindex: int) -> None:
        """Forget an interface: known slot first, then the program. Unknown is no error."""
        slot = self._taken.get(ifindex)
        if slot is None:
            return
        self._place(ifindex, layout.ExitSlotLeaf())
        del self._taken[ifindex]
        with suppress(FileNotFoundError):
            libbpf.map_delete(self._exits, ctypes.c_uint32(slot))

    def keep_only(self, ifindexes: frozenset[int]) -> None:
        """Forget interfaces that are docked no more (they vanished while nobody looked)."""
        for ifindex in self._taken.keys() - ifindexes:
            self.disconnect(ifindex)

    def _place(self, ifindex: int, leaf: layout.ExitSlotLeaf) -> None:
        libbpf.map_update(self._slots, ctypes.c_uint32(ifindex % layout.MAX_EXIT_SLOTS), leaf)


def _free_slot(ifindex: int, taken: Mapping[int, int]) -> int:
    rivals = [other for other in taken if other % layout.MAX_EXIT_SLOTS == ifindex % layout.MAX_EXIT_SLOTS]
    if rivals:
        raise SteeringError(
            f"interface indices {ifindex} and {rivals[0]} are {layout.MAX_EXIT_SLOTS} apart and share a place"
            " - create one of the interfaces anew, it gets another index"
        )
    free = set(range(layout.MAX_DOCKS)) - set(taken.values())
    if not free:
        raise SteeringError(f"no way out for interface index {ifindex} - {layout.MAX_DOCKS} docks are in use")
    return min(free)
