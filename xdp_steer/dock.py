"""Docks: the permanent XDP program of an interface (``bpf/dock.bpf.c``), attached by a pinned link.

All pins of a dock are in one directory: its programs, maps and link, and two empty directories as notes, one for its
role and one for the digest of the object file that it was loaded from. The pins keep it attached and the pipeline
behind it running when the process is gone.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import structlog

from ipsec_gw.errors import EnvironmentMissing, SteeringError
from xdp_steer import libbpf
from xdp_steer.layout import CONTROL, DockCountLeaf

OBJECT = Path(__file__).parent / "bpf" / "dock.bpf.o"
ENTRY = "xsk_def_prog"
EXIT = "to_vpp"
PLAIN_ENTRY = "plain_to_vpp"
NAT_ENTRY = "nat_to_vpp"
_MAPS = ("xsks_map", "pipeline", "dock_counts")
_PROGRAMS = (ENTRY, EXIT, PLAIN_ENTRY, NAT_ENTRY)
_LINK = "link"
_ROLE_NOTE = "role:"
_OBJECT_NOTE = "object:"
_DIGEST_CHARS = 16

log = structlog.get_logger(__name__)


class Role(StrEnum):
    """What happens behind a dock."""

    WAN = "wan"
    """The pipeline decides, and the guard watches TC egress."""
    INSIDE = "inside"
    """The same, on an interface of the firewall that no tunnel comes in by."""
    TO_ENGINE = "to-engine"
    """Every packet goes to the engine's socket, or to the kernel, which may then send what the engine would have."""
    TO_TRANSLATOR = "to-translator"
    """Every packet goes to VPP's socket, to be translated, or is dropped."""


@dataclass(frozen=True, slots=True)
class Dock:
    """An attached dock: its interface and the descriptors of what is pinned for it."""

    interface: str
    ifindex: int
    directory: Path
    link: int
    xsks_map: int
    pipeline: int
    counts: int
    exit: int
    plain: int
    nat: int

    def install(self, role: Role, pipeline: int) -> None:
        """Put the program of a role behind the dock, by one write, and note the role."""
        entry = {Role.TO_ENGINE: self.plain, Role.TO_TRANSLATOR: self.nat}.get(role, pipeline)
        libbpf.map_update(self.pipeline, ctypes.c_uint32(0), ctypes.c_uint32(entry))
        _note(self.directory, _ROLE_NOTE, role)

    def close(self) -> None:
        """Close the descriptors. The dock stays attached."""
        for fd in (self.link, self.xsks_map, self.pipeline, self.counts, self.exit, self.plain, self.nat):
            os.close(fd)


def directory_of(pins: Path, interface: str) -> Path:
    """Where an interface's dock is pinned. bpffs refuses dots in names and interface names have no colons."""
    return pins / "docks" / interface.replace(".", ":")


def pinned_interfaces(pins: Path) -> frozenset[str]:
    """Interfaces with a dock's pins, whether they still exist or not."""
    docks = pins / "docks"
    return frozenset(entry.name.replace(":", ".") for entry in docks.iterdir()) if docks.is_dir() else frozenset()


def ifindex_of(interface: str) -> int:
    """The interface's index. Raises EnvironmentMissing when it does not exist here."""
    try:
        return socket.if_nametoindex(interface)
    except OSError as error:
        raise EnvironmentMissing(f"interface {interface} does not exist - check `ip link`") from error


def role_of(directory: Path) -> Role | None:
    """The noted role of a dock, None before it has one."""
    for entry in directory.glob(f"{_ROLE_NOTE}*"):
        return Role(entry.name.removeprefix(_ROLE_NOTE))
    return None


def held_ifindex(directory: Path) -> int:
    """Index of the interface that a dock's pinned link holds, 0 when there is none any more."""
    try:
        link = libbpf.open_pin(directory / _LINK)
    except OSError:
        return 0
    try:
        return int(libbpf.link_info(link).xdp_ifindex)
    finally:
        os.close(link)


def open_dock(pins: Path, interface: str, role: Role, pipeline: int) -> Dock:
    """Adopt the interface's pinned dock or attach a new one, with ``role`` in force before the first packet.

    ``pipeline`` is the descriptor of the WAN pipeline. Raises EnvironmentMissing and SteeringError; a dock that cannot
    be attached leaves nothing behind.
    """
    ifindex = ifindex_of(interface)
    directory = directory_of(pins, interface)
    link = _live_link(directory, ifindex)
    with _translated(f"dock on {interface}"):
        if link is None:
            return _attach(directory, interface, ifindex, role, pipeline)
        if not _has_note(directory, _OBJECT_NOTE, object_digest()):
            _upgrade(directory, link)
        dock = _adopt(directory, interface, ifindex, link)
        dock.install(role, pipeline)
        return dock


def remove_dock(directory: Path) -> None:
    """Take a dock off its interface and remove its pins. An interface or pins that are gone are no error."""
    try:
        link = libbpf.open_pin(directory / _LINK)
    except OSError:
        link = None
    if link is not None:
        with _translated(f"detaching the dock of {directory.name}"):
            libbpf.link_detach(link)
        os.close(link)
    remove_tree(directory)


def remove_tree(directory: Path) -> None:
    """Remove pins and directories of a bpffs, deepest first."""
    if not directory.is_dir():
        return
    for entry in directory.iterdir():
        if entry.is_dir():
            remove_tree(entry)
        else:
            entry.unlink(missing_ok=True)
    directory.rmdir()


def counts(dock: Dock) -> tuple[int, int]:
    """Packets that a live socket was there for, and packets that fell to the kernel, over all CPUs."""
    values = (DockCountLeaf * libbpf.possible_cpus())()
    libbpf.map_lookup(dock.counts, ctypes.c_uint32(0), values)
    return sum(value.to_engine for value in values), sum(value.fell_to_kernel for value in values)


