"""What good configurations become, and where everything in them stands."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import re
import time
import tomllib
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ipsec_gw.cli.main import cli
from ipsec_gw.config import limits
from ipsec_gw.config.literals import collapsed, prefixes_of
from ipsec_gw.config.load import load
from ipsec_gw.config.ports import merged, protocol_of, span_of
from ipsec_gw.config.positions import lines_of
from ipsec_gw.config.problems import InvalidConfig, Refused
from ipsec_gw.config.services import PREDEFINED
from ipsec_gw.config.sets import resolution_order
from ipsec_gw.config.summary import describe, service_text
from ipsec_gw.model.filters import Colour, Filter, FilterAction, FilterTerm, Policer
from ipsec_gw.model.firewall import (
    ANY_SERVICE,
    Action,
    Moves,
    Nat64,
    Nptv6,
    Policy,
    Pool,
    PoolEngine,
    Ruleset,
    Schedule,
    Service,
    Sessions,
    SourceNat,
    StaticNat,
    Timeouts,
    Translation,
)
from ipsec_gw.model.screens import Screens
from xdp_steer import filter_layout, flow_layout

TESTS = Path(__file__).parent.parent
EXAMPLES = TESTS.parent / "examples"
GOOD = TESTS / "config" / "good"
TCP, UDP = 6, 17
PING = (Service(1, (0x0800, 0x08FF)), Service(58, (0x8000, 0x80FF)))


def tcp(*ports: int | tuple[int, int], timeout: int | None = None) -> tuple[Service, ...]:
    spans = (port if isinstance(port, tuple) else (port, port) for port in ports)
    return tuple(Service(TCP, span, timeout=timeout) for span in spans)


def udp(*ports: int | tuple[int, int]) -> tuple[Service, ...]:
    return tuple(Service(UDP, service.destination) for service in tcp(*ports))


def nets(*texts: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(text) for text in texts)


def ruleset(path: Path) -> Ruleset:
    firewall = load(path).firewall
    assert firewall is not None
    return firewall


def from_text(tmp_path: Path, text: str) -> Ruleset:
    path = tmp_path / "c.toml"
    path.write_text(text)
    return ruleset(path)


def by_name(rules: Ruleset) -> dict[str, Policy]:
    return {rule.name: rule for rule in rules.policies}


# The examples


def test_site_to_site() -> None:
    config = load(EXAMPLES / "site-to-site.toml")
    rules = config.firewall
    assert rules is not None
    assert config.gateway.wan == ("eth0",)
    assert [zone.name for zone in rules.zones] == ["wan", "lan", "servers", "vpn"]
    wan, lan, _servers, vpn = rules.zones
    assert (wan.interfaces, wan.host_inbound, wan.tcp_mss) == (("eth0",), PING, 1452)
    assert (lan.tcp_reset, lan.syn_check, lan.tcp_mss) == (True, True, None)
    assert (vpn.interfaces, vpn.tunnels) == ((), True)
    assert (vpn.tcp_mss, vpn.host_inbound) == (1350, (*PING, *tcp(179)))
    assert by_name(rules)["branch-to-shared"] == Policy(
        name="branch-to-shared",
        action=Action.PERMIT,
        from_zone="vpn",
        to_zone="servers",
        sources=nets("10.2.0.0/16", "2001:db8:2::/48"),
        destinations=nets("10.9.0.10", "10.9.0.20/30", "2001:db8:9::20"),
        services=(*tcp(80, 443, 445), *tcp(8443, (9100, 9107), timeout=7200), *PING),
        log_open=True,
        log_close=True,
    )
    assert by_name(rules)["lan-to-branch"].services == ANY_SERVICE
    assert rules.policies[-1] == Policy("log-the-rest", Action.DENY, log_open=True)
    expected = SourceNat("lan-behind-wan", Translation.INTERFACE, "lan", "wan", nets("10.1.0.0/16"))
    assert rules.source_nat == (expected,)
    assert (rules.default, rules.sessions) == (Action.DENY, Sessions())


def test_overlapping_sites() -> None:
    """As it stands, as gateway B's, and with the second translation that is commented out."""
    text = (EXAMPLES / "overlapping-sites.toml").read_text()
    rules = ruleset(EXAMPLES / "overlapping-sites.toml")
    assert rules.static_nat == (StaticNat("shown-to-branch", "vpn", *nets("10.1.0.0/24", "10.0.0.0/24")),)
    assert by_name(rules)["branch-to-lan"].destinations == nets("10.0.0.0/24")
    assert rules.source_nat == (SourceNat("lan-behind-wan", Translation.INTERFACE, "lan", "wan"),)
    assert len(re.findall(r"# B: ", text)) == 2
    (commented,) = re.findall(r"# \[\[nat.static\]\]\n(?:# \w+ = .*\n)+", text)
    more = "\n".join(line.removeprefix("# ") for line in commented.splitlines())
    assert more == '[[nat.static]]\nname = "branch-as-known-here"\nzone = "lan"\n' + (
        'external = "10.2.0.0/24"\ninternal = "10.0.0.0/24"'
    )


