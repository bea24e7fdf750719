"""The guard program on a WAN's TC egress: attach, recognise, remove.

It sits first (preference 1) so that no other filter can let an ESP packet go before it looked, and it passes on what
it does not drop. clsact is removed with the guard only if the guard brought it and nobody else uses it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pyroute2 import IPRoute, NetlinkError

from ipsec_gw.errors import SteeringError

FILTER_NAME = "ipsec-gw-guard"
PREFERENCE = 1
HANDLE = 1
_CLSACT_EGRESS = 0xFFFFFFF3  # TC_H_CLSACT, TC_H_MIN_EGRESS
_CLSACT_INGRESS = 0xFFFFFFF2
_ETH_P_ALL = 0x0003
_GONE = frozenset({errno.ENODEV, errno.ENOENT, errno.EINVAL})
"""What the kernel says when interface, clsact or filter are gone already."""

Result = TypeVar("Result")


def attach(interface: str, ifindex: int, program: int) -> bool:
    """Put the guard on an interface's egress, or a new program in its place. True if it had to bring clsact.

    Raises SteeringError when another filter has its place or TC refuses.
    """
    return _with_netlink(lambda ipr: _attach(ipr, interface, ifindex, program))


def detach(interface: str, ifindex: int, *, ours: bool) -> None:
    """Take the guard off; with ``ours`` also clsact, unless others have filters there. Gone already is no error."""
    _with_netlink(lambda ipr: _detach(ipr, interface, ifindex, ours=ours))


def attached(ifindex: int) -> bool:
    """Whether the guard is on the interface's egress."""
    return _with_netlink(lambda ipr: any(_is_guard(entry) for entry in _filters(ipr, ifindex, _CLSACT_EGRESS)))


def _with_netlink(work: Callable[[IPRoute], Result]) -> Result:
    """pyroute2's plain calls run an event loop, which a caller inside asyncio already has: give them a thread.

    A new thread is in the network namespace of the one that starts it.
    """

    def run() -> Result:
        with IPRoute() as ipr:
            return work(ipr)

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(run).result()


def _attach(ipr: IPRoute, interface: str, ifindex: int, program: int) -> bool:
    brought = _ensure_clsact(ipr, interface, ifindex)
    taken = [entry for entry in _filters(ipr, ifindex, _CLSACT_EGRESS) if _place(entry) == (PREFERENCE, HANDLE)]
    if any(not _is_guard(entry) for entry in taken):
        raise SteeringError(
            f"interface {interface} has another TC egress filter at preference {PREFERENCE} handle {HANDLE} - "
            f"move it (`tc filter show dev {interface} egress`)"
        )
    try:
        ipr.tc(
            "replace-filter" if taken else "add-filter",
            "bpf",
            ifindex,
            handle=HANDLE,
            parent=_CLSACT_EGRESS,
            prio=PREFERENCE,
            protocol=_ETH_P_ALL,
            fd=program,
            name=FILTER_NAME,
            direct_action=True,
        )
    except NetlinkError as error:
        if brought:
            ipr.tc("del", "clsact", ifindex)
        raise SteeringError(
            f"the guard on {interface} was refused ({error}) - check `tc filter show dev {interface} egress`"
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
        if any(_is_guard(entry) for entry in _filters(ipr, ifindex, _CLSACT_EGRESS)):
            ipr.tc(
                "del-filter",
                "bpf",
                ifindex,
                handle=HANDLE,
                parent=_CLSACT_EGRESS,
                prio=PREFERENCE,
                protocol=_ETH_P_ALL,
            )
        parents = (_CLSACT_EGRESS, _CLSACT_INGRESS)
        if ours and not any(_filters(ipr, ifindex, parent) for parent in parents):
            ipr.tc("del", "clsact", ifindex)
    except NetlinkError as error:
        if error.code not in _GONE:
            raise SteeringError(
                f"the guard on {interface} cannot be removed ({error}) - `tc qdisc del dev {interface} clsact` does"
            ) from error


def _filters(ipr: IPRoute, ifindex: int, parent: int) -> list[Any]:
    """Filters on a hook; the kernel's answer has one line per classifier and one per program: programs only."""
    try:
        found = list(ipr.get_filters(index=ifindex, parent=parent))
    except NetlinkError as error:
        if error.code in _GONE:
            return []
        raise
    return [entry for entry in found if entry["handle"]]


def _place(entry: Any) -> tuple[int, int]:
    return entry["info"] >> 16, entry["handle"]  # tcm_info: preference in the upper half


def _is_guard(entry: Any) -> bool:
    options = entry.get_attr("TCA_OPTIONS")
    return options is not None and options.get_attr("TCA_BPF_NAME") == FILTER_NAME
