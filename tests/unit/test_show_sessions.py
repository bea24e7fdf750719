"""`show sessions` and `clear sessions`: what is asked, what is answered, and through which tunnel a session goes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from ipsec_gw.cli import sessions as cli
from ipsec_gw.cli.main import Options
from ipsec_gw.desired import Owner, SaVerdict
from ipsec_gw.errors import ConfigError
from ipsec_gw.firewall.ageing import SECOND, Counts, Filter
from ipsec_gw.firewall.talkers import Talker, TalkersBy, top_talkers
from ipsec_gw.model.ids import Direction, EngineName, SaKey
from ipsec_gw.model.objects import PortMatch
from ipsec_gw.model.snapshot import (
    ChildName,
    Lifetime,
    Mode,
    PolicyDirection,
    Replay,
    Template,
    XfrmPolicy,
    XfrmSa,
)
from ipsec_gw.observe import control
from ipsec_gw.observe.carriers import Carrier, Carriers
from ipsec_gw.observe.sessions import CLEAR, EndView, Query, by_engine, chosen_by, sessions_view
from tests.unit.flow_kit import DECODER, FLOW, SESSION
from xdp_steer.flow_layout import SessionFlag, State
from xdp_steer.layout import AddressLeaf
from xdp_steer.sessions import KEY, ROW, Batch, Flow


class Table:
    """What the view needs of a session table."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.asked: object = None

    def sessions(self, chosen: object):
        self.asked = chosen
        return iter([replace(SESSION, id=number) for number in range(self.count)])


COUNTS = Counts(3, 10, {State.TIME_WAIT: 3}, {1: 2, 0: 1})
ZONES = {"self": 0, "trust": 1, "untrust": 2}


OUT = SaKey(ip_address("203.0.113.2"), 0xC0FFEE)


def policy(near: str, far: str, **fields: Any) -> XfrmPolicy:
    template = Template(ip_address("203.0.113.1"), OUT.destination, OUT.spi, 50, 7, Mode.TUNNEL)
    both = ip_network(near), ip_network(far)
    return XfrmPolicy(
        PolicyDirection.OUT, *both, **({"priority": 10, "allow": True, "templates": (template,)} | fields)
    )


def verdict(owner: Owner = Owner.ENGINE, key: SaKey = OUT, reqid: int = 7) -> SaVerdict:
    replay, lifetime = Replay(0, 0, 32, esn=False, extended=False), Lifetime(0, 0, 0, 0)
    sa = XfrmSa(key, ip_address("203.0.113.1"), 50, Mode.TUNNEL, reqid, None, "aes", replay, lifetime)
    return SaVerdict(sa, Direction.OUT, owner, "")


def carriers(
    *policies: XfrmPolicy, verdicts: tuple[SaVerdict, ...] = (), zones: frozenset[int] = frozenset({2})
) -> Carriers:
    names = {OUT.spi: ChildName("branch", "net", 1, 1, "INSTALLED")}
    return Carriers(policies, verdicts, names, EngineName.VPP, zones)


INTO = Carrier("vpp", "branch/net", "00c0ffee")
OPEN_WORLD = policy("0.0.0.0/0", "0.0.0.0/0")


@pytest.mark.parametrize(
    ("policies", "fields", "expected"),
    [
        ((policy("198.51.100.0/24", "192.0.2.0/24"),), {}, INTO),
        ((policy("10.0.0.0/8", "192.0.2.0/24"),), {}, None),  # it is the translated source that is encrypted
        ((policy("198.51.100.0/24", "192.0.2.0/24", upper=17),), {}, None),
        ((policy("198.51.100.0/24", "192.0.2.0/24", destination_port=PortMatch(443, 0xFFFF)),), {}, INTO),
        ((policy("198.51.100.0/24", "192.0.2.0/24", destination_port=PortMatch(444, 0xFFFF)),), {}, None),
        ((policy("198.51.100.0/24", "192.0.2.0/24", source_port=PortMatch(2000, 0xFFF0)),), {}, INTO),
        ((OPEN_WORLD, policy("0.0.0.0/0", "192.0.2.80", priority=5, templates=())), {}, None),  # the better one: bypass
        ((OPEN_WORLD, policy("0.0.0.0/0", "192.0.2.80", priority=5, allow=False)), {}, None),
        ((OPEN_WORLD,), {"zones": frozenset({9})}, None),
        ((OPEN_WORLD,), {"verdicts": (verdict(Owner.KERNEL),)}, replace(INTO, engine="kernel")),
        ((OPEN_WORLD,), {"verdicts": (verdict(Owner.PENDING),)}, replace(INTO, engine="pending")),
        ((OPEN_WORLD,), {"verdicts": ()}, Carrier("kernel")),
        (
            (OPEN_WORLD,),
            {"verdicts": (verdict(key=replace(OUT, spi=0xAB)),)},
            Carrier("vpp", "", "000000ab"),
        ),  # by reqid
    ],
)
def test_what_carries_a_session(policies: tuple[XfrmPolicy, ...], fields: dict, expected: Carrier | None) -> None:
    assert carriers(*policies, **({"verdicts": (verdict(),)} | fields)).of(SESSION) == expected