def test_source_nat_into_tunnels_may_take_the_address_of_the_interface(tmp_path: Path) -> None:
    text = (EXAMPLES / "overlapping-sites.toml").read_text()
    text += '\n[[nat.source]]\nname = "own"\nfrom = "lan"\nto = "vpn"\ntranslate = "interface"\n'
    (tmp_path / "own.toml").write_text(text)
    assert ruleset(tmp_path / "own.toml").source_nat[-1].to_zone == "vpn"


def test_remote_access() -> None:
    config = load(EXAMPLES / "remote-access.toml")
    rules = config.firewall
    assert rules is not None
    assert config.choices.kept == {"legacy-clients"}
    office = rules.zones[1]
    assert office.interfaces == ("eth1", "eth1.20")
    assert office.host_inbound == (*tcp(22, 830), Service(UDP, (161, 161), (1024, 65535)), *PING)
    tickets = by_name(rules)["contractors-tickets"]
    assert tickets.sources == nets("10.64.48.0/20")
    assert tickets.schedule == Schedule("working-hours", frozenset(range(5)), 7 * 60, 19 * 60 + 30)
    assert by_name(rules)["contractors-nothing-else"].action is Action.REJECT
    assert [rule.name for rule in rules.policies][:2] == ["contractors-tickets", "contractors-nothing-else"]
    voice = by_name(rules)["calls-to-clients"].services
    assert voice == (Service(UDP, (5060, 5060), timeout=300), Service(UDP, (16384, 32767)), *PING)
    apart = by_name(rules)["clients-apart"]
    assert (apart.from_zone, apart.to_zone, apart.sources) == ("clients", "clients", ())
    first, last = IPv4Address("203.0.113.64"), IPv4Address("203.0.113.79")
    assert rules.pools == (Pool("clients-out", first, last, persistent=True),)
    (snat,) = rules.source_nat
    assert (snat.translation, snat.pool, snat.sources) == (Translation.POOL, "clients-out", nets("10.64.0.0/18"))
    assert rules.sessions == Sessions(maximum=1_000_000, timeouts=Timeouts(tcp_established=3600))


def test_nat_gateway() -> None:
    rules = ruleset(EXAMPLES / "nat-gateway.toml")
    assert rules.zones[2].interfaces == ("eth1.100", "eth1.101", "eth1.102")
    manage = by_name(rules)["admin-manages"]
    assert (manage.from_zone, manage.to_zone) == ("admin", "self")
    assert manage.sources == nets("172.16.0.10/31", "172.16.0.12")
    assert by_name(rules)["dmz-backup"].schedule == Schedule("backup-window", start=23 * 60, end=4 * 60)
    echo = by_name(rules)["subscribers-to-published"].services[-1]
    assert echo == Service(1, (0x0800, 0x0800))
    web, staging = rules.destination_nat
    assert (web.destination, web.to, web.services) == (
        *nets("198.51.100.10", "192.168.30.10"),
        (*tcp(80, 443), *udp(443)),
    )
    assert (web.from_zone, web.to_port, web.sources) == ("wan", None, ())
    assert (staging.to, staging.services, staging.to_port) == (*nets("192.168.30.10"), tcp((8080, 8089)), 9080)
    assert staging.sources == nets("203.0.113.0/24")
    assert rules.static_nat == (
        StaticNat("mail", "wan", *nets("198.51.100.25", "192.168.30.25")),
        StaticNat("dmz6", "wan", *nets("2001:db8:30::/64", "fd12:3456:789a:30::/64")),
    )
    assert rules.nat64 == (
        Nat64("subscribers-into-ipv4", *nets("64:ff9b::/96"), from_zone="subscribers", pool="subscribers"),
    )
    assert rules.nptv6 == (Nptv6("subscribers6", "wan", *nets("2001:db8:4000::/48", "fd12:3456:789b::/48")),)
    assert [(rule.name, rule.translation, rule.pool) for rule in rules.source_nat] == [
        ("test-lan-untranslated", Translation.OFF, None),
        ("subscribers", Translation.POOL, "subscribers"),
        ("dmz", Translation.INTERFACE, None),
    ]
    pool, spare = rules.pools
    assert (pool.persistent, pool.overflow, pool.ports) == (True, "spare", (1024, 65535))
    assert (spare.first, spare.last, spare.ports) == (*[ip_address("198.51.100.32")] * 2, (10000, 65535))
    assert [zone.screen for zone in rules.zones] == ["internet", None, "subscribers", None]
    internet, subscribers = rules.screens
    assert (internet.syn_flood, internet.syn_destination, internet.port_scan) == (50000, 10000, 100)
    assert (internet.window, internet.sessions_source) == (1, None)
    assert subscribers == Screens("subscribers", land=True, ip_sweep=200, sessions_source=4000, window=10)
    assert rules.sessions == Sessions(2_000_000, Timeouts(udp=30), high_water=95, low_water=85, early_ageout=10)


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.toml")} == {
        "site-to-site.toml",
        "overlapping-sites.toml",
        "remote-access.toml",
        "nat-gateway.toml",
    }


