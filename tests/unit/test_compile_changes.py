"""Sentences about what an apply changes."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from ipsec_gw.model.firewall import (
    Action,
    Blocks,
    Nat64,
    Nptv6,
    Policy,
    Pool,
    Ruleset,
    Schedule,
    Service,
    Sessions,
    SourceNat,
    Timeouts,
    Translation,
    Zone,
)
from xdp_steer.compile import plan

A, B, C, D = (Policy(name, Action.PERMIT, "lan", "wan") for name in "abcd")
BASE = Ruleset(zones=(Zone("lan", ("lan0",)),), policies=(A, B, C))


def said(old: Ruleset | None, new: Ruleset) -> list[str]:
    return [str(change) for change in plan(old, new)]


def test_the_same_changes_nothing() -> None:
    assert plan(BASE, BASE) == []


def test_at_first_everything_is_added() -> None:
    assert said(None, BASE) == [
        "zone lan: added", "policy a: added", "policy b: added", "policy c: added", "default: deny",
    ]  # fmt: skip


def test_added_removed_changed() -> None:
    changed = replace(
        B,
        action=Action.DENY,
        sources=(ip_network("10.0.0.0/8"),),
        services=(Service(6, (80, 81)), Service(17, source=(53, 53), timeout=9)),
        log_open=True,
        schedule=Schedule("s", frozenset({0, 4}), 480, 1080),
    )
    assert said(BASE, replace(BASE, policies=(A, changed, D))) == [
        "policy c: removed",
        "policy b: changed: action permit -> deny; sources +10.0.0.0/8; services -any +tcp/80-81 +udp/from 53 (9 s); "
        "log open no -> yes; schedule none -> Mon,Fri 08:00-18:00",
        "policy d: added",
    ]


def test_the_fewest_moves_are_named() -> None:
    assert said(BASE, replace(BASE, policies=(C, A, B))) == ["policy c: moved to the front"]
    assert said(BASE, replace(BASE, policies=(B, C, A))) == ["policy a: moved behind c"]


def test_rules_of_other_zones_in_between_are_no_move() -> None:
    other = replace(D, from_zone="wan", to_zone="lan")
    first = replace(BASE, policies=(A, other, B))
    assert said(first, replace(BASE, policies=(other, A, B))) == []


def test_terms_in_another_order() -> None:
    two = (Service(6), Service(17))
    first, second = (replace(BASE, policies=(replace(A, services=terms),)) for terms in (two, two[::-1]))
    assert said(first, second) == ["policy a: changed: services in another order"]


def test_nat_of_prefixes_and_blocks() -> None:
    pool = Pool("p", ip_address("192.0.2.1"), ip_address("192.0.2.2"))
    nptv6 = Nptv6("net", "wan", ip_network("2001:db8:1::/48"), ip_network("fd00::/48"))
    nat64 = Nat64("four", ip_network("64:ff9b::/96"))
    before = replace(BASE, pools=(pool,), nptv6=(nptv6,), nat64=(nat64,))
    blocks = Blocks(500, ip_network("100.64.0.0/25"))
    after = replace(before, pools=(replace(pool, blocks=blocks),), nptv6=(), nat64=(replace(nat64, pool="p"),))
    assert said(before, after) == [
        "pool p: changed: blocks none -> 500 ports for each of 100.64.0.0/25",
        "nptv6 net: removed",
        "nat64 four: changed: pool none -> p",
    ]


def test_nat_pools_zones_default_and_sessions() -> None:
    pool = Pool("p", ip_address("192.0.2.1"), ip_address("192.0.2.2"))
    first = replace(BASE, pools=(pool,), source_nat=(SourceNat("s", Translation.INTERFACE),))
    second = replace(
        first,
        zones=(Zone("lan", ("lan0", "lan1"), tcp_mss=1400),),
        pools=(replace(pool, ports=(2000, 3000)),),
        source_nat=(SourceNat("s", Translation.POOL, pool="p"),),
        default=Action.REJECT,
        sessions=Sessions(maximum=1000, timeouts=Timeouts(udp=9)),
    )
    assert said(first, second) == [
        "zone lan: changed: interfaces +lan1; tcp mss none -> 1400",
        "pool p: changed: ports 1024-65535 -> 2000-3000",
        "source nat s: changed: translation interface -> pool; pool none -> p",
        "default: deny -> reject",
        "sessions: maximum 262144 -> 1000",
        "sessions: udp 60 -> 9",
    ]
