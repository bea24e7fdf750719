"""Screens: what a zone does not want to see whatever its policies say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Screens:
    """A profile that zones refer to; it holds for what comes in from such a zone, before sessions and policies.

    ``land``: source and destination are the same address. ``syn_fin``, ``no_flag``, ``fin_no_ack``: TCP flags that no
    stack sends. ``winnuke``: TCP with URG to port 139. ``syn_fragment``: a SYN in fragments. ``tear_drop``: an IPv4
    fragment behind the first with less than 8 bytes. ``source_route``: any IPv4 option, or an IPv6 routing header of
    type 0. ``ping_of_death``: an IPv4 fragment that reaches beyond 65,535 bytes. ``alarm_only``: hits are told and
    counted, and the packet goes on.

    Thresholds are what is allowed in a ``window`` of seconds, counted over all CPUs; None is no limit. ``syn_flood``,
    ``icmp_flood`` and ``udp_flood``: packets from the zone (TCP SYNs without ACK; UDP without IPsec to this machine).
    ``syn_source`` and ``syn_destination``: such SYNs of one source or to one destination. ``port_scan`` and
    ``ip_sweep``: different ports (of TCP SYNs) or destinations of one source, of packets that belong to no session.
    ``syn_cookie``: SYNs beyond ``syn_flood`` are not dropped but answered, and who acknowledges the answer may go on.
    ``sessions_source`` and ``sessions_destination``: sessions of one source or destination at a time, without a window.
    """

    name: str
    land: bool = False
    syn_fin: bool = False
    no_flag: bool = False
    fin_no_ack: bool = False
    winnuke: bool = False
    syn_fragment: bool = False
    tear_drop: bool = False
    source_route: bool = False
    ping_of_death: bool = False
    syn_flood: int | None = None
    icmp_flood: int | None = None
    udp_flood: int | None = None
    syn_source: int | None = None
    syn_destination: int | None = None
    port_scan: int | None = None
    ip_sweep: int | None = None
    sessions_source: int | None = None
    sessions_destination: int | None = None
    syn_cookie: bool = False
    window: int = 1
    alarm_only: bool = False