def object_digest() -> str:
    """Digest of the dock's object file. Raises EnvironmentMissing when it was never built."""
    try:
        return hashlib.sha256(OBJECT.read_bytes()).hexdigest()[:_DIGEST_CHARS]
    except FileNotFoundError as error:
        raise EnvironmentMissing(f"{OBJECT.name} is missing in {OBJECT.parent} - run `make`") from error


def _live_link(directory: Path, ifindex: int) -> int | None:
    """The pinned link if it still holds this interface. Pins of a lost interface are swept."""
    try:
        link = libbpf.open_pin(directory / _LINK)
    except OSError:
        remove_tree(directory)
        return None
    if libbpf.link_info(link).xdp_ifindex == ifindex:
        return link
    os.close(link)
    remove_tree(directory)
    return None


def _attach(directory: Path, interface: str, ifindex: int, role: Role, pipeline: int) -> Dock:
    digest = object_digest()
    _refuse_foreign(interface, ifindex)
    reuse = {CONTROL.name: _open_control(directory)}
    try:
        obj = libbpf.BpfObject(OBJECT, reuse)
    finally:
        _close_all(reuse)
    link = None
    try:
        _check_counts(interface, obj.map("dock_counts"))
        entries = {Role.TO_ENGINE: PLAIN_ENTRY, Role.TO_TRANSLATOR: NAT_ENTRY}
        entry = obj.program(entries[role]) if role in entries else pipeline
        libbpf.map_update(obj.map("pipeline"), ctypes.c_uint32(0), ctypes.c_uint32(entry))
        directory.mkdir(parents=True)
        for name in _MAPS:
            libbpf.pin(obj.map(name), directory / name)
        for name in _PROGRAMS:
            libbpf.pin(obj.program(name), directory / name)
        _note(directory, _OBJECT_NOTE, digest)
        _note(directory, _ROLE_NOTE, role)
        link = _link(obj.program(ENTRY), interface, ifindex)
        libbpf.pin(link, directory / _LINK)
        return _adopt(directory, interface, ifindex, link)
    except BaseException:
        if link is not None:
            os.close(link)  # the last reference: this detaches
        remove_tree(directory)
        raise
    finally:
        obj.close()


def _link(program: int, interface: str, ifindex: int) -> int:
    """Driver mode, or generic mode where the driver has no XDP (or not for this MTU or queue count)."""
    try:
        return libbpf.link_xdp(program, ifindex, libbpf.XDP_DRIVER_MODE)
    except OSError as error:
        log.warning("no native XDP, trying generic mode", interface=interface, reason=error.strerror)
    return libbpf.link_xdp(program, ifindex, libbpf.XDP_SKB_MODE)


def _refuse_foreign(interface: str, ifindex: int) -> None:
    found = libbpf.xdp_program(ifindex)
    if not found:
        return
    program = libbpf.prog_by_id(found)
    try:
        name = libbpf.prog_info(program).name.decode()
    finally:
        os.close(program)
    raise SteeringError(
        f"interface {interface} already has the XDP program {name} (id {found}) - "
        f"remove it (`ip link set dev {interface} xdp off`, or what put it there) or leave {interface} out"
    )


def _upgrade(directory: Path, link: int) -> None:
    """Swap the programs for those of the installed object, on the same maps, without a gap."""
    reuse = {name: libbpf.open_pin(directory / name) for name in _MAPS}
    try:
        reuse[CONTROL.name] = _open_control(directory)
        _check_counts(directory.name, reuse["dock_counts"])
        obj = libbpf.BpfObject(OBJECT, reuse)
        try:
            libbpf.link_update(link, obj.program(ENTRY))
            for name in _PROGRAMS:
                (directory / name).unlink(missing_ok=True)
                libbpf.pin(obj.program(name), directory / name)
        finally:
            obj.close()
    finally:
        _close_all(reuse)
    _note(directory, _OBJECT_NOTE, object_digest())
    log.info("dock upgraded", interface=directory.name)


def _open_control(directory: Path) -> int:
    """The map that all programs of a gateway share, pinned beside its docks."""
    return libbpf.open_pin(directory.parent.parent / "maps" / CONTROL.name)


def _close_all(descriptors: Mapping[str, int]) -> None:
    for fd in descriptors.values():
        os.close(fd)


def _check_counts(dock_name: str, counts_map: int) -> None:
    value_size = libbpf.map_info(counts_map).value_size
    if value_size != ctypes.sizeof(DockCountLeaf):
        raise SteeringError(
            f"the dock of {dock_name} counts in {value_size} bytes instead of {ctypes.sizeof(DockCountLeaf)} - "
            "another version made it, run `ipsec-gw off` first"
        )


def _adopt(directory: Path, interface: str, ifindex: int, link: int) -> Dock:
    xsks_map, pipeline, dock_counts = (libbpf.open_pin(directory / name) for name in _MAPS)
    exits = [libbpf.open_pin(directory / name) for name in (EXIT, PLAIN_ENTRY, NAT_ENTRY)]
    return Dock(interface, ifindex, directory, link, xsks_map, pipeline, dock_counts, *exits)


def _note(directory: Path, kind: str, value: str) -> None:
    for entry in directory.glob(f"{kind}*"):
        if entry.name != kind + value:
            entry.rmdir()
    (directory / (kind + value)).mkdir(exist_ok=True)


def _has_note(directory: Path, kind: str, value: str) -> bool:
    return (directory / (kind + value)).is_dir()


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SteeringError(f"{what} failed ({error.strerror}) - see `ip link` and `dmesg`") from error