def test_the_configurations_of_the_readme_hold(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", (TESTS.parent / "README.md").read_text(), re.DOTALL)
    loaded = []
    for block in blocks:
        path = tmp_path / "c.toml"
        path.write_text(block)
        loaded.append(load(path).firewall is not None)
    assert loaded == [False, True]


# Good files


def test_without_zones_there_is_no_firewall() -> None:
    config = load(GOOD / "no-firewall.toml")
    assert config.firewall is None
    assert config.choices.kept == {"site"}


def test_a_zone_alone_is_a_firewall_that_denies() -> None:
    rules = ruleset(GOOD / "minimal.toml")
    assert [zone.name for zone in rules.zones] == ["lan"]
    assert rules.zones[0].host_inbound == ()
    assert (rules.policies, rules.default) == ((), Action.DENY)


def test_the_edges() -> None:
    rules = ruleset(GOOD / "edges.toml")
    wan = rules.zones[0]
    assert (wan.host_inbound, wan.syn_check, wan.tcp_mss) == (ANY_SERVICE, False, 64)
    everywhere, local = rules.policies
    assert (everywhere.from_zone, everywhere.to_zone, everywhere.sources, everywhere.destinations) == (
        None,
        None,
        (),
        (),
    )
    crossed = [Service(TCP, (port, port), source) for port in (80, 443) for source in ((1, 9), (20, 29))]
    assert everywhere.services == (*crossed, Service(58, (0x0104, 0x0104)), Service(255))
    assert (local.from_zone, local.log_open, local.log_close) == ("self", True, True)
    assert int(rules.pools[0].last) - int(rules.pools[0].first) + 1 == limits.MAX_POOL_ADDRESSES
    assert rules.pools[0].ports == (1, 1)
    assert rules.source_nat[0] == SourceNat("anything", Translation.POOL, pool="six")
    assert rules.destination_nat[0].services == PREDEFINED["dns"]


def test_screens() -> None:
    rules = ruleset(GOOD / "screens.toml")
    assert [zone.screen for zone in rules.zones] == ["outside", None]
    outside, met, watched, counted, limited = rules.screens
    assert met == Screens("met", syn_flood=500, syn_cookie=True)
    assert outside == Screens("outside", land=True, no_flag=True)
    assert watched == Screens("watched", ping_of_death=True, alarm_only=True)
    assert counted == Screens(
        "counted",
        syn_flood=1,
        icmp_flood=1_000_000_000,
        udp_flood=2,
        syn_source=3,
        syn_destination=4,
        port_scan=65535,
        ip_sweep=1,
        sessions_source=5,
        sessions_destination=1_000_000_000,
        window=60,
    )
    assert limited == Screens("limited", sessions_source=1, window=1)
    shown = describe(rules)["screens"]
    assert shown == [
        {"name": "outside", "action": "drop", "window": 1, "screens": ["land", "no flag"]},
        {"name": "met", "action": "drop", "window": 1, "screens": ["syn flood 500", "syn cookie"]},
        {"name": "watched", "action": "alarm", "window": 1, "screens": ["ping of death"]},
        {
            "name": "counted",
            "action": "drop",
            "window": 60,
            "screens": [
                "syn flood 1",
                "icmp flood 1000000000",
                "udp flood 2",
                "syn source 3",
                "syn destination 4",
                "port scan 65535",
                "ip sweep 1",
                "sessions source 5",
                "sessions destination 1000000000",
            ],
        },
        {"name": "limited", "action": "drop", "window": 1, "screens": ["sessions source 1"]},
    ]
    assert "screens outside" in describe(rules)["zones"][0]["options"]


def test_every_way_to_write_it() -> None:
    config = load(GOOD / "quoting.toml")
    rules = config.firewall
    assert rules is not None
    assert config.gateway.vici == 'unix:///tmp/"[x]"'
    assert config.choices.kept == {"a.b"}
    assert rules.zones[1].host_inbound == tcp((8000, 8001))
    (policy,) = rules.policies
    assert policy.sources == nets("10.0.0.0/24")


def test_filters() -> None:
    rules = ruleset(GOOD / "filters.toml")
    assert rules.filters == (
        Filter("edge", input=("eth0",), output=("eth1", "eth1.20")),
        Filter("this-machine", host=True),
    )
    voice, begins, rest, ping, not_us, no = rules.filter_terms
    assert voice == FilterTerm(
        "edge/voice",
        "edge",
        sources=nets("192.0.2.0/25", "2001:db8:9::/64"),
        services=(Service(17, (53, 53)), Service(6, (53, 53))),
        dscp=frozenset({46, 5}),
        policer="ten",
        mark=34,
        log=True,
    )
    discard = FilterAction.DISCARD
    assert begins == FilterTerm("edge/begins", "edge", discard, flags_set=2, flags_clear=16, fragment=False)
    assert rest == FilterTerm("edge/rest", "edge")
    assert (ping.filter, ping.policer, no.action) == ("this-machine", "one-rate", FilterAction.REJECT)
    there = [net for net in not_us.destinations if net.version == 4]
    assert sum(net.num_addresses for net in there) == 2**32 - 1
    assert not any(net.overlaps(nets("192.0.2.1")[0]) for net in there)
    assert nets("::/0")[0] in not_us.destinations
    ten, one_rate, two_rates = rules.policers
    assert ten == Policer("ten", 10_000_000, 125_000)
    fates = {"yellow": Colour.DISCARD, "red": 0, "aware": True}
    assert one_rate == Policer("one-rate", 64_000, 1500, 3000, **fates)  # type: ignore[arg-type]
    assert two_rates == Policer("two-rates", 10**9, 10**9, peak_rate=400 * 10**9, peak_burst=2000)


def test_filters_in_words() -> None:
    shown = describe(ruleset(GOOD / "filters.toml"))
    assert shown["filters"] == [
        {"name": "edge", "input": ["eth0"], "output": ["eth1", "eth1.20"], "host": False},
        {"name": "this-machine", "input": [], "output": [], "host": True},
    ]
    voice, begins, rest, *_ = shown["filterTerms"]
    match = ["source 192.0.2.0/25", "source 2001:db8:9::/64", "udp/53", "tcp/53", "dscp 5", "dscp ef"]
    assert voice == {"name": "edge/voice", "match": match, "then": ["accept", "policer ten", "mark af41", "log"]}
    assert begins == {"name": "edge/begins", "match": ["tcp flags syn !ack", "no fragments"], "then": ["discard"]}
    assert rest == {"name": "edge/rest", "match": [], "then": ["accept"]}
    assert shown["policers"] == [
        {"name": "ten", "buckets": ["10M burst 125000"], "colours": ["red discard"]},
        {
            "name": "one-rate",
            "buckets": ["64k burst 1500", "excess burst 3000"],
            "colours": ["yellow discard", "red mark be", "aware"],
        },
        {
            "name": "two-rates",
            "buckets": ["1G burst 1000000000", "peak 400G burst 2000"],
            "colours": ["yellow accept", "red discard"],
        },
    ]


def test_filters_are_printed() -> None:
    done = CliRunner().invoke(
        cli, ["--config", str(GOOD / "filters.toml"), "check", "--file-only"], env={"COLUMNS": "120"}
    )
    assert done.exit_code == 0, done.output
    for text in ("edge/voice", "policer ten", "tcp flags syn !ack", "400G burst 2000", "this-machine"):
        assert text in done.output


def test_every_good_file_is_tested() -> None:
    assert {path.stem for path in GOOD.iterdir()} == {
        "edges",
        "filters",
        "minimal",
        "no-firewall",
        "quoting",
        "screens",
    }


ZONES = '[zones.wan]\ninterfaces = ["eth0"]\n[zones.lan]\ninterfaces = ["eth1"]\n'


def test_sets_contain_sets_and_keep_only_what_is_needed(tmp_path: Path) -> None:
    text = """
[addresses]
all = ["site", "10.0.0.0-10.0.0.255", "2001:db8::1"]
site = ["a", "b", "10.0.1.0/24"]
a = "10.0.0.7"
b = "10.0.0.3-10.0.0.5"
[[policies]]
name = "p"
from = "lan"
to = "wan"
source = "all"
destination = "site"
action = "permit"
"""
    (policy,) = from_text(tmp_path, ZONES + text).policies
    assert policy.sources == nets("10.0.0.0/23", "2001:db8::1")
    assert policy.destinations == nets("10.0.0.3", "10.0.0.4/31", "10.0.0.7", "10.0.1.0/24")


def test_a_rule_after_a_like_one_of_other_zones_or_hours_is_reached(tmp_path: Path) -> None:
    text = """
[schedules.night]
start = "20:00"
end = "06:00"
[schedules.noon]
start = 12:00:00
end = 13:00:00
[[policies]]
name = "night"
from = "lan"
to = "wan"
action = "deny"
schedule = "night"
[[policies]]
name = "noon"
from = "lan"
to = "wan"
action = "deny"
schedule = "noon"
[[policies]]
name = "always"
from = "lan"
to = "wan"
action = "permit"
[[policies]]
name = "back"
from = "wan"
to = "lan"
action = "permit"
[[nat.source]]
name = "narrow"
from = "lan"
to = "wan"
translate = "off"
[[nat.source]]
name = "wide"
to = "wan"
translate = "interface"
"""
    rules = from_text(tmp_path, ZONES + text)
    assert [rule.name for rule in rules.policies] == ["night", "noon", "always", "back"]
    assert [rule.name for rule in rules.source_nat] == ["narrow", "wide"]


def test_too_many_interfaces_are_told_at_the_first_that_is_too_many(tmp_path: Path) -> None:
    names = ",\n".join(f'"eth{number}"' for number in range(limits.MAX_INTERFACES + 2))
    path = tmp_path / "c.toml"
    path.write_text(f"[zones.wan]\ninterfaces = [\n{names}]\n")
    with pytest.raises(InvalidConfig) as caught:
        load(path)
    (problem,) = caught.value.problems
    assert problem.line == limits.MAX_INTERFACES + 3
    assert problem.path == f"zones.wan.interfaces.{limits.MAX_INTERFACES + 1}"


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("zones = " + "[" * 5000 + "]" * 5000)
    with pytest.raises(InvalidConfig, match="nested too deep"):
        load(path)


def test_a_large_configuration_is_read_soon(tmp_path: Path) -> None:
    rules = [
        f'[[policies]]\nname = "p{n}"\nfrom = "lan"\nto = "wan"\nsource = "10.{n >> 8}.{n & 255}.0/24"\n'
        'application = ["ssh", "dns"]\naction = "permit"\n'
        for n in range(2000)
    ]
    started = time.process_time()
    read = from_text(tmp_path, ZONES + "\n".join(rules))
    assert len(read.policies) == 2000
    assert time.process_time() - started < 20


# Words


def test_limits_are_those_of_the_datapath() -> None:
    assert limits.MAX_ZONES == flow_layout.MAX_ZONES - 1
    assert limits.MAX_INTERFACES == flow_layout.MAX_PORTS
    assert limits.MAX_POOLS == flow_layout.MAX_POOLS
    assert limits.MAX_FILTERS == filter_layout.MAX_FILTERS - 1
    assert limits.MAX_POLICERS == filter_layout.MAX_POLICERS
    assert limits.MAX_TERM_SERVICES == flow_layout.MAX_ROWS


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("any", ["any"]),
        ("ssh", ["tcp/22"]),
        ("ping", ["icmp type 8", "icmpv6 type 128"]),
        ("dns", ["udp/53", "tcp/53"]),
        ("dhcp", ["udp/67-68"]),
        ("dhcpv6", ["udp/546-547"]),
        ("traceroute", ["udp/33434-33523"]),
        ("ike", ["udp/500", "udp/4500"]),
        ("radius", ["udp/1812-1813"]),
        ("router-discovery", ["icmp type 9-10", "icmpv6 type 133-134"]),
        ("icmp-all", ["icmp", "icmpv6"]),
        ("tcp-any", ["tcp"]),
        ("udp-any", ["udp"]),
        ("ospf", ["ospf"]),
        ("esp", ["esp"]),
        ("ah", ["ah"]),
        ("vrrp", ["vrrp"]),
        ("gre", ["gre"]),
        ("bgp", ["tcp/179"]),
        ("netconf", ["tcp/830"]),
        ("snmp", ["udp/161"]),
        ("syslog", ["udp/514"]),
        ("ntp", ["udp/123"]),
        ("telnet", ["tcp/23"]),
        ("ftp", ["tcp/21"]),
        ("http", ["tcp/80"]),
        ("https", ["tcp/443"]),
    ],
)
def test_predefined_applications(name: str, texts: list[str]) -> None:
    assert [service_text(service) for service in PREDEFINED[name]] == texts


