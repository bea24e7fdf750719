"""Numbers stay with their names."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from ipsec_gw.model.firewall import Action, Policy, Ruleset, Service, StaticNat, Zone
from xdp_steer.compile import CompileError, Ids, assign
from xdp_steer.flow_layout import NameKind


def ruleset(*policies: str, zones: tuple[str, ...] = ()) -> Ruleset:
    return Ruleset(
        zones=tuple(Zone(name) for name in zones), policies=tuple(Policy(name, Action.PERMIT) for name in policies)
    )


def numbers(ids: Ids) -> dict[str, int]:
    return {name: number for (_, name), number in ids.rules.items()}


def test_numbers_begin_at_one() -> None:
    ids = assign(Ids(), ruleset("p", "q", zones=("lan", "wan")))
    assert (ids.zones, numbers(ids)) == ({"lan": 1, "wan": 2}, {"p": 1, "q": 2})


def test_a_name_keeps_its_number_and_a_new_one_takes_none_that_was_in_use() -> None:
    first = assign(Ids(), ruleset("p", "q", "r", zones=("lan", "wan")))
    second = assign(first, ruleset("new", "r", "p", zones=("dmz", "wan")))
    assert numbers(second) == {"new": 4, "r": 3, "p": 1}
    assert second.zones == {"dmz": 3, "wan": 2}


def test_when_numbers_run_out_one_of_a_name_that_is_gone_is_taken() -> None:
    names = tuple(f"z{n}" for n in range(63))
    full = assign(Ids(), ruleset(zones=names))
    assert sorted(full.zones.values()) == list(range(1, 64))
    assert assign(full, ruleset(zones=(*names[:9], "new", *names[10:]))).zones["new"] == full.zones["z9"]


def test_every_kind_of_rule_has_names_of_its_own() -> None:
    net = ip_network("192.0.2.1/32")
    rules = Ruleset(
        zones=(Zone("x", host_inbound=(Service(6),)), Zone("y")),
        policies=(Policy("x", Action.DENY),),
        static_nat=(StaticNat("x", "y", net, net),),
    )
    ids = assign(Ids(), rules)
    assert ids.rules == {(NameKind.POLICY, "x"): 1, (NameKind.HOST_INBOUND, "x"): 2, (NameKind.STATIC_NAT, "x"): 3}
    assert Ids.of_names(ids.names()) == ids


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (ruleset(zones=tuple(f"z{n}" for n in range(64))), "64 zones, 63 are possible - remove some from z63 on"),
        (ruleset(*[f"p{n}" for n in range(8192)]), "8192 rules, 8191 are possible"),
        (ruleset("n" * 64), "policy n+: a name has 1 to 63 bytes"),
        (ruleset("ü" * 32), "policy ü+: a name has 1 to 63 bytes"),
        (ruleset(""), "a name has 1 to 63 bytes"),
        (ruleset("p", "p"), "policy p: there are two of that name"),
        (ruleset(zones=("a", "a")), "zone a: there are two of that name"),
        (ruleset(zones=("self",)), "zone self is this machine"),
    ],
)
def test_refused(rules: Ruleset, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        assign(Ids(), rules)


def test_63_bytes_are_a_name() -> None:
    assert numbers(assign(Ids(), ruleset("n" * 63))) == {"n" * 63: 1}
