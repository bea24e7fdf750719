"""What `check` warns of: rules of this machine that accelerated packets go past."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ipsec_gw.cli import check
from ipsec_gw.cli.main import cli
from ipsec_gw.mirror.nft import filter_rules
from ipsec_gw.ownership import bypass, lead, uplink
from ipsec_gw.ownership.marks import HOSTS_TABLE
from ipsec_gw.unseen import KERNEL_END, OUR_RULES, OUR_TABLES, FilterRule, Host, Queue, RoutingRule, unseen

RULE = FilterRule("inet gate passing", 5, frozenset(), ipsec=False, esp=False, accepts=False)
WAN = frozenset({"eth0"})


def test_the_names_and_numbers_are_those_of_the_data_path() -> None:
    assert uplink.KERNEL_END == KERNEL_END
    assert range(lead._EXEMPT_RULE, lead._AFTER_RULE + 1) == OUR_RULES
    assert (f"ip {bypass.TABLE4.name}", f"ip {HOSTS_TABLE}", f"ip6 {bypass.TABLE.name}") == OUR_TABLES


def said(**changes: Any) -> list[str]:
    return [str(warning) for warning in unseen(replace(Host(wan=WAN), **changes))]


def test_our_own_rules_are_no_news() -> None:
    for table in OUR_TABLES:
        ours = replace(RULE, chain=f"{table} again", ipsec=True)
        assert said(filters=(ours,)) == []
        assert len(said(filters=(replace(ours, chain=f"{table}2 again"),))) == 1


def test_a_machine_without_rules_gives_no_warning() -> None:
    assert said() == []


FILTERS: dict[str, tuple[FilterRule, str]] = {
    "the WAN": (replace(RULE, interfaces=WAN), "the rule with handle 5 looks at eth0"),
    "XFRM": (replace(RULE, ipsec=True, accepts=True), "looks at what XFRM did"),
    "ESP": (replace(RULE, esp=True), "does not see what is steered"),
    "ESP of the WAN": (replace(RULE, esp=True, interfaces=WAN), "does not see what is steered"),
}


@pytest.mark.parametrize("case", FILTERS)
def test_a_filter_that_would_not_see_them_is_told_with_its_place(case: str) -> None:
    rule, expected = FILTERS[case]
    (warning,) = said(filters=(rule,))
    assert warning.startswith("nftables chain inet gate passing: ")
    assert expected in warning
    assert "accelerate = false" in warning


def test_rules_of_a_chain_are_told_together() -> None:
    both = (replace(RULE, interfaces=WAN), replace(RULE, handle=9, interfaces=WAN | {"eth1"}))
    (warning,) = said(filters=both)
    assert "rules with handles 5, 9 look at eth0," in warning


@pytest.mark.parametrize(
    "rule",
    [
        replace(RULE, interfaces=frozenset({"eth1"})),
        replace(RULE, esp=True, accepts=True),
        replace(RULE, esp=True, accepts=True, interfaces=WAN),
        RULE,
    ],
    ids=["another interface", "ESP let through", "ESP of the WAN let through", "by address"],
)
def test_what_does_not_depend_on_the_way_is_no_warning(rule: FilterRule) -> None:
    assert said(filters=(rule,)) == []


def test_a_chain_that_knows_our_interface_needs_no_word() -> None:
    knowing = replace(RULE, handle=6, interfaces=frozenset({KERNEL_END}))
    assert said(filters=(replace(RULE, interfaces=WAN), knowing)) == []
    elsewhere = replace(knowing, chain="ip nat post")
    assert len(said(filters=(replace(RULE, interfaces=WAN), elsewhere))) == 1


def test_traffic_control_rules_and_vrfs() -> None:
    assert said(queues=(Queue("eth1", "htb"),), vrfs={"eth1": "blue"}) == []
    (queue,) = said(queues=(Queue("eth0", "htb"),))
    assert queue.startswith("traffic control on eth0: htb neither")
    (vrf,) = said(vrfs={"eth0": "blue"})
    assert vrf.startswith("interface eth0: is in the VRF blue")
    before, after = said(routing=(RoutingRule(100, 4), RoutingRule(500, 6)))
    assert before.startswith("IPv4 routing rule 100: goes before ours")
    assert after.startswith("IPv6 routing rule 500: is not asked")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nftables": {}}', "no json"])
def test_what_is_not_the_tools_answer_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of json, or our own
        filter_rules(text)


def rule_of(*expressions: dict[str, Any]) -> FilterRule:
    entry = {"rule": {"family": "ip", "table": "t", "chain": "c", "handle": 1, "expr": list(expressions)}}
    (rule,) = filter_rules(json.dumps({"nftables": [{"metainfo": {}}, entry]}))
    return rule


def test_extensions_of_iptables_are_told_by_their_names() -> None:
    """iptables-nft keeps what nftables has no expression for as a named extension."""
    assert rule_of({"xt": {"type": "match", "name": "policy"}}, {"accept": None}).ipsec
    assert rule_of({"xt": {"type": "match", "name": "esp"}}, {"drop": None}).esp
    assert not rule_of({"xt": {"type": "match", "name": "comment"}}, {"drop": None}).ipsec
    assert not rule_of({"xt": None}, {"drop": None}).ipsec


def test_check_tells_both_people_and_scripts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    host = Host(wan=WAN, queues=(Queue("eth0", "htb"),), unread=("nftables: the tool nft is not installed",))
    monkeypatch.setattr(check, "_look", lambda _wan: host)
    file = tmp_path / "gw.toml"
    file.write_text('[gateway]\nwan = ["eth0"]\n')
    done = CliRunner().invoke(cli, ["--config", str(file), "check"])
    assert done.exit_code == 0
    assert "warning: traffic control on eth0: htb" in done.output
    assert "not looked at: nftables: the tool nft is not installed" in done.output
    machine = json.loads(CliRunner().invoke(cli, ["--config", str(file), "check", "--json"]).output)["machine"]
    assert machine["wan"] == ["eth0"]
    assert [warning["what"] for warning in machine["warnings"]] == ["traffic control on eth0"]
    assert machine["unread"] == list(host.unread)


@pytest.mark.parametrize("engine", ["auto", "kernel"])
def test_the_machine_is_not_looked_at_without_need(
    engine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(check, "_look", asked.append)
    file = tmp_path / "gw.toml"
    file.write_text(f'[gateway]\nengine = "{engine}"\n')
    words = ["--file-only"] if engine == "auto" else []
    done = CliRunner().invoke(cli, ["--config", str(file), "check", "--json", *words])
    assert json.loads(done.output)["machine"] is None
    assert asked == []