def test_predefined_services_are_well_formed() -> None:
    for name, services in PREDEFINED.items():
        assert len(set(services)) == len(services) > 0, name
        for service in services:
            assert 0 <= service.destination[0] <= service.destination[1] <= 65535
            assert service.source == (0, 65535)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**12))
def test_a_range_is_exactly_its_prefixes(first: int, more: int) -> None:
    last = min(first + more, 2**32 - 1)
    found = prefixes_of(f"{IPv4Address(first)}-{IPv4Address(last)}")
    spans = [(int(prefix.network_address), int(prefix.broadcast_address)) for prefix in found]
    assert (spans[0][0], spans[-1][1]) == (first, last)
    assert all(before[1] + 1 == after[0] for before, after in itertools.pairwise(spans))
    assert collapsed(reversed(found)) == found


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)).map(lambda pair: (pair[0], sum(pair)))))
def test_merged_ranges_hold_the_same_numbers_and_do_not_touch(spans: list[tuple[int, int]]) -> None:
    def numbers(ranges: Iterator[tuple[int, int]]) -> set[int]:
        return {number for low, high in ranges for number in range(low, high + 1)}

    whole = merged(spans)
    assert numbers(iter(whole)) == numbers(iter(spans))
    assert all(before[1] + 1 < after[0] for before, after in itertools.pairwise(whole))


