"""Pools of VPP: what VPP is told of a ruleset, and who translates as VPP comes and goes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from ipsec_gw.engines.vpp_nat import nat_plan, nat_timeouts, room
from ipsec_gw.errors import EngineError, EngineUnavailable
from ipsec_gw.firewall.pools import MOST_SOURCES, WHOLE_LOOKS, Held, PoolWatch, Translated, doubts
from ipsec_gw.model.firewall import (
    Action,
    Policy,
    Pool,
    PoolEngine,
    Ruleset,
    Service,
    Sessions,
    SourceNat,
    Timeouts,
    Translation,
    Zone,
)
from ipsec_gw.model.snapshot import Mode, PolicyDirection, Template, XfrmPolicy
from ipsec_gw.observe.sessions import sources_of, with_translations
from vpp_conf.descriptors.nat import NatTimeouts
from vpp_conf.nat import NatPool
from xdp_steer.compile.errors import CompileError
from xdp_steer.compile.rows import PrefixRow
from xdp_steer.compile.translators import translated_rows, translators_of

POOL = Pool("fast", IPv4Address("203.0.113.0"), IPv4Address("203.0.113.15"), engine=PoolEngine.VPP)
PLAIN = Pool("plain", IPv4Address("198.51.100.1"), IPv4Address("198.51.100.1"))
RULE = SourceNat("out", Translation.POOL, "lan", "wan", pool="fast")
RULES = Ruleset(zones=(Zone("lan"), Zone("wan")), pools=(PLAIN, POOL), source_nat=(RULE,))
WITHOUT = replace(RULES, pools=(PLAIN,), source_nat=())
HELD = Held(life=7, ended=False, sessions=1000)


@dataclass
class Vpp:
    """A VPP that tells what it was asked for; ``broken`` is what it answers with instead."""

    held: Held = HELD
    broken: EngineError | None = None
    asked: list[str] = field(default_factory=list)

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.broken is not None:
            raise self.broken

    async def hold(self, ruleset: Ruleset) -> Held:
        self._ask("hold")
        return self.held

    async def look(self) -> int:
        self._ask("look")
        return self.held.life

    async def release(self) -> None:
        self._ask("release")

    async def translated(self, sources: Iterable[IPv4Address], tags: Iterable[int]) -> list[Translated]:
        self._ask(f"translated {len(list(sources))} {list(tags)}")
        return [Translated(17, (IPv4Address("10.0.0.1"), 5), (POOL.first, 9), (IPv4Address("192.0.2.1"), 53))]

    async def count(self) -> int:
        self._ask("count")
        return 3

    async def close(self) -> None:
        self._ask("close")


@dataclass
class Path:
    """The data path's switch."""

    on: bool = False
    begun: list[tuple[int, bool]] = field(default_factory=list)
    docked: int = 0

    def translates(self) -> bool:
        return self.on

    def begin_translation(self, life: int, *, anew: bool) -> None:
        assert self.docked, "VPP's interface is docked before"
        self.on = True
        self.begun.append((life, anew))

    def end_translation(self) -> None:
        self.on = False

    async def dock(self) -> None:
        self.docked += 1


def watch(vpp: Vpp | None, path: Path, ruleset: Ruleset = RULES) -> PoolWatch:
    made = PoolWatch(path, vpp, path.dock)
    made.want(ruleset)
    return made


async def test_vpp_gets_the_pools_and_then_the_flows() -> None:
    vpp, path = Vpp(), Path()
    pools = watch(vpp, path)
    assert pools.state.startswith("XDP")
    await pools.look()
    assert (vpp.asked, path.begun, pools.state) == (["hold"], [(7, False)], "VPP")
    await pools.look()
    assert vpp.asked == ["hold", "look"]
    assert path.begun == [(7, False)]


async def test_all_of_it_is_held_against_what_is_wanted_now_and_then() -> None:
    vpp, path = Vpp(), Path()
    pools = watch(vpp, path)
    for _ in range(2 * WHOLE_LOOKS):
        await pools.look()
    assert vpp.asked.count("hold") == 3
    assert vpp.asked.count("look") == 2 * WHOLE_LOOKS - 3


async def test_another_ruleset_is_held_at_once_and_what_ended_is_told() -> None:
    vpp, path = Vpp(), Path()
    pools = watch(vpp, path)
    await pools.look()
    vpp.held = replace(HELD, ended=True)
    pools.want(replace(RULES, pools=(POOL,)))
    await pools.look()
    assert path.begun == [(7, False), (7, True)]


@pytest.mark.parametrize("trouble", [EngineUnavailable("it is gone"), EngineError("it refuses")])
async def test_without_vpp_xdp_translates_and_the_reason_is_shown(trouble: EngineError) -> None:
    vpp, path = Vpp(), Path()
    pools = watch(vpp, path)
    await pools.look()
    vpp.broken = trouble
    await pools.look()
    assert not path.on
    assert pools.state == f"XDP, with its own addresses of the pools ({trouble})"
    assert (await pools.view())["translations"] == 0
    vpp.broken, vpp.held = None, replace(HELD, life=8)
    await pools.look()
    assert path.begun[-1] == (8, False)
    assert pools.state == "VPP"


async def test_a_dock_that_found_no_vpp_is_believed() -> None:
    """The data path has switched itself off: all of VPP is looked at before it gets flows again."""
    vpp, path = Vpp(), Path()
    pools = watch(vpp, path)
    await pools.look()
    path.on = False
    await pools.look()
    assert vpp.asked == ["hold", "hold"]
    assert path.on


