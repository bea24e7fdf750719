"""Who may talk to VPP. Pure.

VPP makes its sockets for its owner and its group (``CLIB_SOCKET_F_ALLOW_GROUP_WRITE``), and ``unix { gid }`` sets the
group of all of them. By the API and the CLI anybody can read the keys: these two are for root alone, in any case.
"""

from __future__ import annotations

from vpp_conf.startup.machine import Machine
from vpp_conf.startup.values import Finding, Needs, Number, Severity, SocketPlan

ROOT_GROUP = "root"
API, CLI, STATS = "api.sock", "cli.sock", "stats.sock"
"""Names in the folder of :class:`vpp_conf.paths.VppPaths`."""

PRIVATE, SHARED = 0o600, 0o660


def plan_sockets(
    machine: Machine, needs: Needs
) -> tuple[tuple[SocketPlan, ...], tuple[Number, ...], tuple[Finding, ...]]:
    """The sockets, their numbers, and an error if the group that is asked for is not there."""
    group = needs.stats_group
    stats = SocketPlan(STATS, SHARED, group) if group else SocketPlan(STATS, PRIVATE, ROOT_GROUP)
    sockets = (SocketPlan(API, PRIVATE, ROOT_GROUP), SocketPlan(CLI, PRIVATE, ROOT_GROUP), stats)
    keys = "for root alone: it gives access to keys"
    reader = (
        f"members of {group} read counters by it"
        if group
        else "for root alone; --stats-group lets others read counters"
    )
    reasons = {API: keys, CLI: keys, STATS: reader}
    numbers = tuple(Number(f"socket {one.name}", one.permissions, reasons[one.name]) for one in sockets)
    if group is None or group in machine.groups:
        return sockets, numbers, ()
    text = f"there is no group {group} in /etc/group"
    return sockets, numbers, (Finding(Severity.ERROR, "stats-group", text, f"groupadd --system {group}"),)
