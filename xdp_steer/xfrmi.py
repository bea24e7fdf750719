"""XFRM interfaces (route-based IPsec) that an engine serves: the maps behind ``bpf/xfrmi.h``, the program on an
interface, and its kernel settings; GRE and IPIP devices, whose packets alone an SA protects; and VXLAN devices.

What an engine has decrypted comes in by an XFRM interface without the state that XFRM's policy check asks for, so that
check is off there (``disable_policy``) as long as the engine may deliver; nothing but IPsec delivers to such an
interface. What a GRE or IPIP device brings has no such state anyway.

The MTU becomes what fits into the tunnel, so that the kernel fragments, or says that it cannot, before the engine has
the packet. What was before is noted in directories below ``PINS/xfrmi``, by the interface's index. A VXLAN device
keeps its own: in a bridge, whose MTU would follow, what is too long would be lost without a word. Its program leaves
that to the kernel, which knows what fits and tells.

A program that has nothing to lead any more stays where it is: when clsact comes or goes, the kernel takes the
interface's queues away for a moment, and what is sent meanwhile is lost (``qdisc_graft`` in ``sch_api.c``).
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ipsec_gw.errors import SteeringError
from ipsec_gw.model.objects import FRAMES
from xdp_steer import guard, libbpf, sysctl
from xdp_steer.dock import remove_tree
from xdp_steer.layout import (
    INTERFACE_LEADS,
    INTERFACE_TAGS,
    XFRMI_POLICED,
    XFRMI_VERSIONS,
    InterfaceEntryLeaf,
    InterfaceLeadLeaf,
)
from xdp_steer.rtnl import link_mtu, set_link_mtu
from xdp_steer.tables import refused

_CLSACT_NOTE = "clsact"
_MTU_NOTE = "mtu="
_DISABLE_POLICY = {4: "disable_policy", 6: f"{sysctl.IPV6}disable_policy"}


@dataclass(frozen=True, slots=True)
class Uplink:
    """The kernel's end of the veth pair by its index, and the MAC addresses (six bytes) of both ends."""

    index: int
    kernel_mac: bytes
    engine_mac: bytes


