"""Taps: the firewall on interfaces without Ethernet (XFRM, GRE, PPP, WireGuard), which XDP cannot read.

On TC ingress a program leads their packets into the tunnels' port, as packets of their own zone; on TC egress another
one is what the guard is elsewhere. A directory below the pins tells which interface has them, and whether we brought
its clsact; the programs stay attached when the process is gone.
"""

from __future__ import annotations

from pathlib import Path

from xdp_steer import guard
from xdp_steer.dock import ifindex_of, remove_tree
from xdp_steer.pipeline import ClearPrograms

_CLSACT_NOTE = "clsact"
_INDEX_NOTE = "ifindex="


def attach(pins: Path, interface: str, programs: ClearPrograms) -> None:
    """Put both programs on an interface, or new ones in their place. Raises EnvironmentMissing and SteeringError."""
    ifindex = ifindex_of(interface)
    directory = _directory(pins, interface)
    brought = guard.attach(interface, ifindex, programs.routed_out, guard.Hook.EGRESS)
    guard.attach(interface, ifindex, programs.routed_in, guard.Hook.INGRESS)
    if _held_ifindex(directory) != ifindex:
        remove_tree(directory)
    (directory / f"{_INDEX_NOTE}{ifindex}").mkdir(parents=True, exist_ok=True)
    if brought:
        (directory / _CLSACT_NOTE).mkdir(exist_ok=True)


def detach(pins: Path, interface: str) -> None:
    """Take them off. Not there, or an interface that is gone, is no error. Raises SteeringError."""
    directory = _directory(pins, interface)
    ifindex = _held_ifindex(directory)  # by index: the interface may have another name by now
    if ifindex:
        guard.detach(interface, ifindex, ours=(directory / _CLSACT_NOTE).is_dir())
    remove_tree(directory)


def tapped(pins: Path) -> frozenset[str]:
    """Interfaces with the programs, whether they still exist or not."""
    taps = pins / "taps"
    return frozenset(entry.name.replace(":", ".") for entry in taps.iterdir()) if taps.is_dir() else frozenset()


def is_attached(pins: Path, interface: str) -> bool:
    """Whether they are on the interface that has this name now."""
    return _held_ifindex(_directory(pins, interface)) == ifindex_of(interface)


def _held_ifindex(directory: Path) -> int:
    """The index that the interface had, 0 without the programs."""
    for entry in directory.glob(f"{_INDEX_NOTE}*"):
        return int(entry.name.removeprefix(_INDEX_NOTE))
    return 0


def _directory(pins: Path, interface: str) -> Path:
    return pins / "taps" / interface.replace(".", ":")
