"""Filters and policers on their way into the maps: who looks where, rows, classes, numbers, what `plan` says."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from datetime import datetime
from ipaddress import ip_network

import pytest

from ipsec_gw.model.filters import Colour, Filter, FilterAction, FilterTerm, Policer
from ipsec_gw.model.firewall import TUNNEL_INTERFACES, Ruleset, Service, Zone
from xdp_steer import filter_layout as fil
from xdp_steer import flow_layout as fl
from xdp_steer.compile.changes import plan
from xdp_steer.compile.errors import CompileError
from xdp_steer.compile.ids import Ids, assign
from xdp_steer.compile.pack import bank_writes
from xdp_steer.compile.rows import FilterRow, PortInfo, Rows
from xdp_steer.compile.ruleset import compile_ruleset
from xdp_steer.filter_layout import PolicerKind
from xdp_steer.flow_layout import NameKind, PortFlag, RowFlag, Table

TWO_SERVICES = (Service(6, (80, 80)), Service(17))
WEB = FilterTerm("edge/web", "edge", services=TWO_SERVICES, policer="ten", mark=46, log=True)
REST = FilterTerm("edge/rest", "edge", FilterAction.DISCARD, sources=(ip_network("10.0.0.0/8"),))
HOST = FilterTerm("host/all", "host", FilterAction.REJECT)
TEN = Policer("ten", 10_000_000, 125_000)
RULES = Ruleset(
    zones=(Zone("lan", ("lan0",)), Zone("wan", ("wan0",)), Zone("vpn", ("gre1", "gre2"))),
    filters=(Filter("edge", input=("wan0",), output=("lan0",)), Filter("host", host=True)),
    filter_terms=(WEB, REST, HOST),
    policers=(Policer("spare", 8_000, 1500), TEN),
)
PORTS = {"lan0": PortInfo(4, 4, redirect=True), "wan0": PortInfo(5, 5, redirect=True)}
LOOKED_AT = PortFlag.FILTER | PortFlag.HOST_FILTER | PortFlag.REDIRECT


def compiled(rules: Ruleset, ports: dict[str, PortInfo] = PORTS) -> tuple[Rows, Ids]:
    ids = assign(Ids(), rules)
    return compile_ruleset(rules, ids, ports, now=datetime(2026, 1, 1)), ids


def test_who_looks_where() -> None:
    rows, _ = compiled(RULES)
    lan, wan = rows.ports
    assert (lan.in_filter, lan.out_filter) == (0, 1)
    assert (wan.in_filter, wan.out_filter) == (1, 0)
    assert rows.filters.host == 2
    assert lan.flags & LOOKED_AT == PortFlag.HOST_FILTER, "what is filtered as it leaves is sent by the kernel"
    assert wan.flags & LOOKED_AT == PortFlag.FILTER | PortFlag.HOST_FILTER | PortFlag.REDIRECT


def test_without_filters_no_port_is_led_to_them_and_nothing_is_written() -> None:
    rows, _ = compiled(replace(RULES, filters=(), filter_terms=(), policers=()))
    assert all(port.flags & LOOKED_AT == PortFlag.REDIRECT for port in rows.ports)
    assert all(port.in_filter == port.out_filter == 0 for port in rows.ports)
    writes = {write.spec.name: write.count for write in bank_writes(rows, 1) if write.spec in fil.FILTER_MAPS}
    assert writes == {"filter_bits": 0, "filter_rows": 0, "policers": 0}
    with_them = sum(write.count for write in bank_writes(compiled(RULES)[0], 1) if write.spec is fl.RULE_BITS)
    assert with_them > sum(write.count for write in bank_writes(rows, 1) if write.spec is fl.RULE_BITS)


def test_every_service_has_a_row_of_its_term() -> None:
    rows, ids = compiled(RULES)
    table = rows.tables[Table.FILTER]
    number = {name: ids.rules[NameKind.FILTER_TERM, name] for name in ("edge/web", "edge/rest", "host/all")}
    assert [row.rule for row in table.rules] == [
        number[name] for name in ("edge/web", "edge/web", "edge/rest", "host/all")
    ]
    assert [row.action for row in table.rules] == [1, 1, 2, 3]
    assert [row.flags for row in table.rules] == [RowFlag.LOG_OPEN, RowFlag.LOG_OPEN, 0, 0]
    assert rows.filters.rows == (FilterRow(1, 46), FilterRow(1, 46), FilterRow(), FilterRow())
    zones = table.bits[fl.Dimension.ZONES]
    assert (zones[1 * fl.MAX_ZONES], zones[2 * fl.MAX_ZONES]) == (0b0111, 0b1000)
    assert not any(zones[: fl.MAX_ZONES])


def test_classes_of_marks_and_flags() -> None:
    terms = (
        replace(WEB, dscp=frozenset({46}), services=(Service(),)),
        replace(REST, flags_set=2, flags_clear=16),
        replace(HOST, name="edge/pieces", filter="edge", fragment=True),
    )
    classes = compiled(replace(RULES, filter_terms=terms))[0].filters.classes
    assert len(classes) == fil.NO_FLAGS_CLASS + 1 <= fil.MAX_FILTER_CLASSES
    assert classes[fil.mark_class(46, fragment=False)] == 0b011
    assert classes[fil.mark_class(46, fragment=True)] == 0b111
    assert classes[fil.mark_class(0, fragment=False)] == 0b010
    assert classes[fil.FLAGS_CLASS + 0x02] == 0b111
    assert classes[fil.FLAGS_CLASS + 0x12] == 0b101
    assert classes[fil.NO_FLAGS_CLASS] == 0b101


def leaves(rows: Rows) -> list[fil.PolicerLeaf]:
    (write,) = (write for write in bank_writes(rows, 0) if write.spec is fil.POLICERS)
    size = ctypes.sizeof(fil.PolicerLeaf)
    return [fil.PolicerLeaf.from_buffer_copy(write.values, size * place) for place in range(write.count)]


def test_policers_in_ticks() -> None:
    three = replace(TEN, name="three", excess_burst=250_000, yellow=12, red=Colour.ACCEPT, aware=True)
    two_rates = replace(TEN, name="rates", peak_rate=20_000_000, peak_burst=50_000)
    rows, ids = compiled(replace(RULES, policers=(TEN, three, two_rates)))
    ten, one_rate, rates = leaves(rows)
    assert (ten.number, ten.yellow_rule) == (ids.rules[NameKind.POLICER, "ten"], 0)
    assert (ten.kind, ten.yellow, ten.red, ten.aware) == (PolicerKind.TWO_COLOURS, 0xFF, 0xFE, 0)
    assert ten.cost * 1500 >> fil.POLICER_SHIFT == 1500 * 8 * 100 * fil.POLICER_TICKS, "100 ns a bit"
    assert ten.burst == 125_000 * 8 * 100 * fil.POLICER_TICKS
    assert one_rate.yellow_rule == ids.rules[NameKind.POLICER_YELLOW, "three"] != one_rate.number
    assert (one_rate.kind, one_rate.yellow, one_rate.red, one_rate.aware) == (PolicerKind.ONE_RATE, 12, 0xFF, 1)
    assert one_rate.peak_burst == 2 * one_rate.burst
    assert (rates.kind, rates.cost, rates.peak_cost) == (PolicerKind.TWO_RATES, ten.cost, ten.cost // 2)
    assert rates.peak_burst == 50_000 * 8 * 50 * fil.POLICER_TICKS


@pytest.mark.parametrize("rate", [8_000, 64_000, 10**9, 99_999_999_999, 400 * 10**9])
def test_the_cost_of_a_byte_is_exact_enough_and_fits(rate: int) -> None:
    exact = 8e9 * fil.POLICER_TICKS / rate * (1 << fil.POLICER_SHIFT)
    assert fil.cost_of(rate) == pytest.approx(exact, rel=1e-5)
    assert fil.cost_of(rate) * (1 << 19) < 1 << 64, "the largest packet"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"filter_terms": (replace(WEB, filter="edgy"),)}, "filter term edge/web: there is no filter edgy - define it"),
        (
            {"filter_terms": (replace(WEB, policer="x"),)},
            "filter term edge/web: there is no policer x - define it or name another one",
        ),
        (
            {"filters": (*RULES.filters, Filter("more", output=("lan0",)))},
            "filter more: edge looks at output lan0 already - name it in one of them",
        ),
        (
            {"filters": (*RULES.filters, Filter("more", host=True))},
            "filter more: host looks at host already - name it in one of them",
        ),
        (
            {"filters": tuple(Filter(f"f{number}") for number in range(fil.MAX_FILTERS)), "filter_terms": ()},
            "filter f63: 64 filters, 63 are possible - merge some",
        ),
        (
            {"policers": (TEN, *(replace(TEN, name=f"p{number}") for number in range(fil.MAX_POLICERS)))},
            "policer p255: 257 policers, 256 are possible - merge some",
        ),
    ],
)
def test_what_cannot_be(changed: dict[str, object], message: str) -> None:
    with pytest.raises(CompileError) as caught:
        compiled(replace(RULES, **changed))  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_interfaces_without_ethernet_share_the_filter_of_their_zone() -> None:
    bare = PortInfo(7, 7, ethernet=False)
    ports = PORTS | {"gre1": bare, "gre2": replace(bare, ifindex=8, l3_ifindex=8), TUNNEL_INTERFACES[1]: PortInfo(9, 9)}
    edge, host = RULES.filters
    both = replace(RULES, filters=(replace(edge, input=("gre1", "gre2")), host))
    rows, ids = compiled(both, ports)
    (row,) = (row for row in rows.ports if row.info.ifindex == 9)
    assert (row.info.vid, row.in_filter) == (ids.zones["vpn"], 1)
    assert PortFlag.FILTER in row.flags
    with pytest.raises(CompileError, match="zone vpn: gre1, gre2 have no Ethernet, and not all of them the same input"):
        compiled(replace(RULES, filters=(replace(edge, input=("gre1",)), host)), ports)


def test_numbers_stay_with_names() -> None:
    three = replace(TEN, excess_burst=2000)
    first = assign(Ids(), RULES)
    second = assign(first, replace(RULES, policers=(three,), filter_terms=(REST, WEB, HOST)))
    assert {kind for kind, _ in second.rules} == {NameKind.FILTER_TERM, NameKind.POLICER, NameKind.POLICER_YELLOW}
    for kind, name in first.rules.keys() & second.rules.keys():
        assert first.rules[kind, name] == second.rules[kind, name]


def test_what_a_reload_would_change() -> None:
    edge, host = RULES.filters
    new = replace(
        RULES,
        filters=(replace(edge, output=()), host),
        filter_terms=(REST, replace(WEB, mark=10), HOST),
        policers=(replace(TEN, rate=20_000_000),),
    )
    assert [str(change) for change in plan(RULES, new)] == [
        "policer spare: removed",
        "policer ten: changed: rate 10000000 -> 20000000",
        "filter edge: changed: output -lan0",
        "filter term edge/rest: moved to the front",
        "filter term edge/web: changed: mark 46 -> 10",
    ]


def test_a_mirror_is_the_interface_itself() -> None:
    terms = (replace(REST, mirror="tap0"), replace(HOST, mirror="gone0"))
    ports = PORTS | {"tap0": PortInfo(11, 11)}
    rows, _ = compiled(replace(RULES, filter_terms=terms), ports)
    assert [row.mirror for row in rows.filters.rows] == [11, 0]
    assert {row.info.ifindex for row in rows.ports} == {4, 5}, "it is no port"
