"""Rows of a ruleset: order, classes, limits, and what is refused."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime
from ipaddress import ip_address, ip_network

import pytest

from ipsec_gw.model.firewall import (
    SELF,
    Action,
    Blocks,
    DestinationNat,
    Nat64,
    Nptv6,
    Policy,
    Pool,
    Ruleset,
    Schedule,
    Service,
    Sessions,
    SourceNat,
    StaticNat,
    Timeouts,
    Translation,
    Zone,
)
from tests.support.firewall_rows import Flow, first_match
from xdp_steer.compile import CompileError, Ids, PortInfo, Rows, assign, compile_ruleset
from xdp_steer.compile.rows import PoolRow, RuleRow
from xdp_steer.flow_layout import (
    MAX_CLASSES,
    MAX_PREFIXES,
    MAX_ROWS,
    Dimension,
    NameKind,
    Nat,
    PolicyAction,
    PortFlag,
    RowFlag,
    Table,
    TableAny,
    Timeout,
)

MONDAY = datetime(2026, 3, 2, 12, 0)
LAN, WAN = Zone("lan", ("lan0",)), Zone("wan", ("wan0", "wan0.7", "gone0"))
PORTS = {
    "lan0": PortInfo(3, 3, address4=ip_address("10.0.0.1"), redirect=True),
    "wan0": PortInfo(4, 4, partial=True),
    "wan0.7": PortInfo(4, 9, vid=7, vlan=True),
}
HTTP = Service(6, (80, 80))
TO_WEB = Flow(ip_address("10.0.0.9"), ip_address("192.0.2.1"), 6, 80, 40000)


def rows_of(ruleset: Ruleset, now: datetime = MONDAY) -> Rows:
    return compile_ruleset(ruleset, assign(Ids(), ruleset), PORTS, now=now)


def matched(ruleset: Ruleset, table: Table, zones: tuple[int, int], flow: Flow) -> tuple[str, RuleRow] | None:
    names = {number: name for (_, name), number in assign(Ids(), ruleset).rules.items()}
    row = first_match(rows_of(ruleset).tables[table], *zones, flow)
    return None if row is None else (names[row.rule], row)


def policies(*rules: Policy, **more: object) -> Ruleset:
    return Ruleset(zones=(LAN, WAN), policies=rules, **more)  # type: ignore[arg-type]


def permit(
    name: str, *services: Service, zones: tuple[str | None, str | None] = ("lan", "wan"), **more: object
) -> Policy:
    return Policy(name, Action.PERMIT, *zones, services=services or (Service(),), **more)  # type: ignore[arg-type]


def test_zone_pair_rules_come_before_global_ones_whatever_their_order() -> None:
    rules = policies(permit("global", zones=(None, None)), permit("pair", HTTP))
    assert matched(rules, Table.POLICY, (1, 2), TO_WEB)[0] == "pair"
    assert matched(rules, Table.POLICY, (2, 1), TO_WEB)[0] == "global"
    assert matched(rules, Table.POLICY, (1, 0), TO_WEB) is None
    assert matched(rules, Table.POLICY, (0, 2), TO_WEB) is None


def test_host_inbound_comes_behind_rules_to_self() -> None:
    zone = Zone("lan", host_inbound=(HTTP, Service(17, (53, 53))))
    rules = Ruleset(zones=(zone, WAN), policies=(Policy("no", Action.DENY, "lan", SELF, services=(HTTP,)),))
    assert matched(rules, Table.POLICY, (1, 0), TO_WEB)[0] == "no"
    dns = Flow(TO_WEB.src, TO_WEB.dst, 17, 53)
    assert matched(rules, Table.POLICY, (1, 0), dns) == ("lan", RuleRow(2, PolicyAction.PERMIT, first_port=53))
    assert matched(rules, Table.POLICY, (2, 0), dns) is None


def test_a_row_for_each_application_term_with_its_timeout() -> None:
    rules = policies(permit("p", HTTP, Service(6, (443, 443), timeout=60), log_open=True, log_close=True))
    flags = RowFlag.LOG_OPEN | RowFlag.LOG_CLOSE
    assert rows_of(rules).tables[Table.POLICY].rules == (
        RuleRow(1, PolicyAction.PERMIT, flags, 0, first_port=80),
        RuleRow(1, PolicyAction.PERMIT, flags, 60, first_port=443),
    )


def test_a_host_inside_a_named_network_meets_the_rule_of_the_network() -> None:
    net, host = (ip_network("10.0.0.0/8"),), (ip_network("10.0.0.9/32"),)
    rules = policies(permit("network", HTTP, sources=net), permit("host", sources=host))
    assert matched(rules, Table.POLICY, (1, 2), TO_WEB)[0] == "network"


@pytest.mark.parametrize("wide", ["::/0", "::/64", "::/95"])
def test_wide_ipv6_prefixes_do_not_take_ipv4(wide: str) -> None:
    rules = policies(permit("six", sources=(ip_network(wide),)))
    assert matched(rules, Table.POLICY, (1, 2), TO_WEB) is None
    six = Flow(ip_address("::2"), ip_address("2001:db8::1"), 6, 80)
    assert matched(rules, Table.POLICY, (1, 2), six)[0] == "six"


def test_a_prefix_that_adds_nothing_is_left_out_of_the_trie() -> None:
    rules = policies(permit("p", sources=(ip_network("10.0.0.0/8"), ip_network("10.1.0.0/16"))))
    assert [str(row.network) for row in rows_of(rules).tables[Table.POLICY].sources] == ["10.0.0.0/8"]


def test_dimensions_that_no_row_asks_for_are_flagged() -> None:
    table = rows_of(policies(permit("p", HTTP))).tables[Table.POLICY]
    assert table.unasked == TableAny.SOURCE | TableAny.DESTINATION | TableAny.SOURCE_PORT
    asked = permit("p", Service(17, source=(1, 9)), sources=(ip_network("::/0"),))
    assert rows_of(policies(asked)).tables[Table.POLICY].unasked == TableAny.DESTINATION


def test_a_rule_sleeps_outside_its_schedule() -> None:
    rules = policies(permit("p", schedule=Schedule("weekend", frozenset({5, 6}))))
    assert rows_of(rules).tables[Table.POLICY].rules == ()
    assert rows_of(rules).tables[Table.POLICY].words == 0
    assert rows_of(rules, datetime(2026, 3, 7)).tables[Table.POLICY].words == 1


def test_nat_rows() -> None:
    pools = (
        Pool("p6", ip_address("2001:db8::1"), ip_address("2001:db8::2")),
        Pool("p4", ip_address("203.0.113.1"), ip_address("203.0.113.4"), (2000, 3000), True, "more"),
        Pool("more", ip_address("203.0.113.9"), ip_address("203.0.113.9")),
    )
    rules = Ruleset(
        zones=(LAN, WAN),
        pools=pools,
        source_nat=(SourceNat("out", Translation.POOL, "lan", "wan", pool="p4"),),
        destination_nat=(
            DestinationNat(
                "web", ip_network("192.0.2.1/32"), ip_network("10.0.0.5/32"), "wan", services=(HTTP,), to_port=8080
            ),
        ),
        static_nat=(StaticNat("one", "wan", ip_network("198.51.100.0/24"), ip_network("10.0.1.0/24")),),
    )
    ids = assign(Ids(), rules).rules
    out, web = ids[NameKind.SOURCE_NAT, "out"], ids[NameKind.DESTINATION_NAT, "web"]
    one = ids[NameKind.STATIC_NAT, "one"]
    tables = rows_of(rules).tables
    assert tables[Table.SNAT].rules == (
        RuleRow(one, Nat.PREFIX, prefixlen=120, to=ip_address("198.51.100.0")),
        RuleRow(out, Nat.POOL, pool=1),
    )
    assert tables[Table.DNAT].rules == (
        RuleRow(web, Nat.PREFIX, prefixlen=128, to=ip_address("10.0.0.5"), port=8080, first_port=80),
        RuleRow(one, Nat.PREFIX, prefixlen=120, to=ip_address("10.0.1.0")),
    )
    six = Flow(ip_address("2001:db8::9"), ip_address("2001:db8:1::1"), 17, 53)
    assert matched(rules, Table.SNAT, (1, 2), six) is None
    assert matched(rules, Table.SNAT, (1, 2), TO_WEB)[0] == "out"
    assert rows_of(rules).pools[1] == PoolRow(ip_address("203.0.113.1"), 4, 2000, 3000, True, 3)


def test_ports_know_their_zone_and_its_switches() -> None:
    wan = Zone("wan", WAN.interfaces, syn_check=False, tcp_reset=True, tcp_mss=1300)
    lan0, wan0, vlan = rows_of(Ruleset(zones=(LAN, wan))).ports
    assert (lan0.info, lan0.zone, lan0.flags, lan0.mss) == (PORTS["lan0"], 1, PortFlag.SYN_CHECK | PortFlag.REDIRECT, 0)
    assert (wan0.zone, wan0.flags, wan0.mss) == (2, PortFlag.TCP_RESET | PortFlag.PARTIAL, 1300)
    assert (vlan.info, vlan.zone) == (PORTS["wan0.7"], 2)


def test_timeouts_and_default() -> None:
    rows = rows_of(Ruleset(default=Action.REJECT, sessions=Sessions(timeouts=Timeouts(udp=7, tcp_closed=3))))
    assert (rows.timeouts[Timeout.UDP], rows.timeouts[Timeout.TCP_CLOSED], rows.timeouts[Timeout.OTHER]) == (7, 3, 60)
    assert rows.default is PolicyAction.REJECT


def test_nptv6_rows() -> None:
    """The example of RFC 6296, 3.6: 0xd54f is added on the way out, 0x2ab0 on the way in."""
    internal, external = ip_network("fd01:203:405::/48"), ip_network("2001:db8:1::/48")
    rules = Ruleset(zones=(LAN, WAN), nptv6=(Nptv6("net", "wan", external, internal),))
    number = assign(Ids(), rules).rules[NameKind.NPTV6, "net"]
    tables = rows_of(rules).tables
    assert tables[Table.SNAT].rules == (
        RuleRow(number, Nat.NPTV6, prefixlen=48, to=external.network_address, adjustment=0xD54F),
    )
    assert tables[Table.DNAT].rules == (
        RuleRow(number, Nat.NPTV6, prefixlen=48, to=internal.network_address, adjustment=0x2AB0),
    )


def test_a_pool_with_blocks() -> None:
    blocks = Blocks(500, ip_network("100.64.0.0/23"))
    made = Pool("cgn", ip_address("203.0.113.32"), ip_address("203.0.113.35"), blocks=blocks)
    (row,) = rows_of(Ruleset(zones=(LAN, WAN), pools=(made,))).pools
    assert row == PoolRow(ip_address("203.0.113.32"), 4, 1024, 65535, False, 0, 500, ip_address("100.64.0.0"))
    assert made.blocks_of_an_address == 129
    assert made.block_of(ip_address("100.64.0.0")) == (ip_address("203.0.113.32"), (1024, 1523))
    assert made.block_of(ip_address("100.64.0.128")) == (ip_address("203.0.113.32"), (65024, 65523))
    assert made.block_of(ip_address("100.64.0.129")) == (ip_address("203.0.113.33"), (1024, 1523))
    assert made.block_of(ip_address("100.64.1.255")) == (ip_address("203.0.113.35"), (63024, 63523))
    assert made.block_of(ip_address("100.64.2.0")) is None
    assert replace(made, last=made.first).block_of(ip_address("100.64.1.0")) is None
    assert replace(made, blocks=None).block_of(ip_address("100.64.0.0")) is None


def test_nat64_rows() -> None:
    """What must not be translated comes first; the well-known prefix is not for private addresses."""
    pool = Pool("p", ip_address("203.0.113.1"), ip_address("203.0.113.4"))
    own, known = ip_network("2001:db8:64::/64"), ip_network("64:ff9b::/96")
    nat64 = (Nat64("own", own, "lan"), Nat64("known", known, pool="p"))
    rules = Ruleset(zones=(LAN, WAN), pools=(pool,), nat64=nat64)
    ids = assign(Ids(), rules)
    first, second = ids.rules[NameKind.NAT64, "own"], ids.rules[NameKind.NAT64, "known"]
    table = rows_of(rules).tables[Table.DNAT]
    assert table.rules == (
        RuleRow(first, Nat.REFUSE),
        RuleRow(first, Nat.NAT64, prefixlen=64, flags=RowFlag.INTERFACE),
        RuleRow(second, Nat.REFUSE),
        RuleRow(second, Nat.REFUSE),
        RuleRow(second, Nat.NAT64, prefixlen=96),
    )
    lan, wan = ids.zones["lan"], ids.zones["wan"]

    def row(zone: int, source: str, destination: str) -> RuleRow | None:
        return first_match(table, zone, 0, Flow(ip_address(source), ip_address(destination), 17, 53))

    assert row(lan, "2001:db8::9", "2001:db8:64::1") == table.rules[1]
    assert row(wan, "2001:db8::9", "2001:db8:64::1") is None
    assert row(lan, "2001:db8:64::9", "2001:db8:64::1") == table.rules[0]
    assert row(lan, "fe80::9", "2001:db8:64::1") == table.rules[0]
    assert row(wan, "2001:db8::9", "64:ff9b::8.8.8.8") == table.rules[4]
    assert row(wan, "2001:db8::9", "64:ff9b::10.8.8.8") == table.rules[3]
    assert row(wan, "2001:db8::9", "8.8.8.8") is None


NETS = ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")
LONG = ip_network("2001:db8::/72")
SIX = Pool("six", ip_address("2001:db8::1"), ip_address("2001:db8::2"))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (policies(permit("p", zones=("lan", "dmz"))), "policy p: there is no zone dmz"),
        (policies(permit("p", zones=("lan", None))), "policy p: names one zone only"),
        (policies(permit("p", sources=(ip_network("::ffff:10.0.0.0/104"),))), "policy p: ::ffff.* is IPv4 written as"),
        (policies(permit("p", Service(132, (80, 80)))), "policy p: ports of protocol 132 cannot be matched"),
        (policies(permit("p", Service(None, (80, 80)))), "policy p: ports of any protocol cannot be matched"),
        (policies(permit("p", Service(1, source=(1, 2)))), "policy p: only TCP and UDP have source ports"),
        (policies(source_nat=(SourceNat("s", Translation.POOL, pool="x"),)), "source nat s: there is no pool x"),
        (policies(destination_nat=(DestinationNat("d", *NETS),)), "destination nat d: 192.0.2.0/24 cannot become"),
        (policies(static_nat=(StaticNat("t", "wan", *NETS),)), "static nat t: .* same family and prefix length"),
        (policies(nptv6=(Nptv6("t", "wan", NETS[0], NETS[0]),)), "nptv6 t: 192.0.2.0/24 is no IPv6 prefix"),
        (policies(nptv6=(Nptv6("t", "wan", LONG, LONG),)), "nptv6 t: 2001:db8::/72 is no .* of at most 64 bits"),
        (policies(nat64=(Nat64("t", LONG),)), "nat64 t: 2001:db8::/72 is no IPv6 prefix of 32, 40, .*, 96 bits"),
        (policies(nat64=(Nat64("t", NETS[1], pool="x"),)), "nat64 t: there is no pool x"),
        (policies(nat64=(Nat64("t", NETS[1], pool="six"),), pools=(SIX,)), "nat64 t: pool six is IPv6"),
        (
            policies(destination_nat=(DestinationNat("d", NETS[0], NETS[0], to_port=80),)),
            "destination nat d: only TCP and UDP have ports",
        ),
        (
            policies(
                destination_nat=(DestinationNat("d", NETS[0], NETS[0], services=(Service(6, (1, 9)),), to_port=65530),)
            ),
            "destination nat d: ports 1-9 do not fit from 65530 on",
        ),
        (policies(pools=(Pool("p", ip_address("10.0.0.2"), ip_address("10.0.0.1")),)), "pool p: .* lowest one first"),
        (policies(pools=(Pool("p", ip_address("::"), ip_address("ff::")),)), "pool p: .* are not 1 to 4294967295"),
        (
            policies(pools=(Pool("p", ip_address("10.0.0.1"), ip_address("10.0.0.2"), overflow="q"),)),
            "pool p: there is no pool q of its family",
        ),
        (
            policies(pools=tuple(Pool(f"p{n}", ip_address("10.0.0.1"), ip_address("10.0.0.1")) for n in range(65))),
            "pool p64: 65 pools, 64 are possible",
        ),
        (Ruleset(zones=(LAN, Zone("wan", ("lan0",)))), "zone wan: lan0 is lan0 of zone lan again"),
    ],
)
def test_refused(rules: Ruleset, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        rows_of(rules)


def test_too_many_rows_name_the_first_rule_without_room() -> None:
    rules = [permit(f"p{n}", HTTP, Service(17)) for n in range(MAX_ROWS // 2 + 1)]
    assert len(rows_of(policies(*rules[:-1])).tables[Table.POLICY].rules) == MAX_ROWS
    with pytest.raises(CompileError, match=f"policy p{MAX_ROWS // 2}: the policy table has {MAX_ROWS + 2} rows"):
        rows_of(policies(*rules))


def test_too_many_classes_name_a_rule() -> None:
    networks = [ip_network((10 << 24 | n, 32)) for n in range(MAX_CLASSES + 1)]

    def each_in_another_set(count: int) -> Ruleset:
        """Network n is a source of the rules that are the bits of n."""
        return policies(
            *[
                permit(f"p{bit}", sources=tuple(networks[n] for n in range(1, count) if n >> bit & 1))
                for bit in range(MAX_CLASSES.bit_length())
            ]
        )

    full = each_in_another_set(MAX_CLASSES)
    full = replace(full, policies=full.policies[:-1])
    assert len(rows_of(full).tables[Table.POLICY].bits[Dimension.SOURCE]) == MAX_CLASSES
    with pytest.raises(CompileError, match=rf"policy p\d+: more than {MAX_CLASSES} combinations of source"):
        rows_of(each_in_another_set(MAX_CLASSES + 1))


def test_too_many_prefixes() -> None:
    networks = [ip_network((10 << 24 | n << 3, 32)) for n in range(MAX_PREFIXES // 2 + 1)]
    rules = policies(permit("p", sources=tuple(networks), destinations=tuple(networks)))
    with pytest.raises(CompileError, match=f"the rules use {MAX_PREFIXES + 2} prefixes"):
        rows_of(rules)


def test_a_thousand_rules_with_a_thousand_prefixes_compile_in_time() -> None:
    rules = [
        permit(f"p{n}", Service(6, (n, n + 5)), sources=(ip_network((10 << 24 | n << 8, 24)),)) for n in range(1000)
    ]
    begin = time.process_time()
    rows = rows_of(policies(*rules))
    assert time.process_time() - begin < 2
    assert len(rows.tables[Table.POLICY].sources) == 1000
