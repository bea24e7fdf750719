"""Pools with the engine "auto": what is measured, who gets new flows, and what is told of it. No clock but a list's."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

import pytest

from ipsec_gw.cli.show import _auto_text
from ipsec_gw.firewall.pool_mover import PoolMover
from ipsec_gw.firewall.pool_moves import LOOK_SECONDS, Asked, Meter, Rates
from ipsec_gw.model.firewall import Moves, Pool, PoolEngine, Ruleset, SourceNat, Translation, Zone
from xdp_steer.tables import PoolCount

MOVES = Moves(promote_flows=1000, promote_packets=50_000, demote_flows=500, demote_packets=25_000, dwell=60)
POOL = Pool("crowd", IPv4Address("203.0.113.0"), IPv4Address("203.0.113.15"), engine=PoolEngine.AUTO, moves=MOVES)
FAST = Pool("fast", IPv4Address("198.51.100.0"), IPv4Address("198.51.100.7"), engine=PoolEngine.VPP)
TAG = 2


def rules(*pools: Pool) -> Ruleset:
    nat = tuple(SourceNat(pool.name, Translation.POOL, "lan", "wan", pool=pool.name) for pool in pools)
    return Ruleset(zones=(Zone("lan"), Zone("wan")), pools=pools, source_nat=nat)


RULES = rules(FAST, POOL)


@dataclass
class Path:
    """The data path and the time. ``given`` are all writes."""

    at_vpp: set[int] = field(default_factory=set)
    given: list[tuple[int, bool]] = field(default_factory=list)
    counts: dict[int, PoolCount] = field(default_factory=dict)
    now: float = 1000.0

    def is_vpps(self, tag: int) -> bool:
        return tag in self.at_vpp

    def give(self, tag: int, *, to_vpp: bool) -> None:
        self.given.append((tag, to_vpp))
        (self.at_vpp.add if to_vpp else self.at_vpp.discard)(tag)

    def count(self, tag: int) -> PoolCount:
        return self.counts.get(tag, PoolCount(0, 0))

    def clock(self) -> float:
        return self.now


class Story:
    """A mover that lives through seconds of traffic."""

    def __init__(self, path: Path | None = None, ruleset: Ruleset = RULES) -> None:
        self.path = path or Path()
        self.mover = PoolMover(self.path, self.path.clock, self.path.clock)
        self.mover.want(ruleset)

    def live(self, seconds: float, flows: int, packets: int = 0, tag: int = TAG) -> None:
        for _ in range(round(seconds / LOOK_SECONDS)):
            self.path.now += LOOK_SECONDS
            count = self.path.count(tag)
            more = round(flows * LOOK_SECONDS), round(packets * LOOK_SECONDS)
            self.path.counts[tag] = PoolCount(count.flows + more[0], count.packets + more[1], count.refused)
            self.mover.look()

    def engine(self, name: str = POOL.name) -> str:
        return str(self.mover.view()[name]["engine"])


@pytest.mark.parametrize(("flows", "packets"), [(1000, 0), (0, 50_000), (200_000, 9_000_000)])
def test_a_surge_moves_new_flows_within_two_seconds_by_one_write(flows: int, packets: int) -> None:
    story = Story()
    story.live(10, 400, 20_000)
    assert (story.path.given, story.engine()) == ([], "xdp")
    begun = story.path.now
    while not story.path.given:
        story.live(LOOK_SECONDS, flows, packets)
        assert story.path.now - begun <= 1.5
    assert story.path.given == [(TAG, True)]
    story.live(600, flows, packets)
    assert story.path.given == [(TAG, True)]


def test_it_moves_when_xdp_has_no_port_for_a_flow() -> None:
    story = Story()
    story.live(5, 10)
    story.path.counts[TAG] = replace(story.path.counts[TAG], refused=1)
    story.live(LOOK_SECONDS, 10)
    assert story.path.given == [(TAG, True)]
    story.live(59, 10)
    assert story.engine() == "vpp"
    story.live(3, 10)
    assert story.engine() == "xdp"


def test_it_goes_back_after_the_dwell_time_below_the_lower_rates() -> None:
    story = Story()
    story.live(5, 2000)
    assert story.engine() == "vpp"
    story.live(600, 700)  # between the two: it stays
    assert story.engine() == "vpp"
    story.live(50, 100)
    story.live(2, 700)  # a break in the calm
    story.live(59, 100)
    assert story.engine() == "vpp"
    story.live(3, 100)
    assert story.path.given == [(TAG, True), (TAG, False)]
    story.live(600, 700)
    assert story.engine() == "xdp"


def test_packets_of_flows_that_go_on_keep_it() -> None:
    story = Story()
    story.live(5, 2000, 60_000)
    story.live(600, 0, 30_000)
    assert story.engine() == "vpp"
    story.live(62, 0, 20_000)
    assert story.engine() == "xdp"


def test_a_daemon_that_comes_back_goes_on_with_what_it_finds() -> None:
    story = Story(Path(at_vpp={TAG, 7}))
    assert story.path.given == [(7, False)]  # of no pool any more
    assert story.engine() == "vpp"
    story.live(59, 0)
    assert story.engine() == "vpp"
    story.live(3, 0)
    assert story.engine() == "xdp"


def test_a_reload_keeps_what_is_known_of_a_pool() -> None:
    story = Story()
    story.live(5, 2000)
    since = story.mover.view()[POOL.name]["since"]
    story.mover.want(rules(POOL, FAST))  # another tag, with counters of its own
    assert story.path.at_vpp == {1}
    story.live(2, 0, tag=1)
    assert (story.engine(), story.mover.view()[POOL.name]["since"]) == ("vpp", since)
    story.mover.want(rules(replace(POOL, moves=replace(MOVES, dwell=5)), FAST))
    story.live(6, 0, tag=1)
    assert story.engine() == "xdp"


def test_another_pool_begins_in_xdp_and_others_are_left_alone() -> None:
    story = Story()
    story.live(5, 2000)
    story.mover.want(rules(FAST, replace(POOL, name="other")))
    assert (story.path.at_vpp, story.engine("other")) == (set(), "xdp")
    story.mover.want(rules(FAST, replace(POOL, engine=PoolEngine.VPP)))
    assert story.mover.view() == {}
    story.live(5, 9999, tag=1)
    assert story.path.at_vpp == set()


def test_counters_that_begin_anew_are_no_surge_and_no_calm() -> None:
    meter = Meter()
    assert [meter.add(Asked(at, 100 * at, 0)) for at in (0, 1, 2)] == [None, None, Rates(100.0, 0.0)]
    assert [meter.add(Asked(at, at, 0)) for at in (3, 4)] == [None, None]
    assert meter.add(Asked(5, 5, 10)) == Rates(1.0, 5.0)
    assert meter.add(Asked(5, 5, 10)) is None  # no time has passed


def test_a_daemon_that_was_away_takes_the_rate_of_all_that_time() -> None:
    story = Story()
    story.live(5, 100)
    story.path.now += 100
    count = story.path.count(TAG)
    story.path.counts[TAG] = PoolCount(count.flows + 10_000, count.packets)
    story.mover.look()
    assert story.engine() == "xdp"


def test_what_is_told() -> None:
    story = Story()
    story.live(5, 400, 20_000)
    told = story.mover.view()[POOL.name]
    assert (told["newFlowsPerSecond"], told["packetsPerSecond"]) == (400, 20_000)
    assert told["nextMove"] == {"engine": "vpp", "seconds": 0, "newFlowsPerSecond": 1000, "packetsPerSecond": 50_000}
    assert _auto_text("crowd", told) == (
        f"pool crowd is XDP's since {told['since']}: 400 new flows/s and 20,000 packets/s; "
        "VPP's from 1,000 or 50,000, or when XDP has no port"
    )
    story.live(5, 2000)
    told = story.mover.view()[POOL.name]
    assert told["nextMove"] == {"engine": "xdp", "seconds": 60, "newFlowsPerSecond": 500, "packetsPerSecond": 25_000}
    assert _auto_text("crowd", told).endswith("; XDP's in 60 s if from now on it is below 500 and 25,000")
    story.live(21, 0)
    told = story.mover.view()[POOL.name]
    assert told["nextMove"]["seconds"] == 40
    assert _auto_text("crowd", told).endswith("; XDP's in 40 s if it stays below 500 and 25,000")
