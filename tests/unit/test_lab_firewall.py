"""The firewall scenarios' configurations, networks and reports, without a network."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ipsec_gw.config.load import load
from ipsec_gw.errors import IpsecGwError
from ipsec_gw.lab import runner
from ipsec_gw.lab.context import Options
from ipsec_gw.lab.edge import PATH_MTU, POOL, POOL6, edge
from ipsec_gw.lab.gateway import GatewayMisbehaved, parse_rules, parse_status
from ipsec_gw.lab.kernel import Environment
from ipsec_gw.lab.report import Check, Report, Versions, merged
from ipsec_gw.lab.scenarios import Part, Scenario, find
from ipsec_gw.lab.scenarios.overlapping_sites import sites
from ipsec_gw.lab.scenarios.rules import KNOWN, overlapping_rules, plain_rules, tunnel_rules
from ipsec_gw.lab.topology import HOST, LAN, WAN, Role, batches, overlapping, site_to_site

TAG = "igw-0a1b2c"
VERSIONS = Versions("6.1", "5.9.8", None, "3.11.2", "0.1.0")


def written(directory: Path, text: str):
    file = directory / "ipsec-gw.toml"
    file.write_text(text)
    return load(file).firewall


def test_the_plain_configuration_is_valid(tmp_path):
    firewall = written(tmp_path, plain_rules(edge(TAG)))
    assert [zone.name for zone in firewall.zones] == ["trust", "untrust"]
    assert {policy.name for policy in firewall.policies} == {"denied", "rejected", "out", "published", "hairpin"}


def test_the_tunnels_have_a_zone_of_their_own(tmp_path):
    firewall = written(tmp_path, tunnel_rules(site_to_site(TAG)))
    assert [zone.name for zone in firewall.zones if zone.tunnels] == ["tunnel"]
    assert {policy.name for policy in firewall.policies} >= {"denied-out", "denied-in", "branch-in-clear"}


def test_the_edge_has_both_families_and_a_longer_path():
    topology = edge(TAG)
    assert topology.ipv6
    assert not site_to_site(TAG).ipv6
    assert str(topology.address6(Role.CLIENT, HOST)) == "2001:db8:1::10"
    assert topology.address6(Role.CLIENT, HOST) in topology.network6(Role.GATEWAY_A, LAN)
    lines = {batch.namespace: batch.lines for batch in batches(topology)[1:]}
    router = lines[topology.namespace(Role.WAN)]
    assert f"route add 198.51.100.10/32 via 198.51.100.10 mtu lock {PATH_MTU}" in router
    for pool in (POOL, POOL6):
        assert any(line.startswith(f"route add {pool} via ") for line in router)
    assert "addr add 2001:db8:2::1/64 dev wan0 nodad" in lines[topology.namespace(Role.GATEWAY_A)]


def test_the_switch_has_no_address_and_no_route():
    lines = next(b.lines for b in batches(edge(TAG))[1:] if b.namespace == f"{TAG}-switch")
    assert sum(" master br0" in line for line in lines) == 3
    assert not [line for line in lines if line.startswith(("addr", "route"))]


def test_an_interface_without_ipv6_is_named():
    with pytest.raises(KeyError, match="gwa has no IPv6 address on wan0"):
        site_to_site(TAG).address6(Role.GATEWAY_A, WAN)
    with pytest.raises(KeyError, match="gwa has no IPv6 address on lan0"):
        site_to_site(TAG).network6(Role.GATEWAY_A, LAN)


def test_counters_of_rules_are_read():
    rule = {"kind": "policy", "name": "denied", "packets": 3, "octets": 180}
    assert parse_rules(json.dumps({"rules": [rule], "missing": []})) == {"denied": 3}


@pytest.mark.parametrize("text", ["", "[]", '{"rules": [{}]}', "{}"])
def test_other_answers_about_rules_are_refused(text):
    with pytest.raises(GatewayMisbehaved, match="show firewall"):
        parse_rules(text)


def test_verdicts_are_read_if_there_are_any():
    shown = {"engine": {"name": "kernel", "note": ""}, "inSync": True}
    assert parse_status(json.dumps(shown)).verdicts == {}
    assert parse_status(json.dumps(shown | {"verdicts": {"malformed": 2}})).verdicts == {"malformed": 2}


def report(environment, *checks, kernel="6.1", vpp=None):
    return Report(
        "firewall", environment, "soft", replace(VERSIONS, kernel=kernel, vpp=vpp), checks, (environment,), 1.5
    )


def test_one_report_is_itself():
    one = report("vm", Check("a", True, "x", "x"))
    assert merged([one]) == one


def test_reports_of_parts_are_one():
    both = merged(
        [
            report("native", Check("a", True, "none", "none"), Check("b", True, "1", "1"), kernel="6.18"),
            report("vm", Check("a", False, "none", "left"), Check("c", True, "1", "1"), vpp="24.10"),
        ]
    )
    assert [check.name for check in both.checks] == ["a", "b", "c"]
    assert both.checks[0] == Check("a", False, "none", "none, left")
    assert (both.ok, both.environment, both.seconds, both.notes) == (False, "native, vm", 3.0, ("native", "vm"))
    assert (both.versions.kernel, both.versions.vpp, both.versions.strongswan) == ("6.18, 6.1", "24.10", "5.9.8")


class Places:
    """Where the runner was told to run a part."""

    def __init__(self, monkeypatch):
        self.seen = []
        monkeypatch.setattr(runner, "need_root", lambda: None)
        for place in ("native", "vm"):
            monkeypatch.setattr(runner, f"run_{place}", self.runs(place))
        monkeypatch.setattr(runner, "choose_environment", self.chosen)

    def runs(self, place):
        async def run(name, part, options, listener):
            self.seen.append((part.name, place, options.artifacts))
            return report(place, Check(part.name, True, "", ""))

        return run

    @staticmethod
    async def chosen():
        return Environment.VM


@pytest.fixture
def places(monkeypatch):
    return Places(monkeypatch)


async def nothing(lab):
    raise AssertionError("never played")


SCENARIO = Scenario("two", "", (Part("here", edge, nothing, needs_esp=False), Part("there", site_to_site, nothing)))


async def test_each_part_runs_where_it_can(places):
    found = await runner.run(SCENARIO, Options(), None, None)
    assert places.seen == [("here", "native", None), ("there", "vm", None)]
    assert [check.name for check in found.checks] == ["here", "there"]


async def test_all_parts_run_where_told(places):
    await runner.run(SCENARIO, Options(), None, Environment.NATIVE)
    assert [place for _, place, _ in places.seen] == ["native", "native"]


async def test_parts_keep_their_artifacts_apart(places, tmp_path):
    await runner.run(SCENARIO, Options(artifacts=tmp_path), None, None)
    assert [directory for *_, directory in places.seen] == [tmp_path / "here", tmp_path / "there"]
    assert all(directory.is_dir() for *_, directory in places.seen)


async def test_a_firewall_has_no_baseline(places):
    with pytest.raises(IpsecGwError, match="two is about ipsec-gw alone - run it without --baseline"):
        await runner.run(SCENARIO, Options(baseline=True), None, None)
    assert places.seen == []


@pytest.mark.parametrize("engine", ["soft", "kernel"])
async def test_what_is_about_vpp_is_refused_before_anything_is_begun(places, engine):
    about_vpp = replace(SCENARIO, only_vpp="only VPP is a process that can hang")
    with pytest.raises(IpsecGwError, match="two: only VPP is a process that can hang - run it with --engine vpp"):
        await runner.run(about_vpp, Options(engine), None, None)
    assert places.seen == []
    await runner.run(about_vpp, Options("vpp"), None, None)
    assert len(places.seen) == len(SCENARIO.parts)


def test_overlapping_sites_have_one_network_and_selectors_of_two(tmp_path):
    topology = overlapping(TAG)
    firewall = written(tmp_path, overlapping_rules(topology))
    assert topology.network(Role.GATEWAY_A, LAN) == topology.network(Role.GATEWAY_B, LAN)
    assert topology.address(Role.CLIENT, HOST) == topology.address(Role.SERVER, HOST)
    a, b = sites(topology, "aes128gcm16")
    assert (a.local_network, a.remote_network) == (b.remote_network, b.local_network)
    external = {static.zone: static.external for static in firewall.static_nat}
    assert external == {"tunnel": a.local_network, "trust": KNOWN}
    assert {static.internal for static in firewall.static_nat} == {topology.network(Role.GATEWAY_A, LAN)}


def test_scenarios_are_found_by_name():
    assert [part.needs_esp for part in find("firewall").parts] == [False, True]
    assert [part.needs_esp for part in find("junk").parts] == [False]
    known = "site-to-site, ipv6, nat-t, roadwarriors, route-based, transport, frr, gre-over-ipsec, vxlan-over-ipsec"
    with pytest.raises(IpsecGwError, match=f"known: {known}"):
        find("no-such")