def test_a_session_from_a_tunnel_is_carried_by_what_carries_its_answers() -> None:
    far, near = ip_address("192.0.2.80"), ip_address("198.51.100.1")
    inner = replace(SESSION, flow=Flow(far, near, 443, 2000, 6, 2), translated=Flow(far, FLOW.source, 443, 40000, 6, 1))
    assert carriers(policy("10.0.0.0/8", "192.0.2.0/24"), verdicts=(verdict(),)).of(inner) == INTO
    assert carriers(policy("198.51.100.0/24", "192.0.2.0/24"), verdicts=(verdict(),)).of(inner) is None


def view(query: Query, count: int = 3, table: Table | None = None) -> dict:
    return sessions_view(table or Table(count), COUNTS, query, DECODER, ZONES, carriers(), 40 * SECOND).to_json()


def test_the_view() -> None:
    answer = view(Query())
    assert (answer["total"], answer["maximum"], answer["utilisation"], answer["more"]) == (3, 10, 30.0, False)
    assert (answer["byState"], answer["byZone"]) == ({"time-wait": 3}, {"trust": 2, "self": 1})
    first = answer["sessions"][0]
    assert first["natSource"] == {"address": "198.51.100.1", "port": 2000}
    assert first["natDestination"] is None
    assert (first["idle"], first["timeout"], first["age"], first["policy"]) == (10.0, 120, 30.0, "web")


def test_the_view_stops_at_its_limit() -> None:
    assert view(Query(limit=2))["more"]
    assert len(view(Query(limit=2))["sessions"]) == 2
    assert not view(Query(limit=3))["more"]


def test_limit_zero_reads_no_sessions() -> None:
    table = Table(3)
    answer = view(Query(limit=0), table=table)
    assert (answer["sessions"], answer["total"], table.asked) == ((), 3, None)


def test_the_filter_of_a_question() -> None:
    table = Table(0)
    view(Query(zone="untrust", prefix="192.0.2.7/24", port=443, protocol=6), table=table)
    assert (table.asked.zone, str(table.asked.prefix), table.asked.port, table.asked.protocol) == (
        2,
        "192.0.2.0/24",
        443,
        6,
    )


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (Query(zone="dmz"), "no zone 'dmz' - there are self, trust"),
        (Query(prefix="10.0.0.0/40"), "10.0.0.0/40"),
        (Query(engine="warp"), "no engine 'warp' - say one of xdp, vpp"),
        (Query(top=3, by="colour"), "talkers by 'colour' - say one of bytes, packets, sessions"),
    ],
)
def test_a_question_about_nothing(query: Query, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        view(query)


def test_questions_come_back_from_their_line() -> None:
    query = Query("trust", "10.0.0.0/8", 53, 17, "vpp", 60, 90.5, 5, 3, "packets")
    assert Query.parse(query.question()) == query
    assert Query.parse(query.question(CLEAR)) == query
    assert Query.parse("sessions") == Query()
    for bad in ("sessions {", 'sessions {"zome": 1}', "sessions [1]"):
        with pytest.raises(ConfigError, match="ask with this version"):
            Query.parse(bad)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Query]:
    """The daemon's part, without its socket."""
    questions: list[Query] = []

    def ask(_run_dir: Path, question: str):
        questions.append(Query.parse(question))
        return json.loads(json.dumps(view(questions[-1])))

    monkeypatch.setattr(control, "ask", ask)
    return questions


def run(*arguments: str):
    options = Options(None, Path("/nowhere"), Path("/nowhere"))
    return CliRunner().invoke(cli.sessions, list(arguments), obj=options, env={"COLUMNS": "120"})


def test_the_table(asked: list[Query]) -> None:
    result = run("--zone", "trust", "--protocol", "TCP")
    assert result.exit_code == 0, result.output
    assert asked == [Query(zone="trust", protocol=6)]
    assert "3 of 10 sessions (30.0 %)" in result.output
    joined = re.sub(r"\s+", " ", result.output)
    assert "trust > untrust" in joined
    assert "110 s 5/4 500 bytes/4.0 kB" in joined


def test_json_is_the_answer(asked: list[Query]) -> None:
    result = run("--json", "--limit", "1")
    assert json.loads(result.output)["more"] is True
    assert len(json.loads(result.output)["sessions"]) == 1


