"""Our programs on an interface's TC hooks: attach, recognise, remove. The guard is on egress; on ingress of a WAN is
the one that takes what the kernel decrypted.

They sit first (preference 1) so that no other filter can let a packet go before they looked, and they pass on what they
do not take. clsact is removed with the last of them only if we brought it and nobody else uses it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import Any, TypeVar

from pyroute2 import IPRoute, NetlinkError

from ipsec_gw.errors import SteeringError

PREFERENCE = 1
HANDLE = 1


class Hook(Enum):
    """A hook of clsact: its parent handle (TC_H_CLSACT with TC_H_MIN_INGRESS or _EGRESS)."""

    INGRESS = 0xFFFFFFF2
    EGRESS = 0xFFFFFFF3

    @property
    def program(self) -> str:
        """The name that our program has there."""
        return "ipsec-gw-guard" if self is Hook.EGRESS else "ipsec-gw-decrypted"


FILTER_NAME = Hook.EGRESS.program
_ETH_P_ALL = 0x0003
_GONE = frozenset({errno.ENODEV, errno.ENOENT, errno.EINVAL})
"""What the kernel says when interface, clsact or filter are gone already."""

Result = TypeVar("Result")


def attach(interface: str, ifindex: int, program: int, hook: Hook = Hook.EGRESS) -> bool:
    """Put a program on an interface's hook, or a new one in its place. True if it had to bring clsact.

    Raises SteeringError when another filter has its place or TC refuses.
    """
    return _with_netlink(lambda ipr: _attach(ipr, interface, ifindex, program, hook))


def detach(interface: str, ifindex: int, *, ours: bool) -> None:
    """Take both off; with ``ours`` also clsact, unless others have filters there. Gone already is no error."""
    _with_netlink(lambda ipr: _detach(ipr, interface, ifindex, ours=ours))


def take_off(ifindex: int, hook: Hook) -> None:
    """Take our program off one hook, clsact stays. Not there is no error."""
    _with_netlink(lambda ipr: _take_off(ipr, ifindex, hook))


def attached(ifindex: int, hook: Hook = Hook.EGRESS) -> bool:
    """Whether our program is on the interface's hook."""
    return _with_netlink(lambda ipr: any(_is_ours(entry, hook) for entry in _filters(ipr, ifindex, hook)))


def _with_netlink(work: Callable[[IPRoute], Result]) -> Result:
    """pyroute2's plain calls run an event loop, which a caller inside asyncio already has: give them a thread.

    A new thread is in the network namespace of the one that starts it.
    """

    def run() -> Result:
        with IPRoute() as ipr:
            return work(ipr)

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(run).result()


def _attach(ipr: IPRoute, interface: str, ifindex: int, program: int, hook: Hook) -> bool:
    side = hook.name.lower()
    brought = _ensure_clsact(ipr, interface, ifindex)
    taken = [entry for entry in _filters(ipr, ifindex, hook) if _place(entry) == (PREFERENCE, HANDLE)]
    if any(not _is_ours(entry, hook) for entry in taken):
        raise SteeringError(
            f"interface {interface} has another TC {side} filter at preference {PREFERENCE} handle {HANDLE} - "
            f"move it (`tc filter show dev {interface} {side}`)"
        )
    try:
        ipr.tc(
            "replace-filter" if taken else "add-filter",
            "bpf",
            ifindex,
            handle=HANDLE,
            parent=hook.value,
            prio=PREFERENCE,
            protocol=_ETH_P_ALL,
            fd=program,
            name=hook.program,
            direct_action=True,
        )
    except NetlinkError as error:
        if brought:
            ipr.tc("del", "clsact", ifindex)
        raise SteeringError(
            f"{hook.program} on {interface} was refused ({error}) - check `tc filter show dev {interface} {side}`"
        ) from error
    return brought


def _ensure_clsact(ipr: IPRoute, interface: str, ifindex: int) -> bool:
    kinds = {qdisc.get_attr("TCA_KIND") for qdisc in ipr.get_qdiscs(ifindex)}
    if "clsact" in kinds:
        return False
    try:
        ipr.tc("add", "clsact", ifindex)
    except NetlinkError as error:
        raise SteeringError(
            f"no clsact on {interface} ({error}) - remove its ingress qdisc or leave {interface} out"
        ) from error
    return True


def _detach(ipr: IPRoute, interface: str, ifindex: int, *, ours: bool) -> None:
    try:
        for hook in Hook:
            _take_off(ipr, ifindex, hook)
        if ours and not any(_filters(ipr, ifindex, hook) for hook in Hook):
            ipr.tc("del", "clsact", ifindex)
    except NetlinkError as error:
        if error.code not in _GONE:
            raise SteeringError(
                f"the programs on {interface} cannot be removed ({error}) - `tc qdisc del dev {interface} clsact` does"
            ) from error


def _take_off(ipr: IPRoute, ifindex: int, hook: Hook) -> None:
    if any(_is_ours(entry, hook) for entry in _filters(ipr, ifindex, hook)):
        ipr.tc("del-filter", "bpf", ifindex, handle=HANDLE, parent=hook.value, prio=PREFERENCE, protocol=_ETH_P_ALL)


def _filters(ipr: IPRoute, ifindex: int, hook: Hook) -> list[Any]:
    """Filters on a hook; the kernel's answer has one line per classifier and one per program: programs only."""
    try:
        found = list(ipr.get_filters(index=ifindex, parent=hook.value))
    except NetlinkError as error:
        if error.code in _GONE:
            return []
        raise
    return [entry for entry in found if entry["handle"]]


def _place(entry: Any) -> tuple[int, int]:
    return entry["info"] >> 16, entry["handle"]  # tcm_info: preference in the upper half


def _is_ours(entry: Any, hook: Hook) -> bool:
    options = entry.get_attr("TCA_OPTIONS")
    return options is not None and options.get_attr("TCA_BPF_NAME") == hook.program
