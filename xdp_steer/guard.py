"""Our programs on an interface's TC hooks: attach, recognise, remove. The guard is on egress; on ingress of a WAN is
the one that takes what the kernel decrypted; what belongs to XFRM interfaces comes behind both.

They sit first (preferences 1 and 2) so that no other filter can let a packet go before they looked, and they pass on
what they do not take. clsact is removed with the last of them only if we brought it and nobody else uses it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from enum import Enum
from typing import Any

from pyroute2 import IPRoute, NetlinkError

from ipsec_gw.errors import SteeringError
from xdp_steer.rtnl import ask

HANDLE = 1
_INGRESS, _EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
"""The hooks of clsact: TC_H_CLSACT with TC_H_MIN_INGRESS or _EGRESS."""


class Hook(Enum):
    """Where a program of ours sits: its hook, its preference there, and its name."""

    INGRESS = (_INGRESS, 1, "ipsec-gw-decrypted")
    EGRESS = (_EGRESS, 1, "ipsec-gw-guard")
    XFRMI_INGRESS = (_INGRESS, 2, "ipsec-gw-xfrmi")
    XFRMI_EGRESS = (_EGRESS, 2, "ipsec-gw-xfrmi")

    @property
    def parent(self) -> int:
        """The handle of the hook."""
        return self.value[0]

    @property
    def preference(self) -> int:
        """Among the filters of the hook; the smallest is asked first."""
        return self.value[1]

    @property
    def program(self) -> str:
        """The name that our program has there."""
        return self.value[2]

    @property
    def side(self) -> str:
        """As `tc filter show` calls the hook."""
        return "ingress" if self.parent == _INGRESS else "egress"


GUARDS, XFRMI = (Hook.INGRESS, Hook.EGRESS), (Hook.XFRMI_INGRESS, Hook.XFRMI_EGRESS)
PREFERENCE, FILTER_NAME = Hook.EGRESS.preference, Hook.EGRESS.program
_ETH_P_ALL = 0x0003
_GONE = frozenset({errno.ENODEV, errno.ENOENT, errno.EINVAL})
"""What the kernel says when interface, clsact or filter are gone already."""


def attach(interface: str, ifindex: int, program: int, hook: Hook = Hook.EGRESS) -> bool:
    """Put a program on an interface's hook, or a new one in its place. True if it had to bring clsact.

    Raises SteeringError when another filter has its place or TC refuses.
    """
    return ask(lambda ipr: _attach(ipr, interface, ifindex, program, hook))


def detach(interface: str, ifindex: int, hooks: Iterable[Hook] = GUARDS, *, ours: bool) -> None:
    """Take them off; with ``ours`` also clsact, unless others have filters there. Gone already is no error."""
    ask(lambda ipr: _detach(ipr, interface, ifindex, hooks, ours=ours))


def take_off(ifindex: int, hook: Hook) -> None:
    """Take our program off one hook, clsact stays. Not there is no error."""
    ask(lambda ipr: _take_off(ipr, ifindex, hook))


def attached(ifindex: int, hook: Hook = Hook.EGRESS) -> bool:
    """Whether our program is on the interface's hook."""
    return ask(lambda ipr: any(_is_ours(entry, hook) for entry in _filters(ipr, ifindex, hook)))


def _attach(ipr: IPRoute, interface: str, ifindex: int, program: int, hook: Hook) -> bool:
    side = hook.side
    brought = _ensure_clsact(ipr, interface, ifindex)
    taken = [entry for entry in _filters(ipr, ifindex, hook) if _place(entry) == (hook.preference, HANDLE)]
    if any(not _is_ours(entry, hook) for entry in taken):
        raise SteeringError(
            f"interface {interface} has another TC {side} filter at preference {hook.preference} handle {HANDLE} - "
            f"move it (`tc filter show dev {interface} {side}`)"
        )
    try:
        ipr.tc(
            "replace-filter" if taken else "add-filter",
            "bpf",
            ifindex,
            handle=HANDLE,
            parent=hook.parent,
            prio=hook.preference,
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


def _detach(ipr: IPRoute, interface: str, ifindex: int, hooks: Iterable[Hook], *, ours: bool) -> None:
    try:
        for hook in hooks:
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
        ipr.tc(
            "del-filter", "bpf", ifindex, handle=HANDLE, parent=hook.parent, prio=hook.preference, protocol=_ETH_P_ALL
        )


def _filters(ipr: IPRoute, ifindex: int, hook: Hook) -> list[Any]:
    """Filters on a hook; the kernel's answer has one line per classifier and one per program: programs only."""
    try:
        found = list(ipr.get_filters(index=ifindex, parent=hook.parent))
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