async def test_pools_that_are_wanted_no_more_are_released_once() -> None:
    vpp, path = Vpp(), Path()
    pools = watch(vpp, path)
    await pools.look()
    assert pools.wanted
    pools.want(WITHOUT)
    assert not pools.wanted
    await pools.look()
    await pools.look()
    assert vpp.asked == ["hold", "release"]
    assert not path.on
    assert (await pools.view())["state"] == ""


async def test_what_an_earlier_daemon_left_on_goes_off_without_vpp() -> None:
    path = Path(on=True)
    pools = watch(None, path)
    await pools.look()
    assert not path.on
    assert "no VPP is in use" in pools.state


async def test_vpp_is_asked_for_few_sources_and_tells_what_it_makes_of_them() -> None:
    vpp, path = Vpp(), Path()
    pools = watch(vpp, path)
    assert await pools.translated(frozenset({IPv4Address("10.0.0.1")})) == []
    await pools.look()
    many = frozenset(IPv4Address("10.0.0.0") + number for number in range(2 * MOST_SOURCES))
    assert len(await pools.translated(many)) == 1
    assert vpp.asked[-1] == f"translated {MOST_SOURCES} [2]"
    assert await pools.view() == {"state": "VPP", "translations": 3, "most": 1000}


def test_what_is_against_vpps_addresses_is_said() -> None:
    here = frozenset({IPv4Address("203.0.113.3"), IPv4Address("203.0.113.15"), IPv4Address("10.0.0.1")})
    protects = XfrmPolicy(
        PolicyDirection.OUT,
        IPv4Network("203.0.113.8/29"),
        IPv4Network("10.9.0.0/16"),
        1000,
        True,
        (Template(IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2"), 0, 50, 1, Mode.TUNNEL),),
    )
    elsewhere = replace(protects, source=IPv4Network("203.0.113.14/31"))
    inward, clear = replace(protects, direction=PolicyDirection.IN), replace(protects, templates=())
    assert list(doubts(translators_of(RULES), here, [protects, elsewhere, inward, clear])) == [
        "pool fast has 203.0.113.3, an address of this machine: no answers to it reach VPP",
        "pool fast is VPP's and lies in 203.0.113.8/29, which IPsec protects towards 10.9.0.0/16: "
        "what it has translated for there is dropped",
    ]


def row(**changes: object) -> dict[str, object]:
    ends = {"address": "10.0.0.1", "port": 5}, {"address": "192.0.2.1", "port": 53}
    made = {"translator": "vpp", "protocol": 17, "source": ends[0], "destination": ends[1]}
    return {**made, "natSource": None, "natDestination": None, **changes}


def test_what_vpp_tells_is_joined_to_its_sessions() -> None:
    (known,) = [Translated(17, (IPv4Address("10.0.0.1"), 5), (POOL.first, 9), (IPv4Address("192.0.2.1"), 53))]
    other = row(destination={"address": "192.0.2.1", "port": 54})
    led = row(destination={"address": "192.0.2.7", "port": 80}, natDestination={"address": "192.0.2.1", "port": 53})
    answer = {"total": 4, "sessions": [row(), other, row(translator=""), led]}
    assert sources_of(answer) == {IPv4Address("10.0.0.1")}
    joined = with_translations(answer, [known])
    became = {"address": "203.0.113.0", "port": 9}
    assert [one["natSource"] for one in joined["sessions"]] == [became, None, None, became]
    assert joined["total"] == 4


def test_the_plan_has_vpps_addresses_and_the_tags_of_the_pools() -> None:
    plan = nat_plan(RULES, 1000)
    assert plan.pools == (NatPool(2, IPv4Address("203.0.113.0"), IPv4Address("203.0.113.13")),)
    assert (plan.sessions, plan.outside) == (1000, 100)
    assert len(plan.pools[0].addresses()) == 14


def test_prefixes_cover_vpps_addresses_and_no_others() -> None:
    rows = list(translated_rows(translators_of(RULES)))
    assert rows[0] == PrefixRow(IPv4Network("203.0.113.0/29"), 2)
    assert sum(one.network.num_addresses for one in rows) == 14
    assert not any(POOL.last in one.network for one in rows)


def test_pools_without_rules_are_nobodys_and_those_into_any_zone_are_refused() -> None:
    assert translators_of(replace(RULES, source_nat=())) == ()
    assert translators_of(WITHOUT) == ()
    with pytest.raises(CompileError, match="pool fast: VPP translates IPv4 into one zone"):
        translators_of(replace(RULES, source_nat=(replace(RULE, to_zone=None),)))


def test_timeouts_are_the_longest_that_a_session_may_have() -> None:
    timeouts = Timeouts(udp=60, tcp_established=1800, tcp_opening=30, tcp_closing=40, tcp_time_wait=120, icmp=31)
    plain = replace(RULES, sessions=Sessions(timeouts=timeouts))
    assert nat_timeouts(plain) == NatTimeouts(60, 1800, 120, 31)
    services = (Service(17, timeout=600), Service(6, timeout=7200), Service(1, timeout=9000))
    asked = replace(plain, policies=(Policy("p", Action.PERMIT, services=services),))
    assert nat_timeouts(asked) == NatTimeouts(600, 7200, 120, 31)


@pytest.mark.parametrize(
    ("wanted", "present", "free", "given"),
    [
        (1000, 0, 1 << 30, 1000),
        (1_000_000, 0, 1 << 29, 524_288),  # half of what is free
        (1_000_000, 200_000, 1 << 20, 200_000),  # what is there stays
        (200_000, 100_000, 1 << 30, 200_000),
        (100, 200_000, 0, 100),
    ],
)
def test_translations_have_room_in_vpps_heap(wanted: int, present: int, free: int, given: int) -> None:
    assert room(wanted, present, free) == given
