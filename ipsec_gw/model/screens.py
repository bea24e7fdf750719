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
    alarm_only: bool = False