@pytest.mark.parametrize("protocol", ["256", "-1", "ipx", "6.0"])
def test_a_protocol_that_is_none(protocol: str, asked: list[Query]) -> None:
    result = run("--protocol", protocol)
    assert result.exit_code == 2
    assert "is no protocol" in result.output
    assert asked == []


def test_ends_are_written_as_in_urls() -> None:
    ends = [EndView("2001:db8::1", 443), EndView("10.0.0.1", 53), EndView("2001:db8::1", 0)]
    assert [str(end) for end in ends] == ["[2001:db8::1]:443", "10.0.0.1:53", "2001:db8::1"]


def test_engine_and_age_are_part_of_the_filter() -> None:
    world = carriers(OPEN_WORLD, verdicts=(verdict(),))
    query = Query(engine="vpp", older=30, younger=35)
    chosen = chosen_by(query, ZONES, world, 40 * SECOND)
    assert chosen == Filter(zones=frozenset({2}), before_ns=10 * SECOND, after_ns=5 * SECOND)
    assert by_engine(Table(2), chosen, query, world).ids == {0, 1}
    assert by_engine(Table(2), chosen, replace(query, engine="soft"), world).ids == frozenset()
    assert by_engine(Table(2), chosen, replace(query, engine=None), world) == chosen
    assert by_engine(Table(2), Filter(), Query(engine="xdp"), carriers()).ids == {0, 1}


class Rows:
    """A table of entries: client, reverse, packets of one direction, octets likewise."""

    def __init__(self, *entries: tuple[str, bool, int, int]) -> None:
        self.entries = entries

    def batches(self) -> Iterator[Batch]:
        for half in (self.entries[::2], self.entries[1::2]):
            keys, rows = np.zeros(len(half), KEY), np.zeros(len(half), ROW)
            for index, (client, reverse, packets, octets) in enumerate(half):
                side = rows[index]["daddr"] if reverse else keys[index]["saddr"]
                side["addr"] = AddressLeaf.of(ip_address(client)).addr
                rows[index]["flags"] = SessionFlag.REVERSE if reverse else 0
                rows[index]["own_packets"], rows[index]["far_packets"] = packets - 1, 1
                rows[index]["own_octets"], rows[index]["far_octets"] = octets, 0
            yield Batch(keys, rows)


TALK = Rows(
    ("10.0.0.1", False, 10, 1000),
    ("10.0.0.1", True, 5, 9000),
    ("10.0.0.0", False, 30, 300),
    ("10.0.0.1", False, 2, 20),
    ("2001:db8::1", False, 1, 50_000),
)
ONE = Talker(ip_address("10.0.0.1"), 2, 17, 10_020)
ZERO = Talker(ip_address("10.0.0.0"), 1, 30, 300)
SIX = Talker(ip_address("2001:db8::1"), 1, 1, 50_000)


@pytest.mark.parametrize(
    ("by", "limit", "expected"),
    [
        (TalkersBy.BYTES, 9, (SIX, ONE, ZERO)),
        (TalkersBy.PACKETS, 9, (ZERO, ONE, SIX)),
        (TalkersBy.SESSIONS, 1, (ONE,)),
    ],
)
def test_who_talks_most(by: TalkersBy, limit: int, expected: tuple[Talker, ...]) -> None:
    assert top_talkers(TALK, Filter(), by, limit) == expected  # type: ignore[arg-type]


def test_only_chosen_sessions_talk() -> None:
    assert top_talkers(TALK, Filter(prefix=ip_network("2001:db8::/32")), TalkersBy.BYTES, 9) == (SIX,)  # type: ignore[arg-type]
    assert top_talkers(Rows(), Filter(), TalkersBy.BYTES, 9) == ()  # type: ignore[arg-type]


@pytest.fixture
def cleared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    questions: list[str] = []

    def ask(_run_dir: Path, question: str) -> dict[str, int]:
        questions.append(question)
        return {"cleared": 1234}

    monkeypatch.setattr(control, "ask", ask)
    return questions


def clear(*arguments: str):
    return CliRunner().invoke(
        cli.clear, ["sessions", *arguments], obj=Options(None, Path("/nowhere"), Path("/nowhere"))
    )


def test_clear_tells_how_many(cleared: list[str]) -> None:
    assert clear("--zone", "trust", "--older", "60").output == "1,234 sessions ended\n"
    assert clear("--all", "--json").output == '{"cleared": 1234}\n'
    assert [Query.parse(question) for question in cleared] == [Query(zone="trust", older=60), Query()]
    assert all(question.startswith(f"{CLEAR} ") for question in cleared)


@pytest.mark.parametrize("arguments", [(), ("--all", "--port", "80")])
def test_clear_wants_to_know_which(arguments: tuple[str, ...], cleared: list[str]) -> None:
    result = clear(*arguments)
    assert (result.exit_code, cleared) == (2, [])
    assert "say which sessions, by one option or more, or --all" in result.output
