"""What the compiler refuses is an error of the file: told with line and way out, at whatever hour it would come."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from ipsec_gw.cli.main import cli
from ipsec_gw.config.load import load
from ipsec_gw.config.problems import InvalidConfig
from ipsec_gw.firewall.compiled import compile_always, load_compiled
from ipsec_gw.model.firewall import Action, Policy, Ruleset, Schedule, Zone
from xdp_steer.compile.errors import CompileError
from xdp_steer.flow_layout import MAX_POOLS, MAX_PREFIXES, MAX_ROWS

ZONES = '[zones.wan]\ninterfaces = ["eth0"]\n[zones.lan]\ninterfaces = ["eth1"]\n'
NOON = datetime(2026, 3, 4, 12)
NIGHT, DAY = Schedule("night", start=22 * 60, end=6 * 60), Schedule("day", start=6 * 60, end=22 * 60)


def host(number: int) -> str:
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"


def policy(number: int, source: str | None = None) -> str:
    return (
        f'[[policies]]\nname = "rule-{number}"\nfrom = "lan"\nto = "wan"\n'
        f'source = "{source or host(number)}"\naction = "permit"\n'
    )


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.toml"
    path.write_text(ZONES + text)
    load(path)  # the file itself is in order
    return path


TOO_MANY_RULES = "".join(policy(number) for number in range(MAX_ROWS + 1))
TOO_MANY_TERMS = "[filters.edge]\nhost = true\n" + "".join(
    f'[[filters.edge.terms]]\nname = "t{number}"\n' for number in range(MAX_ROWS + 1)
)
TOO_MANY_PREFIXES = (
    f"[addresses]\nall = {json.dumps([host(2 * number) for number in range(MAX_PREFIXES // 2 + 1)])}\n"
    + policy(1, "all").replace("action", 'destination = "all"\naction')
)


def test_too_many_terms_of_filters_are_told_with_their_line(tmp_path: Path) -> None:
    path = written(tmp_path, TOO_MANY_TERMS)
    done = CliRunner().invoke(cli, ["--config", str(path), "check"])
    assert done.exit_code == 2
    place = f"{path}:{len(path.read_text().splitlines()) - 1}: filters.edge.terms.{MAX_ROWS + 1}: "
    assert done.output.startswith(f"{place}filter term edge/t{MAX_ROWS}: the filter table has {MAX_ROWS + 1} rows")


def test_a_table_that_is_too_small_is_told_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, TOO_MANY_RULES)
    line = 1 + path.read_text().splitlines().index(f'name = "rule-{MAX_ROWS}"') - 1
    what = f"policy rule-{MAX_ROWS}: the policy table has {MAX_ROWS + 1} rows"
    done = CliRunner().invoke(cli, ["--config", str(path), "check"])
    assert done.exit_code == 2
    assert done.output.startswith(f"{path}:{line}: policies.{MAX_ROWS + 1}: {what}")
    assert done.output.endswith(" - merge or remove rules\n")
    assert done.output.count("\n") == 1

    done = CliRunner().invoke(cli, ["--config", str(path), "check", "--json"])
    assert done.exit_code == 2
    answer = json.loads(done.output)
    (error,) = answer["errors"]
    assert (answer["valid"], answer["firewall"]) == (False, None)
    assert error["message"].startswith(what)
    del error["message"]
    place = {"file": str(path), "line": line, "path": f"policies.{MAX_ROWS + 1}"}
    assert error == {**place, "wayOut": "merge or remove rules"}


def test_an_error_of_no_rule_is_told_at_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, TOO_MANY_PREFIXES)
    with pytest.raises(InvalidConfig) as caught:
        load_compiled(path)
    assert str(caught.value) == (
        f"{path}:1: the rules use {MAX_PREFIXES + 2} prefixes, {MAX_PREFIXES} are possible - merge address sets"
    )


PLACES = {
    "policy": ("policy out: no", "[[policies]]", "policies.1"),
    "source nat": ("source nat a: no", '[[nat.source]]\nname = "a"', "nat.source.1"),
    "longer name": ("source nat a-b: no", '[[nat.source]]\nname = "a-b"', "nat.source.2"),
    "destination nat": ("destination nat in: no", "[[nat.destination]]", "nat.destination.1"),
    "static nat": ("static nat mail: no", "[[nat.static]]", "nat.static.1"),
    "zone": ("zone lan: no", "[zones.lan]", "zones.lan"),
    "host inbound": ("host inbound lan: no", "host_inbound", "zones.lan.host_inbound"),
    "pool": ("pool p: no", "[nat.pools.p]", "nat.pools.p"),
    "nothing known": ("something: no", "[zones.wan]", ""),
}
EVERYTHING = """[zones.wan]
interfaces = ["eth0"]
[zones.lan]
interfaces = ["eth1"]
host_inbound = ["ping"]
[[policies]]
name = "out"
from = "lan"
to = "wan"
action = "permit"
[nat.pools.p]
addresses = "203.0.113.1"
[[nat.source]]
name = "a"
from = "lan"
to = "wan"
destination = "192.0.2.0/24"
translate = "interface"
[[nat.source]]
name = "a-b"
from = "lan"
to = "wan"
translate = { pool = "p" }
[[nat.destination]]
name = "in"
from = "wan"
destination = "203.0.113.2"
to = "10.0.0.2"
[[nat.static]]
name = "mail"
zone = "wan"
external = "203.0.113.25"
internal = "10.0.0.25"
"""


@pytest.mark.parametrize("case", PLACES)
def test_every_kind_of_rule_is_found_in_the_file(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, at, place = PLACES[case]

    def refuse(_ruleset: Ruleset, _now: datetime) -> None:
        raise CompileError(f"{text} - do this - or that")

    monkeypatch.setattr("ipsec_gw.firewall.compiled.compile_always", refuse)
    path = tmp_path / "c.toml"
    path.write_text(EVERYTHING)
    line = EVERYTHING[: EVERYTHING.index(at)].count("\n") + 1
    with pytest.raises(InvalidConfig) as caught:
        load_compiled(path)
    (problem,) = caught.value.problems
    assert (problem.line, problem.path) == (line, place)
    assert (problem.message, problem.way_out) == (f"{text} - do this", "or that")


def test_a_compilers_error_without_a_way_out_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_ruleset: Ruleset, _now: datetime) -> None:
        raise CompileError("pool p: no")

    monkeypatch.setattr("ipsec_gw.firewall.compiled.compile_always", refuse)
    path = tmp_path / "c.toml"
    path.write_text(EVERYTHING)
    with pytest.raises(InvalidConfig, match=r"nat\.pools\.p: pool p: no - change it$"):
        load_compiled(path)


def test_a_good_file_is_what_it_was(tmp_path: Path) -> None:
    path = written(tmp_path, "".join(policy(number) for number in range(MAX_ROWS)))
    assert load_compiled(path) == load(path)
    path.write_text('[gateway]\nengine = "kernel"\n')
    assert load_compiled(path) == load(path)


def scheduled(schedule: Schedule | None, count: int, name: str) -> tuple[Policy, ...]:
    return tuple(Policy(f"{name}{n}", Action.PERMIT, "lan", "wan", schedule=schedule) for n in range(count))


BARE = Ruleset(zones=(Zone("lan", ("eth1",)), Zone("wan", ("eth0",))))


def test_what_only_the_night_would_bring_is_refused_at_noon() -> None:
    night = replace(BARE, policies=scheduled(None, MAX_ROWS, "p") + scheduled(NIGHT, 1, "late"))
    with pytest.raises(CompileError, match="policy late0: the policy table"):
        compile_always(night, NOON)
    sunday = replace(NIGHT, days=frozenset({6}))
    with pytest.raises(CompileError, match="policy late0: the policy table"):
        compile_always(replace(night, policies=night.policies[:-1] + scheduled(sunday, 1, "late")), NOON)


def test_what_never_holds_at_once_needs_no_room_at_once() -> None:
    compile_always(replace(BARE, policies=scheduled(NIGHT, MAX_ROWS, "n") + scheduled(DAY, MAX_ROWS, "d")), NOON)


def test_too_many_pools_are_told_at_the_first_that_is_too_many(tmp_path: Path) -> None:
    pools = "".join(f'[nat.pools.p{n}]\naddresses = "203.0.113.{n}"\n' for n in range(MAX_POOLS + 1))
    path = tmp_path / "c.toml"
    path.write_text(ZONES + pools)
    with pytest.raises(InvalidConfig, match=rf"nat\.pools\.p{MAX_POOLS}: .+ - "):
        load_compiled(path)