def test_ports_and_protocols() -> None:
    assert [span_of(value) for value in (80, "80", " 1 - 65535 ", 0)] == [(80, 80), (80, 80), (1, 65535), (0, 0)]
    assert [protocol_of(value) for value in ("tcp", 47, 0, 255)] == [6, 47, 0, 255]
    for value in (None, "", "-", "1-2-3", "٣", 65536, True, 1.5, [80]):
        with pytest.raises(Refused):
            span_of(value)
    for value in (None, "TCP/IP", -1, 256, True, ["tcp"]):
        with pytest.raises(Refused):
            protocol_of(value)


@given(st.dictionaries(st.sampled_from("abcdefg"), st.lists(st.sampled_from("abcdefgxyz"), max_size=3)))
def test_sets_come_after_their_members_and_cycles_are_real(members: dict[str, list[str]]) -> None:
    order, cycles = resolution_order(members)
    left_out = {name for cycle in cycles for name in cycle}
    assert set(order) | left_out == set(members)
    assert not set(order) & left_out
    for place, name in enumerate(order):
        inner = {member for member in members[name] if member in members}
        assert inner - left_out <= set(order[:place])
    for cycle in cycles:
        assert cycle[0] == cycle[-1]
        assert all(after in members[before] for before, after in itertools.pairwise(cycle))