class XfrmiTable:
    """Which XFRM interfaces an engine serves. This process is the only writer; descriptors stay the caller's."""

    def __init__(self, pins: Path, maps: Mapping[str, int], program: int) -> None:
        """``program`` is that of their TC egress."""
        self._pins = pins / "xfrmi"
        self._leads = maps[INTERFACE_LEADS.name]
        self._tags = maps[INTERFACE_TAGS.name]
        self._program = program

    def admit(self, index: int, vlan: int, versions: frozenset[int], *, policed: bool = False) -> None:
        """What the engine tags with this VLAN ID comes in by the interface, of these IP versions. Again is no error.

        ``policed``: XFRM's policies judge it, as what a GRE or IPIP device brings without an engine. Raises
        SteeringError.
        """
        notes = self._notes(index)
        notes.mkdir(parents=True, exist_ok=True)
        self._set(index, {} if policed else {_DISABLE_POLICY[version]: "1" for version in versions})
        bits = _bits(versions) | (XFRMI_POLICED if policed else 0)
        with refused(f"entry by {_name(index)}"):
            libbpf.map_update(self._tags, ctypes.c_uint32(vlan), InterfaceEntryLeaf(index, bits))

    def shut(self, index: int, vlan: int) -> None:
        """Let nothing in by it any more, and give its settings back. Not there is no error."""
        with refused(f"end of the entry by {_name(index)}"), contextlib.suppress(FileNotFoundError):
            libbpf.map_delete(self._tags, ctypes.c_uint32(vlan))
        _forget(self._notes(index))

    def admitted(self) -> Mapping[int, tuple[int, frozenset[int]]]:
        """VLAN ID and IP versions of those that the engine may deliver by, by index."""
        with refused("reading of the XFRM interfaces"):
            vlans = list(libbpf.map_keys(self._tags, ctypes.c_uint32))
            found = {vlan.value: libbpf.map_lookup(self._tags, vlan, InterfaceEntryLeaf()) for vlan in vlans}
        return {leaf.ifindex: (vlan, self._versions(leaf)) for vlan, leaf in found.items()}

    def lead(self, index: int, vlan: int, mtu: int, versions: frozenset[int], uplink: Uplink) -> None:
        """What leaves by the interface goes to the engine, in packets of ``mtu`` bytes at most and of these IP versions
        alone, or as frames (:data:`~ipsec_gw.model.objects.FRAMES`). Again, with other values, is no error. Raises
        SteeringError.
        """
        notes, name = self._notes(index), _name(index)
        notes.mkdir(parents=True, exist_ok=True)
        if guard.attach(name, index, self._program, guard.Hook.XFRMI_EGRESS):
            (notes / _CLSACT_NOTE).mkdir(exist_ok=True)
        if FRAMES not in versions:
            self._shrink(index, mtu)
        macs = (ctypes.c_uint8 * 6)(*uplink.engine_mac), (ctypes.c_uint8 * 6)(*uplink.kernel_mac)
        leaf = InterfaceLeadLeaf(uplink.index, vlan, mtu, _bits(versions), *macs)
        with refused(f"lead of {name}"):
            libbpf.map_update(self._leads, ctypes.c_uint32(index), leaf)

    def unlead(self, index: int) -> None:
        """Leave what goes out by it to the kernel. Not led, or gone, is no error."""
        with refused(f"end of the lead of {_name(index)}"), contextlib.suppress(FileNotFoundError):
            libbpf.map_delete(self._leads, ctypes.c_uint32(index))
        (_restore_mtu if _is_there(index) else _release)(index, self._notes(index))

    def led(self) -> Mapping[int, tuple[int, int, frozenset[int]]]:
        """VLAN ID, MTU and IP versions of those whose plaintext goes to the engine, by index. Without the program in
        its place the MTU is 0.
        """
        found: dict[int, tuple[int, int, frozenset[int]]] = {}
        with refused("reading of the XFRM interfaces"):
            for key in libbpf.map_keys(self._leads, ctypes.c_uint32):
                leaf = libbpf.map_lookup(self._leads, key, InterfaceLeadLeaf())
                whole = guard.attached(key.value, guard.Hook.XFRMI_EGRESS)
                found[key.value] = (leaf.vlan, leaf.mtu if whole else 0, _versions_of(leaf.versions))
        return found

    def renew(self) -> None:
        """Put this version's program in the place of an earlier one's."""
        for index in self.led():
            with contextlib.suppress(OSError):
                guard.attach(socket.if_indextoname(index), index, self._program, guard.Hook.XFRMI_EGRESS)

    def _notes(self, index: int) -> Path:
        return self._pins / str(index)

    def _versions(self, leaf: InterfaceEntryLeaf) -> frozenset[int]:
        """Those that may come in and that XFRM does not stop, where it must not."""
        if leaf.versions & XFRMI_POLICED:
            return _versions_of(leaf.versions)
        changed = sysctl.noted(self._notes(leaf.ifindex))
        open_ = frozenset(version for version, name in _DISABLE_POLICY.items() if name in changed)
        return open_ & _versions_of(leaf.versions)

    def _set(self, index: int, wanted: Mapping[str, str]) -> None:
        notes = self._notes(index)
        if sysctl.noted(notes) - wanted.keys():
            sysctl.restore(_name(index), notes)
        try:
            sysctl.change(_name(index), notes, wanted)
        except OSError as error:
            raise SteeringError(f"settings of {_name(index)} refused ({error.strerror}) - see `ip link`") from error

    def _shrink(self, index: int, mtu: int) -> None:
        """Never larger than the operator has it."""
        notes = self._notes(index)
        before = _noted_mtu(notes)
        present = link_mtu(index)
        theirs = before[0] if before is not None and before[1] == present else present
        wanted = min(mtu, theirs)
        if before is not None:
            (notes / f"{_MTU_NOTE}{before[0]}:{before[1]}").rmdir()
        if wanted != theirs:
            (notes / f"{_MTU_NOTE}{theirs}:{wanted}").mkdir()
        set_link_mtu(index, wanted)


def remove_leftovers(pins: Path) -> None:
    """Take the programs off all interfaces and give all settings back, without opening any map."""
    top = pins / "xfrmi"
    for notes in list(top.iterdir()) if top.is_dir() else []:
        _release(int(notes.name), notes)
        _forget(notes)


def _release(index: int, notes: Path) -> None:
    guard.detach(_name(index), index, guard.XFRMI, ours=(notes / _CLSACT_NOTE).is_dir())
    with contextlib.suppress(FileNotFoundError):
        (notes / _CLSACT_NOTE).rmdir()
    _restore_mtu(index, notes)


def _restore_mtu(index: int, notes: Path) -> None:
    before = _noted_mtu(notes)
    if before is None:
        return
    theirs, ours = before
    if link_mtu(index) == ours:  # an operator's own since then stays
        set_link_mtu(index, theirs)
    (notes / f"{_MTU_NOTE}{theirs}:{ours}").rmdir()


def _forget(notes: Path) -> None:
    if notes.is_dir():
        sysctl.restore(_name(int(notes.name)), notes)
        if not any(notes.iterdir()):
            remove_tree(notes)


def _noted_mtu(notes: Path) -> tuple[int, int] | None:
    """What the interface had, and what it was given; None if it was left alone."""
    for entry in notes.glob(f"{_MTU_NOTE}*"):
        theirs, ours = entry.name.removeprefix(_MTU_NOTE).split(":")
        return int(theirs), int(ours)
    return None


def _bits(versions: frozenset[int]) -> int:
    return sum(XFRMI_VERSIONS[version] for version in versions)


def _versions_of(bits: int) -> frozenset[int]:
    return frozenset(version for version, bit in XFRMI_VERSIONS.items() if bits & bit)


def _is_there(index: int) -> bool:
    with contextlib.suppress(OSError):
        return bool(socket.if_indextoname(index))
    return False


def _name(index: int) -> str:
    """For people, and for what asks by name; an interface that is gone has none."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"interface {index}"
