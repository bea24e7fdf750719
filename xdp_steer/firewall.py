"""The running firewall: rows go into the bank that rests, then one write makes that bank the one that holds."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping

from xdp_steer import filter_layout as fil
from xdp_steer import flow_layout as fl
from xdp_steer import libbpf
from xdp_steer import screen_layout as sl
from xdp_steer.compile.ids import Ids, RuleName
from xdp_steer.compile.pack import Write, bank_writes, name_write, vlan_port_write
from xdp_steer.compile.rows import Rows
from xdp_steer.flow_layout import NameKind
from xdp_steer.layout import Control, MapSpec, VerdictCountLeaf
from xdp_steer.screen_layout import Screen
from xdp_steer.tables import Count, control, next_generation, refused, set_control

_BANKED: dict[MapSpec, Callable[[bytes], int]] = {
    fl.PORTS: lambda key: fl.PortKeyLeaf.from_buffer_copy(key).bank,
    fl.PREFIXES: lambda key: fl.PrefixKeyLeaf.from_buffer_copy(key).bank,
}
"""Maps whose old entries have to be deleted, and the bank of a key."""

_PER_CPU = VerdictCountLeaf * libbpf.possible_cpus()


class Firewall:
    """Writes the maps of the firewall. This process is the only writer; descriptors stay the caller's."""

    def __init__(self, maps: Mapping[str, int], control: int) -> None:
        self._maps = maps
        self._control = control
        self._applied: tuple[Rows, Ids] | None = None

    def apply(self, rows: Rows, ids: Ids) -> bool:
        """Make the rows hold, at once for all of them; False when they hold already and nothing was written.

        Raises SteeringError when the kernel refuses a write. Before the switch the running bank is as it was, after it
        the new one holds; another call puts right what is left to do either way.
        """
        if self._applied == (rows, ids):
            return False
        self._applied = None
        running = control(self._control, Control.BANK) % fl.MAX_BANKS
        resting = (running + 1) % fl.MAX_BANKS
        self._empty(resting)
        self._write_names(ids)
        self._write(vlan_port_write(rows))
        for write in bank_writes(rows, resting):
            self._write(write)
        self._switch(resting)
        with refused("waiting for running programs"):
            libbpf.wait_for_programs()  # packets in flight may still look into the old bank
        self._empty(running)
        self._keep_only(vlan_port_write(rows))
        self._keep_only(name_write(ids))
        self._applied = (rows, ids)
        return True

    def clear(self) -> None:
        """Switch the firewall off. Rows, names, counters and sessions stay in the maps, for the next apply."""
        self._applied = None
        set_control(self._control, Control.FIREWALL, 0)

    def ids(self) -> Ids:
        """The numbers that are in use, also those that another process wrote."""
        return Ids.of_names(self._names())

    def rule_counts(self) -> dict[RuleName, Count]:
        """Packets and octets (IP lengths) of every rule since it got its number, over all CPUs."""
        spec = fl.RULE_COUNTS
        with refused(f"reading of {spec.name}"):
            counts = libbpf.map_entries(self._maps[spec.name], 4, ctypes.sizeof(_PER_CPU), spec.entries)
        return {name: _sum(counts[number][1]) for name, number in self.ids().rules.items()}

    def screen_counts(self) -> dict[tuple[str, Screen], Count]:
        """Packets and octets (IP lengths) that hit a screen, by zone and screen, over all CPUs."""
        spec = sl.SCREEN_COUNTS
        with refused(f"reading of {spec.name}"):
            counts = libbpf.map_entries(self._maps[spec.name], 4, ctypes.sizeof(_PER_CPU), spec.entries)
        zones = self.ids().zones.items()
        return {
            (name, screen): _sum(counts[sl.count_index(zone, screen)][1]) for name, zone in zones for screen in Screen
        }

    def _switch(self, bank: int) -> None:
        """One system call, in this order: a packet that sees the firewall on or the generation new sees the bank."""
        values = {Control.BANK: bank, Control.FIREWALL: 1, Control.FIB_GENERATION: next_generation(self._control)}
        keys = (ctypes.c_uint32 * len(values))(*values)
        numbers = (ctypes.c_uint64 * len(values))(*values.values())
        with refused(f"switch to bank {bank}"):
            libbpf.map_update_batch(self._control, keys, numbers, len(values))

    def _write_names(self, ids: Ids) -> None:
        """Counters of new numbers begin at zero, policers with full buckets, and no number in use is without a name."""
        known = self._names()
        new = [place for place, name in ids.names().items() if known.get(place) != name]
        numbers = [number for kind, number in new if kind is not NameKind.ZONE]
        zeros = bytes(ctypes.sizeof(_PER_CPU) * len(numbers))
        keys = bytes((ctypes.c_uint32 * len(numbers))(*numbers))
        self._write(Write(fl.RULE_COUNTS, keys, zeros, len(numbers)))
        full = bytes(ctypes.sizeof(fil.PolicerStateLeaf) * len(numbers))
        self._write(Write(fil.POLICER_STATES, keys, full, len(numbers)))
        self._write(name_write(ids))

    def _names(self) -> dict[tuple[NameKind, int], str]:
        found = {}
        for raw_key, raw_name in self._entries(fl.NAMES):
            key = fl.NameKeyLeaf.from_buffer_copy(raw_key)
            found[NameKind(key.kind), int(key.id)] = fl.NameLeaf.from_buffer_copy(raw_name).name.decode()
        return found

    def _empty(self, bank: int) -> None:
        """Remove what a bank has in maps that are no arrays."""
        for spec, bank_of in _BANKED.items():
            self._delete(spec, [key for key, _ in self._entries(spec) if bank_of(key) == bank])

    def _keep_only(self, wanted: Write) -> None:
        keep = set(wanted.each_key())
        self._delete(wanted.spec, [key for key, _ in self._entries(wanted.spec) if key not in keep])

    def _entries(self, spec: MapSpec) -> list[tuple[bytes, bytes]]:
        sizes = ctypes.sizeof(spec.key), ctypes.sizeof(spec.value)
        with refused(f"reading of {spec.name}"):
            return libbpf.map_entries(self._maps[spec.name], *sizes, spec.entries)

    def _write(self, write: Write) -> None:
        keys, values = ((ctypes.c_char * len(raw)).from_buffer_copy(raw) for raw in (write.keys, write.values))
        with refused(f"{write.count} entries of {write.spec.name}"):
            libbpf.map_update_batch(self._maps[write.spec.name], keys, values, write.count)

    def _delete(self, spec: MapSpec, keys: list[bytes]) -> None:
        packed = (spec.key * len(keys)).from_buffer_copy(b"".join(keys))
        with refused(f"removal of {len(keys)} entries of {spec.name}"):
            libbpf.map_delete_batch(self._maps[spec.name], packed, len(keys))


def _sum(values: bytes) -> Count:
    counts = _PER_CPU.from_buffer_copy(values)
    return Count(sum(count.packets for count in counts), sum(count.octets for count in counts))