# Where everything stands


def paths_of(value: object, place: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], object]]:
    yield place, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths_of(inner, (*place, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from paths_of(inner, (*place, index))


FILES = sorted([*EXAMPLES.glob("*.toml"), *GOOD.glob("*.toml"), *(TESTS / "config" / "bad").glob("*.toml")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_path_of_a_file_has_a_line_and_no_other(path: Path) -> None:
    text = path.read_text()
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        assert path.stem.startswith("syntax-")
        return
    assert set(lines_of(text)) == {place for place, _value in paths_of(raw)}


KEYS = st.sampled_from(["a", "b-1", "c.d", 'q"', "#", "é", "=", "[x]"])
STRINGS = st.sampled_from(["", "# no comment", "[no.header]", 'k = "v"', "line\nbreak", "back\\slash", "'", '"""'])
LEAVES = st.none() | STRINGS
TREES = st.dictionaries(
    KEYS,
    st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)),
    max_size=4,
)


class Writer:
    """TOML in different layouts. Each leaf that is None becomes a number of its own, by which its line is found."""

    def __init__(self, choices: Iterator[int]) -> None:
        self._choices = choices
        self._numbers = itertools.count(100_000)

    def document(self, tree: dict[str, Any]) -> str:
        plain = {key: value for key, value in tree.items() if not isinstance(value, dict) and not self.tables(value)}
        lines = [f"{self.key(key)} ={self.space()}{self.value(value)} # [end]" for key, value in plain.items()]
        for key, value in tree.items():
            if key not in plain:
                mark = ("[[", "]]") if isinstance(value, list) else ("[", "]")
                for table in value if isinstance(value, list) else [value]:
                    lines += ["", f"{mark[0]} {self.key(key)} {mark[1]} # = "]
                    lines += [f"{self.key(name)}={self.value(inner)}" for name, inner in table.items()]
        return "\n".join(lines)

    @staticmethod
    def tables(value: object) -> bool:
        return isinstance(value, list) and bool(value) and all(isinstance(inner, dict) for inner in value)

    def key(self, key: str) -> str:
        return key if key in {"a", "b-1"} else json.dumps(key, ensure_ascii=next(self._choices) % 2 == 0)

    def space(self) -> str:
        return ["", " ", "\t"][next(self._choices) % 3]

    def value(self, value: Any, *, inline: bool = False) -> str:
        if isinstance(value, dict):
            pairs = (f"{self.key(key)} = {self.value(inner, inline=True)}" for key, inner in value.items())
            return "{" + self.space() + ", ".join(pairs) + "}"
        if isinstance(value, list):
            gap = " " if inline or next(self._choices) % 2 else "\n # [comment], \n"
            parts = [self.value(inner, inline=inline) + gap for inner in value]
            return f"[{gap}{','.join(parts)}]"
        if value is None:
            return str(next(self._numbers))
        if not inline and next(self._choices) % 2 and '"' not in value:
            escaped = value.replace("\\", "\\\\")
            return f'"""\n{escaped}"""'
        return json.dumps(value)


@given(TREES, st.lists(st.integers(0, 5), min_size=1))
def test_lines_of_any_layout(tree: dict[str, Any], choices: list[int]) -> None:
    text = Writer(itertools.cycle(choices)).document(tree)
    raw = tomllib.loads(text)
    lines = lines_of(text)
    found = dict(paths_of(raw))
    assert set(lines) == set(found)
    for place, value in found.items():
        if isinstance(value, int):
            assert str(value) in text.split("\n")[lines[place] - 1]
    assert lines_of(text.replace("\n", "\r\n")) == lines


# The command


def test_check_prints_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    done = CliRunner().invoke(cli, ["--config", str(EXAMPLES / "nat-gateway.toml"), "check"])
    assert done.exit_code == 0, done.output
    for shown in (
        "nat-gateway.toml is valid",
        "eth1.100",
        "drop-bogons",
        "wan > dmz",
        "pool subscribers",
        "overflow spare",
    ):
        assert shown in done.output
    assert "flows without a policy: deny" in done.output
    assert "192.168.30.10 port 9080" in done.output


def test_check_fits_80_columns_and_breaks_no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for path in EXAMPLES.glob("*.toml"):
        output = CliRunner().invoke(cli, ["--config", str(path), "check"]).output
        tables = output.splitlines()[1:]
        assert max(map(len, tables)) <= 80
        words = set(" ".join(tables).replace(",", " ").split())
        assert {part for pool in ruleset(path).pools for part in (pool.name, pool.overflow) if part} <= words
        for rule in ruleset(path).policies:
            zones = f"{rule.from_zone or 'any'} > {rule.to_zone or 'any'}".split()
            (row,) = [line.split() for line in tables if line.split()[:4] == [rule.name, *zones]]
            assert row[4] == rule.action


def test_check_as_json() -> None:
    done = CliRunner().invoke(cli, ["--config", str(EXAMPLES / "remote-access.toml"), "check", "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert (answer["valid"], answer["errors"]) == (True, [])
    assert [zone["name"] for zone in answer["firewall"]["zones"]] == ["wan", "office", "clients"]
    first = answer["firewall"]["policies"][0]
    assert first == {
        "name": "contractors-tickets",
        "from": "clients",
        "to": "office",
        "source": ["10.64.48.0/20"],
        "destination": ["10.1.4.10"],
        "application": ["tcp/443"],
        "action": "permit",
        "log": ["open", "close"],
        "schedule": "monday, tuesday, wednesday, thursday, friday 07:00-19:30",
    }
    assert answer["firewall"]["nat"][0]["becomes"] == "pool clients-out"


def with_pool(tmp_path: Path, options: str) -> Path:
    """A file with a pool named fast."""
    zones = "".join(f'[zones.{name}]\ninterfaces = ["{name}0"]\n' for name in ("lan", "wan"))
    rule = '[[nat.source]]\nname = "out"\nfrom = "lan"\nto = "wan"\ntranslate = { pool = "fast" }\n'
    path = tmp_path / "c.toml"
    path.write_text(f"{zones}[nat.pools.fast]\n{options}{rule}")
    return path


@pytest.mark.parametrize(
    ("options", "moves"),
    [
        ("", Moves()),
        ("promote_flows = 100\n", Moves(promote_flows=100, demote_flows=50)),
        ("promote_packets = 3\ndwell = 5\n", Moves(promote_packets=3, demote_packets=1, dwell=5)),
        ("demote_flows = 9999\ndemote_packets = 2\n", Moves(demote_flows=9999, demote_packets=2)),
    ],
)
def test_a_pool_may_be_vpps_at_times(tmp_path: Path, options: str, moves: Moves) -> None:
    path = with_pool(tmp_path, f'addresses = "203.0.113.16/29"\nengine = "auto"\n{options}')
    (pool,) = ruleset(path).pools
    assert (pool.engine, pool.moves) == (PoolEngine.AUTO, moves)
    assert (str(pool.of_xdp[0]), str(pool.last)) == ("203.0.113.23", "203.0.113.23")
    answer = json.loads(CliRunner().invoke(cli, ["--config", str(path), "check", "--json", "--file-only"]).stdout)
    (told,) = answer["firewall"]["pools"]
    assert told["options"][2:] == [
        f"to VPP from {moves.promote_flows} new flows/s or {moves.promote_packets} packets/s",
        f"back below {moves.demote_flows} and {moves.demote_packets} for {moves.dwell} s",
    ]


@pytest.mark.parametrize(
    ("addresses", "of_vpp", "of_xdp"),
    [
        ("203.0.113.4/31", "203.0.113.4", "203.0.113.5"),
        ("203.0.113.16/28", "203.0.113.16-203.0.113.29", "203.0.113.30-203.0.113.31"),
        ("203.0.113.0/24", "203.0.113.0-203.0.113.223", "203.0.113.224-203.0.113.255"),
    ],
)
def test_a_pool_of_vpp_leaves_an_eighth_of_its_addresses_to_xdp(
    tmp_path: Path, addresses: str, of_vpp: str, of_xdp: str
) -> None:
    path = with_pool(tmp_path, f'addresses = "{addresses}"\nengine = "vpp"\n')
    (pool,) = ruleset(path).pools
    assert (pool.engine, ruleset(path).zone_of_pool("fast")) == (PoolEngine.VPP, "wan")
    answer = json.loads(CliRunner().invoke(cli, ["--config", str(path), "check", "--json", "--file-only"]).stdout)
    (told,) = answer["firewall"]["pools"]
    assert (told["engine"], told["options"]) == ("vpp", [f"VPP has {of_vpp}", f"XDP {of_xdp}"])


def test_a_pool_of_xdp_has_all_of_its_addresses() -> None:
    pool = Pool("p", IPv4Address("203.0.113.16"), IPv4Address("203.0.113.31"))
    assert (pool.of_vpp, pool.of_xdp) == (None, (pool.first, pool.last))


def test_check_shows_global_policies_after_those_of_zones() -> None:
    done = CliRunner().invoke(cli, ["--config", str(GOOD / "edges.toml"), "check", "--json"])
    assert [rule["name"] for rule in json.loads(done.stdout)["firewall"]["policies"]] == ["local", "global"]


def test_check_prints_all_errors(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[zones.wan]\ninterfaces = ["a b"]\nsyn_chek = true\n')
    done = CliRunner().invoke(cli, ["--config", str(path), "check"])
    assert (done.exit_code, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{path}:2", f"{path}:3"]
    as_json = CliRunner().invoke(cli, ["--config", str(path), "check", "--json"])
    assert as_json.exit_code == 2
    answer = json.loads(as_json.stdout)
    assert (answer["valid"], answer["firewall"]) == (False, None)
    assert [(error["line"], error["path"]) for error in answer["errors"]] == [
        (2, "zones.wan.interfaces.1"),
        (3, "zones.wan.syn_chek"),
    ]
    assert answer["errors"][1]["wayOut"] == "write syn_check"


def check_as_nobody(path: str, answer: Connection) -> None:
    os.setuid(65534)
    done = CliRunner().invoke(cli, ["--config", path, "check"])
    answer.send((os.geteuid(), done.exit_code, done.output))


@pytest.mark.skipif(os.geteuid() != 0, reason="drops root to prove that it is not needed")
def test_check_needs_no_root() -> None:
    with NamedTemporaryFile(suffix=".toml") as file:  # tmp_path lies where only root can look
        file.write((EXAMPLES / "site-to-site.toml").read_bytes())
        file.flush()
        Path(file.name).chmod(0o644)
        CliRunner().invoke(cli, ["--config", file.name, "check"])  # imports: the checkout may be root's alone
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=check_as_nobody, args=(file.name, theirs))
        child.start()
        theirs.close()
        user, code, output = ours.recv()
        child.join(60)
    assert (user, code) == (65534, 0), output
    assert "branch-to-shared" in output
